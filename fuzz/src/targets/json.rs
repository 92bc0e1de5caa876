//! Configurations, settings, and lists of files.

use super::{Case, Read, Target, file, read, said, write};
use mixlora::io::folder;
use mixlora::mixture::{Methods, find};
use mixlora::model::model_config;
use mixlora::train::{RunConfig, StoredRun};
use serde_json::{Value, json};
use std::path::Path;

pub const CONFIG: Target = Target {
    name: "config",
    seconds: 1,
    words: &[
        "\"llama\"",
        "\"llama3\"",
        "\"qwen2\"",
        "\"mistral\"",
        "\"rope_type\"",
        "\"rope_scaling\"",
        "\"rope_parameters\"",
        "\"factor\"",
        "\"head_dim\"",
        "\"layer_types\"",
        "\"quantization_config\"",
        "\"sliding_window\"",
        "null",
        "true",
        "[]",
        "{}",
    ],
    framed: false,
    open: |dir| {
        let dir = dir.to_path_buf();
        let family = |name: &str| read(file(&format!("tests/fixtures/families/{name}/config.json")));
        Case {
            seeds: ["llama2", "llama3", "qwen2", "mistral"].map(family).to_vec(),
            parse: Box::new(move |input| {
                write(&dir.join("config.json"), input);
                said(model_config(&dir).map(|_| ()))
            }),
        }
    },
};

/// Names of settings and values that they have.
const SETTINGS: &[&str] = &[
    "method",
    "\"lora\"",
    "\"mixlora-ffn\"",
    "\"vt-nlp\"",
    "\"rank-wise\"",
    "target_modules",
    "options",
    "train",
    "steps",
    "epochs",
    "learning_rate",
    "memory_budget",
    "\"4GiB\"",
    "\"1e30TiB\"",
    "threads",
    "lora_alpha",
    "num_experts",
    "null",
    "true",
    "[]",
    "{}",
];

pub const RUN: Target = Target {
    name: "run",
    seconds: 1,
    words: SETTINGS,
    framed: false,
    open: |dir| {
        let dir = dir.to_path_buf();
        let run = |method: &str| {
            let config = defaults(method);
            let run =
                json!({ "version": "0.1.0", "config": config, "base": "b", "data": "d", "tokens": "t" });
            run.to_string().into_bytes()
        };
        Case {
            seeds: ["mixlora-cond", "lora"].map(run).to_vec(),
            parse: Box::new(move |input| {
                write(&dir.join("run.json"), input);
                said(StoredRun::open(&dir, &Methods::builtin()).and_then(|run| run.config.check()))
            }),
        }
    },
};

fn defaults(method: &str) -> Value {
    find(method).and_then(RunConfig::defaults).and_then(|config| config.tree()).expect("defaults of a method")
}

pub const JSON: Target = Target {
    name: "json",
    seconds: 1,
    words: SETTINGS,
    framed: false,
    open: |_| Case {
        seeds: ["mixlora-cond", "flylora"].map(|method| defaults(method).to_string().into_bytes()).to_vec(),
        parse: Box::new(|input| layered(serde_json::from_slice(input).map_err(|e| e.to_string())?)),
    },
};

pub const TOML: Target = Target {
    name: "toml",
    seconds: 1,
    words: SETTINGS,
    framed: false,
    open: |_| Case {
        seeds: [SHORT, LONG].map(|text| text.as_bytes().to_vec()).to_vec(),
        parse: Box::new(|input| {
            let text = std::str::from_utf8(input).map_err(|e| e.to_string())?;
            layered(toml::from_str(text).map_err(|e| e.to_string())?)
        }),
    },
};

const SHORT: &str = "method = \"lora\"\noptions.r = 4\n[train]\nsteps = 10\n";
const LONG: &str = "model = 'm.gguf'\ndata = 'd'\ntarget_modules = [\"q_proj\", \"v_proj\"]\n\n[train]\nepochs = 2.5 # more\n\
                    learning_rate = 1e-4\nschedule = \"cosine\"\nseed = 0x1f\n[device]\nmemory_budget = \"4GiB\"\n\
                    [text]\ntemplate = '''chatml'''\n";

fn layered(tree: Value) -> Read {
    said(RunConfig::layered(&[("input".into(), tree)], &Methods::builtin()).map(|_| ()))
}

pub const MANIFEST: Target = Target {
    name: "manifest",
    seconds: 1,
    words: &[
        "\"files\"",
        "\"bytes\"",
        "\"crc32\"",
        "\"a\"",
        "\"b\"",
        "\"../a\"",
        "\"/dev/zero\"",
        "\"\"",
        "null",
        "[]",
        "{}",
    ],
    framed: false,
    open: |dir| {
        let dir = dir.join("step-000001");
        let list = dir.join(folder::MANIFEST);
        let files = [("a".to_string(), b"text".to_vec()), ("b".to_string(), Vec::new())];
        folder::write(&dir, &files).expect("the scratch folder can be written");
        let seeds = vec![read(&list)];
        let parse = move |input: &[u8]| {
            write(&list, input);
            said(folder::verify(Path::new(&dir)))
        };
        Case { seeds, parse: Box::new(parse) }
    },
};
