//! Where start, end and padding tokens are written, in the folder of a model.

use super::*;

#[test]
fn eos_list() {
    let dir = model();
    assert_eq!(open(dir.path()).tokenizer.end_tokens(), [257]);
    write(dir.path(), "generation_config.json", json!({ "eos_token_id": [257, 65] }));
    assert_eq!(open(dir.path()).tokenizer.end_tokens(), [65, 257]);
    // One id is a list of one; where the file does not say, config.json does.
    write(dir.path(), "generation_config.json", json!({ "eos_token_id": 66 }));
    assert_eq!(open(dir.path()).tokenizer.end_tokens(), [66, 257]);
    write(dir.path(), "generation_config.json", json!({}));
    edit(dir.path(), "config.json", |config| config["eos_token_id"] = json!([67]));
    assert_eq!(open(dir.path()).tokenizer.end_tokens(), [67, 257]);
}

#[test]
fn an_answer_ends_at_a_listed_token() {
    let dir = model();
    let answer = || {
        let mut command =
            cli::mixlora(&["generate", "--prompt", "Hi", "--max-tokens", "1", "--device", "cpu"]);
        cli::output(command.arg("--model").arg(dir.path()), 0).0
    };
    assert_ne!(answer(), "\n", "the model says something");
    // Whatever it was, it is an end now.
    let all: Vec<u32> = (0..260).collect();
    write(dir.path(), "generation_config.json", json!({ "eos_token_id": all }));
    assert_eq!(answer(), "\n");
}

#[test]
fn end_token_by_name() {
    let dir = model();
    // An ordinary token is no end, whatever its name.
    edit(dir.path(), "tokenizer.json", |file| {
        rename(file, "ÿ", "</s>");
    });
    let text = open(dir.path());
    assert_eq!(text.tokenizer.end_tokens(), [257]);
    assert_eq!(text.notes, [""; 0]);
    // A control token with the name of an end is none where the files name another, and the template does not write it.
    edit(dir.path(), "tokenizer.json", |file| file["added_tokens"][2]["content"] = json!("<|eot_id|>"));
    edit(dir.path(), "tokenizer_config.json", |config| config["pad_token"] = Value::Null);
    assert_eq!(open(dir.path()).tokenizer.end_tokens(), [257]);
    std::fs::write(dir.path().join("chat_template.jinja"), "{{ messages[0].content }}<|eot_id|>").unwrap();
    let text = open(dir.path());
    assert_eq!(text.tokenizer.end_tokens(), [257, 258]);
    assert!(text.notes[0].starts_with("<|eot_id|> ends an answer too"), "{:?}", text.notes);
    // Where no file names an end, names decide, and the user is told.
    edit(dir.path(), "tokenizer_config.json", |config| config["eos_token"] = Value::Null);
    let text = open(dir.path());
    assert_eq!(text.tokenizer.end_tokens(), [257, 258]);
    assert_eq!(
        text.notes,
        ["no file of the model names its end tokens; taken by their names: <|im_end|> <|eot_id|>"]
    );
}

#[test]
fn special_tokens_map() {
    let dir = model();
    let template = "{% for m in messages %}{{ bos_token }}{{ m.content }}{{ eos_token }}{% endfor %}";
    write(
        dir.path(),
        "tokenizer_config.json",
        json!({ "eos_token": "<|im_start|>", "chat_template": template }),
    );
    write(
        dir.path(),
        "special_tokens_map.json",
        json!({ "bos_token": "<|im_start|>", "eos_token": { "content": "<|pad|>" } }),
    );
    let all = ["--loss-on-all"];
    assert_eq!(shown(dir.path(), &talk(), &all), "<|im_start|>[[a<|pad|><|im_start|>b<|pad|>]]");
    assert_eq!(open(dir.path()).tokenizer.end_tokens(), [258]);
    // It counts only where tokenizer_config.json has no added_tokens_decoder.
    edit(dir.path(), "tokenizer_config.json", |config| config["added_tokens_decoder"] = json!({}));
    assert_eq!(shown(dir.path(), &talk(), &all), "a[[<|im_start|>b<|im_start|>]]");
}

#[test]
fn pad_not_in_tokenizer_json() {
    let dir = model();
    edit(dir.path(), "tokenizer_config.json", |config| {
        config["pad_token"] = json!("[PAD]");
        config["additional_special_tokens"] = json!(["[A]", { "content": "[B]" }]);
        config["added_tokens_decoder"] = json!({ "259": { "content": "[MORE]", "special": true } });
    });
    let t = open(dir.path()).tokenizer;
    // Behind the vocabulary, in the order of transformers.
    assert_eq!(
        ["[MORE]", "[PAD]", "[A]", "[B]"].map(|text| t.token_id(text)),
        [259, 260, 261, 262].map(Some)
    );
    assert_eq!(t.encode("a[PAD][A]", true).unwrap(), [t.token_id("a").unwrap(), 260, 261]);
    assert_eq!(t.pad(), 260);
    let mut command = cli::mixlora(&["generate", "--prompt", "Hi", "--max-tokens", "2", "--device", "cpu"]);
    cli::output(command.arg("--model").arg(dir.path()), 0);
    // A model without its end token cannot work.
    edit(dir.path(), "tokenizer_config.json", |config| config["eos_token"] = json!("[NO]"));
    let e = ModelText::open(dir.path()).unwrap_err().to_string();
    assert!(e.contains("eos_token: '[NO]' is not in the tokenizer's vocabulary"), "{e}");
}

#[test]
fn pad_beyond_embedding() {
    let dir = model();
    edit(dir.path(), "tokenizer_config.json", |config| {
        config["pad_token"] = json!("[PAD]");
        config["additional_special_tokens"] = json!(["[A]", "[B]"]);
    });
    // 260 rows, and the last token is 261.
    let t = open(dir.path()).tokenizer;
    assert_eq!((t.vocab_size(), t.pad_within(260), t.pad_within(200)), (262, 259, 0));
    t.check_rows(260).unwrap();
    assert!(t.check_rows(250).is_err(), "ordinary tokens without a row");
    let run = |prompt: &str, code: i32| {
        let mut command =
            cli::mixlora(&["generate", "--max-tokens", "2", "--device", "cpu", "--prompt", prompt]);
        cli::output(command.arg("--model").arg(dir.path()), code).1
    };
    run("Hi", 0);
    assert!(run("Hi [B]", 3).contains("prompt: holds token 261, which the model does not know"));
    let data = dir.path().join("data.jsonl");
    std::fs::write(&data, format!("{}\n{}\n", talk(), talk().to_string().replace("\"a\"", "\"[B]\"")))
        .unwrap();
    let mut command =
        cli::mixlora(&["train", "--method", "lora", "--steps", "1", "--quiet", "--device", "cpu"]);
    command.arg("--model").arg(dir.path()).arg("--data").arg(&data).arg("--out").arg(dir.path().join("run"));
    let e = cli::output(command, 3).1;
    assert!(e.contains("data.jsonl:2: holds token 261, which the model does not know"), "{e}");
}

#[test]
fn tokenizer_config_of_other_types() {
    let dir = model();
    let refused = |name: &str, value: Value, says: &str| {
        let path = dir.path().join(name);
        let before = std::fs::read(&path).ok();
        write(dir.path(), name, value);
        let mut command =
            cli::mixlora(&["generate", "--prompt", "Hi", "--max-tokens", "1", "--device", "cpu"]);
        let e = cli::output(command.arg("--model").arg(dir.path()), 3).1;
        assert!(e.contains(&format!("{name}: {says}")), "{says}: {e}");
        match before {
            Some(bytes) => std::fs::write(path, bytes).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
    };
    let token = "expected a string or an object with content";
    let config = "tokenizer_config.json";
    refused(config, json!([1]), "expected an object, not a list");
    refused(config, json!({ "eos_token": 2 }), &format!("at eos_token: {token}, not a number"));
    refused(
        config,
        json!({ "unk_token": { "text": "a" } }),
        &format!("at unk_token: {token}, not an object"),
    );
    refused(config, json!({ "chat_template": 7 }), "at chat_template: expected a string");
    refused(
        config,
        json!({ "chat_template": [{ "name": 7 }] }),
        "at chat_template[0].name: expected a string",
    );
    refused(config, json!({ "add_bos_token": "yes" }), "at add_bos_token: expected true or false");
    refused(config, json!({ "added_tokens_decoder": [] }), "at added_tokens_decoder: expected an object");
    refused(
        config,
        json!({ "added_tokens_decoder": { "x": "a" } }),
        "at added_tokens_decoder.x: expected the id",
    );
    refused(
        config,
        json!({ "additional_special_tokens": "a" }),
        "at additional_special_tokens: expected a list",
    );
    refused(
        "special_tokens_map.json",
        json!({ "bos_token": [] }),
        &format!("at bos_token: {token}, not a list"),
    );
    for bad in [json!("2"), json!(-1), json!(1.5), json!([2, null]), json!(1_u64 << 32)] {
        refused(
            "generation_config.json",
            json!({ "eos_token_id": bad }),
            "at eos_token_id: expected the id of a token",
        );
    }
    // Null says nothing.
    edit(dir.path(), config, |config| config["bos_token"] = Value::Null);
    assert_eq!(open(dir.path()).tokenizer.end_tokens(), [257]);
}

#[test]
fn templates_without_a_default_are_told() {
    let dir = model();
    edit(dir.path(), "tokenizer_config.json", |config| {
        config["chat_template"] = json!([{ "name": "tools", "template": "x" }]);
    });
    let text = open(dir.path());
    assert!(text.template.is_none());
    assert_eq!(text.notes, ["none of the model's chat templates (tools) is named default: it has none here"]);
}
