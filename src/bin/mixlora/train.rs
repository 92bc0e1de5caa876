//! `mixlora train`

use crate::data_text::{TextArgs, TextSide};
use crate::{Failure, out};
use mixlora::adapter::{Adapter, TARGETS};
use mixlora::data::{Batch, DataFiles, Dataset, Sampler, SamplerConfig, read_samples};
use mixlora::mixture::{MethodConfig, find};
use mixlora::model::Llama;
use mixlora::train::{Decay, Schedule, Session, TrainConfig};
use mixlora::{Device, Stream};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(clap::Args)]
#[command(after_help = "\
Writes RUN/metrics.jsonl, one line a step, and at the end the adapter: adapter_model.safetensors, \
adapter_config.json and, for mixtures, mixlora.json. A run that is interrupted cannot be resumed yet.

Example: mixlora train --model SmolLM2-135M-Instruct.Q4_1.gguf --data my_data --steps 200 --out run")]
pub struct Args {
    /// A JSONL file, or a folder with train.jsonl and, if you like, valid.jsonl.
    #[arg(long)]
    data: PathBuf,
    /// Folder for metrics and the adapter; must not hold another run.
    #[arg(long)]
    out: PathBuf,
    /// See `mixlora methods`.
    #[arg(long, default_value = "mixlora-cond")]
    method: String,
    /// An option of the method, for example r=8 or num_factors=32; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Projections that get an adapter, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = TARGETS.map(String::from))]
    targets: Vec<String>,
    /// Optimizer steps.
    #[arg(long, default_value_t = 100)]
    steps: usize,
    /// Samples that go through the model together.
    #[arg(long, default_value_t = 4)]
    micro_batch: usize,
    /// Micro-batches of one optimizer step.
    #[arg(long, default_value_t = 1)]
    grad_accumulation: usize,
    #[arg(long, default_value_t = 1e-3)]
    learning_rate: f64,
    /// Steps of linear warm-up; 3 % of the run when not given.
    #[arg(long)]
    warmup_steps: Option<usize>,
    /// How the learning rate goes after the warm-up.
    #[arg(long, default_value = "cosine", value_parser = ["cosine", "linear", "constant"])]
    schedule: String,
    /// Gradients are clipped to this norm; 0 for never.
    #[arg(long, default_value_t = 1.0)]
    max_grad_norm: f32,
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Validation loss every so many steps; at the end in any case.
    #[arg(long, default_value_t = 50)]
    eval_every: usize,
    /// Keep quantised weights as they are in memory (else they are turned into f32, which is faster to compute with).
    #[arg(long)]
    keep_quantised: bool,
    /// cpu, gpu, auto, or part of an adapter's name.
    #[arg(long, default_value = "cpu")]
    device: String,
    #[command(flatten)]
    text: TextArgs,
}

impl Args {
    /// The method's options: its defaults, changed by --set.
    fn options(&self, defaults: MethodConfig) -> Result<MethodConfig, Failure> {
        let mut all = serde_json::to_value(defaults).map_err(|e| Failure::Usage(e.to_string()))?;
        for pair in &self.set {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| Failure::Usage(format!("--set {pair}: KEY=VALUE is needed")))?;
            let Some(slot) = all.get_mut(key.trim()) else {
                let keys: Vec<String> =
                    all.as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect();
                return Err(Failure::Usage(format!(
                    "--set {key}: unknown option; there are {}",
                    keys.join(", ")
                )));
            };
            // A bare word is a string, everything else JSON.
            *slot = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
        }
        serde_json::from_value(all).map_err(|e| Failure::Usage(format!("--set: {e}")))
    }

    fn config(&self) -> TrainConfig {
        let decay = match self.schedule.as_str() {
            "linear" => Decay::Linear,
            "constant" => Decay::Constant,
            _ => Decay::Cosine,
        };
        let warmup_steps = self.warmup_steps.unwrap_or((self.steps as f64 * 0.03).ceil() as usize);
        TrainConfig {
            schedule: Schedule { learning_rate: self.learning_rate, warmup_steps, decay },
            steps: self.steps,
            max_grad_norm: (self.max_grad_norm > 0.0).then_some(self.max_grad_norm),
            weight_decay: self.weight_decay,
            seed: self.seed,
            recompute: false,
        }
    }
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let Some(model_path) = args.text.model.clone() else {
        return Err(Failure::Usage("--model is needed".into()));
    };
    let method = find(&args.method)?;
    let options = args.options((method.defaults)())?;
    let device = crate::device(&args.device)?;
    let text = TextSide::open(&args.text)?;
    let encoder = text.encoder(&args.text)?;
    let files = DataFiles::find(&args.data)?;
    let dataset = |path: &Path| encoder.dataset(path, &read_samples(path)?);
    let Some(train) = &files.train else {
        let what = "has no train.jsonl".to_string();
        return Err(mixlora::Error::File { path: args.data.clone(), what }.into());
    };
    let train = dataset(train)?;
    let valid = files.valid.as_deref().map(dataset).transpose()?;
    let metrics = args.out.join("metrics.jsonl");
    if metrics.exists() {
        let what = "already holds a run; give another --out".to_string();
        return Err(mixlora::Error::File { path: args.out.clone(), what }.into());
    }
    let mut model = Llama::open(&model_path, &device, !args.keep_quantised)?;
    text.tokenizer.check_rows(model.config().vocab_size)?;
    let stream = Stream::new(args.seed).named("adapter");
    let adapter = Adapter::attach(&mut model, method, &options, &args.targets, stream)?;
    method.notes(&options).iter().for_each(|n| out::note(&format!("note: {n}")));
    let session = Session::new(model, adapter, args.config())?;
    let sizes = SamplerConfig {
        seed: args.seed,
        micro_batch: args.micro_batch,
        grad_accumulation: args.grad_accumulation,
        bucket_steps: 0,
    };
    let sampler = Sampler::new(train.examples.len(), &train.lengths(), sizes)?;
    // The folder is made when nothing can be refused any more, so that a mistyped option does not block it.
    let log = std::fs::create_dir_all(&args.out)
        .and_then(|()| std::fs::File::create_new(&metrics))
        .map_err(|e| mixlora::Error::File { path: metrics, what: e.to_string() })?;
    Run { args, device, train, valid, pad: text.tokenizer.pad(), sampler, log }.go(session, &model_path)
}

struct Run<'a> {
    args: &'a Args,
    device: Device,
    train: Dataset,
    valid: Option<Dataset>,
    pad: u32,
    sampler: Sampler,
    log: std::fs::File,
}

impl Run<'_> {
    fn go(mut self, mut session: Session, model_path: &Path) -> Result<(), Failure> {
        let a = self.args;
        let name = session.adapter.method().name;
        out::note(&format!(
            "{name}: {} trained values on {}, {} examples, {} steps of {} examples",
            session.adapter.trainable_values(),
            self.device.name(),
            self.train.examples.len(),
            a.steps,
            self.sampler.effective_batch()
        ));
        self.write(&json!({
            "t": "run", "version": env!("CARGO_PKG_VERSION"), "method": name, "seed": a.seed,
            "options": session.adapter.config(), "device": self.device.name(), "steps": a.steps,
        }))?;
        let started = Instant::now();
        let (mut tokens, mut first, mut last) = (0, None, 0.0);
        for _ in 0..a.steps {
            let clock = Instant::now();
            let batches = self
                .sampler
                .next_step()
                .iter()
                .map(|ids| self.batch(&self.train, ids, session.adapter.config().pool))
                .collect::<Result<Vec<_>, _>>()?;
            let r = session.step(&batches)?;
            let seconds = clock.elapsed().as_secs_f64();
            tokens += r.tokens;
            first.get_or_insert(r.loss);
            last = r.loss;
            self.write(&json!({
                "t": "step", "step": r.step, "loss": r.loss, "aux_loss": r.aux_loss, "lr": r.learning_rate,
                "grad_norm": r.grad_norm, "tokens": r.tokens, "trained_tokens": r.trained_tokens,
                "tokens_total": tokens, "tok_s": r.tokens as f64 / seconds,
            }))?;
            let left = started.elapsed().as_secs_f64() / r.step as f64 * (a.steps - r.step) as f64;
            out::progress(&format!(
                "step {}/{} loss {:.4} lr {:.1e} {:.0} tok/s, {left:.0} s left",
                r.step,
                a.steps,
                r.loss,
                r.learning_rate,
                r.tokens as f64 / seconds
            ));
            if a.eval_every > 0 && r.step % a.eval_every == 0 && r.step < a.steps {
                self.evaluate(&session)?;
            }
        }
        let valid = self.evaluate(&session)?;
        let base = model_path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        session.adapter.save(&a.out, &session.model, &base)?;
        let valid = valid.map_or(String::new(), |v| format!(", validation loss {v:.4} (ppl {:.2})", v.exp()));
        out::text(&format!(
            "loss {:.4} -> {last:.4}{valid}, {tokens} tokens in {:.1} s; adapter in {}",
            first.unwrap_or(last),
            started.elapsed().as_secs_f64(),
            a.out.display()
        ))?;
        Ok(())
    }

    fn batch(
        &self,
        data: &Dataset,
        ids: &[usize],
        pool: mixlora::mixture::Pool,
    ) -> Result<Batch, mixlora::Error> {
        let examples: Vec<_> = ids.iter().map(|&i| &data.examples[i]).collect();
        Batch::new(&examples, pool, self.pad, &self.device)
    }

    fn evaluate(&mut self, session: &Session) -> Result<Option<f64>, Failure> {
        let Some(valid) = &self.valid else { return Ok(None) };
        let all: Vec<usize> = (0..valid.examples.len()).collect();
        let batches = all
            .chunks(self.args.micro_batch)
            .map(|ids| self.batch(valid, ids, session.adapter.config().pool))
            .collect::<Result<Vec<_>, _>>()?;
        let loss = session.evaluate(&batches)?;
        let tokens: usize = batches.iter().map(|b| b.trained).sum();
        let (step, samples) = (session.steps_done(), all.len());
        self.write(&json!({
            "t": "eval", "step": step, "loss": loss, "ppl": loss.exp(), "tokens": tokens, "samples": samples,
        }))?;
        out::progress(&format!("step {step}: validation loss {loss:.4}"));
        Ok(Some(loss))
    }

    fn write(&mut self, line: &serde_json::Value) -> Result<(), Failure> {
        let path = self.args.out.join("metrics.jsonl");
        let written = writeln!(self.log, "{line}").and_then(|()| self.log.flush());
        written.map_err(|e| mixlora::Error::File { path, what: format!("cannot be written: {e}") }.into())
    }
}
