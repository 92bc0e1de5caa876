//! Small GGUF files, made by hand.

use mixlora::Stream;
use mixlora::text::Vocab;

/// A value of the metadata.
#[derive(Clone)]
pub enum Entry {
    Int(u32),
    Float(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Ints(Vec<i32>),
    Floats(Vec<f32>),
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn kind(out: &mut Vec<u8>, kind: u32) {
    out.extend(kind.to_le_bytes());
}

fn list(out: &mut Vec<u8>, of: u32, len: usize) {
    kind(out, 9);
    kind(out, of);
    out.extend((len as u64).to_le_bytes());
}

fn entry(out: &mut Vec<u8>, entry: &Entry) {
    match entry {
        Entry::Int(v) => {
            kind(out, 4);
            out.extend(v.to_le_bytes());
        }
        Entry::Float(v) => {
            kind(out, 6);
            out.extend(v.to_le_bytes());
        }
        Entry::Flag(v) => {
            kind(out, 7);
            out.push(u8::from(*v));
        }
        Entry::Text(v) => {
            kind(out, 8);
            text(out, v);
        }
        Entry::Texts(v) => {
            list(out, 8, v.len());
            v.iter().for_each(|item| text(out, item));
        }
        Entry::Ints(v) => {
            list(out, 5, v.len());
            v.iter().for_each(|item| out.extend(item.to_le_bytes()));
        }
        Entry::Floats(v) => {
            list(out, 6, v.len());
            v.iter().for_each(|item| out.extend(item.to_le_bytes()));
        }
    }
}

/// A file with f32 tensors; their sizes are in the order of the file, the row's length first.
pub fn gguf(entries: &[(String, Entry)], tensors: &[(String, Vec<u64>)]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    kind(&mut out, 3);
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    for (key, value) in entries {
        text(&mut out, key);
        entry(&mut out, value);
    }
    let mut data: Vec<u8> = Vec::new();
    for (name, dims) in tensors {
        text(&mut out, name);
        kind(&mut out, dims.len() as u32);
        dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
        kind(&mut out, 0);
        out.extend((data.len() as u64).to_le_bytes());
        let n = dims.iter().product::<u64>() as usize;
        let norm = name.contains("norm");
        let values = if norm { vec![1.0; n] } else { Stream::new(1).named(name).normal_vec(n, 0.3) };
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

/// A Llama of one layer and width 8 with random weights, with this vocabulary and chat template.
pub fn llama(vocab: &Vocab, template: &str) -> Vec<u8> {
    let sizes =
        [("block_count", 1), ("context_length", 128), ("embedding_length", 8), ("feed_forward_length", 8)];
    let heads = [("attention.head_count", 1), ("attention.head_count_kv", 1), ("rope.dimension_count", 8)];
    let mut entries = vec![("general.architecture".to_string(), Entry::Text("llama".into()))];
    for (name, value) in sizes.into_iter().chain(heads) {
        entries.push((format!("llama.{name}"), Entry::Int(value)));
    }
    entries.push(("llama.attention.layer_norm_rms_epsilon".into(), Entry::Float(1e-5)));
    entries.push(("tokenizer.chat_template".into(), Entry::Text(template.into())));
    let ids = [("bos_token_id", vocab.bos), ("eos_token_id", vocab.eos), ("unknown_token_id", vocab.unk)];
    let ids = ids.into_iter().filter_map(|(name, id)| Some((name, Entry::Int(id?))));
    let lists = [
        ("model", Entry::Text(vocab.model.clone())),
        ("pre", Entry::Text(if vocab.pre.is_empty() { "default" } else { &vocab.pre }.into())),
        ("tokens", Entry::Texts(vocab.tokens.clone())),
        ("token_type", Entry::Ints(vocab.types.clone())),
        ("merges", Entry::Texts(vocab.merges.clone().unwrap_or_default())),
        ("scores", Entry::Floats(vocab.scores.clone().unwrap_or_else(|| vec![0.0; vocab.tokens.len()]))),
        ("add_bos_token", Entry::Flag(vocab.add_bos)),
        ("add_space_prefix", Entry::Flag(vocab.add_space_prefix)),
    ];
    for (name, value) in lists.into_iter().chain(ids) {
        entries.push((format!("tokenizer.ggml.{name}"), value));
    }
    let square = vec![8, 8];
    let mut tensors = vec![
        ("token_embd.weight".to_string(), vec![8, vocab.tokens.len() as u64]),
        ("output_norm.weight".into(), vec![8]),
        ("blk.0.attn_norm.weight".into(), vec![8]),
        ("blk.0.ffn_norm.weight".into(), vec![8]),
    ];
    for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        tensors.push((format!("blk.0.{name}.weight"), square.clone()));
    }
    gguf(&entries, &tensors)
}
