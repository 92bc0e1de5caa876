//! A tiny decoder (2 layers, width 64) with random weights, as a Hugging Face directory; with a byte-level tokenizer
//! and a chat template where text is needed.

use mixlora::Stream;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::path::Path;

/// Rows of the embedding where text is needed: the bytes, three control tokens, and padding to a round number.
pub const TEXT_VOCAB: usize = 260;

/// Writes config.json and model.safetensors; weights are small random numbers by name.
pub fn write_model(dir: &Path, vocab: usize, max_positions: usize) {
    write_model_of(dir, [64, 96], vocab, max_positions);
}

/// The same with another width of its states and of its MLP.
pub fn write_model_of(dir: &Path, [d, f]: [usize; 2], vocab: usize, max_positions: usize) {
    let kv = d / 2;
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_string(), vec![vocab, d]),
        ("model.norm.weight".into(), vec![d]),
    ];
    for i in 0..2 {
        let name = |n: &str| format!("model.layers.{i}.{n}.weight");
        shapes.extend([
            (name("input_layernorm"), vec![d]),
            (name("post_attention_layernorm"), vec![d]),
            (name("self_attn.q_proj"), vec![d, d]),
            (name("self_attn.k_proj"), vec![kv, d]),
            (name("self_attn.v_proj"), vec![kv, d]),
            (name("self_attn.o_proj"), vec![d, d]),
            (name("mlp.gate_proj"), vec![f, d]),
            (name("mlp.up_proj"), vec![f, d]),
            (name("mlp.down_proj"), vec![d, f]),
        ]);
    }
    let values: Vec<Vec<f32>> = shapes
        .iter()
        .map(|(n, s)| match n.contains("norm") {
            true => vec![1.0; s.iter().product()],
            false => Stream::new(1).named(n).normal_vec(s.iter().product(), 0.125),
        })
        .collect();
    let views = shapes.iter().zip(&values).map(|((n, s), v)| {
        (n.as_str(), TensorView::new(Dtype::F32, s.clone(), bytemuck::cast_slice(v)).unwrap())
    });
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": d, "intermediate_size": f, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": vocab,
        "max_position_embeddings": max_positions, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true,
    });
    std::fs::write(dir.join("config.json"), format!("{config:#}")).unwrap();
}

/// The characters that byte-level tokenizers write bytes as: printable ones stand for themselves.
fn byte_characters() -> Vec<char> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    let mut other = || {
        next += 1;
        next - 1
    };
    (0..256).map(|b| char::from_u32(if printable(b) { b } else { other() }).unwrap()).collect()
}

/// Writes a model that reads text: each byte is a token, `<|im_start|>` is 256, `<|im_end|>` 257, padding 258.
pub fn write_text_model(dir: &Path) {
    write_model(dir, TEXT_VOCAB, 512);
    let vocab: serde_json::Map<String, Value> =
        byte_characters().into_iter().enumerate().map(|(i, c)| (c.to_string(), json!(i))).collect();
    let control = ["<|im_start|>", "<|im_end|>", "<|pad|>"];
    let added = control.iter().enumerate().map(|(i, t)| {
        json!({
            "id": 256 + i, "content": t, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    });
    let level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let template = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}\
                    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let config = json!({ "eos_token": "<|im_end|>", "pad_token": "<|pad|>", "chat_template": template });
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// Writes train.jsonl and valid.jsonl: `n` short questions with answers, the same for the same numbers.
pub fn write_data(dir: &Path, n: usize) {
    std::fs::create_dir_all(dir).unwrap();
    let line = |i: usize| {
        let a = i % 7;
        let b = i * 5 % 9;
        let user = json!({ "role": "user", "content": format!("{a}{}?", "x".repeat(b)) });
        let answer = json!({ "role": "assistant", "content": "ab".repeat(1 + a % 3) });
        let task = ["one", "two"][i % 2];
        json!({ "messages": [user, answer], "task": task }).to_string() + "\n"
    };
    std::fs::write(dir.join("train.jsonl"), (0..n).map(line).collect::<String>()).unwrap();
    std::fs::write(dir.join("valid.jsonl"), (n..n + 6).map(line).collect::<String>()).unwrap();
}
