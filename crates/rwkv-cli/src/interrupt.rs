//! Ctrl-C.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
};

/// The exit code of an interrupted program.
pub(crate) const EXIT_CODE: u8 = 130;

/// Whether Ctrl-C was pressed. The first time asks the program to stop where it can; the second ends it.
#[derive(Clone, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Starts listening; when this returns, Ctrl-C no longer ends the program by itself.
    pub(crate) fn listen() -> std::io::Result<Self> {
        let interrupt = Self::default();
        let pressed = interrupt.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let (listening, listens) = mpsc::channel();
        std::thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    let mut next = pin!(tokio::signal::ctrl_c());
                    let next = poll_fn(|context| {
                        let polled = next.as_mut().poll(context);
                        // The first look installs the handler.
                        let _ = listening.send(());
                        polled
                    });
                    if next.await.is_err() {
                        return;
                    }
                    if pressed.0.swap(true, Relaxed) {
                        std::process::exit(i32::from(EXIT_CODE));
                    }
                }
            });
        });
        // An error means that nothing can listen here.
        let _ = listens.recv();
        Ok(interrupt)
    }

    /// Whether it was pressed.
    pub(crate) fn pressed(&self) -> bool {
        self.0.load(Relaxed)
    }
}
