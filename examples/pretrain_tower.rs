//! Makes the small vision tower that ships with the quickstart: trains every weight from nothing, with this library.
//!
//! Its pictures are those of a larger set of the quickstart. A linear layer on the mean of some of the tower's rows chooses
//! among the answers to each question; it is thrown away afterwards. The same commands give the same files:
//!
//! ```text
//! mixlora quickstart --vision --set-only --samples 4000 --seed 1 --out pictures
//! cargo run --release --example pretrain_tower -- pictures/data data/tower 5000
//! ```

use mixlora::mixture::Units;
use mixlora::model::LoadOptions;
use mixlora::model::vision::Tower;
use mixlora::nn::{Param, Pass};
use mixlora::ops::attention::AttentionOptions;
use mixlora::picture::{Limits, Picture, PictureFile, Processor};
use mixlora::train::{Decay, Optimizer, Schedule};
use mixlora::{Device, Result, Stream, Tensor, backward, no_grad};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

type Outcome<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Sides of a picture and of a patch.
const SIDE: usize = 40;
const PATCH: usize = 8;
const ROWS: usize = (SIDE / PATCH) * (SIDE / PATCH);
const PATCH_VALUES: usize = 3 * PATCH * PATCH;
const HIDDEN: usize = 128;
const HEADS: usize = 4;
const FFN: usize = 512;
const LAYERS: usize = 4;
const EPS: f32 = 1e-6;
/// Pictures of a step.
const BATCH: usize = 32;
const LEARNING_RATE: f64 = 1.5e-3;
/// The share of the rows that the mean is taken of, so that each row learns to hold the answer.
const ROWS_OF_MEAN: usize = ROWS / 2;
/// A batch has these tasks in turn. `relation` is left out: it has as many questions as pairs of colours; `kind` too: what
/// 320 icons teach does not hold for others.
const TASKS: [&str; 8] = ["shape", "digit", "count", "colour", "shape", "digit", "count", "where"];
/// The task whose pictures are so few that they are shown moved and stretched.
const FEW: &str = "digit";
/// Every so many samples one is not trained, and measured.
const MEASURED: usize = 20;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [data, out, steps] = &args[..] else { return Err("usage: pretrain_tower SET FOLDER STEPS".into()) };
    let steps: usize = steps.parse()?;
    let out = Path::new(out);
    describe(out)?;
    let processor = Processor::of_model(out)?;
    let (samples, questions) = read(Path::new(data), &processor)?;
    let mut by_task: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
    let mut measured = Vec::new();
    for (i, sample) in samples.iter().enumerate() {
        if i % MEASURED == 0 {
            measured.push(sample);
        } else {
            by_task.entry(&sample.task).or_default().push(sample);
        }
    }
    let classes = questions.iter().map(|question| question.answers.len()).sum();
    let counts: Vec<String> = by_task.iter().map(|(task, list)| format!("{task} {}", list.len())).collect();
    println!("pictures: {}; {} questions, {classes} answers", counts.join(", "), questions.len());
    let device = Device::cpu();
    let net = Net::new(&device, classes)?;
    train(&net, &by_task, &questions, &processor, steps)?;
    save(&net, out)?;
    for (task, right) in measure(&net, &measured, &questions, &processor)? {
        println!("{task}: {} of {} that were not trained are right", right[0], right[1]);
    }
    compare(&net, out, &measured[..BATCH.min(measured.len())], &processor)
}

struct Sample {
    task: String,
    question: usize,
    /// Its number among the question's answers.
    answer: usize,
    picture: Picture,
}

#[derive(Default)]
struct Question {
    answers: Vec<String>,
    /// The class of its first answer.
    first: usize,
}

/// The set's samples and their questions. Refuses a set that trains a picture of its held-out part.
fn read(data: &Path, processor: &Processor) -> Outcome<(Vec<Sample>, Vec<Question>)> {
    let lines = |part: &str| -> Outcome<Vec<Value>> {
        let text = std::fs::read_to_string(data.join(part))?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    };
    let open = |line: &Value| -> Outcome<Picture> {
        let path = data.join(line["images"][0].as_str().ok_or("a sample has no picture")?);
        Ok(PictureFile::open(&path, &Limits::default())?.decode(processor.alpha)?.picture)
    };
    let key = |picture: &Picture| (picture.width(), picture.rgb().to_vec());
    let held_out: HashSet<(usize, Vec<u8>)> =
        lines("test.jsonl")?.par_iter().map(|line| Ok(key(&open(line)?))).collect::<Outcome<_>>()?;
    let lines = lines("train.jsonl")?;
    let asked = |line: &&Value| TASKS.iter().any(|task| line["task"] == *task);
    let lines: Vec<&Value> = lines.iter().filter(asked).collect();
    let pictures: Vec<Picture> = lines
        .par_iter()
        .map(|line| {
            let picture = open(line)?;
            if held_out.contains(&key(&picture)) {
                return Err(format!("{} is held out", line["images"][0]).into());
            }
            let bytes = processor.tiles(&picture)?.bytes().to_vec();
            Ok(Picture::new(SIDE, SIDE, bytes)?)
        })
        .collect::<Outcome<_>>()?;

    let text = |line: &Value, turn: usize| line["messages"][turn]["content"].to_string();
    let mut numbers = BTreeMap::new();
    let mut questions: Vec<Question> = Vec::new();
    let mut samples = Vec::new();
    for (line, picture) in lines.into_iter().zip(pictures) {
        let question = *numbers.entry(text(line, 1)).or_insert_with(|| {
            questions.push(Question::default());
            questions.len() - 1
        });
        let answers = &mut questions[question].answers;
        let said = text(line, 2);
        let answer = answers.iter().position(|known| *known == said).unwrap_or_else(|| {
            answers.push(said);
            answers.len() - 1
        });
        let task = line["task"].as_str().unwrap_or_default().to_string();
        samples.push(Sample { task, question, answer, picture });
    }
    let mut first = 0;
    for question in &mut questions {
        question.first = first;
        first += question.answers.len();
    }
    Ok((samples, questions))
}

/// A picture on white, moved by up to a tenth of its side and up to a fifth narrower, wider, lower or taller.
fn moved(picture: &Picture, below: &mut impl FnMut(usize) -> usize) -> Result<Picture> {
    let [width, height] = [(); 2].map(|()| SIDE - SIDE / 5 + below(2 * SIDE / 5 + 1));
    let mut start = |length: usize| {
        (SIDE as i64 - length as i64) / 2 + below(2 * SIDE / 10 + 1) as i64 - SIDE as i64 / 10
    };
    let [left, top] = [start(width), start(height)];
    let mut rgb = Vec::with_capacity(3 * width * height);
    for y in (top..).take(height) {
        for x in (left..).take(width) {
            let inside = (0..SIDE as i64).contains(&x) && (0..SIDE as i64).contains(&y);
            let at = 3 * (y * SIDE as i64 + x);
            rgb.extend_from_slice(if inside { &picture.rgb()[at as usize..][..3] } else { &[255; 3] });
        }
    }
    Picture::new(width, height, rgb)
}

/// Patches `[B * ROWS, PATCH_VALUES]` of pictures, each (channel, row, column), as the tower reads them.
fn patches(device: &Device, pixels: &[f32]) -> Result<Tensor> {
    let grid = SIDE / PATCH;
    let mut values = Vec::with_capacity(pixels.len());
    for picture in pixels.chunks(3 * SIDE * SIDE) {
        for patch in 0..ROWS {
            for line in 0..3 * PATCH {
                let y = line / PATCH * SIDE + patch / grid * PATCH + line % PATCH;
                values.extend_from_slice(&picture[y * SIDE + patch % grid * PATCH..][..PATCH]);
            }
        }
    }
    Tensor::from_f32(device, &[values.len() / PATCH_VALUES, PATCH_VALUES], &values)
}

/// A tower whose weights are all trained, with names of Hugging Face, and what chooses among answers.
struct Net {
    device: Device,
    /// The linear of patches, positions, the last norm.
    ends: Vec<Param>,
    layers: Vec<Vec<Param>>,
    head: Vec<Param>,
}

/// Names and shapes of a layer's weights, in the order of `Net::layers`; each has a bias behind it.
const LAYER: [(&str, usize, usize); 8] = [
    ("layer_norm1", HIDDEN, 0),
    ("self_attn.q_proj", HIDDEN, HIDDEN),
    ("self_attn.k_proj", HIDDEN, HIDDEN),
    ("self_attn.v_proj", HIDDEN, HIDDEN),
    ("self_attn.out_proj", HIDDEN, HIDDEN),
    ("layer_norm2", HIDDEN, 0),
    ("mlp.fc1", FFN, HIDDEN),
    ("mlp.fc2", HIDDEN, FFN),
];

impl Net {
    fn new(device: &Device, classes: usize) -> Result<Self> {
        let stream = Stream::new(17);
        let normal = |name: String, rows: usize, cols: usize, std: f32| {
            let values = stream.named(&name).normal_vec(rows * cols, std);
            Param::new(name, Tensor::from_f32(device, &[rows, cols], &values)?, true)
        };
        let full = |name: String, value: f32, rows: usize| {
            Param::new(name, Tensor::full(device, &[rows], value)?, true)
        };
        // Norms start at one, matrices at normal values; those that write to the residual are smaller.
        let pair = |name: String, rows: usize, cols: usize| -> Result<[Param; 2]> {
            let deep = name.contains("out_proj") || name.contains("fc2");
            let smaller = if deep { 2.0 * LAYERS as f32 } else { 1.0 };
            let weight = match cols {
                0 => full(format!("{name}.weight"), 1.0, rows)?,
                _ => normal(format!("{name}.weight"), rows, cols, (cols as f32 * smaller).sqrt().recip())?,
            };
            Ok([weight, full(format!("{name}.bias"), 0.0, rows)?])
        };
        let layer = |i: usize| -> Result<Vec<Param>> {
            let pairs = LAYER.iter().map(|(name, rows, cols)| {
                pair(format!("vision_model.encoder.layers.{i}.{name}"), *rows, *cols)
            });
            Ok(pairs.collect::<Result<Vec<_>>>()?.concat())
        };
        let embeddings = "vision_model.embeddings";
        let mut ends = pair(format!("{embeddings}.patch_embedding"), HIDDEN, PATCH_VALUES)?.to_vec();
        ends.push(normal(format!("{embeddings}.position_embedding.weight"), ROWS, HIDDEN, 0.1)?);
        ends.extend(pair("vision_model.post_layernorm".into(), HIDDEN, 0)?);
        Ok(Net {
            device: device.clone(),
            ends,
            layers: (0..LAYERS).map(layer).collect::<Result<_>>()?,
            head: pair("head".into(), classes, HIDDEN)?.to_vec(),
        })
    }

    /// The tower's own.
    fn params(&self) -> Vec<Param> {
        self.ends.iter().cloned().chain(self.layers.concat()).collect()
    }

    /// Features `[B * ROWS, HIDDEN]` of patches.
    fn features(&self, patches: &Tensor) -> Result<Tensor> {
        let b = patches.dims()[0] / ROWS;
        let ends: Vec<Tensor> = self.ends.iter().map(Param::tensor).collect();
        let linear = |x: &Tensor, w: &[Tensor]| x.matmul_nt(&w[0])?.add(&w[1]);
        let table = ends[2].reshape(&[ROWS * HIDDEN])?;
        let mut x = linear(patches, &ends)?.reshape(&[b, ROWS * HIDDEN])?.add(&table)?;
        x = x.reshape(&[b * ROWS, HIDDEN])?;
        let seen = AttentionOptions { causal: false, ..AttentionOptions::default() };
        for layer in &self.layers {
            let w: Vec<Tensor> = layer.iter().map(Param::tensor).collect();
            let h = x.layer_norm(&w[0], &w[1], EPS)?;
            let heads = |at: usize| linear(&h, &w[at..])?.reshape(&[b, ROWS, HEADS, HIDDEN / HEADS]);
            let a = heads(2)?.attention(&heads(4)?, &heads(6)?, None, &seen)?;
            x = x.add(&linear(&a.reshape(&[b * ROWS, HIDDEN])?, &w[8..])?)?;
            let h = x.layer_norm(&w[10], &w[11], EPS)?;
            x = x.add(&linear(&linear(&h, &w[12..])?.gelu()?, &w[14..])?)?;
        }
        x.layer_norm(&ends[3], &ends[4], EPS)
    }

    /// Scores `[B, classes]` of all answers, by the mean of the rows that `shown` has for each picture.
    fn scores(&self, patches: &Tensor, shown: impl Fn(usize) -> Vec<usize>) -> Result<Tensor> {
        let b = patches.dims()[0] / ROWS;
        let mut mean = vec![0.0; b * b * ROWS];
        for picture in 0..b {
            let rows = shown(picture);
            for row in &rows {
                mean[picture * b * ROWS + picture * ROWS + row] = 1.0 / rows.len() as f32;
            }
        }
        let mean = Tensor::from_f32(&self.device, &[b, b * ROWS], &mean)?;
        let pooled = mean.matmul(&self.features(patches)?)?;
        pooled.matmul_nt(&self.head[0].tensor())?.add(&self.head[1].tensor())
    }
}

fn train(
    net: &Net,
    by_task: &BTreeMap<&str, Vec<&Sample>>,
    questions: &[Question],
    processor: &Processor,
    steps: usize,
) -> Outcome<()> {
    let mut optimizer = Optimizer::new([net.params(), net.head.clone()].concat())?;
    optimizer.weight_decay = 0.05;
    let schedule = Schedule {
        learning_rate: LEARNING_RATE,
        warmup_steps: steps / 20,
        decay: Decay::Cosine,
        ..Schedule::default()
    };
    let stream = Stream::new(19).named("pictures");
    let mut drawn = 0;
    let mut below = move |n: usize| {
        drawn += 1;
        ((u64::from(stream.bits(drawn)) * n as u64) >> 32) as usize
    };
    let began = std::time::Instant::now();
    let mut mean = 0.0;
    let mut right: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    for step in 0..steps {
        let mut pixels = Vec::new();
        let mut chosen = Vec::new();
        for at in 0..BATCH {
            let task = TASKS[at % TASKS.len()];
            let list = by_task.get(task).ok_or_else(|| format!("the set has no task '{task}'"))?;
            let sample = list[below(list.len())];
            let picture =
                if task == FEW { moved(&sample.picture, &mut below)? } else { sample.picture.clone() };
            pixels.extend(processor.values(&processor.tiles(&picture)?));
            chosen.push(sample);
        }
        let mut rows: Vec<Vec<usize>> = vec![(0..ROWS).collect(); BATCH];
        for rows in &mut rows {
            (0..ROWS_OF_MEAN).for_each(|at| rows.swap(at, at + below(ROWS - at)));
            rows.truncate(ROWS_OF_MEAN);
        }
        let scores = net.scores(&patches(&net.device, &pixels)?, |picture| rows[picture].clone())?;
        // The gradient of the mean cross-entropy among the answers to each question: (softmax - one-hot) / B.
        let all = scores.detach().to_f32()?;
        let mut seed = vec![0.0; all.len()];
        for (row, sample) in chosen.iter().enumerate() {
            let question = &questions[sample.question];
            let start = row * (all.len() / BATCH) + question.first;
            let scores = &all[start..start + question.answers.len()];
            let best = best(scores);
            let most = scores[best];
            let sum: f32 = scores.iter().map(|score| (score - most).exp()).sum();
            for (to, score) in seed[start..].iter_mut().zip(scores) {
                *to = (score - most).exp() / sum;
            }
            mean -= f64::from(scores[sample.answer] - most - sum.ln()) / BATCH as f64;
            seed[start + sample.answer] -= 1.0;
            let count = right.entry(&sample.task).or_default();
            *count = [count[0] + usize::from(best == sample.answer), count[1] + 1];
        }
        let seed = Tensor::from_f32(&net.device, scores.dims(), &seed)?;
        let gradients = backward(&[(&scores, seed)])?;
        let scale = 1.0 / BATCH as f64;
        let norm = optimizer.norm(&gradients, scale)?;
        optimizer.update(&gradients, scale, schedule.rate(step, steps), &norm, Some(1.0))?;
        if (step + 1) % 100 == 0 {
            let share = |(task, [right, all]): (&&str, &[usize; 2])| format!("{task} {}", 100 * right / all);
            let right: Vec<String> = std::mem::take(&mut right).iter().map(share).collect();
            let seconds = began.elapsed().as_secs();
            println!(
                "step {}: loss {:.3}, right in percent: {}, {seconds} s",
                step + 1,
                mean / 100.0,
                right.join(", ")
            );
            mean = 0.0;
        }
    }
    Ok(())
}

/// The place of the largest score.
fn best(scores: &[f32]) -> usize {
    (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap_or(0)
}

/// Numbers of right answers and of all, by task.
fn measure<'a>(
    net: &Net,
    samples: &[&'a Sample],
    questions: &[Question],
    processor: &Processor,
) -> Outcome<BTreeMap<&'a str, [usize; 2]>> {
    let mut by_task: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    for batch in samples.chunks(BATCH) {
        let patches = patches(&net.device, &pixels(batch, processor)?)?;
        let scores = no_grad(|| net.scores(&patches, |_| (0..ROWS).collect()))?.to_f32()?;
        for (scores, sample) in scores.chunks(scores.len() / batch.len()).zip(batch) {
            let question = &questions[sample.question];
            let count = by_task.entry(&sample.task).or_default();
            let is_right = best(&scores[question.first..][..question.answers.len()]) == sample.answer;
            *count = [count[0] + usize::from(is_right), count[1] + 1];
        }
    }
    Ok(by_task)
}

fn pixels(samples: &[&Sample], processor: &Processor) -> Result<Vec<f32>> {
    let values = samples.iter().map(|sample| Ok(processor.values(&processor.tiles(&sample.picture)?)));
    Ok(values.collect::<Result<Vec<_>>>()?.concat())
}

/// Refuses files that are not the tower that was trained: the library's must give the same features.
fn compare(net: &Net, dir: &Path, samples: &[&Sample], processor: &Processor) -> Outcome<()> {
    let pixels = pixels(samples, processor)?;
    let here = no_grad(|| net.features(&patches(&net.device, &pixels)?))?.to_f32()?;
    let tower = Tower::open(dir, &net.device, &LoadOptions::default())?;
    let pixels = Tensor::from_f32(&net.device, &[samples.len(), 3, SIDE, SIDE], &pixels)?;
    let there = no_grad(|| tower.forward(&pixels, &Pass::new(Units::tokens(0)), None))?.to_f32()?;
    let worst = here.iter().zip(&there).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("largest difference of a feature after loading: {worst:.1e}");
    if worst > 1e-3 || here.len() != there.len() {
        return Err("the files do not hold the tower that was trained".into());
    }
    Ok(())
}

/// Writes what the tower is, and what is done to its pictures.
fn describe(dir: &Path) -> Outcome<()> {
    std::fs::create_dir_all(dir)?;
    let config = json!({
        "model_type": "siglip_vision_model", "image_size": SIDE, "patch_size": PATCH, "hidden_size": HIDDEN,
        "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "torch_dtype": "float16",
    });
    std::fs::write(dir.join("config.json"), format!("{config:#}\n"))?;
    let processor = json!({
        "image_processor_type": "SiglipImageProcessor", "size": {"height": SIDE, "width": SIDE},
        "do_resize": true, "resample": 3, "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    });
    std::fs::write(dir.join("preprocessor_config.json"), format!("{processor:#}\n"))?;
    Ok(())
}

/// Writes the weights as f16.
fn save(net: &Net, dir: &Path) -> Outcome<()> {
    let mut tensors = Vec::new();
    for p in net.params() {
        let value = p.value();
        let half: Vec<half::f16> = value.to_f32()?.into_iter().map(half::f16::from_f32).collect();
        // From here on it is what is stored.
        let rounded: Vec<f32> = half.iter().map(|v| v.to_f32()).collect();
        p.set(Tensor::from_f32(&net.device, value.dims(), &rounded)?)?;
        let dims = if p.name().contains("patch_embedding.weight") {
            vec![HIDDEN, 3, PATCH, PATCH]
        } else {
            value.dims().to_vec()
        };
        tensors.push((p.name().to_string(), dims, half));
    }
    let views = tensors
        .iter()
        .map(|(n, d, v)| Ok((n.as_str(), TensorView::new(Dtype::F16, d.clone(), bytemuck::cast_slice(v))?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let bytes = safetensors::serialize(views, None)?;
    println!("model.safetensors: {} bytes, CRC-32 {}", bytes.len(), crc32fast::hash(&bytes));
    std::fs::write(dir.join("model.safetensors"), bytes)?;
    Ok(())
}
