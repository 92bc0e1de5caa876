//! Tokenizers and chat templates: the rows of bad inputs that concern them, and small hand-made vocabularies.
#![cfg(feature = "tokenizer")]

use crate::common::text::{assistant, sentencepiece, user};
use mixlora::Error;
use mixlora::text::{ChatTemplate, Message, ModelText, Role, SpecialTokens, Tokenizer, Vocab};
use serde_json::{Value, json};

/// A byte-level vocabulary: printable ASCII, the space and newline of GPT-2, a few merges, control tokens.
fn byte_vocab() -> Vocab {
    let mut tokens: Vec<String> = ('!'..='~').map(String::from).collect();
    tokens.extend(
        ["Ġ", "Ċ", "Ã", "©", "he", "ll", "hell", "Ġhe", "<|im_start|>", "<|im_end|>", "<tool>"]
            .map(String::from),
    );
    let n = tokens.len();
    let mut types = vec![1; n];
    types[n - 3..].copy_from_slice(&[3, 3, 4]);
    let merges = ["h e", "l l", "he ll", "Ġ he"].map(String::from).to_vec();
    let bos = Some(n as u32 - 3);
    let eos = Some(n as u32 - 2);
    Vocab {
        model: "gpt2".into(),
        pre: "smollm".into(),
        tokens,
        types,
        merges: Some(merges),
        bos,
        eos,
        ..Vocab::default()
    }
}

fn texts(t: &Tokenizer, text: &str, special: bool) -> Vec<String> {
    t.encode(text, special).unwrap().iter().map(|&id| t.token(id).unwrap()).collect()
}

#[test]
fn bytes_are_merged_and_control_tokens_matched() {
    let t = Tokenizer::from_vocab(byte_vocab()).unwrap();
    assert_eq!(texts(&t, "hello he", true), ["hell", "o", "Ġhe"]);
    assert_eq!(texts(&t, "a12", true), ["a", "1", "2"]);
    assert_eq!(texts(&t, "<|im_end|><tool>", true), ["<|im_end|>", "<tool>"]);
    let plain = texts(&t, "<|im_end|><tool>", false);
    assert!(plain.len() > 3 && plain.last().unwrap() == "<tool>", "{plain:?}");
    let ids = t.encode("hé\n<|im_end|>", true).unwrap();
    assert_eq!(t.decode(&ids, false), "hé\n<|im_end|>");
    assert_eq!(t.decode(&ids, true), "hé\n");
    assert_eq!(t.end_tokens(), [t.token_id("<|im_end|>").unwrap()]);
    // Places cover the text, each token its own.
    let places: Vec<_> = t.encode_pieces("hello he", true).unwrap().into_iter().map(|p| p.source).collect();
    assert_eq!(places, [0..4, 4..5, 5..8]);
}

#[test]
fn text_comes_out_at_whole_characters() {
    let t = Tokenizer::from_vocab(byte_vocab()).unwrap();
    let ids = t.encode("é he", true).unwrap();
    let mut d = t.decoder(&[], false);
    let out: Vec<_> = ids.iter().map(|&id| d.push(id)).collect();
    assert_eq!(out, [None, Some("é".into()), Some(" he".into())]);
    // Half a character, and nothing after it.
    assert_eq!(d.push(ids[0]), None);
    assert_eq!(d.finish().unwrap(), "\u{fffd}");
    // Bytes that never become a character do not hold the stream up.
    let mut d = t.decoder(&ids, false);
    let out: String = [ids[0]; 9].iter().filter_map(|&id| d.push(id)).collect();
    assert!(out.chars().count() >= 4, "{out:?}");
    // Long streams, beyond the window that is kept.
    let long = "hello é ".repeat(40);
    let mut d = t.decoder(&[], false);
    let out: String = t.encode(&long, true).unwrap().iter().filter_map(|&id| d.push(id)).collect();
    assert_eq!(out, long);
}

/// A vocabulary in which scores decide the merges, and bytes replace text without a token.
fn scored_vocab() -> Vocab {
    let pieces = [
        ("▁", -9.0),
        ("a", -8.0),
        ("b", -8.5),
        ("c", -8.6),
        ("ab", -2.0),
        ("bc", -1.0),
        ("▁a", -3.0),
        ("abc", -4.0),
        ("▁abc", -5.0),
    ];
    sentencepiece(&pieces, &[])
}

#[test]
fn sentencepiece_merges_the_best_score_first() {
    let t = Tokenizer::from_vocab(scored_vocab()).unwrap();
    // bc (-1) before ab (-2); then ▁a (-3); "▁a"+"bc" is a token again.
    assert_eq!(texts(&t, "abc", true), ["▁abc"]);
    assert_eq!(texts(&t, "ab", true), ["▁", "ab"]);
    assert_eq!(texts(&t, "a c", true), ["▁a", "▁", "c"]);
    assert_eq!(texts(&t, "é", true), ["▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(texts(&t, "a</s>a", true), ["▁a", "</s>", "▁a"]);
    assert!(t.encode("</s>", false).unwrap().len() > 1);
    for text in ["abc", "a b  c", "é a", "a</s>a", " a", ""] {
        let ids = t.encode(text, true).unwrap();
        assert_eq!(t.decode(&ids, false), text, "{ids:?}");
        let mut d = t.decoder(&[], false);
        let mut out: String = ids.iter().filter_map(|&id| d.push(id)).collect();
        out += &d.finish().unwrap_or_default();
        assert_eq!(out, text);
        for p in t.encode_pieces(text, true).unwrap() {
            assert!(text.get(p.source).is_some());
        }
    }
    // Behind a prompt, the space of the next word is kept.
    let prompt = t.encode("a", true).unwrap();
    assert_eq!(t.decoder(&prompt, false).push(t.token_id("▁a").unwrap()).unwrap(), " a");
}

#[test]
fn vocabularies_that_do_not_fit_together_are_refused() {
    let bad = |change: &dyn Fn(&mut Vocab), says: &str| {
        let mut vocab = byte_vocab();
        change(&mut vocab);
        let e = Tokenizer::from_vocab(vocab).unwrap_err().to_string();
        assert!(e.contains(says), "{e}");
    };
    bad(&|v| v.pre = "nonsense".into(), "'nonsense' is not known; known are smollm");
    bad(&|v| v.model = "bert".into(), "'bert' is not known; known are gpt2, llama");
    bad(&|v| v.tokens.clear(), "0 tokens");
    bad(&|v| v.types.truncate(3), "3 token types");
    bad(&|v| v.merges = None, "no merges");
    bad(&|v| v.merges = Some(vec!["nospace".into()]), "merge 0, 'nospace'");
    bad(&|v| v.merges = Some(vec!["é".into(), "".into()]), "merge 0");
    bad(&|v| v.merges = Some(vec!["zz qq".into()]), "zz");
    bad(&|v| v.eos = Some(1 << 30), "the eos token is");
    bad(&|v| v.model = "llama".into(), "0 scores");
    let mut scored = scored_vocab();
    scored.tokens.truncate(3);
    scored.types.truncate(3);
    scored.unk = None;
    scored.scores.as_mut().unwrap().truncate(3);
    let e = Tokenizer::from_vocab(scored).unwrap().encode("x", true).unwrap_err();
    assert!(e.to_string().contains("no token for byte"), "{e}");
    // A vocabulary larger than the embedding.
    let t = Tokenizer::from_vocab(byte_vocab()).unwrap();
    let e = t.check_rows(7).unwrap_err().to_string();
    assert!(e.contains(&t.vocab_size().to_string()) && e.contains("7 rows"), "{e}");
    t.check_rows(1000).unwrap();
}

fn tokenizer_json() -> Value {
    let words = ["<unk>", "<s>", "</s>", "hi", "you", "<|im_end|>"];
    let vocab: serde_json::Map<_, _> =
        words.iter().enumerate().map(|(i, w)| (w.to_string(), json!(i))).collect();
    let added = [1, 2, 5].map(|i| {
        json!({"id": i, "content": words[i], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
    });
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    })
}

#[test]
fn a_model_folder_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    // Files that are missing or malformed.
    let e = ModelText::open(dir.path()).unwrap_err();
    assert!(matches!(&e, Error::File { .. }) && e.to_string().contains("no tokenizer.json"), "{e}");
    for broken in
        ["", "{", "{}", "[1]", r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}"#]
    {
        write("tokenizer.json", broken.into());
        let e = ModelText::open(dir.path()).unwrap_err().to_string();
        assert!(e.contains("tokenizer.json: not a usable"), "{e}");
    }
    write("tokenizer.json", tokenizer_json().to_string());
    let plain = ModelText::open(dir.path()).unwrap();
    assert!(plain.template.is_none());
    let t = plain.tokenizer;
    // The truncation and padding of the file are not ours, and the start token is not put in by itself.
    assert_eq!(t.encode("hi you hi you", true).unwrap(), [3, 4, 3, 4]);
    assert_eq!((t.bos(), t.add_bos(), t.vocab_size()), (Some(1), true, 6));
    assert_eq!(t.end_tokens(), [2, 5]);
    let mut config = json!({
        "bos_token": {"content": "<s>"},
        "eos_token": "<|im_end|>",
        "add_bos_token": false,
        "chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"}],
    });
    write("tokenizer_config.json", config.to_string());
    let ModelText { tokenizer: t, template, .. } = ModelText::open(dir.path()).unwrap();
    assert_eq!((t.eos(), t.add_bos()), (Some(5), false));
    assert_eq!(t.render(&template.unwrap(), &[user("hi")], false).unwrap(), "<s>hi<|im_end|>");
    write("chat_template.jinja", "{% if %}".into());
    let e = ModelText::open(dir.path()).unwrap_err().to_string();
    assert!(e.contains("chat template, line 1"), "{e}");
    config["eos_token"] = json!("<none>");
    write("tokenizer_config.json", config.to_string());
    let e = ModelText::open(dir.path()).unwrap_err().to_string();
    assert!(e.contains("eos_token: '<none>' is not in"), "{e}");
}

fn none() -> SpecialTokens {
    SpecialTokens::default()
}

fn render(source: &str, messages: &[Message]) -> Result<String, Error> {
    ChatTemplate::new(source)?.render(messages, true, &none().with("bos_token", "<s>"))
}

#[test]
fn templates_behave_as_in_python() {
    let m = [user(" Hi <b> & 'x' ")];
    let cases = [
        // Blocks on lines of their own leave nothing behind; nothing is escaped.
        (
            "{% for m in messages %}\n  {% if true %}\n{{ m['content'].strip() }}\n  {% endif %}\n{% endfor %}\n",
            "Hi <b> & 'x'\n",
        ),
        ("{{ messages[0].content | trim | tojson }}", r#""Hi <b> & 'x'""#),
        ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": " Hi <b> & 'x' "}"#),
        (
            "{{ {'a': [1, true, none], 'b': {}} | tojson(indent=2) }}",
            "{\n  \"a\": [\n    1,\n    true,\n    null\n  ],\n  \"b\": {}\n}",
        ),
        ("{{ bos_token }}{{ eos_token }}{% if tools is defined and tools %}x{% endif %}", "<s>"),
        ("{{ 'a,b'.split(',')[1] }}{{ 'abc'.startswith('ab') }}{{ 'x'.upper() }}", "bTrueX"),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("a{%- generation -%} b {%- endgeneration %}c", "abc"),
        ("{% generation %}\nx{% endgeneration %}\ny", "xy"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}", "<1>"),
    ];
    for (source, wanted) in cases {
        assert_eq!(render(source, &m).unwrap(), wanted, "{source}");
    }
    let dated = ChatTemplate::at("{{ strftime_now('%d %b %Y') }}", 1_709_251_198).unwrap();
    assert_eq!(dated.render(&m, true, &none()).unwrap(), "29 Feb 2024");
    let chatml = ChatTemplate::named("chatml").unwrap();
    let text = chatml.render(&[user("a"), assistant("b")], true, &none()).unwrap();
    assert_eq!(
        text,
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>assistant\n"
    );
    assert!(ChatTemplate::named("nonsense").is_none());
}

#[test]
fn generated_parts_are_located() {
    let source = "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }};{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let t = ChatTemplate::new(source).unwrap();
    let marked = t.render_marked(&[user("é"), assistant("no")], &none()).unwrap();
    assert_eq!(marked.text, "user:éassistant:no;");
    assert_eq!(marked.generated.iter().map(|r| &marked.text[r.clone()]).collect::<Vec<_>>(), ["no;"]);
    assert_eq!(t.render(&[user("é"), assistant("no")], false, &none()).unwrap(), marked.text);
    assert!(t.render_marked(&[user("\u{10FFF0}")], &none()).is_err());
}

// Templates with errors, without end, too deep or too wide.
#[test]
fn templates_that_cannot_work_name_their_line() {
    let m = [user("x")];
    let cases = [
        ("a\n{% if %}", "line 2", "syntax error"),
        ("\n\n{{ nonsense() }}", "line 3", "nonsense"),
        ("\n{{ raise_exception('only two roles') }}", "line 2", "only two roles"),
        ("{{ 'x' | nonsense }}", "line 1", "nonsense"),
        ("{{ messages[7].content }}", "line 1", "undefined"),
        ("{{ strftime_now('%Q') }}", "line 1", "%Q"),
        ("{% include 'other' %}", "line 1", ""),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
            "line 1",
            "work limit",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "line 1", ""),
        ("{% generation %}", "line 1", "syntax error"),
    ];
    for (source, line, says) in cases {
        let e = render(source, &m).unwrap_err().to_string();
        assert!(e.contains(&format!("chat template, {line}")) && e.contains(says), "{source}: {e}");
    }
    let deep = format!("{}1{}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(ChatTemplate::new(&format!("{{{{ {deep} }}}}")).is_err());
}

#[test]
fn fragments_of_templates_never_panic() {
    let parts =
        ["{%", "%}", "-", "+", "{{", "}}", "generation", " endgeneration ", "{#", "é", "'", "\n", "(", "x"];
    // Every sequence of up to four parts.
    for n in 0..parts.len().pow(4) {
        let pick = |i: u32| parts[n / parts.len().pow(i) % parts.len()];
        let source: String = (0..4).map(pick).collect();
        if let Ok(t) = ChatTemplate::new(&source) {
            let _ = t.render_marked(&[user("x")], &none());
        }
    }
}

// The template of SmolLM2, against the strings made with PyTorch's tools.
#[test]
fn stored_conversations_are_rendered() {
    let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let t = ChatTemplate::new(source).unwrap();
    let mut compared = 0;
    for line in include_str!("../golden/smollm2/tokens.jsonl").lines() {
        let stored: Value = serde_json::from_str(line).unwrap();
        let Some(list) = stored["messages"].as_array() else { continue };
        let role = |m: &Value| Role::ALL.into_iter().find(|r| r.name() == m["role"]).unwrap();
        let messages: Vec<_> =
            list.iter().map(|m| Message::new(role(m), m["content"].as_str().unwrap())).collect();
        let prompt = stored["add_generation_prompt"].as_bool().unwrap();
        assert_eq!(t.render(&messages, prompt, &none()).unwrap(), stored["text"]);
        compared += 1;
    }
    assert_eq!(compared, 3);
}
