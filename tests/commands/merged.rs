//! What `merge` hands over: the same answers from a directory and from a GGUF file.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use crate::common::cli::answer_to as run;
use crate::common::tiny;
use mixlora::Format;
use mixlora::io::GgufFile;
use mixlora::text::ModelText;
use std::path::Path;

struct Place(tempfile::TempDir);

impl Place {
    /// The tiny model, an adapter that has learned a little, and where it stands.
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        tiny::write_data(&place.0.path().join("data"), 32);
        let [data, adapter] = ["data", "run"].map(|name| place.path(name));
        let train = ["train", "--model", "data/tiny", "--data", &data, "--out", &adapter, "--method", "lora"];
        run(&[&train[..], &["--steps", "20", "--learning-rate", "1e-2", "--quiet"]].concat(), "", 0);
        place
    }
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_string()
    }
    fn merge(&self, out: &str, more: &[&str], code: i32) -> (String, String) {
        let [adapter, out] = ["run", out].map(|name| self.path(name));
        let args = ["merge", "--model", "data/tiny", "--adapter", &adapter, "--out", &out];
        run(&[&args[..], more].concat(), "", code)
    }
}

fn said(model: &str, more: &[&str]) -> String {
    let args = ["generate", "--model", model, "--prompt", "Colour of grass?", "--weights", "f32", "-n", "12"];
    run(&[&args[..], more].concat(), "", 0).0
}

#[test]
fn a_directory_and_a_gguf_file_answer_as_the_adapter_does() {
    let place = Place::new();
    let adapter = place.path("run");
    let want = said("data/tiny", &["--adapter", &adapter]);
    assert_ne!(want, said("data/tiny", &[]), "the adapter changes something");
    place.merge("directory", &["--dtype", "f32"], 0);
    let (told, _) = place.merge("gguf/merged.gguf", &["--dtype", "f32", "--modelfile"], 0);
    assert!(told.contains("merged.gguf") && told.contains("f32"), "{told}");
    let file = place.path("gguf/merged.gguf");
    for merged in [place.path("directory"), file.clone()] {
        assert_eq!(said(&merged, &[]), want, "{merged}");
    }
    // The same text means the same tokens, and ends at the same ones.
    let [ours, theirs] =
        [Path::new("data/tiny"), Path::new(&file)].map(|path| ModelText::open(path).unwrap());
    let text = "The colour of grass is green; 12 + 30 = 42.\n";
    assert_eq!(ours.tokenizer.encode(text, true).unwrap(), theirs.tokenizer.encode(text, true).unwrap());
    assert_eq!(ours.tokenizer.end_tokens(), theirs.tokenizer.end_tokens());
    assert_eq!(ours.template.unwrap().source(), theirs.template.unwrap().source());
    let modelfile = std::fs::read_to_string(place.path("gguf/Modelfile")).unwrap();
    let lines: Vec<&str> = modelfile.lines().collect();
    assert_eq!(lines[0], "FROM ./merged.gguf");
    assert!(modelfile.contains("TEMPLATE \"\"\"{{- range .Messages }}<|im_start|>"), "{modelfile}");
    assert!(lines.contains(&"PARAMETER stop \"<|im_end|>\""), "{modelfile}");
}

#[test]
fn a_merged_gguf_file_merges_again_in_any_format() {
    let place = Place::new();
    place.merge("first.gguf", &["--dtype", "q8_0"], 0);
    let first = place.path("first.gguf");
    let file = GgufFile::open(&first).unwrap();
    assert_eq!(file.raw("blk.0.attn_q.weight").unwrap().format, Format::Q8_0);
    assert_eq!(file.u32("general.file_type").unwrap(), 7);
    let [adapter, second] = ["run", "second.gguf"].map(|name| place.path(name));
    run(
        &["merge", "--model", &first, "--adapter", &adapter, "--out", &second, "--dtype", "q5_0", "--force"],
        "",
        0,
    );
    let second = GgufFile::open(&second).unwrap();
    assert_eq!(second.raw("blk.0.attn_q.weight").unwrap().format, Format::Q5_0);
    // What the file said of its text stays.
    for key in
        ["tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.chat_template", "llama.block_count"]
    {
        assert_eq!(file.get(key), second.get(key), "{key}");
        assert!(file.get(key).is_some(), "{key}");
    }
}

#[test]
fn what_fits_a_gguf_file_alone_is_refused_for_a_directory() {
    let place = Place::new();
    for (more, what) in [
        (&["--dtype", "q8_0"][..], "give --out a name that ends with .gguf"),
        (&["--modelfile"], "give --out a name that ends with .gguf"),
        (&["--dtype", "q3"], "q4_k"),
    ] {
        let (_, told) = place.merge("directory", more, 2);
        assert!(told.contains(what), "{told}");
        assert!(!Path::new(&place.path("directory")).exists());
    }
    place.merge("merged.gguf", &[], 0);
    let before = std::fs::read(place.path("merged.gguf")).unwrap();
    let (_, told) = place.merge("merged.gguf", &[], 3);
    assert!(told.contains("exists"), "{told}");
    assert_eq!(std::fs::read(place.path("merged.gguf")).unwrap(), before);
}
