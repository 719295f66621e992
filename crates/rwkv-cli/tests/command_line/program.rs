//! Starting the program, and what it says.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rwkv-cli"));
    for name in [
        "RWKV_MODEL",
        "RWKV_DEVICE",
        "RWKV_LOG",
        "RWKV_HIDE",
        "RWKV_CHECKS",
    ] {
        command.env_remove(name);
    }
    // Not the user's.
    command.env(
        "RWKV_CACHE_DIR",
        concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"),
    );
    command
}

pub(crate) fn run(args: &[&str]) -> Output {
    program()
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Runs on the CPU and expects success; returns stdout.
#[track_caller]
pub(crate) fn stdout(args: &[&str]) -> String {
    let output = run(args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Expects one line of error that contains `part`, this exit code, and nothing on stdout.
#[track_caller]
pub(crate) fn refused(args: &[&str], code: i32, part: &str) {
    let output = run(args);
    let error = text(&output.stderr);
    let last: Vec<_> = error.lines().filter(|l| l.starts_with("error")).collect();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    assert!(
        last.len() == 1 && last[0].contains(part),
        "{args:?}: {error}"
    );
    assert!(!error.contains("panicked"), "{error}");
    assert!(
        output.stdout.is_empty(),
        "{args:?}: {}",
        text(&output.stdout)
    );
}

/// Starts it, and presses Ctrl-C when `folder` has more bytes than before; nothing is left there.
#[cfg(unix)]
#[track_caller]
pub(crate) fn interrupted(mut command: Command, folder: &std::path::Path) {
    use std::{
        collections::BTreeMap,
        time::{Duration, Instant},
    };
    // What takes longer never comes.
    let long = Duration::from_mins(10);
    let files = || {
        let files = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
        let sizes = files.map(|f| (f.file_name(), f.metadata().map_or(0, |m| m.len())));
        sizes.collect::<BTreeMap<_, _>>()
    };
    let bytes = || files().values().sum::<u64>();
    let (before, had) = (files(), bytes());
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while bytes() == had {
        let ended = child.try_wait().unwrap();
        assert_eq!(ended, None, "it ends without a word");
        let waits = begun.elapsed() <= long;
        if !waits {
            child.kill().unwrap();
        }
        assert!(waits, "it never writes");
        std::thread::sleep(Duration::from_millis(20));
    }
    Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(files(), before);
}

/// Runs with these bytes on stdin.
pub(crate) fn fed(args: &[&str], bytes: &[u8]) -> Output {
    let mut child = program()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    child.wait_with_output().unwrap()
}
