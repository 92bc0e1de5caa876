//! The command line program as a user meets it: exit codes, stdout and stderr, JSON.
#![cfg(feature = "cli")]

use crate::common::cli::{mixlora, output};
use crate::common::edit::{Edit, file, golden};
use serde_json::Value;
use std::process::{Command, Stdio};

/// The same on a machine where the Vulkan loader finds no driver.
fn without_adapter(args: &[&str]) -> Command {
    let mut c = mixlora(args);
    c.env("VK_DRIVER_FILES", "/nonexistent").env("VK_ICD_FILENAMES", "/nonexistent");
    c.env_remove("MIXLORA_REQUIRE_GPU");
    c
}

fn json(c: Command) -> Value {
    serde_json::from_str(&output(c, 0).0).unwrap()
}

#[test]
fn every_command_has_help_with_an_example() {
    let mut commands = vec!["", "doctor", "ops list", "ops test", "methods", "verify", "inspect", "plot"];
    commands.extend(["completions", "man"]);
    if cfg!(feature = "tokenizer") {
        commands.extend([
            "quickstart",
            "train",
            "plan",
            "config init",
            "config check",
            "config schema",
            "data check",
            "data show",
        ]);
        commands.extend(["data stats", "eval", "generate", "chat", "merge", "export"]);
        commands.extend([
            "analyse interference",
            "analyse routing",
            "data make rules",
            "data make quickstart",
        ]);
    }
    if cfg!(feature = "gpu") {
        commands.push("tune");
    }
    for command in commands {
        let command: Vec<&str> = command.split_whitespace().collect();
        let (out, err) = output(mixlora(&[&command[..], &["--help"]].concat()), 0);
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
        &["doctor", "--device", "reference"],
        &["doctor", "--color"],
        &["verify"],
        &["verify", "--device", "", "tests/golden"],
        &["methods", "lora"],
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
    for args in [&["doctor", "--device", "all"][..], &["ops", "test", "--op", "reduce"]] {
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

#[test]
fn methods_are_listed() {
    let (out, err) = output(mixlora(&["methods"]), 0);
    assert!(err.is_empty() && out.contains("router gradient"), "{out}{err}");
    let list = json(mixlora(&["methods", "--json"]));
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), mixlora::mixture::methods::ALL.len());
    for (m, entry) in mixlora::mixture::methods::ALL.iter().zip(list) {
        assert!(out.lines().any(|l| l.starts_with(&format!("{} ", m.name))), "{}: {out}", m.name);
        assert!(out.contains(m.paper) && out.contains(m.trainable), "{}", m.name);
        assert_eq!((&entry["name"], &entry["mergeable"]), (&m.name.into(), &m.mergeable.into()));
        assert!(
            ["yes", "estimated", "no", "-"].contains(&entry["router_gradient"].as_str().unwrap()),
            "{entry}"
        );
        // The printed defaults are options that the method takes.
        let defaults = entry["defaults"].as_object().unwrap();
        assert_eq!(m.defaults().set(defaults).unwrap(), m.defaults());
        let options = entry["options"].as_array().unwrap();
        let names: Vec<&str> = options.iter().map(|o| o["name"].as_str().unwrap()).collect();
        assert_eq!(names, m.option_names());
        assert!(options.iter().all(|o| o["about"].as_str().is_some_and(|a| !a.is_empty())), "{entry}");
    }
    assert!(out.contains("note: mixlora-cond: the router receives no task gradient"), "{out}");
}

#[test]
fn reference_files_are_verified() {
    let folder = golden().to_string_lossy().into_owned();
    let count = if cfg!(feature = "images") { 175 } else { 161 };
    let (out, err) = output(mixlora(&["verify", "--device", "cpu", &folder]), 0);
    assert!(
        err.contains("need --model: 1")
            && out.contains(&format!("{count} files on "))
            && out.contains(": 0 failed"),
        "{out}{err}"
    );
    assert_eq!(out.lines().filter(|l| l.starts_with("ok ") && l.contains("choices agree")).count(), count);
    let report = json(mixlora(&["verify", "--device", "reference", "--json", &folder]));
    assert_eq!((&report["holds"], &report["version"]), (&true.into(), &env!("CARGO_PKG_VERSION").into()));
    assert_eq!(report["bound"], 1e-5);
    let files = report["files"].as_array().unwrap();
    assert_eq!(files.len(), count);
    for f in files {
        let lane = &f["devices"][0];
        assert!(f["path"].is_string() && f["kind"].is_string() && lane["device"].is_string(), "{f}");
        assert_eq!(
            (&f["holds"], &lane["holds"], &lane["choices_agree"]),
            (&true.into(), &true.into(), &true.into())
        );
        let worst = lane["worst"].as_f64().unwrap();
        if f["kind"] == "picture" {
            // Levels; decoders of JPEG files differ by a few.
            continue;
        }
        let errors = &lane["errors"];
        // Losses alone have no output.
        let output = errors["y"].as_f64().or(errors["logits"].as_f64()).unwrap_or(0.0);
        assert!(worst < 1e-6 && output <= worst, "{f}");
    }
}

#[test]
fn a_file_that_does_not_hold_is_exit_code_1_and_a_malformed_one_3() {
    let folder = tempfile::tempdir().unwrap();
    let copy = Edit::open(&file("token/ffn_b1"));
    let path = |e: &Edit, name: &str| e.write(folder.path(), name).to_string_lossy().into_owned();
    let at = copy.largest("grad_router");
    let tampered = path(&copy.clone().value("grad_router", at, |v| v + 0.1), "tampered");
    let (out, _) = output(mixlora(&["verify", "--device", "cpu", &tampered]), 1);
    assert!(out.contains("FAILED") && out.contains("grad_router") && out.contains("1 failed"), "{out}");
    let (out, _) = output(mixlora(&["verify", "--device", "cpu", "--json", &tampered]), 1);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&report["holds"], &report["files"][0]["devices"][0]["holds"]),
        (&false.into(), &false.into())
    );
    let nan = path(&copy.clone().value("y", 3, |_| f32::NAN), "nan");
    let (out, _) = output(mixlora(&["verify", "--device", "cpu", &nan]), 1);
    assert!(out.contains("y inf"), "{out}");
    let (out, _) = output(mixlora(&["verify", "--device", "cpu", "--json", &nan]), 1);
    serde_json::from_str::<Value>(&out).unwrap();
    for (name, edit, text) in [
        ("missing", copy.clone().without("w_up"), "tensor 'w_up' is missing"),
        ("layer", copy.config("\"layer\": \"ffn\"", "\"layer\": \"moe\""), "unknown variant `moe`"),
    ] {
        let malformed = path(&edit, name);
        let (_, err) = output(mixlora(&["verify", "--device", "cpu", &malformed]), 3);
        assert!(err.contains(&format!("{name}.safetensors: ")) && err.contains(text), "{err}");
    }
    let (_, err) = output(mixlora(&["verify", "--device", "cpu", "no/such/folder"]), 3);
    assert!(err.contains("no/such/folder"), "{err}");
    let empty = tempfile::tempdir().unwrap();
    let (_, err) = output(mixlora(&["verify", "--device", "cpu", &empty.path().to_string_lossy()]), 3);
    assert!(err.contains("no reference file found"), "{err}");
}

#[test]
fn tables_fit_the_terminal() {
    for args in [&["methods"][..], &["ops", "list"]] {
        let (out, _) = output(mixlora(args).env("COLUMNS", "80"), 0);
        let table = out.lines().filter(|line| !line.starts_with("note: "));
        let wide: Vec<&str> = table.filter(|line| line.chars().count() > 80).collect();
        assert!(wide.is_empty(), "{args:?}: {wide:#?}");
        let (whole, _) = output(mixlora(args), 0);
        assert!(whole.lines().count() < out.lines().count(), "{args:?}: a pipe gets whole lines");
    }
}

#[test]
fn defaults_are_printed_as_they_are_written() {
    let list = json(mixlora(&["methods", "--json"]));
    let ffn = list.as_array().unwrap().iter().find(|m| m["name"] == "mixlora-ffn").unwrap();
    assert_eq!(ffn["defaults"]["aux_loss_coef"].to_string(), "0.01");
}
