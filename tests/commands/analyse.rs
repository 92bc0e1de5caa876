//! `mixlora analyse` as a user meets it.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use crate::common::cli::{mixlora, output};
use crate::common::tiny::{write_data, write_text_model};
use serde_json::{Value, json};

struct Place(tempfile::TempDir);

impl Place {
    /// A model, data of two tasks, and a short run of each of two methods.
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        write_text_model(&place.0.path().join("model"));
        write_data(&place.0.path().join("data"), 20);
        for (method, r) in [("lora", "r=4"), ("mixlora-cond", "r=2")] {
            let model = place.path("model");
            let data = place.path("data");
            let out = place.path(method);
            let train = ["train", "--model", &model, "--data", &data, "--out", &out, "--method", method];
            let more = ["--set", r, "--steps", "4", "--learning-rate", "1e-2", "--quiet"];
            let pools: &[&str] = if method == "lora" { &[] } else { &["--set", "num_factors=8"] };
            output(mixlora(&[&train[..], &more, pools].concat()), 0);
        }
        place
    }
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }
    fn write(&self, name: &str, lines: &[Value]) -> String {
        let text: String = lines.iter().map(|line| line.to_string() + "\n").collect();
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }
    /// What an analysis prints, and says on stderr.
    fn analyse(&self, what: &str, more: &[&str], code: i32) -> (String, String) {
        output(mixlora(&[&["analyse", what][..], more].concat()), code)
    }
}

#[test]
fn two_adapters_stand_side_by_side() {
    let place = Place::new();
    let model = place.path("model");
    let data = place.path("data");
    let picture = place.path("i.svg");
    let adapters = [place.path("lora"), place.path("mixlora-cond")];
    let both = ["--model", &model, "--data", &data, "--adapter", &adapters[0], "--adapter", &adapters[1]];
    let (out, notes) = place.analyse("interference", &[&both[..], &["--svg", &picture]].concat(), 0);
    assert!(out.contains("lora, A factors") && out.contains("mixlora-cond, B factors"), "{out}");
    assert!(notes.contains("picture in"), "{notes}");
    let drawn = std::fs::read_to_string(&picture).unwrap();
    assert_eq!(drawn.matches(">1.00<").count(), 8, "two tasks, two adapters, two sides");
    assert!(drawn.contains("lora, A factors") && drawn.contains(">two<"));

    let (out, _) = place.analyse("interference", &[&both[..], &["--json", "--samples", "2"]].concat(), 0);
    let json: Value = serde_json::from_str(&out).unwrap();
    let of = |adapter: usize| &json["adapters"][adapter]["interference"];
    assert_eq!((&of(0)["tasks"], &of(1)["batches"]), (&json!(["one", "two"]), &json!([2, 2])));
    for adapter in 0..2 {
        let sides = of(adapter)["sides"].as_array().unwrap();
        assert_eq!(sides.iter().map(|side| &side["side"]).collect::<Vec<_>>(), ["A", "B"]);
        for side in sides {
            assert_eq!(side["layers"].as_array().unwrap().len(), 2);
            assert_eq!(side["scores"][0][0], 1.0);
            let below = side["layers"].as_array().unwrap().iter().map(|layer| {
                let off = [&layer["scores"][0][1], &layer["scores"][1][0]];
                off.iter().filter(|cell| cell.as_f64().unwrap() < 0.0).count()
            });
            assert_eq!(side["below_0_by_layer"], json!(below.collect::<Vec<_>>()));
        }
    }
    // The same twice is the same, and groups of samples are something else.
    assert_eq!(place.analyse("interference", &[&both[..], &["--json", "--samples", "2"]].concat(), 0).0, out);
    let grouped = [&both[..], &["--json", "--samples", "2", "--batch", "2"]].concat();
    let (grouped, _) = place.analyse("interference", &grouped, 0);
    let grouped: Value = serde_json::from_str(&grouped).unwrap();
    assert_eq!(grouped["adapters"][0]["interference"]["batches"], json!([1, 1]));
}

#[test]
fn a_run_says_what_is_looked_at() {
    let place = Place::new();
    let run = place.path("mixlora-cond");
    let picture = place.path("r.svg");
    let name = "layers.1.qkv.v_proj.B";
    let (out, notes) = place.analyse("routing", &["--run", &run, "--svg", &picture, "--place", name], 0);
    assert!(out.contains("consistency") && out.contains(name), "{out}");
    assert!(notes.contains("choices of mixlora-cond: 6 samples"), "{notes}");
    let drawn = std::fs::read_to_string(&picture).unwrap();
    // Six instances and two tasks of the legend.
    assert_eq!(drawn.matches("<circle").count(), 8);

    let (out, _) = place.analyse("routing", &["--run", &run, "--json", "--split", "train"], 0);
    let json: Value = serde_json::from_str(&out).unwrap();
    let routing = &json["adapters"][0]["routing"];
    assert_eq!(routing["instances"].as_array().unwrap().len(), 20);
    let places = routing["places"].as_array().unwrap();
    assert_eq!(places.len(), 2 * 7 * 2, "layers, linears, sides");
    for place in places {
        let counts = place["counts"].as_array().unwrap();
        let sums: Vec<f64> = counts
            .iter()
            .map(|task| task.as_array().unwrap().iter().map(|count| count.as_f64().unwrap()).sum())
            .collect();
        assert_eq!(sums, [20.0, 20.0], "ten instances of a task choose two of eight each: {place}");
    }
    assert_eq!(place.analyse("routing", &["--run", &run, "--json", "--split", "train"], 0).0, out);
    let (_, said) = place.analyse("routing", &["--run", &run, "--place", "nowhere"], 2);
    assert!(said.contains("'nowhere' chooses nothing; there are layers.0.qkv.q_proj.A"), "{said}");
}

#[test]
fn what_cannot_be_looked_at_is_said() {
    let place = Place::new();
    let lora = place.path("lora");
    let said = |what: &str, more: &[&str], code: i32| {
        let (out, said) = place.analyse(what, more, code);
        assert!(out.is_empty(), "{out}");
        said
    };
    let no_choice = said("routing", &["--run", &lora], 3);
    assert!(no_choice.contains("lora has no choice to look at"), "{no_choice}");
    let unknown = said("interference", &["--run", &lora, "--task", "three"], 2);
    assert!(unknown.contains("'three' is no task of") && unknown.contains("there are one, two"), "{unknown}");
    let one = said("interference", &["--run", &lora, "--task", "one"], 3);
    assert!(one.contains("at least two are needed") && one.contains("has one, two"), "{one}");
    assert!(said("interference", &["--run", &lora, "--samples", "0"], 2).contains("--samples"));
    assert!(said("interference", &["--run", &lora, "--batch", "0"], 2).contains("--batch"));
    let usage = said("interference", &["--data", "x"], 2);
    assert!(usage.contains("--model") && usage.contains("--adapter"), "{usage}");

    let sample = |task: Option<&str>, answer: &str| {
        let turns =
            [json!({ "role": "user", "content": "a?" }), json!({ "role": "assistant", "content": answer })];
        let turns = if answer.is_empty() { &turns[..1] } else { &turns[..] };
        match task {
            Some(task) => json!({ "messages": turns, "task": task }),
            None => json!({ "messages": turns }),
        }
    };
    let without = place.write("without.jsonl", &[sample(None, "b"), sample(None, "c")]);
    let none = said("interference", &["--run", &lora, "--data", &without], 3);
    assert!(
        none.contains("2 samples of") && none.contains("has none") && none.contains("field 'task'"),
        "{none}"
    );
    let mut samples = vec![sample(Some("x"), "b"); 20];
    samples.push(sample(Some("y"), ""));
    let unused = place.write("unused.jsonl", &samples);
    let unused = said("interference", &["--run", &lora, "--data", &unused], 3);
    assert!(unused.contains("'y' has no sample that can be used"), "{unused}");
}
