//! Ctrl-C.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// The exit code of an interrupted program.
pub(crate) const EXIT_CODE: u8 = 130;

/// Whether Ctrl-C was pressed. The first time asks the program to stop where it can; the second ends it.
#[derive(Clone, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Starts listening.
    pub(crate) fn listen() -> std::io::Result<Self> {
        let interrupt = Self::default();
        let pressed = interrupt.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                while tokio::signal::ctrl_c().await.is_ok() {
                    if pressed.0.swap(true, Relaxed) {
                        std::process::exit(i32::from(EXIT_CODE));
                    }
                }
            });
        });
        Ok(interrupt)
    }

    /// Whether it was pressed.
    pub(crate) fn pressed(&self) -> bool {
        self.0.load(Relaxed)
    }
}
