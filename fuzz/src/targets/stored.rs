//! Adapters and reference files.

use super::{Case, Target, file, read, said, tiny, write};
use mixlora::adapter::{Adapter, AdapterOptions};
use mixlora::check::golden::replay;
use mixlora::mixture::find;
use mixlora::model::Model;
use mixlora::{Device, Stream};
use std::path::Path;

/// Files of an adapter's folder in the order of an input; one that is empty is not there.
const FILES: [&str; 3] = ["adapter_model.safetensors", "mixlora.json", "adapter_config.json"];
/// Between them.
const CUT: &[u8] = b"\n-- next file --\n";

pub const ADAPTER: Target = Target {
    name: "adapter",
    seconds: 1,
    words: &[
        "\"lora\"",
        "\"mixlora-cond\"",
        "\"mixlora-ffn\"",
        "\"smora\"",
        "\"vt-nlp\"",
        "\"q_proj\"",
        "\"down_proj\"",
        "\"r\"",
        "\"num_experts\"",
        "\"num_factors\"",
        "\"top_k\"",
        "\"lora_alpha\"",
        "\"LORA\"",
        "\"use_dora\"",
        "\"F16\"",
        "\"shape\"",
        "\n-- next file --\n",
        "null",
        "true",
        "[]",
        "{}",
    ],
    framed: true,
    open: |dir| {
        let base = dir.join("base");
        tiny::write_model(&base, 16, 32);
        let model = Model::open(&base, &Device::cpu()).expect("the tiny model");
        let seeds = adapters(&model);
        let dir = dir.join("adapter");
        std::fs::create_dir_all(&dir).expect("the scratch folder can be written");
        let parse = move |input: &[u8]| {
            put(&dir, input);
            let options = AdapterOptions { force: true, ..AdapterOptions::default() };
            said(Adapter::load_with(&dir, &model, &options).map(|_| ()))
        };
        Case { seeds, parse: Box::new(parse) }
    },
};

fn adapters(model: &Model) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let adapted: [(&str, &[&str]); 4] = [
        ("lora", &["q_proj", "k_proj"]),
        ("mixlora-cond", &["k_proj"]),
        ("smora", &["k_proj"]),
        ("mixlora-ffn", &["gate_proj", "up_proj", "down_proj"]),
    ];
    for (name, targets) in adapted {
        let method = find(name).expect("a method's name").defaults().with("r", 8).expect("a rank");
        let targets: Vec<String> = targets.iter().map(|target| target.to_string()).collect();
        let adapter = Adapter::attach(model, &method, &targets, Stream::new(1)).expect("an adapter");
        let files = adapter.files(model, "base").expect("its files");
        let part =
            |wanted: &str| files.iter().find(|(name, _)| name == wanted).map_or(&[][..], |(_, bytes)| bytes);
        let parts = FILES.map(part);
        seeds.push(parts.join(CUT));
        if name == "lora" {
            // As PEFT writes it.
            seeds.push([parts[0], &[], parts[2]].join(CUT));
        }
    }
    seeds
}

fn put(dir: &Path, input: &[u8]) {
    let mut rest = input;
    for name in FILES {
        let end = rest.windows(CUT.len()).position(|part| part == CUT);
        let part = &rest[..end.unwrap_or(rest.len())];
        rest = end.map_or(&[], |end| &rest[end + CUT.len()..]);
        let path = dir.join(name);
        if part.is_empty() {
            // It may not have been there.
            drop(std::fs::remove_file(path));
        } else {
            write(&path, part);
        }
    }
}

pub const REFERENCE: Target = Target {
    name: "reference",
    seconds: 1,
    words: &[
        "\\\"E\\\"",
        "\\\"r\\\"",
        "\\\"cfs\\\"",
        "\\\"param_linear\\\"",
        "\\\"param_sum_product\\\"",
        "\\\"choice\\\"",
        "\\\"layer\\\"",
        "\\\"k\\\"",
        "\"factors_a\"",
        "\"router_a\"",
        "\"idx_a\"",
        "\"F32\"",
        "\"I32\"",
        "\"shape\"",
        "true",
        "null",
        "[]",
        "{}",
    ],
    framed: true,
    open: |dir| {
        let path = dir.join("input.safetensors");
        let names = [
            "layer/00_b1_s1_64x64_e4_r1_input_none_unscaled",
            "token/rank_b1_s7_48x64_r8_k2_none",
            "token/smora_b3_s5_48x48_r8_k1",
        ];
        let device = Device::cpu();
        Case {
            seeds: names.map(|name| read(file(&format!("tests/golden/{name}.safetensors")))).to_vec(),
            parse: Box::new(move |input| {
                write(&path, input);
                said(replay(&path, &device).map(|_| ()))
            }),
        }
    },
};
