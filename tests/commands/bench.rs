//! `mixlora bench`, as a user types it, at sizes that take no time.
#![cfg(feature = "cli")]

use crate::common::cli::{mixlora, output};
use crate::common::tiny;
use serde_json::Value;
use std::path::Path;

/// The program with a cache of its own.
fn bench(cache: &Path, args: &[&str], code: i32) -> (String, String) {
    let mut command = mixlora(&[&["bench"][..], args].concat());
    output(command.env("XDG_CACHE_HOME", cache).env("MIXLORA_CACHE", cache), code)
}

fn rows(text: &str) -> Vec<Value> {
    serde_json::from_str(text).unwrap()
}

const OPS: &[&str] = &["ops", "-p", "matmul", "-s", "32x32x32", "-r", "3", "--min-time", "0.01", "--json"];

#[test]
fn ops_are_verified_timed_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (out, _) = bench(dir.path(), OPS, 0);
    let mut old = rows(&out);
    assert!(!old.is_empty());
    for row in &old {
        assert_eq!(row["verified"], true, "{row}");
        assert!(row["median_us"].as_f64().unwrap() > 0.0 && row["gflops"].as_f64().unwrap() > 0.0, "{row}");
    }
    let report = |rows: &[Value]| {
        let path = dir.path().join("old.json");
        std::fs::write(&path, serde_json::to_string(rows).unwrap()).unwrap();
        path.to_str().unwrap().to_string()
    };
    // What was a thousand times faster before has become slower; what was a thousand times slower has not.
    for (factor, code) in [(1e-3, 1), (1e3, 0)] {
        for row in &mut old {
            for key in ["median_us", "p20_us", "p80_us"] {
                row[key] = (row[key].as_f64().unwrap() * factor).into();
            }
        }
        let path = report(&old);
        bench(dir.path(), &[OPS, &["--compare", &path]].concat(), code);
        old = rows(&out);
    }
    let (_, err) = bench(dir.path(), &["ops", "-p", "matmull"], 2);
    assert!(err.contains("matmull") && err.contains("matmul"), "{err}");
    // As llama-bench names a format: no file of that name.
    let (_, err) = bench(dir.path(), &["roof", "-o", "json"], 2);
    assert!(err.contains("--format json"), "{err}");
}

#[test]
fn a_layer_is_timed_beside_its_frozen_linear() {
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("roof.svg");
    let args =
        ["layer", "--methods", "lora,mixlora-cond-gated", "--shapes", "32x48", "--batch", "2", "--seq", "8"];
    let more = ["-r", "3", "--min-time", "0.01", "--factors", "8", "--json", "--plot", svg.to_str().unwrap()];
    let (out, _) = bench(dir.path(), &[&args[..], &more].concat(), 0);
    let rows = rows(&out);
    let ratio = |op: &str, dir: &str| {
        let row = rows.iter().find(|r| r["op"] == op && r["dir"] == dir);
        row.unwrap_or_else(|| panic!("no row {op} {dir}"))["ratio"].as_f64()
    };
    for op in ["lora", "mixlora-cond-gated"] {
        assert!(["fwd", "bwd", "sum"].iter().all(|d| ratio(op, d).is_some_and(|r| r > 0.0)));
    }
    assert!(ratio("frozen linear", "sum").is_none());
    assert_eq!(rows[0]["op"], "frozen linear");
    assert!(std::fs::read_to_string(svg).unwrap().contains("</svg>"));
}

#[test]
fn a_layer_is_summed_up_before_its_table() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["layer", "--methods", "lora", "--shapes", "32x48", "--batch", "2", "--seq", "8", "-r", "3"];
    let (out, _) = bench(dir.path(), &[&args[..], &["--min-time", "0.01"]].concat(), 0);
    let sentence =
        out.lines().position(|l| l.starts_with("lora costs ") && l.contains("of its frozen layer"));
    let head = out.lines().position(|l| l.starts_with("| op "));
    assert!(sentence.is_some() && sentence < head, "{out}");
    assert!(out.contains("| p20-p80 ") && !out.contains("std_us"), "{out}");
    let (wide, _) = bench(dir.path(), &[&args[..], &["--min-time", "0.01", "-f", "wide"]].concat(), 0);
    assert!(wide.contains(" std_us ") && wide.contains("| verified_nmse "), "{wide}");
}

#[cfg(feature = "tokenizer")]
#[test]
fn a_model_is_trained_and_generates() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    tiny::write_text_model(&model);
    let model = model.to_str().unwrap();
    let (out, _) = bench(dir.path(), &["train", "-m", model, "--seq", "16", "--steps", "2", "--json"], 0);
    let all = rows(&out);
    let step = all.iter().find(|r| r["op"] == "step").unwrap();
    assert!(step["loss"].as_f64().unwrap().is_finite() && step["tok_s"].as_f64().unwrap() > 0.0);
    assert!(all.iter().any(|r| r["op"] == "dense products"));
    let (out, _) = bench(dir.path(), &["model", "-m", model, "-p", "8", "-n", "4", "-r", "2", "--json"], 0);
    let names: Vec<_> = rows(&out).iter().map(|r| r["op"].as_str().unwrap().to_string()).collect();
    assert_eq!(names, ["pp8", "tg4"]);
    bench(dir.path(), &["train", "-m", model, "--trained-share", "2"], 3);
}

#[test]
fn a_roof_that_is_too_low_is_measured_again() {
    let dir = tempfile::tempdir().unwrap();
    bench(dir.path(), OPS, 0);
    let kept = std::fs::read_dir(dir.path().join("roof")).unwrap().next().unwrap().unwrap().path();
    let read = || -> serde_json::Value { serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap() };
    let mut low = read();
    low["fma_gflops"] = 1e-3.into();
    low["copy_gbps"] = 1e-3.into();
    std::fs::write(&kept, low.to_string()).unwrap();
    let (_, err) = bench(dir.path(), OPS, 0);
    assert!(err.contains("measuring it again"), "{err}");
    assert!(read()["fma_gflops"].as_f64().unwrap() > 0.1);
}

/// The report's row of a name.
fn named<'a>(rows: &'a [Value], op: &str) -> &'a Value {
    rows.iter().find(|row| row["op"] == op).unwrap_or_else(|| panic!("no row {op}: {rows:?}"))
}

#[test]
fn a_tower_is_timed_beside_its_products() {
    let dir = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vision/vlm_llava15_new_names");
    let golden = golden.to_str().unwrap();
    let args = ["tower", "-m", golden, "--images", "3", "-r", "2", "--min-time", "0", "--json"];
    let (out, err) = bench(dir.path(), &args, 0);
    let all = rows(&out);
    let forward = named(&all, "forward");
    let dense = named(&all, "dense products");
    assert!(err.contains("dense products alone take"), "{err}");
    assert_eq!((&forward["variant"], &forward["bench"]), (&"3 x 24x24".into(), &"tower".into()));
    for row in [forward, dense] {
        assert!(row["roof_pct"].as_f64().unwrap() > 0.0, "{row}");
    }
    let ratio = forward["ratio"].as_f64().unwrap();
    assert!(ratio > 0.5 && dense["ratio"].is_null(), "{ratio}");
    // Two layers of width 24, an MLP of 56, ten rows of each picture, nine of which are patches of 192 values.
    let flops = |row: &Value| row["gflops"].as_f64().unwrap() * row["median_us"].as_f64().unwrap() * 1e3;
    let products = 2.0 * 3.0 * (9.0 * 192.0 * 24.0 + 2.0 * 10.0 * (4.0 * 24.0 * 24.0 + 2.0 * 24.0 * 56.0));
    assert!((flops(dense) / products - 1.0).abs() < 1e-6, "{}", flops(dense));
    assert!((flops(forward) / (products + 2.0 * 4.0 * 3.0 * 100.0 * 24.0) - 1.0).abs() < 1e-6);
    let (_, err) = bench(dir.path(), &["tower", "--shape", "clip"], 2);
    assert!(err.contains("clip-b16"), "{err}");
    bench(dir.path(), &["tower", "--images", "0"], 2);
}

#[cfg(all(feature = "tokenizer", feature = "images"))]
#[test]
fn pictures_stand_in_front_of_what_is_timed() {
    let dir = tempfile::tempdir().unwrap();
    let picture = dir.path().join("a.png");
    let png = mixlora::picture::Picture::filled(40, 60, [200, 30, 90]).unwrap().to_png().unwrap();
    std::fs::write(&picture, png).unwrap();
    let picture = picture.to_str().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vision");
    let llava = golden.join("vlm_llava15_new_names");
    let idefics3 = golden.join("vlm_idefics3");
    // Tiles of four patches each, seven of them, with more tokens than the default.
    for (model, seq, projector) in [(&llava, "16", ""), (&idefics3, "64", "--train-projector")] {
        let args = ["-m", model.to_str().unwrap(), "--image", picture, "--json"];
        let more = ["train", "--seq", seq, "--steps", "2"];
        let flag: &[&str] = if projector.is_empty() { &[] } else { &["--train-projector"] };
        let (out, _) = bench(dir.path(), &[&more[..], &args, flag].concat(), 0);
        let all = rows(&out);
        assert!(named(&all, "step on features")["ratio"].as_f64().unwrap() > 0.0);
        assert!(named(&all, "tower")["gflops"].as_f64().unwrap() > 0.0);
        let (out, _) =
            bench(dir.path(), &[&["model", "-p", "8", "-n", "2", "-r", "2"][..], &args].concat(), 0);
        let all = rows(&out);
        let names: Vec<_> = all.iter().map(|row| row["op"].as_str().unwrap()).collect();
        assert_eq!(names, ["pp8", "tg2", "picture", "tower", "picture+pp8"]);
    }
    let short = ["train", "-m", llava.to_str().unwrap(), "--image", picture, "--seq", "10"];
    let (_, err) = bench(dir.path(), &short, 3);
    assert!(err.contains("the picture has 10 rows"), "{err}");
    let shape = ["train", "--shape", "smollm2-135m", "--image", picture];
    let (_, err) = bench(dir.path(), &shape, 2);
    assert!(err.contains("--tower is for a --shape"), "{err}");
}
