//! Runs the examples that take a few seconds. A whole `cargo test` builds them first; one test alone does not.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use std::path::Path;
use std::process::Command;

fn run(name: &str) -> String {
    let folder = Path::new(env!("CARGO_BIN_EXE_mixlora")).parent().unwrap().join("examples");
    let program = folder.join(name).with_extension(std::env::consts::EXE_EXTENSION);
    let out = Command::new(&program).output().unwrap_or_else(|e| {
        panic!("{}: {e}; build it with cargo build --release --examples", program.display())
    });
    let text = String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success(), "{name}: {text}");
    text
}

#[test]
fn generate_answers_twice() {
    let text = run("generate");
    assert_eq!(text.matches("\n> ").count(), 2, "{text}");
}

#[test]
fn a_loop_of_ones_own_learns() {
    let text = run("own_loop");
    let losses: Vec<f64> =
        text.lines().filter_map(|l| l.split("loss ").nth(1)?.split(' ').next()?.parse().ok()).collect();
    assert!(losses.len() == 4 && losses[3] < 0.8 * losses[0], "{text}");
}

/// Threads share a model; each request chooses its adapter. The program compares the answers itself.
#[test]
fn threads_share_a_model() {
    let text = run("threads");
    assert!(text.contains("[no adapter]") && text.contains("[first]") && text.contains("[second]"), "{text}");
}

/// A method that is defined outside of the crate is attached, trained, and checks itself.
#[test]
fn a_method_of_ones_own_learns() {
    let text = run("custom_method");
    assert!(text.contains("loss"), "{text}");
}

/// Without an adapter they say so and succeed.
#[test]
fn gpu_examples_compute_or_say_that_they_cannot() {
    if cfg!(not(feature = "gpu")) {
        return;
    }
    let text = run("shared_device");
    assert!(text.contains("[2.0, 4.0, 6.0, 8.0]") || text.contains("SKIPPED"), "{text}");
    // 0.5 x 0.5 summed over 512 terms and divided by 128 is 1; after that 1 x 0.5 x 512 / 128 = 2, doubling.
    let text = run("async_readback");
    assert!(text.contains(&format!("first is {}", 2f32.powi(19))) || text.contains("SKIPPED"), "{text}");
}
