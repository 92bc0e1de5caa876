//! Data files and masks: rows 21 to 30 of docs/BAD_INPUT.md, and trained tokens.
#![cfg(feature = "tokenizer")]

use mixlora::data::{
    Body, DataFiles, EncodeOptions, Encoder, LossOn, Sample, read_samples, read_samples_from,
};
use mixlora::text::{ChatTemplate, Message, Role, Tokenizer, Vocab};
use mixlora::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn read(bytes: impl AsRef<[u8]>) -> Result<Vec<Sample>> {
    read_samples(&Folder::new().file("train.jsonl", bytes))
}

/// The lines of the error, without the folder.
fn said(bytes: impl AsRef<[u8]>) -> Vec<String> {
    let e = read(bytes).unwrap_err();
    assert!(matches!(e, Error::Data { .. }), "{e:?}");
    e.to_string().lines().map(|l| l[l.find("train.jsonl").unwrap()..].to_string()).collect()
}

const GOOD: &str =
    r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;

// Byte order marks, CRLF and blank lines are read.
#[test]
fn every_kind_of_sample_is_read() {
    let text = format!(
        "\u{feff}{GOOD}\r\n\r\n  \n{}\n{}",
        r#"{"prompt": "p", "completion": "c", "task": "x", "id": [1, {"a": null}]}"#,
        r#"{"text": "t\u00e9", "task": null}"#
    );
    let s = read(text).unwrap();
    assert_eq!(s.iter().map(|s| s.line).collect::<Vec<_>>(), [1, 4, 5]);
    assert_eq!(
        s[0].body,
        Body::Messages(vec![Message::new(Role::User, "a"), Message::new(Role::Assistant, "b")])
    );
    assert_eq!(s[1].body, Body::Completion { prompt: "p".into(), completion: "c".into() });
    assert_eq!((s[1].task.as_deref(), s[2].task.as_deref()), (Some("x"), None));
    assert_eq!(s[2].body, Body::Text("té".into()));
}

// Rows 22, 23, 25: all places of a file at once.
#[test]
fn every_bad_line_is_named() {
    let lines: &[(&[u8], &str)] = &[
        (
            br#"{"messages": [{"role": "bot", "content": "a"}]}"#,
            "field 'role': 'bot' is not one of system, user, assistant",
        ),
        (br#"{"messages": [{"role": "user", "content": null}]}"#, "field 'content' is missing"),
        (br#"{"messages": [{"role": "user"}]}"#, "field 'content' is missing"),
        (br#"{"messages": [{"content": "a"}]}"#, "field 'role' is missing"),
        (
            br#"{"messages": [{"role": "user", "content": [{"type": "text"}]}]}"#,
            "field 'content': part 0 has no 'text'",
        ),
        (br#"{"messages": []}"#, "'messages' is empty"),
        (br#"{"messages": "a"}"#, "a list of messages"),
        (br#"{"messages": [{"role": "assistant", "content": "a"}]}"#, "messages[0] is the assistant's"),
        (br#"{"conversation": []}"#, "field 'messages' is missing"),
        (br#"{"prompt": "a"}"#, "field 'completion' is missing"),
        (br#"{"completion": "a"}"#, "field 'prompt' is missing"),
        (br#"{"prompt": 7, "completion": "a"}"#, "field 'prompt': invalid type: integer `7`"),
        (br#"{"text": "a", "messages": [{"role": "user", "content": "a"}]}"#, "more than one of"),
        (br#"{"text": "a",}"#, "trailing comma"),
        (br#"{"text": "a"} x"#, "trailing characters"),
        (b"{\"text\": \"a\xff\"}", "invalid UTF-8 at byte 12"),
        (br#""text""#, "an object"),
        (br#"{"text": "a"#, "EOF while parsing"),
    ];
    let mut bytes = format!("{GOOD}\n").into_bytes();
    for (line, _) in lines {
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
    }
    bytes.pop();
    let said = said(&bytes);
    assert_eq!(said.len(), lines.len(), "{said:#?}");
    for (i, (line, (_, wanted))) in said.iter().zip(lines).enumerate() {
        assert!(line.starts_with(&format!("train.jsonl:{}:", i + 2)) && line.contains(wanted), "{line}");
    }
    assert!(said[0].starts_with("train.jsonl:2:28: "), "{}", said[0]);
    assert!(said[15].starts_with("train.jsonl:17:12: "), "{}", said[15]);
}

// Up to 20 problems are listed, further ones are counted.
#[test]
fn many_bad_lines_are_counted() {
    let said = said("{}\n".repeat(33));
    assert_eq!(said.len(), 21);
    assert_eq!(said[20], "train.jsonl: and 13 more");
}

// Rows 24 and 26.
#[test]
fn files_that_are_not_lines_are_recognised() {
    assert_eq!(read("[\n {\"text\": \"a\"}\n]\n").unwrap()[0].line, 2);
    assert_eq!(read(format!("[{GOOD}]")).unwrap()[0].element, Some(1));
    assert!(said("{\n  \"text\": \"a\"\n}\n{\n  \"text\": \"b\"\n}\n")[0].contains("is pretty-printed JSON"));
    assert!(said("{\"messages\": [\n{\"role\": \"user\"}]}\n")[0].contains("is pretty-printed JSON"));
    assert_eq!(said(""), ["train.jsonl: the file is empty"]);
    assert_eq!(said("\n \r\n"), ["train.jsonl: the file holds no sample"]);
    assert!(read_samples(Path::new("nonexistent.jsonl")).unwrap_err().to_string().contains("cannot be read"));
}

// A line without end.
#[test]
fn endless_lines_are_refused_early() {
    let folder = Folder::new();
    let path = folder.file("train.jsonl", format!("{GOOD}\n"));
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"text\": \"").unwrap();
    // Sparse: 10 GiB that take no space.
    file.set_len(10 << 30).unwrap();
    let e = read_samples(&path).unwrap_err().to_string();
    assert!(e.ends_with("train.jsonl:2: the line is longer than 64 MiB"), "{e}");
}

#[test]
fn folders_are_searched() {
    let folder = Folder::new();
    let e = DataFiles::find(folder.0.path()).unwrap_err().to_string();
    assert!(e.contains("no train.jsonl"), "{e}");
    assert!(DataFiles::find(Path::new("nonexistent")).is_err());
    let train = folder.file("train.jsonl", GOOD);
    let test = folder.file("test.jsonl", GOOD);
    let found = DataFiles::find(folder.0.path()).unwrap();
    assert_eq!(found.all().collect::<Vec<_>>(), [&train, &test]);
    assert_eq!(DataFiles::find(&test).unwrap().train, Some(test));
}

/// One token per character, and control tokens.
fn tokenizer(eos: bool) -> Tokenizer {
    let mut tokens: Vec<String> = ('!'..='~').map(String::from).collect();
    tokens.extend(["Ġ", "Ċ", "<s>", "<|im_start|>"].map(String::from));
    let mut types = vec![1; tokens.len()];
    let n = tokens.len();
    types[n - 2..].fill(3);
    if eos {
        tokens.push("<|im_end|>".into());
        types.push(3);
    }
    let vocab = Vocab {
        model: "gpt2".into(),
        pre: "gpt-2".into(),
        types,
        tokens,
        merges: Some(Vec::new()),
        bos: Some(n as u32 - 2),
        eos: eos.then_some(n as u32),
        add_bos: true,
        ..Vocab::default()
    };
    Tokenizer::from_vocab(vocab).unwrap()
}

fn turns(list: &[(&str, &str)]) -> Body {
    let role = |n: &str| Role::ALL.into_iter().find(|r| r.name() == n).unwrap();
    Body::Messages(list.iter().map(|(r, c)| Message::new(role(r), *c)).collect())
}

/// The text with trained tokens in brackets.
fn shown(t: &Tokenizer, template: &str, options: EncodeOptions, body: Body) -> Result<String> {
    let template = ChatTemplate::named(template).map_or_else(|| ChatTemplate::new(template), Ok)?;
    let encoder = Encoder::new(t, Some(&template), options)?;
    let e = encoder.sample(Path::new("d.jsonl"), &Sample::new(7, None, body))?.example;
    let mut out = String::new();
    for (i, (&id, &trained)) in e.ids.iter().zip(&e.trained).enumerate() {
        let before = i > 0 && e.trained[i - 1];
        out += if trained && !before {
            "["
        } else if !trained && before {
            "]"
        } else {
            ""
        };
        out += &t.decode(&[id], false);
    }
    Ok(out + if e.trained.last() == Some(&true) { "]" } else { "" })
}

#[test]
fn every_assistant_turn_is_trained_with_its_end() {
    let t = tokenizer(true);
    let body = || turns(&[("user", "q"), ("assistant", "a b"), ("user", "r"), ("assistant", "")]);
    let s = shown(&t, "chatml", EncodeOptions::default(), body()).unwrap();
    let wanted = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a b<|im_end|>]\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n[<|im_end|>]\n";
    assert_eq!(s, wanted);
    let all = EncodeOptions { loss_on: LossOn::All, ..EncodeOptions::default() };
    let s = shown(&t, "chatml", all, turns(&[("user", "q"), ("assistant", "a")])).unwrap();
    assert_eq!(s, "<|im_start|>[user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n]");
    // Marks of the template itself.
    let marked = "{% for m in messages %}{{ m.role[0] }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let s = shown(&t, marked, EncodeOptions::default(), body()).unwrap();
    assert_eq!(s, "u:qa:[a b<|im_end|>]u:ra:[<|im_end|>]");
    // A template that writes the last turn in another way than earlier ones.
    let thinks = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let s = shown(&t, thinks, EncodeOptions::default(), body()).unwrap();
    assert!(
        s.contains("assistant\n[a b<|im_end|>]\n") && s.ends_with("assistant\n[<think></think><|im_end|>]\n"),
        "{s}"
    );
}

#[test]
fn templates_whose_turns_cannot_be_found_are_refused() {
    let t = tokenizer(true);
    let body = || turns(&[("user", "q"), ("assistant", "a"), ("user", "r")]);
    // It begins differently for every length.
    let counts = "{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}";
    let e = shown(&t, counts, EncodeOptions::default(), body()).unwrap_err().to_string();
    assert!(e.starts_with("d.jsonl:7: messages[1]: the template does not put the prompt"), "{e}");
    let e = shown(&t, "{{ nonsense() }}", EncodeOptions::default(), body()).unwrap_err().to_string();
    assert!(e.starts_with("d.jsonl:7: chat template, line 1"), "{e}");
    let some = "{% for m in messages %}{% if m.role == 'assistant' and m.content != 'a' %}{% generation %}x{% endgeneration %}{% endif %}{% endfor %}";
    let e = shown(&t, some, EncodeOptions::default(), body()).unwrap_err().to_string();
    assert!(e.contains("marks 0 generated parts for 1 assistant turns"), "{e}");
    let encoder = Encoder::new(&t, None, EncodeOptions::default()).unwrap();
    let e = encoder.sample(Path::new("d"), &Sample::new(1, None, body())).unwrap_err();
    assert!(e.to_string().contains("no chat template"), "{e}");
}

// Templates and vocabularies without an end of turn.
#[test]
fn an_untrained_end_is_refused() {
    let bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let body = || turns(&[("user", "q"), ("assistant", "a")]);
    let e = shown(&tokenizer(true), bare, EncodeOptions::default(), body()).unwrap_err().to_string();
    assert!(e.contains("messages[1]: no end token is trained") && e.contains("<|im_end|>"), "{e}");
    let allowed = EncodeOptions { allow_untrained_eos: true, ..EncodeOptions::default() };
    let s = shown(&tokenizer(true), bare, allowed.clone(), body()).unwrap();
    assert_eq!(s, "user: q\nassistant: [a\n]");
    let text = || Body::Text("x".into());
    let e = shown(&tokenizer(false), bare, EncodeOptions::default(), text()).unwrap_err().to_string();
    assert!(e.contains("no end token"), "{e}");
    assert_eq!(shown(&tokenizer(false), bare, allowed, text()).unwrap(), "<s>[x]");
}

#[test]
fn completions_and_texts_end() {
    let t = tokenizer(true);
    let plain = |prompt: &str, completion: &str| Body::Completion {
        prompt: prompt.into(),
        completion: completion.into(),
    };
    let show = |body| shown(&t, "chatml", EncodeOptions::default(), body).unwrap();
    assert_eq!(show(plain("q: ", "a")), "<s>q: [a<|im_end|>]");
    assert_eq!(show(plain("", "a")), "<s>[a<|im_end|>]");
    assert_eq!(show(plain("q", "a<|im_end|>")), "<s>q[a<|im_end|>]");
    assert_eq!(show(plain("<s>q", "a")), "<s>q[a<|im_end|>]");
    assert_eq!(show(Body::Text("ab".into())), "<s>[ab<|im_end|>]");
}

// The end of the answer and the start token are kept.
#[test]
fn long_samples_are_cut_from_the_prompt() {
    let t = tokenizer(true);
    let cut = |max_length, body| {
        shown(&t, "chatml", EncodeOptions { max_length, ..EncodeOptions::default() }, body)
    };
    let plain = || Body::Completion { prompt: "0123456789".into(), completion: "abc".into() };
    assert_eq!(cut(15, plain()).unwrap(), "<s>0123456789[abc<|im_end|>]");
    assert_eq!(cut(7, plain()).unwrap(), "<s>89[abc<|im_end|>]");
    assert_eq!(cut(3, plain()).unwrap(), "<s>[c<|im_end|>]");
    let chat = || turns(&[("user", "q"), ("assistant", "a"), ("user", "0123456789")]);
    // What follows the last trained token goes first.
    let s = cut(22, chat()).unwrap();
    assert!(s.starts_with("<|im_start|>user\nq") && s.contains("[a<|im_end|>]"), "{s}");
    assert!(s.ends_with("[a<|im_end|>]"), "{s}");
    assert!(cut(23, chat()).unwrap().ends_with("[a<|im_end|>]\n"));
    assert!(cut(1, plain()).is_err());
}

// Rows 26 and 27.
#[test]
fn what_is_left_out_is_counted() {
    let t = tokenizer(true);
    let template = ChatTemplate::named("chatml").unwrap();
    let sample = |line, body| Sample::new(line, Some(format!("t{}", line % 2)), body);
    let mut samples: Vec<Sample> =
        (1..=40).map(|i| sample(i, turns(&[("user", "q"), ("assistant", "a")]))).collect();
    samples[4].body = turns(&[("user", "nobody answers")]);
    samples[5].body = Body::Text(String::new());
    samples[6].body = Body::Completion { prompt: "0123456789".repeat(9), completion: "x".into() };
    let options = EncodeOptions { max_length: 60, ..EncodeOptions::default() };
    let encoder = Encoder::new(&t, Some(&template), options.clone()).unwrap();
    let data = encoder.dataset(Path::new("d.jsonl"), &samples).unwrap();
    let c = data.counts;
    assert_eq!((c.samples, c.empty, c.untrained, c.truncated), (40, 1, 1, 1));
    assert_eq!((data.examples.len(), data.tasks.len(), data.lines[4]), (38, 38, 7));
    assert!(data.lengths().iter().all(|n| *n <= 60));
    for s in &mut samples[10..13] {
        s.body = turns(&[("user", "nobody answers")]);
    }
    let e = encoder.dataset(Path::new("d.jsonl"), &samples).unwrap_err().to_string();
    assert_eq!(e, "d.jsonl:5: 4 of 40 samples have no trained token, the first is here; 5 % are allowed");
    let lax = Encoder::new(&t, Some(&template), EncodeOptions { max_untrained: 1.0, ..options }).unwrap();
    assert_eq!(lax.dataset(Path::new("d.jsonl"), &samples).unwrap().counts.untrained, 4);
    let e = lax.dataset(Path::new("d.jsonl"), &samples[4..6]).unwrap_err().to_string();
    assert!(e.contains("no sample is left: 1 are empty, 1 have no trained token"), "{e}");
}

#[test]
fn a_system_text_beside_messages_is_the_first_of_them() {
    let line = r#"{"system": "s", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let samples = read_samples_from("a.jsonl".as_ref(), line.as_bytes()).unwrap();
    let Body::Messages(messages) = &samples[0].body else { panic!("{samples:?}") };
    assert_eq!([messages[0].role, messages[1].role], [Role::System, Role::User]);
    assert_eq!(messages[0].content, "s");
}
