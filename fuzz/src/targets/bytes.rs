//! Files of tensors, and data.

use super::{Case, Read, Target, gguf, pth, said, text};
use mixlora::data::{as_messages, oddities, read_samples_from};
use mixlora::io::{Checkpoint, GgufFile, PthFile};
use mixlora::model::ModelConfig;
use serde_json::json;
use std::io::Cursor;
use std::path::Path;

pub const SAFETENSORS: Target = Target {
    name: "safetensors",
    seconds: 1,
    words: &[
        "\"F32\"",
        "\"F16\"",
        "\"BF16\"",
        "\"I64\"",
        "\"F8_E4M3\"",
        "\"dtype\"",
        "\"shape\"",
        "\"data_offsets\"",
        "\"__metadata__\"",
        "[]",
        "{}",
        "null",
        "\"\\ud800\"",
    ],
    framed: true,
    open: |_| Case { seeds: tensor_files(), parse: Box::new(|input| said(tensors(input))) },
};

fn tensor_files() -> Vec<Vec<u8>> {
    let entry = |dtype: &str, shape: &[usize], start: usize, end: usize| json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
    let headers = [
        json!({ "a": entry("F32", &[2, 2], 0, 16) }),
        json!({
            "__metadata__": { "format": "pt" }, "a": entry("F32", &[1], 0, 4), "b": entry("BF16", &[1, 3], 4, 10),
            "c": entry("F16", &[], 10, 12), "d": entry("I32", &[1], 12, 16), "e": entry("F32", &[0, 7], 16, 16),
        }),
    ];
    headers.iter().map(|header| framed(&header.to_string(), &[0; 16])).collect()
}

/// A header behind its length, and data.
fn framed(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn tensors(input: &[u8]) -> mixlora::Result<()> {
    let file = Checkpoint::from_bytes("input", input.to_vec())?;
    for name in file.names() {
        file.dims(name)?;
        // Not every type has values that are read.
        let _ = file.raw(name).and_then(|tensor| tensor.scan(None));
        let _ = file.values_f32(name);
    }
    Ok(())
}

pub const GGUF: Target = Target {
    name: "gguf",
    seconds: 1,
    words: &[
        "GGUF",
        "general.alignment",
        "general.architecture",
        "llama",
        "qwen2",
        "llama.block_count",
        "llama.attention.head_count",
        "llama.rope.freq_base",
        "rope_freqs.weight",
        "split.count",
        "split.no",
        "token_embd.weight",
        "blk.0.attn_q.bias",
    ],
    framed: false,
    open: |_| Case { seeds: gguf_files(), parse: Box::new(|input| said(gguf_file(input))) },
};

fn gguf_files() -> Vec<Vec<u8>> {
    use gguf::Entry;
    let entries = [
        ("general.alignment", Entry::Int(32)),
        ("a.flag", Entry::Flag(true)),
        ("a.number", Entry::Float(0.5)),
        ("a.text", Entry::Text("text".into())),
        ("a.texts", Entry::Texts(vec!["one".into(), "two".into()])),
        ("a.list", Entry::Ints(vec![1, -2, 3])),
        ("a.numbers", Entry::Floats(vec![0.5; 2])),
    ];
    let entries = entries.map(|(key, value)| (key.to_string(), value));
    let small = gguf::gguf(&entries, &[("t.weight".into(), vec![4, 2]), ("u".into(), vec![1])]);
    vec![small, gguf::llama(&text::vocabularies()[0], "")]
}

fn gguf_file(input: &[u8]) -> mixlora::Result<()> {
    let file = GgufFile::from_bytes("input", input.to_vec())?;
    for name in file.tensors().keys() {
        file.raw(name)?.scan(None)?;
    }
    // A file need not be a model.
    let _ = ModelConfig::of_gguf(&file).map_err(|e| e.to_string());
    Ok(())
}

pub const PTH: Target = Target {
    name: "pth",
    seconds: 1,
    words: &[
        "(",
        "N",
        "t",
        "Q",
        "R",
        ")",
        "]",
        "}",
        "u",
        "e",
        "s",
        "b",
        "q\0",
        "h\0",
        "K\x01",
        "ctorch\nFloatStorage\n",
        "ctorch\nLongStorage\n",
        "ctorch._utils\n_rebuild_tensor_v2\n",
        "ccollections\nOrderedDict\n",
        "cos\nsystem\n",
        "storage",
        "little_endian",
    ],
    framed: false,
    open: |_| Case { seeds: pth_files(), parse: Box::new(|input| said(pth_file(input))) },
};

fn pth_files() -> Vec<Vec<u8>> {
    let matrix = pth::file(&[0.5; 6], b"K\x00K\x02K\x03\x86K\x01K\x02\x86");
    vec![pth::vector(), matrix, pth::file(&[], b"K\x00K\x00\x85K\x01\x85")]
}

fn pth_file(input: &[u8]) -> mixlora::Result<()> {
    let file = PthFile::from_bytes("input", input.to_vec())?;
    for tensor in file.tensors() {
        file.dims(&tensor.name)?;
    }
    Ok(())
}

pub const JSONL: Target = Target {
    name: "jsonl",
    seconds: 1,
    words: &[
        "\"messages\"",
        "\"role\"",
        "\"content\"",
        "\"user\"",
        "\"assistant\"",
        "\"system\"",
        "\"tool\"",
        "\"prompt\"",
        "\"completion\"",
        "\"text\"",
        "\"task\"",
        "\"weight\"",
        "\"train\"",
        "\"conversations\"",
        "\"tools\"",
        "\"\\ud800\"",
        "\"\\u00e9\"",
        "NaN",
        "-Infinity",
        "None",
        "null",
        "true",
        "[]",
        "{}",
        "\n",
        "\r\n",
        "\u{feff}",
        "<image>",
        "\"images\"",
        "\"image\"",
        "\"type\"",
        "\"image_url\"",
        "\"from\"",
        "\"value\"",
        "data:image/png;base64,",
        "../",
        "[",
        "]",
        ",",
    ],
    framed: false,
    open: |_| Case { seeds: lines(), parse: Box::new(samples) },
};

/// Lines and arrays, and lines packed by gzip.
fn lines() -> Vec<Vec<u8>> {
    let packed = include_bytes!("../../../tests/fixtures/data/lines.jsonl.gz");
    SAMPLES.iter().map(|text| text.as_bytes().to_vec()).chain([packed.to_vec()]).collect()
}

const SAMPLES: [&str; 6] = [
    concat!(
        r#"{"instruction": "a", "input": "b", "output": "c", "system": "s", "history": [["d", "e"]]}"#,
        "\n",
        r#"{"instruction": "a", "chosen": "b", "rejected": "c"}"#
    ),
    concat!(
        r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, "#,
        r#"{"role": "assistant", "content": "b", "weight": 0}], "task": "one"}"#,
        "\n{\"prompt\": \"a\", \"completion\": \"b\"}\n"
    ),
    "{\"text\": \"a\\u00e9\\ud83d\\ude00\", \"id\": 7}\n\n{\"text\": \"b\", \"task\": null}\n",
    "{\"prompt\": \"a\", \"completion\": \"b\", \"train\": true}",
    concat!(
        r#"[{"id": "1", "image": ["a.png", "../b.png"], "task_name": "one", "conversations": "#,
        r#"[{"from": "human", "value": "<image>a<image>"}, {"from": "gpt", "value": "b"}]}, "#,
        "\n",
        r#"{"image": "data:image/png;base64,aGk=", "text": "<image>"}]"#
    ),
    concat!(
        r#"{"images": ["a.png"], "messages": [{"role": "user", "content": [{"type": "image"}, "#,
        r#"{"type": "image_url", "image_url": {"url": "http://a"}}, {"type": "text", "text": "a"}]}, "#,
        r#"{"role": "assistant", "content": [{"type": "text", "text": "b"}]}]}"#
    ),
];

fn samples(input: &[u8]) -> Read {
    samples_of("input", input)
}

fn samples_of(name: &str, input: &[u8]) -> Read {
    let samples = read_samples_from(Path::new(name), Cursor::new(input)).map_err(|e| e.to_string())?;
    oddities(&samples);
    samples.iter().for_each(|sample| drop(as_messages(sample)));
    Ok(())
}

pub const TABLE: Target = Target {
    name: "table",
    seconds: 1,
    words: &[
        "prompt",
        "completion",
        "messages",
        "instruction",
        "text",
        "task",
        ",",
        ";",
        "\t",
        "\"",
        "\"\"",
        "\n",
        "\r\n",
        "\r",
        "\u{feff}",
        "[",
        "{}",
        "\0",
    ],
    framed: false,
    open: |_| Case { seeds: tables(), parse: Box::new(|input| samples_of("input.csv", input)) },
};

fn tables() -> Vec<Vec<u8>> {
    let plain = b"prompt,completion,task\r\n\"a, \"\"b\"\"\nc\",d,one\r\n\r\ne,f,\r\n";
    let lists =
        b"\xef\xbb\xbfmessages;id\n\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"a\"\"}]\";1\n";
    vec![plain.to_vec(), lists.to_vec(), b"text\na\nb\n".to_vec()]
}
