//! Makes the tiny base model that ships with the quickstart: trains every weight from nothing, with this library.
//!
//! The text is generated here from the quickstart's lists of facts: plain sentences, and questions in the chat format
//! that are asked in another way than the quickstart asks. The same command gives the same files:
//!
//! ```text
//! cargo run --release --example pretrain_tiny -- data/tiny 1500
//! ```

use mixlora::mixture::Units;
use mixlora::model::{Model, Step};
use mixlora::nn::{Param, Pass};
use mixlora::ops::attention::AttentionOptions;
use mixlora::ops::rope::Rope;
use mixlora::train::{Decay, Optimizer, Schedule};
use mixlora::{Device, Result, Stream, Tensor, backward};
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

const VOCAB: usize = 640;
const HIDDEN: usize = 128;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const FFN: usize = 352;
const LAYERS: usize = 4;
const POSITIONS: usize = 256;
const EPS: f32 = 1e-5;
const ROPE_BASE: f64 = 10_000.0;
/// Rows and positions of a batch.
const BATCH: (usize, usize) = (16, 64);
const CONTROL: [&str; 3] = ["<|pad|>", "<|im_start|>", "<|im_end|>"];
const TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

fn main() -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut args = std::env::args().skip(1);
    let (Some(out), Some(steps)) = (args.next(), args.next().and_then(|s| s.parse::<usize>().ok())) else {
        return Err("usage: pretrain_tiny FOLDER STEPS".into());
    };
    let texts = corpus();
    std::fs::create_dir_all(&out)?;
    let json = train_tokenizer(&texts)?;
    std::fs::write(Path::new(&out).join("tokenizer.json"), &json)?;
    let tokenizer = mixlora::text::Tokenizer::from_json(json.as_bytes())?;
    let mut ids = Vec::new();
    for text in &texts {
        ids.extend(tokenizer.encode(text, true)?);
    }
    println!("{} texts, {} tokens, vocabulary {}", texts.len(), ids.len(), tokenizer.vocab_size());
    let model = Tiny::new(&Device::cpu())?;
    train(&model, &ids, steps)?;
    save(&model, Path::new(&out))?;
    compare(&model, Path::new(&out), &ids[..48])
}

/// Refuses files that are not the model that was trained: the library's decoder must give the same logits.
fn compare(
    model: &Tiny,
    dir: &Path,
    ids: &[u32],
) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let loaded = Model::open_f32(dir, &model.device)?;
    let tokens = Tensor::from_u32(&model.device, &[1, ids.len()], ids)?;
    let pass = Pass::new(Units::instances(&model.device, 1, ids.len())?);
    let hidden = loaded.forward(&tokens, &pass, Step::default())?.reshape(&[ids.len(), HIDDEN])?;
    let (a, b) = (loaded.logits(&hidden)?.to_f32()?, model.logits(ids, 1, ids.len())?.to_f32()?);
    let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("largest difference of a logit after loading: {worst:.1e}");
    if worst > 1e-3 {
        return Err("the files do not hold the model that was trained".into());
    }
    Ok(())
}

/// What the model reads: sentences and short conversations, shuffled.
fn corpus() -> Vec<String> {
    let stream = Stream::new(7).named("corpus");
    let mut drawn = 0;
    let mut below = move |n: usize| {
        drawn += 1;
        ((u64::from(stream.bits(drawn)) * n as u64) >> 32) as usize
    };
    let entries = |text: &'static str| -> Vec<(&str, &str)> {
        let lines = text.lines().filter_map(|l| l.split_once(": "));
        lines.flat_map(|(class, words)| words.split(", ").map(move |w| (w, class))).collect()
    };
    let countries = entries(include_str!("../data/quickstart/continents.txt"));
    let words = entries(include_str!("../data/quickstart/words.txt"));
    let sentences: Vec<Vec<Vec<&str>>> = include_str!("../data/quickstart/sentences.txt")
        .lines()
        .map(|l| l.split('|').skip(1).map(|p| p.split(',').map(str::trim).collect()).collect())
        .collect();
    let turn = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}<|im_end|>\n");
    let chat = |q: String, a: String| turn("user", &q) + &turn("assistant", &a);
    (0..12_000)
        .map(|_| {
            let (country, kind) = (countries[below(countries.len())], words[below(words.len())]);
            let list: Vec<&str> = (0..3 + below(3)).map(|_| words[below(words.len())].0).collect();
            let n = below(2000);
            match below(9) {
                0 => format!("{} is a country in {}.<|im_end|>\n", country.0, country.1),
                1 => format!("The {} is one kind of {}.<|im_end|>\n", kind.0, kind.1),
                2 => format!("{}, {}, {}, {}.<|im_end|>\n", n, n + 1, n + 2, n + 3),
                3 => {
                    let s = &sentences[below(sentences.len())];
                    let mut part = |i: usize| s[i][below(s[i].len())];
                    format!("{} {} {}.<|im_end|>\n", part(0), part(1), part(2))
                }
                4 => chat(format!("Repeat this list: {}", list.join(", ")), list.join(", ")),
                5 => chat(format!("Where is {}?", country.0), format!("It is in {}.", country.1)),
                6 => chat(format!("Tell me about a {}.", kind.0), format!("That is a {}.", kind.1)),
                7 => chat(format!("What comes after {n}?"), (n + 1).to_string()),
                _ => {
                    turn("system", "You are helpful.") + &chat(format!("Say {}.", kind.0), kind.0.to_string())
                }
            }
        })
        .collect()
}

fn train_tokenizer(texts: &[String]) -> tokenizers::Result<String> {
    let level = ByteLevel::new(false, true, true);
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(VOCAB)
        .special_tokens(CONTROL.map(|t| AddedToken::from(t, true)).to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = TokenizerBuilder::<
        BPE,
        tokenizers::NormalizerWrapper,
        ByteLevel,
        tokenizers::PostProcessorWrapper,
        ByteLevel,
    >::default()
    .with_model(BPE::default())
    .with_normalizer(None)
    .with_pre_tokenizer(Some(level))
    .with_post_processor(None)
    .with_decoder(Some(level))
    .build()?;
    let plain = texts.iter().map(|t| CONTROL.iter().fold(t.clone(), |t, c| t.replace(c, " ")));
    tokenizer.train(&mut trainer, plain)?;
    tokenizer.to_string(false)
}

/// A decoder whose weights are all trained. Names are those of Hugging Face.
struct Tiny {
    device: Device,
    embed: Param,
    norm: Param,
    layers: Vec<Vec<Param>>,
    rope: Rope,
}

/// Names and shapes of a layer's weights, in the order of `Tiny::layers`.
const LAYER: [(&str, usize, usize); 9] = [
    ("input_layernorm", HIDDEN, 0),
    ("self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN),
    ("self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
    ("self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN),
    ("self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM),
    ("post_attention_layernorm", HIDDEN, 0),
    ("mlp.gate_proj", FFN, HIDDEN),
    ("mlp.up_proj", FFN, HIDDEN),
    ("mlp.down_proj", HIDDEN, FFN),
];

impl Tiny {
    fn new(device: &Device) -> Result<Self> {
        let stream = Stream::new(11);
        // Norms start at one, matrices at small normal values; those that write to the residual are smaller.
        let make = |name: String, rows: usize, cols: usize| {
            let value = match cols {
                0 => Tensor::full(device, &[rows], 1.0)?,
                _ => {
                    let deep = name.contains("o_proj") || name.contains("down_proj");
                    let std = if deep { 0.02 / (2.0 * LAYERS as f32).sqrt() } else { 0.02 };
                    Tensor::from_f32(
                        device,
                        &[rows, cols],
                        &stream.named(&name).normal_vec(rows * cols, std),
                    )?
                }
            };
            Param::new(format!("{name}.weight"), value, true)
        };
        let layers = (0..LAYERS)
            .map(|i| LAYER.iter().map(|(n, r, c)| make(format!("model.layers.{i}.{n}"), *r, *c)).collect());
        Ok(Tiny {
            device: device.clone(),
            embed: make("model.embed_tokens".into(), VOCAB, HIDDEN)?,
            norm: make("model.norm".into(), HIDDEN, 0)?,
            layers: layers.collect::<Result<_>>()?,
            rope: Rope::new(device, HEAD_DIM, POSITIONS, ROPE_BASE)?,
        })
    }

    fn params(&self) -> Vec<Param> {
        [self.embed.clone(), self.norm.clone()].into_iter().chain(self.layers.concat()).collect()
    }

    /// Logits `[B * S, VOCAB]` of tokens `[B, S]`.
    fn logits(&self, ids: &[u32], b: usize, s: usize) -> Result<Tensor> {
        let positions: Vec<u32> = (0..b).flat_map(|_| 0..s as u32).collect();
        let positions = Tensor::from_u32(&self.device, &[b, s], &positions)?;
        let embed = self.embed.tensor();
        let mut x = embed.gather_rows(&Tensor::from_u32(&self.device, &[b * s], ids)?)?;
        for layer in &self.layers {
            let w: Vec<Tensor> = layer.iter().map(Param::tensor).collect();
            let h = x.rms_norm(&w[0], EPS)?;
            let heads = |w: &Tensor, n: usize| h.matmul_nt(w)?.reshape(&[b, s, n, HEAD_DIM]);
            let q = heads(&w[1], HEADS)?.rope(&self.rope, &positions)?;
            let k = heads(&w[2], KV_HEADS)?.rope(&self.rope, &positions)?;
            let a = q.attention(&k, &heads(&w[3], KV_HEADS)?, None, &AttentionOptions::default())?;
            x = x.add(&a.reshape(&[b * s, HEADS * HEAD_DIM])?.matmul_nt(&w[4])?)?;
            let h = x.rms_norm(&w[5], EPS)?;
            let gated = h.matmul_nt(&w[6])?.swiglu(&h.matmul_nt(&w[7])?)?;
            x = x.add(&gated.matmul_nt(&w[8])?)?;
        }
        x.rms_norm(&self.norm.tensor(), EPS)?.matmul_nt(&embed)
    }
}

fn train(model: &Tiny, ids: &[u32], steps: usize) -> Result<()> {
    let mut optimizer = Optimizer::new(model.params())?;
    optimizer.weight_decay = 0.01;
    let schedule = Schedule {
        learning_rate: 3e-3,
        warmup_steps: steps / 20,
        decay: Decay::Cosine,
        ..Schedule::default()
    };
    let (b, s) = BATCH;
    let places = Stream::new(13);
    let mut mean = 0.0;
    for step in 0..steps {
        let (mut inputs, mut targets): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        for row in 0..b {
            let last = (ids.len() - s - 1) as u64;
            let start = ((u64::from(places.bits((step * b + row) as u32)) * last) >> 32) as usize;
            inputs.extend(&ids[start..start + s]);
            targets.extend(&ids[start + 1..start + s + 1]);
        }
        let logits = model.logits(&inputs, b, s)?;
        // The gradient of the mean cross-entropy: (softmax - one-hot) / N.
        let p = logits.detach().softmax()?;
        let mut seed = p.to_f32()?;
        let mut loss = 0.0;
        for (row, &t) in targets.iter().enumerate() {
            let at = row * VOCAB + t as usize;
            loss -= f64::from(seed[at]).max(1e-30).ln() / targets.len() as f64;
            seed[at] -= 1.0;
        }
        let seed = Tensor::from_f32(&model.device, logits.dims(), &seed)?;
        let gradients = backward(&[(&logits, seed)])?;
        let scale = 1.0 / targets.len() as f64;
        let norm = optimizer.norm(&gradients, scale)?;
        optimizer.update(&gradients, scale, schedule.rate(step, steps), &norm, Some(1.0))?;
        mean += loss / 100.0;
        if (step + 1) % 100 == 0 {
            println!("step {}: loss {mean:.3}", step + 1);
            mean = 0.0;
        }
    }
    Ok(())
}

fn save(model: &Tiny, dir: &Path) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut tensors = Vec::new();
    for p in model.params() {
        let value = p.value();
        let half: Vec<half::f16> = value.to_f32()?.into_iter().map(half::f16::from_f32).collect();
        // From here on it is what is stored.
        let rounded: Vec<f32> = half.iter().map(|v| v.to_f32()).collect();
        p.set(Tensor::from_f32(&model.device, value.dims(), &rounded)?)?;
        tensors.push((p.name(), value.dims().to_vec(), half));
    }
    let views = tensors
        .iter()
        .map(|(n, d, v)| Ok((n.as_str(), TensorView::new(Dtype::F16, d.clone(), bytemuck::cast_slice(v))?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()?;
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None)?)?;
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCAB,
        "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-5, "rope_theta": ROPE_BASE,
        "tie_word_embeddings": true, "torch_dtype": "float16",
    });
    std::fs::write(dir.join("config.json"), format!("{config:#}\n"))?;
    let text = serde_json::json!({
        "eos_token": "<|im_end|>", "pad_token": "<|pad|>", "chat_template": TEMPLATE,
    });
    std::fs::write(dir.join("tokenizer_config.json"), format!("{text:#}\n"))?;
    Ok(())
}
