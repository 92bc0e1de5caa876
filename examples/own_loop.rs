//! A training loop of one's own: batches, one optimizer step at a time, and the adapter on disk at the end.
//!
//! ```sh
//! cargo run --release --example own_loop
//! ```

use mixlora::adapter::{ALL_LINEAR, Adapter};
use mixlora::data::{Batch, Body, EncodeOptions, Encoder, Example, Sample};
use mixlora::mixture::find;
use mixlora::model::Model;
use mixlora::text::ModelText;
use mixlora::train::{Session, TrainConfig};
use mixlora::{Device, Stream};
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny"));
    let device = Device::cpu();
    let text = ModelText::open(path)?;
    let model = Model::open_f32(path, &device)?;

    // Small words for numbers: prompts are read, completions are trained.
    let words = ["zero", "one", "two", "three", "four", "five", "six", "seven"];
    let encoder = Encoder::new(&text.tokenizer, None, EncodeOptions::default())?;
    let examples: Vec<Example> = words
        .iter()
        .enumerate()
        .map(|(n, word)| {
            // The space goes with the word: a prompt that ends in a space is read as other tokens.
            let body = Body::Completion { prompt: format!("{n} is"), completion: format!(" {word}") };
            Ok(encoder.sample(Path::new("words"), &Sample::new(n + 1, None, body))?.example)
        })
        .collect::<mixlora::Result<_>>()?;

    let method = find("mixlora-cond")?.defaults().with("num_factors", 8)?;
    let framing = method.framing();
    let adapter = Adapter::attach(&model, &method, &[ALL_LINEAR.into()], Stream::new(1))?;
    let config = TrainConfig { steps: 30, ..TrainConfig::default() };
    let pad = text.tokenizer.pad_within(model.config().vocab_size);
    let mut session = Session::new(model, adapter, config)?;
    for step in 0..session.config.steps {
        let half: Vec<&Example> = examples.iter().skip(step % 2).step_by(2).collect();
        let batch = Batch::new(&half, framing, pad, &device)?;
        let report = session.step(&[batch])?;
        if step % 10 == 0 || report.step == session.config.steps {
            println!("step {} loss {:.4} gradient norm {:.2}", report.step, report.loss, report.grad_norm);
        }
    }
    let out = std::env::temp_dir().join(format!("mixlora-own-loop-{}", std::process::id()));
    session.adapter.save(&out, &session.model, "tiny")?;
    println!("adapter of {} trained values in {}", session.adapter.trainable_values(), out.display());
    Ok(std::fs::remove_dir_all(out)?)
}
