//! Vocabularies of GGUF files, patterns of `tokenizer.json`, and texts in parts.

use super::*;
use crate::common::gguf::{Entry, gguf, llama};
use mixlora::Device;
use mixlora::adapter::Conversation;
use mixlora::io::GgufFile;
use mixlora::model::{Model, Sampler, Sampling};
use mixlora::text::{Chat, Ending, ReplyOptions};
use std::time::Instant;

/// The metadata of a byte-level vocabulary with these control tokens behind `a` and `b`.
fn byte_level(pre: &str, control: &[&str], more: &[(&str, Entry)]) -> Vec<(String, Entry)> {
    let tokens: Vec<String> = ["a", "b"].iter().chain(control).map(|t| t.to_string()).collect();
    let kinds = (0..tokens.len()).map(|i| if i < 2 { 1 } else { 3 }).collect();
    let named = [
        ("model", Entry::Text("gpt2".into())),
        ("pre", Entry::Text(pre.into())),
        ("tokens", Entry::Texts(tokens)),
        ("token_type", Entry::Ints(kinds)),
        ("merges", Entry::Texts(Vec::new())),
    ];
    let named = named.into_iter().chain(more.iter().cloned());
    named.map(|(name, entry)| (format!("tokenizer.ggml.{name}"), entry)).collect()
}

fn read(entries: &[(String, Entry)]) -> ModelText {
    ModelText::from_gguf(&GgufFile::from_bytes("test.gguf", gguf(entries, &[])).unwrap()).unwrap()
}

#[test]
fn gguf_llama3_bos() {
    let control = ["<bos>", "<|end|>"];
    let ids = [("bos_token_id", Entry::Int(2)), ("eos_token_id", Entry::Int(3))];
    let first = |pre: &str, more: &[(&str, Entry)]| {
        let more: Vec<(&str, Entry)> = ids.iter().chain(more).cloned().collect();
        read(&byte_level(pre, &control, &more)).tokenizer.encode_start("a").unwrap()
    };
    for pre in ["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"] {
        assert_eq!(first(pre, &[]), [2, 0], "{pre}");
        assert_eq!(first(pre, &[("add_bos_token", Entry::Flag(false))]), [0], "{pre}");
    }
    for pre in ["qwen2", "smollm", "gpt-2"] {
        assert_eq!(first(pre, &[]), [0], "{pre}");
        assert_eq!(first(pre, &[("add_bos_token", Entry::Flag(true))]), [2, 0], "{pre}");
    }
}

#[test]
fn every_end_of_a_gguf_file_counts() {
    let control = ["<bos>", "<eos>", "<turn>", "<message>", "<|im_end|>", "<|other|>"];
    let ids = [("eos_token_id", 3), ("eot_token_id", 4), ("eom_token_id", 5)]
        .map(|(name, id)| (name, Entry::Int(id)));
    let text = read(&byte_level("qwen2", &control, &ids));
    assert_eq!(text.tokenizer.end_tokens(), [3, 4, 5, 6]);
    assert_eq!(text.notes, [""; 0]);
    let unnamed = read(&byte_level("qwen2", &control, &[]));
    assert_eq!(unnamed.tokenizer.end_tokens(), [6]);
    assert_eq!(
        unnamed.notes,
        ["no file of the model names its end tokens; taken by their names: <|im_end|>"]
    );
    let wrong = byte_level("qwen2", &control, &[("eos_token_id", Entry::Text("3".into()))]);
    let file = GgufFile::from_bytes("test.gguf", gguf(&wrong, &[])).unwrap();
    let e = ModelText::from_gguf(&file).unwrap_err().to_string();
    assert!(e.contains("tokenizer.ggml.eos_token_id"), "{e}");
}

#[test]
fn unk_in_spm_gguf() {
    let t = Tokenizer::from_vocab(scored(&[])).unwrap();
    let ids = t.encode("a<unk>b", true).unwrap();
    assert_eq!(texts(&t, &ids), ["▁", "a", "<unk>", "▁", "b"]);
    assert_eq!(t.decode(&ids, true), "ab");
    assert!(!t.encode("a<unk>b", false).unwrap().contains(&0), "plain text");
    // Byte-level vocabularies have one too.
    let mut vocab = Vocab { model: "gpt2".into(), pre: "gpt-2".into(), ..Vocab::default() };
    vocab.tokens = ["a", "b", "<unk>"].map(String::from).to_vec();
    vocab.types = vec![1, 1, 2];
    vocab.merges = Some(Vec::new());
    assert_eq!(Tokenizer::from_vocab(vocab).unwrap().encode("a<unk>b", true).unwrap(), [0, 2, 1]);
}

#[test]
fn many_control_tokens_slow() {
    let control: Vec<String> = (0..5000).map(|i| format!("[control_{i}]")).collect();
    let t = Tokenizer::from_vocab(scored(&control)).unwrap();
    let text = "a [con[control_7]trol_ [[[[ [control_70] ".repeat(5000);
    let started = Instant::now();
    let ids = t.encode(&text, true).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let [short, long] = ["[control_7]", "[control_70]"].map(|text| t.token_id(text).unwrap());
    let count = |wanted: u32| ids.iter().filter(|&&id| id == wanted).count();
    assert_eq!((count(short), count(long)), (5000, 5000));
    // Without optimisation and beside other tests; it took minutes when each token was compared at each place.
    assert!(seconds < 20.0, "{seconds} s");
}

#[test]
fn regex_classes() {
    let dir = model();
    let mut whole_id = 0;
    let mut letter_id = 0;
    edit(dir.path(), "tokenizer.json", |file| {
        whole_id = rename(file, "ÿ", "Ã©a");
        letter_id = rename(file, "þ", "Ã©");
    });
    let split = |pattern: &str, text: &str| {
        edit(dir.path(), "tokenizer.json", |file| {
            let level = file["decoder"].clone();
            let split = json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
            file["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [split, level] });
            file["model"]["merges"] = json!([["Ã", "©"], ["Ã©", "a"]]);
        });
        open(dir.path()).tokenizer.encode(text, true).unwrap().first().map(|&id| u64::from(id))
    };
    // One piece, so that é and a become one token; or two.
    for whole in
        ["[[:alpha:]]+", r"\w+", "[[:word:]]+", r"[^\W\d]+", "[^[:^alpha:]]+", r"\p{Alnum}+", r"\b.+\b"]
    {
        assert_eq!(split(whole, "éa"), Some(whole_id), "{whole}");
    }
    for apart in ["[[:ascii:]]+", "[[:upper:]]+|a", r"\p{^L}|a"] {
        assert_eq!(split(apart, "éa"), Some(letter_id), "{apart}");
    }
}

#[test]
fn caught_panics_are_printed() {
    let dir = model();
    let refused = |change: &dyn Fn(&mut Value), says: &str| {
        let before = std::fs::read(dir.path().join("tokenizer.json")).unwrap();
        edit(dir.path(), "tokenizer.json", |file| change(file));
        let mut command =
            cli::mixlora(&["generate", "--prompt", "Hi", "--max-tokens", "1", "--device", "cpu"]);
        let e = cli::output(command.arg("--model").arg(dir.path()), 3).1;
        assert_eq!(e.lines().filter(|line| !line.starts_with("device: ")).count(), 1, "{e}");
        assert!(e.contains(says) && !e.contains("failed on this input"), "{e}");
        std::fs::write(dir.path().join("tokenizer.json"), before).unwrap();
    };
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let template = |single: Value| json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {} });
    let unknown = template(json!([{ "SpecialToken": { "id": "[X]", "type_id": 0 } }, text]));
    refused(&|file| file["post_processor"] = unknown.clone(), "'[X]' is not among its special_tokens");
    let inner = json!({ "type": "Sequence", "processors": [unknown] });
    refused(&|file| file["post_processor"] = inner.clone(), "'[X]' is not among its special_tokens");
    let second = template(json!([{ "Sequence": { "id": "B", "type_id": 0 } }]));
    refused(&|file| file["post_processor"] = second.clone(), "single has a second sequence");
    let fixed = json!({ "type": "FixedLength", "length": 0 });
    refused(&|file| file["pre_tokenizer"] = fixed.clone(), "FixedLength has a length of 0");
    refused(
        &|file| {
            file["model"]["continuing_subword_prefix"] = json!("###");
            file["model"]["merges"] = json!([["a", "b"]]);
        },
        "'b' without the prefix '###'",
    );
}

const PLAIN: &str = "{% for m in messages %}{{ '\\n' + m.role }}:{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ '\\nassistant:' }}{% endif %}";

#[test]
fn chat_extra_space() {
    let t = Tokenizer::from_vocab(scored(&[])).unwrap();
    for (text, start) in [("ab", 1), ("a</s>b", 5), ("a\nb", 1), ("ab", 0), ("aéb", 1), ("ab", 2)] {
        let whole = t.encode(text, true).unwrap();
        let before = t.encode(&text[..start], true).unwrap();
        assert_eq!(t.encode_from(text, start).unwrap(), whole[before.len()..], "{text} {start}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, llama(&scored(&[]), PLAIN)).unwrap();
    let model = Model::open_f32(&path, &Device::cpu()).unwrap();
    let text = open(&path);
    let mut chat = Chat::new(&text, Conversation::new(&model, None, 1), None);
    assert_eq!(chat.ask("hi").unwrap().tokens, "▁\nuser:hi\nassistant:".chars().count());
    let options = ReplyOptions { max_tokens: 1, ..ReplyOptions::default() };
    let mut sampler = Sampler::new(Sampling::default()).unwrap();
    let mut reply = chat.reply(&mut sampler, &options);
    reply.by_ref().for_each(|piece| assert!(piece.is_ok()));
    let said = reply.finish();
    chat.keep(&said);
    // A word that was drawn, and not read yet, comes first.
    let drawn = usize::from(said.ending == Ending::MaxTokens);
    assert_eq!(chat.ask("you").unwrap().tokens, drawn + "\nuser:you\nassistant:".chars().count());
}

#[test]
fn merge_loses_bos() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let control = ["<bos>", "<eos>", "<|eot_id|>"];
    let ids = [("bos_token_id", Entry::Int(2)), ("eos_token_id", Entry::Int(3))];
    let entries = byte_level("llama-bpe", &control, &ids);
    let vocab = Vocab::from_gguf(&GgufFile::from_bytes("v.gguf", gguf(&entries, &[])).unwrap()).unwrap();
    std::fs::write(
        path("model.gguf"),
        llama(&vocab, "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"),
    )
    .unwrap();
    std::fs::write(path("data.jsonl"), "{\"text\": \"ab\"}\n").unwrap();
    let mut train =
        cli::mixlora(&["train", "--method", "lora", "--steps", "1", "--quiet", "--device", "cpu"]);
    train.args(["--set", "r=1", "--targets", "q_proj"]);
    train
        .arg("--model")
        .arg(path("model.gguf"))
        .arg("--data")
        .arg(path("data.jsonl"))
        .arg("--out")
        .arg(path("run"));
    cli::output(train, 0);
    let mut merge = cli::mixlora(&["merge"]);
    merge
        .arg("--model")
        .arg(path("model.gguf"))
        .arg("--adapter")
        .arg(path("run"))
        .arg("--out")
        .arg(path("merged"));
    cli::output(merge, 0);
    let json = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(path("merged").join(name)).unwrap()).unwrap()
    };
    // Other programs take the start token from the post-processor.
    let processor = &json("tokenizer.json")["post_processor"];
    assert_eq!(processor["single"][0]["SpecialToken"]["id"], "<bos>");
    assert_eq!(processor["special_tokens"]["<bos>"]["ids"], json!([2]));
    // ... and the ends from this list.
    assert_eq!(json("generation_config.json")["eos_token_id"], json!([3, 4]));
    assert_eq!(json("config.json")["eos_token_id"], json!([3, 4]));
    let merged = open(&path("merged"));
    assert_eq!(merged.tokenizer.encode_start("a").unwrap(), [2, 0]);
    assert_eq!(merged.tokenizer.end_tokens(), [3, 4]);
}
