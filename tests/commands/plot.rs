//! `mixlora plot` as a user types it.
#![cfg(feature = "cli")]

use crate::common::cli::{mixlora, output};
use serde_json::json;
use std::path::Path;

/// The log of a run that was not trained.
fn write_log(dir: &Path, scale: f64) {
    std::fs::create_dir_all(dir).unwrap();
    let mut text =
        json!({ "t": "run", "config": { "method": "lora", "model": "/a/tiny.gguf" } }).to_string() + "\n";
    for step in 1..=20 {
        let loss = scale / step as f64;
        let line =
            json!({ "t": "step", "step": step, "loss": loss, "lr": 1e-4, "grad_norm": 1.0 / step as f64 });
        text += &format!("{line}\n");
        if step % 5 == 0 {
            let loss = scale * (0.5 + (step as f64 - 10.0).abs());
            text += &format!("{}\n", json!({ "t": "eval", "step": step, "loss": loss }));
        }
    }
    std::fs::write(dir.join("metrics.jsonl"), text).unwrap();
}

#[test]
fn runs_are_drawn_by_their_folders() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let text = |name: &str| at(name).to_string_lossy().into_owned();
    write_log(&at("one"), 4.0);
    write_log(&at("two"), 2.0);
    let picture = |name: &str| std::fs::read_to_string(at(name)).unwrap();
    let (out, _) = output(mixlora(&["plot", &text("one")]), 0);
    assert_eq!(out.trim(), format!("loss curve in {}", text("one/loss.svg")));
    let one = picture("one/loss.svg");
    for words in
        ["lora on tiny.gguf", "validation loss, best 2.0000 at step 10", "learning rate", "gradient norm"]
    {
        assert!(one.contains(words), "{words}: {one}");
    }
    // The log itself, as it always was.
    output(mixlora(&["plot", &text("one/metrics.jsonl"), "--out", &text("log.svg")]), 0);
    assert_eq!(picture("log.svg"), one);
    output(
        mixlora(&["plot", &text("one"), "--smooth", "0", "--title", "mine", "--out", &text("raw.svg")]),
        0,
    );
    let raw = picture("raw.svg");
    assert!(raw.contains(">mine<") && !raw.contains("stroke-opacity"), "{raw}");
    let mut several = mixlora(&["plot", &text("one"), &text("two/metrics.jsonl")]);
    output(several.current_dir(place.path()), 0);
    let both = picture("loss.svg");
    assert!(both.contains(">one<") && both.contains(">two, validation, best 1.0000 at step 10<"), "{both}");
    // Folders of one name are told apart by their paths.
    write_log(&at("more/one"), 1.0);
    let mut alike = mixlora(&["plot", "one", "more/one", "--out", "alike.svg"]);
    output(alike.current_dir(place.path()), 0);
    assert!(picture("alike.svg").contains(">more/one<"), "{}", picture("alike.svg"));
}

#[test]
fn what_is_no_run_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    std::fs::create_dir_all(at("empty")).unwrap();
    std::fs::create_dir_all(at("stream")).unwrap();
    std::fs::write(at("stream/stages.json"), "{}").unwrap();
    std::fs::write(at("words.jsonl"), "{\"t\": \"step\", \"step\": 1, \"loss\": 2}\nhello\n").unwrap();
    std::fs::write(at("nothing.jsonl"), "{\"t\": \"step\", \"step\": 1, \"loss\": null}\n").unwrap();
    for (name, expected) in [
        ("none", "cannot be read"),
        ("empty", "holds no metrics.jsonl; is it the folder of a run?"),
        ("stream", "holds stages, each of which is a run"),
        ("words.jsonl", "line 2 is no JSON"),
        ("nothing.jsonl", "holds no line of a step or a validation with a finite loss"),
    ] {
        let (_, err) = output(
            mixlora(&["plot", &at(name).to_string_lossy(), "--out", &at("a.svg").to_string_lossy()]),
            3,
        );
        assert!(err.contains(expected) && err.contains(name), "{name}: {err}");
        assert!(!at("a.svg").exists());
    }
    for smooth in ["1", "-0.1", "NaN"] {
        let (_, err) = output(mixlora(&["plot", "run", "--smooth", smooth]), 2);
        assert!(err.contains("at least 0 and below 1"), "{smooth}: {err}");
    }
    output(mixlora(&["plot"]), 2);
}
