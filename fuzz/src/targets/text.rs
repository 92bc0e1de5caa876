//! Chat templates and tokenizers.

use super::{Case, Read, Target, gguf, said};
use mixlora::io::GgufFile;
use mixlora::text::{ChatTemplate, Message, Role, SpecialTokens, Tokenizer, Vocab};
use serde_json::{Value, json};

pub const TEMPLATE: Target = Target {
    name: "template",
    seconds: 2,
    words: &[
        "messages",
        "message",
        "loop",
        "loop.index0",
        "namespace(n=0)",
        "range(9)",
        "range(99999999)",
        "ns.n",
        "| trim",
        "| tojson(indent=2)",
        "| join",
        "| sort",
        "| map('upper')",
        "| selectattr('role')",
        "| first",
        "| replace('a', 'bb')",
        ".split('a')",
        ".strip()",
        ".format(1, 2)",
        ".items()",
        "[::-1]",
        "[1:]",
        "* 99999999",
        "** 99",
        "~",
        "is defined",
        "not in",
        "'%5d' % 3",
        "raise_exception('a')",
        "strftime_now('%Y')",
        "{%",
        "%}",
        "{{",
        "}}",
        "{%-",
        "{#",
        "{% for x in y recursive %}",
        "{% endfor %}",
        "{% if a %}",
        "{% elif b %}",
        "{% endif %}",
        "{% macro f(x) %}",
        "{% endmacro %}",
        "{{ f(1) }}",
        "{% set ns.n = [ns.n] %}",
        "{% break %}",
        "{% generation %}",
        "{% endgeneration %}",
        "{% raw %}",
        "\u{10FFF0}",
        "é",
    ],
    framed: false,
    open: |_| Case {
        seeds: TEMPLATES.map(|text| text.as_bytes().to_vec()).to_vec(),
        parse: Box::new(rendered),
    },
};

const TEMPLATES: [&str; 5] = [
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}\
     {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "{{- bos_token }}\n{%- set ns = namespace(n=0, s='') %}\n{%- for m in messages[1:] if m.role != 'system' %}\n\
     {%- set ns.n = ns.n + loop.index0 %}{% set ns.s = ns.s ~ m.content %}\n{%- endfor %}\n{{ ns.n }}{{ ns.s[::-1] }}",
    "{% macro f(x, y=1) %}{{ x | tojson(indent=2) }}{{ '%s-%5d' % ('a', y) }}{% endmacro %}{{ f({'a': [1, 2.5, none]}) }}\
     {{ 'a,b'.split(',') | map('upper') | join('-') }}{{ range(5) | list }}{{ 'x'.center(9) }}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}\
     {% else %}{{ m.content.replace('a', 'b') }}{% endif %}{% endfor %}",
    "{# note #}{% raw %}{{ }}{% endraw %}{{ '{:>9}|{:.3f}'.format(3, 0.5) }}{% for a in [[1]] recursive %}\
     {{ loop(a) if a is iterable else a }}{% endfor %}{{ messages | selectattr('role', 'eq', 'user') | list | length }}",
];

fn rendered(input: &[u8]) -> Read {
    let text = std::str::from_utf8(input).map_err(|e| e.to_string())?;
    let messages = [
        Message::new(Role::System, "Be brief."),
        Message::new(Role::User, " What is 1 + 1?\n"),
        Message::new(Role::Assistant, "2 é"),
    ];
    let tokens = SpecialTokens::default().with("bos_token", "<s>").with("eos_token", "</s>");
    let render = || {
        let template = ChatTemplate::at(text, 1_700_000_000)?;
        template.render(&messages, true, &tokens)?;
        template.render_marked(&messages, &tokens).map(|_| ())
    };
    said(render())
}

const TEXT: &str = "Hello he\n\t 12 wörld <s> a</s>😀";

fn used(tokenizer: &Tokenizer) -> mixlora::Result<()> {
    let ids = tokenizer.encode(TEXT, true)?;
    tokenizer.decode(&ids, false);
    tokenizer.encode_pieces(TEXT, false)?;
    tokenizer.end_tokens();
    Ok(())
}

pub const TOKENIZER: Target = Target {
    name: "tokenizer",
    seconds: 1,
    words: &[
        "\"BPE\"",
        "\"Unigram\"",
        "\"WordLevel\"",
        "\"WordPiece\"",
        "\"ByteLevel\"",
        "\"Metaspace\"",
        "\"Sequence\"",
        "\"Split\"",
        "\"Regex\"",
        "\"Replace\"",
        "\"Strip\"",
        "\"Prepend\"",
        "\"NFC\"",
        "\"Precompiled\"",
        "\"TemplateProcessing\"",
        "\"unk_id\"",
        "\"vocab\"",
        "\"merges\"",
        "\"(a+)+b\"",
        "\"\\\\p{L}{1,99999}\"",
        "\"\"",
        "\"h e\"",
        "null",
        "true",
        "[]",
        "{}",
    ],
    framed: false,
    open: |_| Case {
        seeds: tokenizers().iter().map(|json| json.to_string().into_bytes()).collect(),
        parse: Box::new(|input| said(Tokenizer::from_json(input).and_then(|tokenizer| used(&tokenizer)))),
    },
};

fn tokenizers() -> [Value; 3] {
    let added = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        })
    };
    let whole = |model: Value, normalizer: Value, pre_tokenizer: Value, decoder: Value| {
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(8, "<s>"), added(9, "</s>")],
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model,
            "post_processor": {
                "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } }], "pair": [],
                "special_tokens": { "<s>": { "id": "<s>", "ids": [8], "tokens": ["<s>"] } },
            },
        })
    };
    let level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let bpe = json!({
        "type": "BPE", "dropout": null, "unk_token": "h", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
        "vocab": { "h": 0, "e": 1, "l": 2, "o": 3, "he": 4, "ll": 5, "hell": 6, "a": 7 },
        "merges": ["h e", "l l", "he ll"],
    });
    let split = json!({
        "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": "\\p{N}{1,3}|\\s+(?!\\S)" }, "behavior": "Isolated", "invert": false },
            level,
        ],
    });
    let unigram = json!({
        "type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<unk>", 0.0], ["▁", -1.0], ["a", -2.0], ["he", -2.5], ["l", -3.0]],
    });
    let marks = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    let words = json!({
        "type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": { "a": 0, "he": 1, "##l": 2 },
    });
    let normalizers = json!({
        "type": "Sequence", "normalizers": [{ "type": "NFC" }, { "type": "Prepend", "prepend": "▁" },
        { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }, { "type": "Lowercase" }],
    });
    [
        whole(bpe, Value::Null, split, level),
        whole(unigram, normalizers, marks.clone(), marks),
        whole(
            words,
            json!({ "type": "Strip", "strip_left": true, "strip_right": true }),
            json!({ "type": "Whitespace" }),
            json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
        ),
    ]
}

pub const VOCABULARY: Target = Target {
    name: "vocabulary",
    seconds: 1,
    words: &[
        "gpt2",
        "llama",
        "llama-bpe",
        "smollm",
        "qwen2",
        "default",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.bos_token_id",
        "<0x0A>",
        "<0xFF>",
        "▁",
        "Ġhe",
        "h e",
        "",
        " ",
    ],
    framed: false,
    open: |_| Case {
        seeds: vocabularies().iter().map(|vocab| gguf::llama(vocab, "{{ messages[0].content }}")).collect(),
        parse: Box::new(|input| said(vocabulary(input))),
    },
};

/// One of byte pairs, one of scores.
pub fn vocabularies() -> [Vocab; 2] {
    let texts = |all: &[&str]| all.iter().map(|text| text.to_string()).collect::<Vec<_>>();
    let pairs = Vocab {
        model: "gpt2".into(),
        pre: "smollm".into(),
        tokens: texts(&["h", "e", "l", "o", "he", "ll", "hell", "Ġ", "<s>", "</s>"]),
        types: vec![1, 1, 1, 1, 1, 1, 1, 1, 3, 3],
        merges: Some(texts(&["h e", "l l", "he ll"])),
        bos: Some(8),
        eos: Some(9),
        ..Vocab::default()
    };
    let scores = Vocab {
        model: "llama".into(),
        tokens: texts(&["<unk>", "<s>", "</s>", "<0x0A>", "▁", "h", "e", "he", "▁he", "a"]),
        types: vec![2, 3, 3, 6, 1, 1, 1, 1, 1, 1],
        scores: Some((0..10).map(|i| -(i as f32)).collect()),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        add_space_prefix: true,
        ..Vocab::default()
    };
    [pairs, scores]
}

fn vocabulary(input: &[u8]) -> mixlora::Result<()> {
    let file = GgufFile::from_bytes("input", input.to_vec())?;
    used(&Tokenizer::from_vocab(Vocab::from_gguf(&file)?)?)
}
