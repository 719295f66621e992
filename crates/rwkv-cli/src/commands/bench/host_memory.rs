//! Memory of this process, where the system tells it (Linux: `/proc/self/status`, see proc(5)).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Bytes that the process has for itself now: `RssAnon`, which leaves out the pages of mapped files.
pub(super) fn private_bytes() -> Option<u64> {
    field("RssAnon")
}

/// The most bytes that were ever resident, pages of mapped files too: `VmHWM`.
pub(super) fn peak_resident_bytes() -> Option<u64> {
    field("VmHWM")
}

fn field(name: &str) -> Option<u64> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    parse(&std::fs::read_to_string("/proc/self/status").ok()?, name)
}

/// The bytes of a line such as `VmHWM:      1234 kB`.
fn parse(status: &str, name: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Watches the private bytes while something else runs: the system keeps no peak of them.
pub(super) struct Watch {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Option<u64>>,
}

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

impl Watch {
    pub(super) fn start() -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let seen = done.clone();
        let thread = std::thread::spawn(move || {
            let mut most = private_bytes();
            while most.is_some() && !seen.load(Relaxed) {
                std::thread::sleep(PAUSE);
                most = most.max(private_bytes());
            }
            most
        });
        Self { done, thread }
    }

    /// The most that was seen.
    pub(super) fn stop(self) -> Option<u64> {
        self.done.store(true, Relaxed);
        self.thread.join().ok().flatten().max(private_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_status() {
        #[track_caller]
        fn check(status: &str, want: Option<u64>) {
            assert_eq!(parse(status, "VmHWM"), want, "{status:?}");
        }
        check(
            "Name:\tx\nVmHWM:\t    1234 kB\nRssAnon:\t 1 kB\n",
            Some(1_263_616),
        );
        check("VmHWM: 0 kB", Some(0));
        check("", None);
        check("VmHWMX: 3 kB", None);
        check("VmHWM: 3", None);
        check("VmHWM: -3 kB", None);
        check("VmHWM: 18446744073709551615 kB", None);
    }
}
