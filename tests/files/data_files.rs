//! Data files as other tools write them, and what is wrong with malformed ones. Files: `tests/fixtures/make_data.py`.
#![cfg(feature = "tokenizer")]

use mixlora::data::{
    Body, Columns, EncodeOptions, Encoder, ReadOptions, Sample, Written, as_messages, read_samples_with,
    recognised,
};
use mixlora::text::{Message, Role, Tokenizer, Vocab};
use std::io::Write;
use std::path::{Path, PathBuf};

const QUESTIONS: [[&str; 2]; 3] = [
    ["What is 2 + 2?", "4"],
    ["Who said \"I came, I saw\"?", "Caesar, who also said \"I conquered\"."],
    ["Two lines,\none question: é?", "one\nanswer"],
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name)
}

fn with_columns(names: &[&str]) -> ReadOptions {
    ReadOptions { columns: Columns::new(names).unwrap(), ..ReadOptions::default() }
}

fn read(name: &str, options: &ReadOptions) -> Vec<Sample> {
    read_samples_with(&fixture(name), options).unwrap()
}

fn completions() -> Vec<Body> {
    let body = |[prompt, completion]: [&str; 2]| Body::Completion {
        prompt: prompt.into(),
        completion: completion.into(),
    };
    QUESTIONS.map(body).to_vec()
}

fn conversation(turns: &[(Role, &str)]) -> Body {
    Body::Messages(turns.iter().map(|(role, text)| Message::new(*role, *text)).collect())
}

fn bodies(samples: Vec<Sample>) -> Vec<Body> {
    samples.into_iter().map(|sample| sample.body).collect()
}

#[test]
fn tables_are_read_as_their_tools_write_them() {
    let named = with_columns(&["question=prompt", "answer=completion"]);
    for name in ["questions.csv", "questions.csv.gz"] {
        let samples = read(name, &named);
        assert!(samples.iter().all(|s| s.task.as_deref() == Some("facts") && s.unread.is_empty()), "{name}");
        assert_eq!(samples.iter().map(|s| s.line).collect::<Vec<_>>(), [2, 3, 4], "{name}");
        assert_eq!(bodies(samples), completions(), "{name}");
    }
    let plain = ReadOptions::default();
    let samples = read("index.csv", &plain);
    assert!(samples.iter().all(|s| s.unread == ["score"]), "{samples:?}");
    assert_eq!(bodies(samples), completions());
    assert_eq!(bodies(read("tabs.tsv", &plain)), completions());

    let exchange =
        |[question, answer]: [&str; 2]| conversation(&[(Role::User, question), (Role::Assistant, answer)]);
    let exchanges = QUESTIONS.map(exchange).to_vec();
    let samples = read("semicolons.csv", &plain);
    assert!(samples.iter().all(|s| s.written == Written::Alpaca));
    assert_eq!(bodies(samples), exchanges);
    assert_eq!(bodies(read("messages.csv", &plain)), exchanges);
    // A name that says nothing of the format.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("export");
    std::fs::copy(fixture("tabs.tsv"), &path).unwrap();
    let options = ReadOptions { ending: Some("tsv".into()), ..ReadOptions::default() };
    assert_eq!(bodies(read_samples_with(&path, &options).unwrap()), completions());
}

#[test]
fn instructions_and_conversations_are_read_as_their_tools_write_them() {
    let plain = ReadOptions::default();
    use Role::{Assistant, System, User};
    let alpaca = [
        conversation(&[(User, "Add the numbers.\n2 and 2"), (Assistant, "4")]),
        conversation(&[(User, "Name a colour."), (Assistant, "Blue.")]),
        conversation(&[
            (System, "Answer briefly."),
            (User, "Name a colour."),
            (Assistant, "Blue."),
            (User, "And a darker one?"),
            (Assistant, "Navy."),
        ]),
    ];
    let samples = read("alpaca.json", &plain);
    assert!(samples.iter().all(|s| s.written == Written::Alpaca && s.unread.is_empty()), "{samples:?}");
    assert_eq!(bodies(samples), alpaca);
    let share = read("sharegpt.json", &plain);
    assert_eq!(share[0].written, Written::ShareGpt);
    let turns = [(System, "Answer briefly."), (User, "Name a colour."), (Assistant, "Blue.")];
    assert_eq!(bodies(share), [conversation(&turns)]);
    assert_eq!(bodies(read("lines.jsonl.gz", &plain)), completions());
}

/// Keys under other names, beside keys of the same name.
#[test]
fn a_named_column_takes_the_place_of_the_key() {
    let read = |text: &str, names: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, text).unwrap();
        read_samples_with(&path, &with_columns(names))
    };
    let line = r#"{"prompt": "not this", "q": "a", "a": "b"}"#;
    let sample = read(line, &["q=prompt", "a=completion"]).unwrap().remove(0);
    assert_eq!(sample.body, Body::Completion { prompt: "a".into(), completion: "b".into() });
    assert_eq!(sample.unread, ["prompt"]);
    let line = r#"{"dialog": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let sample = read(line, &["dialog=messages"]).unwrap().remove(0);
    assert_eq!(sample.body, conversation(&[(Role::User, "a"), (Role::Assistant, "b")]));
    for wrong in ["question", "question=", "=prompt", "question=promt"] {
        let error = Columns::new(&[wrong]).unwrap_err().to_string();
        assert!(error.contains("columns") && error.contains("NAME=KEY"), "{error}");
    }
    let twice = Columns::new(&["a=prompt", "b=prompt"]).unwrap_err().to_string();
    assert!(twice.contains("once"), "{twice}");
}

#[test]
fn what_a_file_is_taken_for_is_said() {
    let said = |name: &str, names: &[&str]| {
        let options = with_columns(names);
        recognised(&fixture(name), &options, &read(name, &options)).unwrap()
    };
    for (name, names, wanted) in [
        (
            "questions.csv.gz",
            &["question=prompt", "answer=completion"][..],
            "questions.csv.gz is read as a table with commas in gzip: 3 prompt and completion",
        ),
        (
            "semicolons.csv",
            &[],
            "semicolons.csv is read as a table with semicolons: 3 instruction and output (Alpaca)",
        ),
        ("sharegpt.json", &[], "sharegpt.json is read as an array of JSON: 1 conversations (ShareGPT)"),
        ("book.txt", &[], "book.txt is read as plain text, all of which is trained"),
    ] {
        assert_eq!(said(name, names).as_deref(), Some(wanted));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.jsonl");
    std::fs::write(&path, "{\"text\": \"a\"}\n").unwrap();
    let plain = ReadOptions::default();
    assert_eq!(recognised(&path, &plain, &read_samples_with(&path, &plain).unwrap()).unwrap(), None);
}

/// Letters are tokens, so that tokens can be counted by hand.
fn letters() -> Tokenizer {
    let letters = (0u8..=255).map(|byte| mixlora_byte(byte).to_string());
    let tokens: Vec<String> = letters.chain(["<end>".to_string()]).collect();
    let types = [vec![1; 256], vec![3]].concat();
    let vocab = Vocab {
        model: "gpt2".into(),
        pre: "gpt-2".into(),
        tokens,
        merges: Some(Vec::new()),
        types,
        eos: Some(256),
        ..Vocab::default()
    };
    Tokenizer::from_vocab(vocab).unwrap()
}

/// The letter that stands for a byte in vocabularies of GPT-2: itself where it is printed, else one from U+0100 on.
fn mixlora_byte(byte: u8) -> char {
    let printed = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printed(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|other| !printed(*other)).count() as u32;
    char::from_u32(256 + before).unwrap()
}

#[test]
fn every_token_of_plain_text_is_trained_once() {
    let samples = read("book.txt", &ReadOptions::default());
    let Body::Document(text) = &samples[0].body else { panic!("{samples:?}") };
    assert!(text.starts_with("Chapter 1\n\nIt was") && !text.contains('\r'), "line ends are those of Unix");
    for max_length in [2, 7, 64, text.len(), text.len() + 1, text.len() + 2, usize::MAX] {
        let options = EncodeOptions { max_length, ..EncodeOptions::default() };
        let encoder = Encoder::new(&letters(), None, options).unwrap();
        let data = encoder.dataset(Path::new("book.txt"), &samples).unwrap();
        let mut again: Vec<u32> = vec![data.examples[0].ids[0]];
        for (i, example) in data.examples.iter().enumerate() {
            assert!(example.ids.len() <= max_length && example.ids.len() >= 2, "{max_length}");
            assert!(!example.trained[0] && example.trained[1..].iter().all(|trained| *trained));
            assert_eq!(Some(&example.ids[0]), again.last(), "{max_length} {i}");
            assert_eq!(example.prompt, example.ids.len());
            again.extend(&example.ids[1..]);
        }
        // Letters are bytes here, and one end token stands behind all of them.
        let mut wanted: Vec<u32> = text.bytes().map(u32::from).collect();
        wanted.push(256);
        assert_eq!(again, wanted, "{max_length}");
        assert_eq!(data.counts.truncated, 0);
        let first = encoder.sample(Path::new("book.txt"), &samples[0]).unwrap();
        assert_eq!(first.example, data.examples[0]);
        assert_eq!(first.truncated, data.examples.len() > 1);
    }
}

#[test]
fn converted_samples_are_the_samples() {
    let named = with_columns(&["question=prompt", "answer=completion"]);
    for (name, options) in
        [("alpaca.json", &ReadOptions::default()), ("sharegpt.json", &ReadOptions::default())]
    {
        let samples = read(name, options);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("converted.jsonl");
        let lines = samples.iter().map(|sample| as_messages(sample).unwrap().to_string() + "\n");
        std::fs::write(&path, lines.collect::<String>()).unwrap();
        assert_eq!(bodies(read_samples_with(&path, &ReadOptions::default()).unwrap()), bodies(samples));
    }
    let object = as_messages(&read("questions.csv", &named)[2]).unwrap();
    assert_eq!(object["messages"][0]["content"], QUESTIONS[2][0]);
    assert_eq!(object["messages"][1]["content"], QUESTIONS[2][1]);
    assert_eq!(object["task"], "facts");
    let text = as_messages(&read("book.txt", &named)[0]).unwrap_err();
    assert!(text.contains("no turns"), "{text}");
}

/// What is wrong with a file of this name and content: line, column, and a part of the sentence.
fn refused(name: &str, bytes: &[u8], wanted: &[(usize, usize, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let error = read_samples_with(&path, &ReadOptions::default()).unwrap_err();
    let mixlora::Error::Data { problems, .. } = &error else { panic!("{name}: {error}") };
    assert_eq!(problems.len(), wanted.len(), "{error}");
    for (problem, (line, column, what)) in problems.iter().zip(wanted) {
        assert_eq!((problem.line, problem.column), (*line, *column), "{error}");
        assert!(problem.what.contains(what), "{error}");
    }
}

#[test]
fn malformed_tables_are_refused() {
    let cells = "a cell that holds the separator, a quote or a line break stands in double quotes";
    refused(
        "a.csv",
        b"prompt,completion\na,b\nc\nd,e,f\n",
        &[(3, 0, cells), (4, 0, "has 3 cells, the header has 2")],
    );
    refused(
        "a.csv",
        b"prompt,completion\na,b\n\"c,d\ne,f\n",
        &[(3, 0, "has 1 cells"), (3, 0, "never closed")],
    );
    refused("a.csv", b"question,answer\na,b\n", &[(1, 0, "--columns question=prompt,answer=completion")]);
    refused("a.csv", b"prompt,prompt\na,b\n", &[(1, 0, "the column 'prompt' twice")]);
    refused(
        "a.csv",
        b"prompt,completion\na,\xff\n",
        &[(2, 0, "column 'completion': invalid UTF-8 at byte 1")],
    );
    refused("a.csv", b"prompt,completion\na,b\n\n,c\n", &[(4, 0, "field 'prompt' is missing")]);
    refused("a.csv", b"prompt,completion\n", &[(0, 0, "no row below its header")]);
    refused("a.csv", b"messages\n\"[{'role': 'user'}]\"\n", &[(2, 0, "column 'messages' is no JSON")]);
    refused("a.tsv", b"prompt,completion\na,b\n", &[(1, 0, "it has 'prompt,completion'")]);
    refused("a.csv", b"P\0\0\0", &[(1, 0, "no header")]);
}

#[test]
fn malformed_instructions_and_conversations_are_refused() {
    let line = |text: &str, what: &str| refused("a.jsonl", text.as_bytes(), &[(1, 1, what)]);
    line(r#"{"instruction": "a"}"#, "field 'output' is missing beside 'instruction'");
    line(r#"{"input": "a", "output": "b"}"#, "--columns input=prompt,output=completion");
    line(r#"{"question": "a", "answer": "b"}"#, "--columns question=prompt,answer=completion");
    line(r#"{"conversation": []}"#, "--columns conversation=messages");
    line(r#"{"prompt": "a", "completion": "b", "system": "c"}"#, "field 'system' is beside no messages");
    line(
        r#"{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "system": "c"}"#,
        "beside a message of role 'system'",
    );
    let at =
        |text: &str, column: usize, what: &str| refused("a.jsonl", text.as_bytes(), &[(1, column, what)]);
    at(r#"{"instruction": ["a"], "output": "b"}"#, 21, "field 'instruction'");
    at(r#"{"instruction": "a", "output": "b", "history": [["a"]]}"#, 53, "field 'history'");
    at(r#"{"conversations": [{"from": "bot", "value": "a"}]}"#, 48, "field 'from': 'bot' is not one of");
}

#[test]
fn malformed_text_and_gzip_are_refused() {
    refused("a.txt", b"one\ntwo \xff\n", &[(2, 5, "invalid UTF-8")]);
    refused("a.txt", b" \n\n", &[(0, 0, "holds no sample")]);
    refused("a.txt", b"", &[(0, 0, "is empty")]);
    refused("a.txt", b"\xff\xfeo\0n\0e\0", &[(0, 0, "UTF-16")]);
    refused("a.txt", &vec![b'a'; (64 << 20) + 1], &[(0, 0, "split the file")]);

    let pack = |bytes: &[u8]| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    };
    let unreadable = |bytes: &[u8], what: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl.gz");
        std::fs::write(&path, bytes).unwrap();
        let error = read_samples_with(&path, &ReadOptions::default()).unwrap_err().to_string();
        assert!(error.contains("a.jsonl.gz") && error.contains(what), "{error}");
    };
    let whole = pack(b"{\"text\": \"one\"}\n{\"text\": \"two\"}\n");
    unreadable(&whole[..whole.len() - 9], "damaged or cut off");
    unreadable(&whole[..2], "damaged or cut off");
    let mut changed = whole.clone();
    let crc = changed.len() - 8;
    changed[crc] ^= 1;
    unreadable(&changed, "damaged or cut off");
    // A line of zeros that a small file grows to is refused before it is held.
    unreadable(&pack(&vec![b'\n'; 200 << 20]), "more than 200 times");
    refused("a.jsonl.gz", &pack(&whole), &[(0, 0, "is a gzip file")]);
    refused("a.jsonl.gz", &pack(b"{\"text\": 1}\n"), &[(1, 10, "field 'text'")]);
}
