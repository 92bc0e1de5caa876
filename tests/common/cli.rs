//! Running the program: exit code, stdout, stderr.

use std::borrow::BorrowMut;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// The program with arguments; where they name no device it takes the CPU, whatever the machine has.
pub fn mixlora(args: &[impl AsRef<OsStr>]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_mixlora"));
    c.args(args).env("MIXLORA_DEVICE", "cpu");
    // Of the terminal where tests run: tables are whole lines here.
    c.env_remove("COLUMNS");
    c
}

fn checked(what: &dyn Debug, done: Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let out = text(&done.stdout);
    let err = text(&done.stderr);
    assert_eq!(done.status.code(), Some(code), "{what:?}\n{out}\n{err}");
    assert!(!err.contains("panicked"), "{what:?}: {err}");
    (out, err)
}

/// What a command prints on stdout and stderr; it must end with this code.
pub fn output(mut c: impl BorrowMut<Command>, code: i32) -> (String, String) {
    let c = c.borrow_mut();
    let done = c.output().unwrap();
    checked(c, done, code)
}

/// The same with a text as its input.
pub fn answer_to(args: &[impl AsRef<OsStr>], input: &str, code: i32) -> (String, String) {
    let mut c = mixlora(args);
    let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that refuses its options does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    checked(&c, child.wait_with_output().unwrap(), code)
}
