//! The command line program as a user meets it: exit codes, stdout and stderr, JSON.
#![cfg(feature = "cli")]

use serde_json::Value;
use std::process::{Command, Output, Stdio};

fn mixlora(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_mixlora"));
    c.args(args);
    c
}

/// The same on a machine where the Vulkan loader finds no driver.
fn without_adapter(args: &[&str]) -> Command {
    let mut c = mixlora(args);
    c.env("VK_DRIVER_FILES", "/nonexistent").env("VK_ICD_FILENAMES", "/nonexistent");
    c.env_remove("MIXLORA_REQUIRE_GPU");
    c
}

fn output(mut c: Command, code: i32) -> (String, String) {
    let Output { status, stdout, stderr } = c.output().unwrap();
    let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!(status.code(), Some(code), "{c:?}\n{out}\n{err}");
    assert!(!err.contains("panicked"), "{c:?}: {err}");
    (out, err)
}

fn json(c: Command) -> Value {
    serde_json::from_str(&output(c, 0).0).unwrap()
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in [&[][..], &["doctor"], &["ops", "list"], &["ops", "test"]] {
        let (out, err) = output(mixlora(&[command, &["--help"]].concat()), 0);
        assert!(out.contains("Example: mixlora"), "{command:?}: {out}");
        assert!(err.is_empty(), "{err}");
    }
    let (out, _) = output(mixlora(&["--version"]), 0);
    assert_eq!(out.trim(), format!("mixlora {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [
        &["nonsense"][..],
        &[],
        &["ops"],
        &["ops", "test", "--device", ""],
        &["ops", "test", "--device", "reference"],
        &["doctor", "--device", "all"],
        &["doctor", "--color"],
    ] {
        let (out, err) = output(mixlora(args), 2);
        assert!(out.is_empty() && !err.is_empty(), "{args:?}: {out}");
    }
    let (_, err) = output(mixlora(&["ops", "test", "--op", "rms_nrom"]), 2);
    assert!(err.contains("'rms_nrom'") && err.contains("rms_norm"), "{err}");
}

#[test]
fn a_missing_device_is_exit_code_4() {
    let (_, err) = output(mixlora(&["ops", "test", "--device", "no such adapter"]), 4);
    assert!(err.contains("no such adapter"), "{err}");
    if cfg!(target_os = "linux") {
        let (_, err) = output(without_adapter(&["ops", "test", "--device", "gpu"]), 4);
        assert!(err.contains("error: no usable GPU adapter"), "{err}");
    }
}

#[test]
fn without_an_adapter_the_gpu_is_skipped_and_named_so() {
    if !cfg!(target_os = "linux") {
        return;
    }
    for args in [&["doctor"][..], &["ops", "test", "--op", "reduce"]] {
        let (out, err) = output(without_adapter(args), 0);
        assert!(err.contains("SKIPPED"), "{err}");
        assert!(out.contains(" ok\n"), "{out}");
        let mut required = without_adapter(args);
        required.env("MIXLORA_REQUIRE_GPU", "1");
        output(required, 4);
    }
}

#[test]
fn ops_are_listed() {
    let (out, _) = output(mixlora(&["ops", "list"]), 0);
    let list = json(mixlora(&["ops", "list", "--json"]));
    assert_eq!(list.as_array().unwrap().len(), mixlora::ops::ALL.len());
    for (op, entry) in mixlora::ops::ALL.iter().zip(list.as_array().unwrap()) {
        assert!(out.contains(op.name) && out.contains(op.formula));
        assert_eq!(entry["op"], op.name);
        assert_eq!(entry["cases"].as_array().unwrap().len(), (op.cases)().len());
        assert_eq!(entry["shaders"].as_array().unwrap().len(), op.shaders.len());
    }
}

#[test]
fn ops_are_tested() {
    let (out, _) = output(mixlora(&["ops", "test", "--device", "cpu", "--op", "rms_norm,reduce"]), 0);
    assert!(out.contains("rms_norm") && out.contains("2 ops") && out.contains("0 failed"), "{out}");
    assert!(!out.contains("elementwise"));
    let report = json(mixlora(&["ops", "test", "--device", "cpu", "--op", "rms_norm", "--json"]));
    assert_eq!(report["holds"], true);
    let op = &report["ops"][0];
    assert!(op["cpu"].as_f64().unwrap() < 1e-5 && op["gpu"].is_null(), "{op}");
    assert!(op["gradcheck"].as_f64().unwrap() < 1e-6, "{op}");
}

#[test]
fn doctor_reports() {
    let report = json(mixlora(&["doctor", "--json"]));
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["self_test"]["holds"], true);
    assert!(!report["self_test"]["ops"].as_array().unwrap().is_empty());
    assert!(report["threads"].as_u64().unwrap() > 0);
    let (out, _) = output(mixlora(&["doctor"]), 0);
    assert!(out.contains("--device auto takes") && out.contains("self-test"), "{out}");
    for adapter in report["adapters"].as_array().unwrap() {
        assert!(out.contains(adapter["name"].as_str().unwrap()), "{out}");
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child =
        mixlora(&["ops", "list", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(0));
    assert!(done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
}
