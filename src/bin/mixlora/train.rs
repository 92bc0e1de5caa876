//! `mixlora train`

use crate::device_args::describe;
use crate::train_args::TrainArgs;
use crate::{Failure, out, plan, signals};
use mixlora::adapter::Adapter;
use mixlora::mixture::Methods;
use mixlora::model::Model;
use mixlora::train::{
    End, EvalReport, Inputs, Observer, Progress, Questions, Run, RunConfig, RunFolder, Stages, State,
    StepReport, Stop, StoredRun, mean_exact_match,
};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

/// The interval of progress lines if no bar is visible, as in a log.
const SILENCE: Duration = Duration::from_secs(5);
/// The longest answer to ask for in validation, in tokens.
const MAX_ANSWER: usize = 32;

pub fn run(args: &TrainArgs) -> Result<(), Failure> {
    let methods = Methods::builtin();
    if let Some(dir) = args.resume.as_deref().filter(|dir| Stages::is_at(dir)) {
        let stages = Stages::open(dir, &methods)?;
        return staged(args, stages);
    }
    let stored = args.resume.as_deref().map(|dir| StoredRun::open(dir, &methods)).transpose()?;
    let config = RunConfig::layered(&args.layers(stored.as_ref().map(|stored| &stored.config))?, &methods)?;
    let without = [("--model", &config.model), ("--data", &config.data)];
    let without = without.into_iter().find(|(_, path)| path.as_os_str().is_empty());
    if let Some((name, _)) = without.filter(|(name, _)| *name == "--model" || config.stages.is_empty()) {
        return Err(Failure::Usage(format!("{name} is needed")));
    }
    let out_dir = match (&args.out, &args.resume) {
        (Some(dir), None) => {
            RunFolder::check_free(dir)?;
            dir
        }
        (None, Some(dir)) => dir,
        _ => return Err(Failure::Usage("--out is needed, or --resume with the folder of a run".into())),
    };
    if !config.stages.is_empty() {
        return staged(args, Stages::create(&config, out_dir)?);
    }
    let mut shown = Shown::new(args.quiet);
    let mut run = prepared(args, config, stored, out_dir, &mut shown)?;
    let train = |run: &mut Run, stop: &Stop, shown: &mut Shown| run.go(stop, shown);
    go(args, &mut run, &mut shown, out_dir, Told::All, train).map(drop)
}

/// The stages that are not done yet, and what all of them know of each task.
fn staged(args: &TrainArgs, mut stages: Stages) -> Result<(), Failure> {
    let methods = Methods::builtin();
    for stage in stages.done()..stages.count() {
        let dir = stages.dir_of(stage);
        let mut shown = Shown::new(args.quiet);
        shown.say(&format!("stage {} of {}: {}", stage + 1, stages.count(), stages.name(stage)));
        let stored = RunFolder::is_at(&dir).then(|| StoredRun::open(&dir, &methods)).transpose()?;
        let config = match &stored {
            Some(stored) => stored.config.clone(),
            None => stages.config_of(stage)?,
        };
        let mut run = prepared(args, config, stored, &dir, &mut shown)?;
        let train = |run: &mut Run, stop: &Stop, shown: &mut Shown| stages.go(stage, run, stop, shown);
        if go(args, &mut run, &mut shown, &dir, Told::Stage, train)? == End::Stopped {
            return Ok(());
        }
        stages.measure(&run)?;
    }
    let names: Vec<String> = (0..stages.count()).map(|stage| stages.name(stage)).collect();
    if args.json {
        let report = json!({ "stages": names, "losses": stages.losses(), "forgetting": stages.forgetting() });
        return Ok(out::json(&report)?);
    }
    let mut header = vec!["loss after"];
    header.extend(names.iter().map(String::as_str));
    let row = |(name, losses): (&String, &Vec<f64>)| {
        let losses = losses.iter().map(|loss| format!("{loss:.4}"));
        std::iter::once(name.clone()).chain(losses).collect()
    };
    let rows: Vec<Vec<String>> = names.iter().zip(stages.losses()).map(row).collect();
    let mut text = out::table(&header, &rows);
    if let Some(rise) = stages.forgetting() {
        text += &format!("forgetting: the loss of earlier stages rose by {rise:.4} in the mean\n");
    }
    Ok(out::text(text.trim_end())?)
}

/// A run that can begin or go on: device, text, data and model are read, and it fits into memory.
fn prepared(
    args: &TrainArgs,
    config: RunConfig,
    stored: Option<StoredRun>,
    out_dir: &Path,
    shown: &mut Shown,
) -> Result<Run, Failure> {
    if let Some(stored) = &stored {
        stored.changes(&config)?.iter().for_each(|text| shown.say(&format!("changed: {text}")));
        stored.notes.iter().for_each(|text| shown.say(&format!("note: {text}")));
        if stored.version() != env!("CARGO_PKG_VERSION") {
            shown.say(&format!("note: the run was written by version {}", stored.version()));
        }
        still_there("--model", &config.model)?;
        still_there("--data", &config.data)?;
    }
    let device = crate::open_device(&config.device)?;
    shown.say(&describe(&device, &config.device.name));
    let mut inputs = Inputs::read(config)?;
    if args.fit.is_some() {
        match inputs.fit(Some(&device))?.as_deref() {
            Some("") => shown.say("the settings fit as they are"),
            Some(options) => shown.say(&format!("fits with {options}")),
            // What the plan says comes below.
            None => {}
        }
    }
    inputs.config.train.check_patience(!inputs.valid_samples.is_empty())?;
    inputs.text.notes.iter().for_each(|text| shown.say(&format!("note: {text}")));
    let planned = inputs.plan(Some(&device))?;
    if !planned.fits() {
        out::note(&format!("error: out of memory before anything is loaded\n{}", plan::text(&planned)));
        return Err(Failure::Memory);
    }
    let mut questions = Questions::new(&inputs.text, &inputs.encoder, &inputs.valid_samples, MAX_ANSWER)?;
    let answers = inputs.config.train.answers;
    let mut parts = inputs.load(&device, args.allow_nonfinite)?;
    parts.valid.iter().for_each(|valid| questions.show(valid));
    let unasked = questions.limit(answers, MAX_ANSWER).filter(|_| answers > 0);
    shown.questions = Some(questions).filter(|questions| !questions.list.is_empty());
    parts.notes.extend(unasked);
    parts.notes.iter().for_each(|text| shown.say(&format!("note: {text}")));
    Ok(match stored {
        Some(stored) => Run::resume(stored, parts, shown)?,
        None => {
            if parts.config.train.align_epochs > 0 {
                shown.say("the new projector is aligned with the words of the answers");
            }
            Run::start(parts, Some(out_dir))?
        }
    })
}

/// Explains a path of a resumed run that no longer exists.
fn still_there(option: &str, path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    let what = format!("is not there any more: run.json names it; give its new place with {option}");
    Err(mixlora::Error::File { path: path.into(), what }.into())
}

/// What is printed at the end of a run.
#[derive(PartialEq)]
enum Told {
    All,
    /// Of a stage among others: no object of JSON, of which there is one for all.
    Stage,
}

fn go(
    args: &TrainArgs,
    run: &mut Run,
    shown: &mut Shown,
    out_dir: &Path,
    told: Told,
    train: impl FnOnce(&mut Run, &Stop, &mut Shown) -> mixlora::Result<End>,
) -> Result<End, Failure> {
    shown.start(run);
    let (stop, signal) = signals::stop_on_signals(args.stop_at)?;
    let first = run.state().step;
    let tokens = run.state().tokens;
    let began = Instant::now();
    let ended = train(run, &stop, shown);
    shown.bar.finish_and_clear();
    let end = match ended {
        // Training is complete, but its last checkpoint is not on disk.
        Err(error) if run.is_finished() => {
            out::note(&format!("error: the last checkpoint could not be written: {error}"));
            return Err(Failure::Check);
        }
        ended => ended?,
    };
    let state = run.state();
    let seconds = began.elapsed().as_secs_f64();
    let report = json!({
        "finished": end != End::Stopped, "ended_by": end.word(), "validations_without_better": state.validations_without_better(), "step": state.step, "steps": run.steps(), "from_step": first,
        "loss_first": shown.first, "loss_last": shown.last, "best_valid": state.best.map(|(loss, _)| loss),
        "best_step": state.best.map(|(_, step)| step), "tokens": state.tokens, "seconds": seconds, "run": out_dir.display().to_string(),
    });
    if args.json && told == Told::All {
        out::json(&report)?;
    } else if !args.json {
        let speed = (state.tokens - tokens) as f64 / seconds;
        let took = format!("{seconds:.1} s ({speed:.0} tok/s)");
        out::text(&summary(run, shown, end, &took, out_dir))?;
    }
    match signal.received() {
        Some(number) if end == End::Stopped => Err(Failure::Signal(number)),
        _ => Ok(end),
    }
}

fn summary(run: &Run, shown: &Shown, end: End, took: &str, dir: &Path) -> String {
    let state = run.state();
    let mut text = match (shown.first, shown.last) {
        (Some(first), Some(last)) => format!("loss {first:.4} -> {last:.4}"),
        _ if end == End::NoBetter => "this run had ended: no step was left to do".to_string(),
        _ => "no step was left to do".to_string(),
    };
    if let Some((loss, step)) = state.best {
        text += &format!(", best validation loss {loss:.4} (perplexity {:.2}) at step {step}", loss.exp());
    }
    text += &format!(", {} tokens, {took}", state.tokens);
    if let Some(memory) = run.session.model.device().memory() {
        text += &format!(", {:.1} MiB on the device at most", memory.peak() as f64 / (1u64 << 20) as f64);
    }
    if state.skipped > 0 {
        text += &format!(", {} steps left out", state.skipped);
    }
    let dir = dir.display();
    if end == End::NoBetter {
        text += &without_better(state, run.steps());
    }
    match end {
        End::Finished | End::NoBetter => {
            let model = run.config().model.display();
            let options = run.config().method.options();
            let task = if options.chooses_by_task() { " --task TASK" } else { "" };
            let condition = options.condition().map_or("", |_| " --condition TEXT");
            let next = format!("mixlora chat --model {model} --adapter {dir}{task}{condition}");
            text + &format!("\nadapter in {dir}: use it with --adapter {dir}, as in\n  {next}")
        }
        End::Stopped => {
            text + &format!(
                "\nstopped at step {} of {}: go on with mixlora train --resume {dir}",
                state.step,
                run.steps()
            )
        }
    }
}

/// What is said of a run that patience ended.
fn without_better(state: &State, steps: usize) -> String {
    let validations = match state.validations_without_better() {
        1 => "1 validation".to_string(),
        count => format!("{count} validations"),
    };
    let best = state.best.map_or("none had a loss".to_string(), |(_, step)| format!("best at step {step}"));
    format!(
        "\nstopped after {validations} without a better loss, at step {} of {steps}; {best}; \
         it goes on with --resume and a higher --patience, or --set train.patience=null",
        state.step
    )
}

/// Progress on stderr.
pub struct Shown {
    pub bar: indicatif::ProgressBar,
    quiet: bool,
    /// Losses of the first step and of the last one.
    pub first: Option<f64>,
    pub last: Option<f64>,
    /// The time of the last progress line without a bar.
    said: Instant,
    /// Answered at the last validation.
    questions: Option<Questions>,
}

impl Shown {
    pub fn new(quiet: bool) -> Self {
        let bar = indicatif::ProgressBar::hidden();
        Shown { bar, quiet, first: None, last: None, said: Instant::now(), questions: None }
    }

    pub fn start(&mut self, run: &Run) {
        self.say(&format!(
            "{}: {} trained values on {}, {} examples, {} steps of {} examples",
            run.session.adapter.method().name(),
            run.session.trained_values(),
            run.session.model.device().name(),
            run.examples(),
            run.steps(),
            run.effective_batch()
        ));
        if let Some(aligned) = run.aligned() {
            self.say(&format!(
                "projector aligned to {} answers of {} examples: loss {:.3} -> {:.3}",
                aligned.answers, aligned.examples, aligned.first_loss, aligned.last_loss
            ));
        }
        if !self.quiet {
            let style = indicatif::ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}");
            self.bar = indicatif::ProgressBar::new(run.steps() as u64);
            self.bar.set_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()));
            self.bar.set_position(run.state().step as u64);
        }
    }

    /// Prints a line above the bar.
    fn say(&self, line: &str) {
        if !self.quiet {
            self.bar.suspend(|| out::note(line));
        }
    }
}

impl Observer for Shown {
    fn step(&mut self, report: &StepReport, progress: &Progress) {
        self.first.get_or_insert(report.loss);
        self.last = Some(report.loss);
        self.bar.set_position(report.step as u64);
        let left = progress.seconds_left as u64;
        let minutes = format!("{}:{:02}", left / 60, left % 60);
        let message = format!("loss {:.4} {:.0} tok/s {minutes} left", report.loss, progress.tok_s);
        if self.bar.is_hidden() && self.said.elapsed() >= SILENCE {
            self.said = Instant::now();
            self.say(&format!("step {} of {}: {message}", report.step, progress.steps));
        }
        self.bar.set_message(message);
    }

    fn eval(&mut self, report: &EvalReport) {
        let mut line = format!(
            "step {}: validation loss {:.4}, perplexity {:.2}",
            report.step,
            report.loss,
            report.perplexity()
        );
        report.scores.iter().for_each(|(name, value)| line += &format!(", {name} {value:.3}"));
        self.say(&(line + if report.best { " (best)" } else { "" }));
    }

    fn score(
        &mut self,
        model: &std::sync::Arc<Model>,
        adapter: &Adapter,
    ) -> mixlora::Result<Vec<(String, f64)>> {
        let Some(questions) = &self.questions else { return Ok(Vec::new()) };
        self.bar.set_message(format!("answering {} validation questions", questions.list.len()));
        let answers = questions.answer(model, adapter, &mut |_| true)?;
        let scores = questions.score(&answers);
        let mut figures = vec![("exact match".to_string(), mean_exact_match(&scores))];
        if scores.len() > 1 {
            figures.extend(
                scores.iter().map(|score| (format!("exact match of {}", score.task), score.exact_match())),
            );
        }
        Ok(figures)
    }

    fn warning(&mut self, text: &str) {
        self.bar.suspend(|| out::note(&format!("warning: {text}")));
    }
}
