//! `mixlora train`

use crate::settings::{Layers, method, option_layers, read_file, set_layers};
use crate::{Failure, out, plan, signals};
use mixlora::mixture::find;
use mixlora::model::{Llama, LoadOptions, ModelFiles};
use mixlora::train::{
    End, EvalReport, Observer, Plan, Progress, Run, RunConfig, RunFolder, StepReport, StoredRun, TrainingData,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(clap::Args)]
#[command(after_help = "\
Settings come from the method's defaults, then --config, then the options here, then --set; `mixlora config init` \
prints all of them with their defaults.

The run's folder gets metrics.jsonl (a line a step), loss.svg, and checkpoints: step-000120/ holds the adapter with \
all that is needed to go on; `last` and `best` name one. Ctrl-C finishes the step, saves and exits with 130; a second \
one stops at once. Go on with --resume RUN.

Example: mixlora train --model SmolLM2-135M-Instruct.Q4_1.gguf --data my_data --epochs 2 --out run
Example: mixlora train --resume run --set train.learning_rate=5e-4")]
pub struct Args {
    /// A .gguf file, or a Hugging Face directory.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Take weights that hold NaN or infinite values as they are.
    #[arg(long)]
    allow_nonfinite: bool,
    /// A JSONL file, or a folder with train.jsonl and, if you like, valid.jsonl.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder of the run; it must not hold another one.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Go on with the run in this folder.
    #[arg(long, value_name = "RUN", conflicts_with = "out")]
    resume: Option<PathBuf>,
    /// A TOML or JSON file of settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A setting, for example r=8, num_factors=32 or train.keep=5; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// See `mixlora methods`.
    #[arg(long)]
    method: Option<String>,
    /// Projections that get an adapter, separated by commas.
    #[arg(long, value_delimiter = ',')]
    targets: Option<Vec<String>>,
    /// Optimizer steps.
    #[arg(long)]
    steps: Option<usize>,
    /// Times that every example is seen, where --steps is not given.
    #[arg(long)]
    epochs: Option<f64>,
    /// Samples that go through the model together.
    #[arg(long)]
    micro_batch: Option<usize>,
    /// Micro-batches of one optimizer step.
    #[arg(long)]
    grad_accumulation: Option<usize>,
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Steps of linear warm-up.
    #[arg(long)]
    warmup_steps: Option<usize>,
    /// How the learning rate goes after the warm-up.
    #[arg(long, value_parser = ["cosine", "linear", "constant"])]
    schedule: Option<String>,
    /// Gradients are clipped to this norm; 0 for never.
    #[arg(long)]
    max_grad_norm: Option<f32>,
    #[arg(long)]
    weight_decay: Option<f64>,
    #[arg(long)]
    seed: Option<u64>,
    /// Validation every so many steps.
    #[arg(long)]
    eval_every: Option<usize>,
    /// A checkpoint every so many steps.
    #[arg(long)]
    save_every: Option<usize>,
    /// Gradient checkpointing: less memory, a third more time.
    #[arg(long)]
    recompute: bool,
    /// Longest example, in tokens.
    #[arg(long)]
    max_length: Option<usize>,
    /// A built-in template (chatml) or a Jinja file, instead of the model's.
    #[arg(long)]
    template: Option<String>,
    /// Train every token, not only the assistant's.
    #[arg(long)]
    loss_on_all: bool,
    /// Accept assistant turns without an end token.
    #[arg(long)]
    allow_untrained_eos: bool,
    /// cpu, gpu, auto, or part of an adapter's name.
    #[arg(long)]
    device: Option<String>,
    /// Threads of the CPU device.
    #[arg(long)]
    threads: Option<usize>,
    /// Bytes that the device may hold, for example 6GiB; what would not fit is refused before it is loaded.
    #[arg(long, value_name = "SIZE")]
    memory_budget: Option<String>,
    /// Keep quantised weights as they are in memory (else they are turned into f32, which is faster to compute with).
    #[arg(long)]
    keep_quantised: bool,
    /// Stop after this step with a checkpoint; schedule and length of the run stay as they are.
    #[arg(long, value_name = "STEP")]
    stop_at: Option<usize>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
    /// Print no progress.
    #[arg(long)]
    quiet: bool,
}

impl Args {
    /// The settings given here, over those that a resumed run was started with.
    pub fn layers(&self, stored: Option<&RunConfig>) -> Result<Layers, Failure> {
        let mut layers = Layers::new();
        if let Some(config) = stored {
            layers.push(("run.json".into(), config.tree()?));
        }
        layers.extend(self.config.as_deref().map(read_file).transpose()?);
        let flag = |on: bool| if on { json!(true) } else { Value::Null };
        layers.extend(option_layers(vec![
            ("model", json!(self.model)),
            ("data", json!(self.data)),
            ("method", json!(self.method)),
            ("target_modules", json!(self.targets)),
            ("train.steps", json!(self.steps)),
            ("train.epochs", json!(self.epochs)),
            ("train.micro_batch", json!(self.micro_batch)),
            ("train.grad_accumulation", json!(self.grad_accumulation)),
            ("train.learning_rate", number(self.learning_rate)),
            ("train.warmup_steps", json!(self.warmup_steps)),
            ("train.schedule", json!(self.schedule)),
            ("train.max_grad_norm", number(self.max_grad_norm.map(f64::from))),
            ("train.weight_decay", number(self.weight_decay)),
            ("train.seed", json!(self.seed)),
            ("train.eval_every", json!(self.eval_every)),
            ("train.save_every", json!(self.save_every)),
            ("train.recompute", flag(self.recompute)),
            ("text.max_length", json!(self.max_length)),
            ("text.template", json!(self.template)),
            ("text.loss_on_all", flag(self.loss_on_all)),
            ("text.allow_untrained_eos", flag(self.allow_untrained_eos)),
            ("device.name", json!(self.device)),
            ("device.threads", json!(self.threads)),
            ("device.memory_budget", json!(self.memory_budget)),
            ("device.keep_quantised", flag(self.keep_quantised)),
        ])?);
        let set = set_layers(&self.set, method(&layers))?;
        layers.extend(set);
        Ok(layers)
    }
}

/// A number, as text where JSON has none (NaN, infinity), so that it is refused by name and not passed over.
fn number(v: Option<f64>) -> Value {
    v.map_or(Value::Null, |v| {
        serde_json::Number::from_f64(v).map_or_else(|| json!(v.to_string()), Value::from)
    })
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let stored = args.resume.as_deref().map(StoredRun::open).transpose()?;
    let config = RunConfig::layered(&args.layers(stored.as_ref().map(|s| &s.config))?)?;
    for (name, path) in [("--model", &config.model), ("--data", &config.data)] {
        if path.as_os_str().is_empty() {
            return Err(Failure::Usage(format!("{name} is needed")));
        }
    }
    let out_dir = match (&args.out, &args.resume) {
        (Some(dir), None) => {
            RunFolder::check_free(dir)?;
            dir
        }
        (None, Some(dir)) => dir,
        _ => return Err(Failure::Usage("--out is needed, or --resume with the folder of a run".into())),
    };
    let mut shown = Shown::new(args.quiet);
    if let Some(stored) = &stored {
        stored.changes(&config)?.iter().for_each(|c| shown.say(&format!("changed: {c}")));
        if stored.version != env!("CARGO_PKG_VERSION") {
            shown.say(&format!("note: the run was written by version {}", stored.version));
        }
    }
    let device = crate::open_device(&config.device)?;
    let text = config.text.open(Some(&config.model))?;
    let data = TrainingData::open(&config, &text)?;
    let files = ModelFiles::open(&config.model)?;
    let planned = Plan::new(&files, &config, plan::longest(&data))?;
    if !planned.fits() {
        out::note(&format!("error: out of memory before anything is loaded\n{}", plan::text(&planned)));
        return Err(Failure::Memory);
    }
    let options =
        LoadOptions { dequantize: !config.device.keep_quantised, allow_nonfinite: args.allow_nonfinite };
    let model = Llama::load(&files, &device, options)?;
    model.notes().iter().for_each(|n| shown.say(&format!("note: {n}")));
    let parts = data.with(&config, &text, model)?;
    find(&config.method)?.notes(&config.options).iter().for_each(|n| shown.say(&format!("note: {n}")));
    let mut run = match stored {
        Some(stored) => Run::resume(stored, config, parts, &mut shown)?,
        None => Run::start(config, parts, Some(out_dir))?,
    };
    go(args, &mut run, &mut shown, out_dir)
}

fn go(args: &Args, run: &mut Run, shown: &mut Shown, out_dir: &Path) -> Result<(), Failure> {
    shown.start(run);
    let (stop, signal) = signals::stop_on_signals(args.stop_at)?;
    let (first, began) = (run.state().step, Instant::now());
    let ended = run.go(&stop, shown);
    shown.bar.finish_and_clear();
    let end = match ended {
        // All is trained, but the end of it is not on disk.
        Err(e) if run.is_finished() => {
            out::note(&format!("error: the last checkpoint could not be written: {e}"));
            return Err(Failure::Check);
        }
        ended => ended?,
    };
    let (state, seconds) = (run.state(), began.elapsed().as_secs_f64());
    let report = json!({
        "finished": end == End::Finished, "step": state.step, "steps": run.steps(), "from_step": first,
        "loss_first": shown.first, "loss_last": shown.last, "best_valid": state.best.map(|b| b.0),
        "best_step": state.best.map(|b| b.1), "tokens": state.tokens, "seconds": seconds, "run": out_dir,
    });
    match args.json {
        true => out::json(&report)?,
        false => out::text(&summary(run, shown, end, seconds, out_dir))?,
    }
    match signal.received() {
        Some(number) if end == End::Stopped => Err(Failure::Signal(number)),
        _ => Ok(()),
    }
}

fn summary(run: &Run, shown: &Shown, end: End, seconds: f64, dir: &Path) -> String {
    let state = run.state();
    let mut text = match (shown.first, shown.last) {
        (Some(first), Some(last)) => format!("loss {first:.4} -> {last:.4}"),
        _ => "no step was left to do".to_string(),
    };
    if let Some((loss, step)) = state.best {
        text += &format!(", best validation loss {loss:.4} (perplexity {:.2}) at step {step}", loss.exp());
    }
    text += &format!(", {} tokens, {seconds:.1} s", state.tokens);
    if state.skipped > 0 {
        text += &format!(", {} steps left out", state.skipped);
    }
    let dir = dir.display();
    match end {
        End::Finished => text + &format!("\nadapter in {dir}: use it with --adapter {dir}"),
        End::Stopped => {
            text + &format!(
                "\nstopped at step {} of {}: go on with mixlora train --resume {dir}",
                state.step,
                run.steps()
            )
        }
    }
}

/// Progress on stderr.
pub struct Shown {
    pub bar: indicatif::ProgressBar,
    quiet: bool,
    /// Losses of the first step and of the last one.
    pub first: Option<f64>,
    pub last: Option<f64>,
}

impl Shown {
    pub fn new(quiet: bool) -> Self {
        Shown { bar: indicatif::ProgressBar::hidden(), quiet, first: None, last: None }
    }

    pub fn start(&mut self, run: &Run) {
        self.say(&format!(
            "{}: {} trained values on {}, {} examples, {} steps of {} examples",
            run.session.adapter.method().name,
            run.session.adapter.trainable_values(),
            run.session.model.device().name(),
            run.examples(),
            run.steps(),
            run.effective_batch()
        ));
        if !self.quiet {
            let style = indicatif::ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}");
            self.bar = indicatif::ProgressBar::new(run.steps() as u64);
            self.bar.set_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()));
            self.bar.set_position(run.state().step as u64);
        }
    }

    /// A line that stays.
    fn say(&self, line: &str) {
        if !self.quiet {
            self.bar.suspend(|| out::note(line));
        }
    }
}

impl Observer for Shown {
    fn step(&mut self, r: &StepReport, p: &Progress) {
        self.first.get_or_insert(r.loss);
        self.last = Some(r.loss);
        self.bar.set_position(r.step as u64);
        let left = p.seconds_left as u64;
        self.bar.set_message(format!(
            "loss {:.4} {:.0} tok/s {}:{:02} left",
            r.loss,
            p.tok_s,
            left / 60,
            left % 60
        ));
    }

    fn eval(&mut self, r: &EvalReport) {
        let mut line =
            format!("step {}: validation loss {:.4}, perplexity {:.2}", r.step, r.loss, r.perplexity());
        r.scores.iter().for_each(|(name, v)| line += &format!(", {name} {v:.3}"));
        self.say(&(line + if r.best { " (best)" } else { "" }));
    }

    fn warning(&mut self, text: &str) {
        self.bar.suspend(|| out::note(&format!("warning: {text}")));
    }
}
