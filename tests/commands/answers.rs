//! Answers of the tiny base model: turns, stop texts, a full context; `generate`, `chat` and `eval` as typed.
#![cfg(all(feature = "cli", feature = "tokenizer"))]

use crate::common::cli::answer_to as mixlora;
use mixlora::adapter::Conversation;
use mixlora::data::{EncodeOptions, Encoder, read_samples};
use mixlora::mixture::Units;
use mixlora::model::{Model, Sampler, Sampling, Step};
use mixlora::nn::Pass;
use mixlora::text::{Chat, Ending, Message, ModelText, ReplyOptions, Role, Said};
use mixlora::{Device, Error, Tensor, no_grad};
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny")
}

fn open() -> (std::sync::Arc<Model>, ModelText) {
    (Model::open_f32(&tiny(), &Device::cpu()).unwrap(), ModelText::open(&tiny()).unwrap())
}

fn stops(stops: &[&str], max_tokens: usize) -> ReplyOptions {
    ReplyOptions { max_tokens, stops: stops.iter().map(|s| s.to_string()).collect() }
}

/// The answer to the last question, put into the conversation.
fn answer(chat: &mut Chat, options: &ReplyOptions) -> Said {
    let mut sampler = Sampler::new(Sampling::default()).unwrap();
    let mut reply = chat.reply(&mut sampler, options);
    let given: String = reply.by_ref().map(|piece| piece.unwrap()).collect();
    let said = reply.finish();
    assert_eq!(given + &said.rest, said.text);
    chat.keep(&said);
    said
}

#[test]
fn a_turn_reads_only_what_is_new_and_answers_as_if_all_were_read() {
    let (model, text) = open();
    let start = || Chat::new(&text, Conversation::new(&model, None, 1), Some("Be short."));
    for options in [stops(&[], 100), stops(&[], 2)] {
        let mut chat = start();
        let first = chat.ask("What is the capital of France?").unwrap();
        let said = answer(&mut chat, &options);
        assert!(!said.text.is_empty());
        let second = chat.ask("And now say a colour.").unwrap();
        let messages = chat.messages().to_vec();
        let whole = text.tokenizer.encode(&text.prompt(&messages).unwrap(), true).unwrap();
        assert!(!second.again && second.tokens < whole.len() - first.tokens, "{second:?} of {}", whole.len());
        let kept = answer(&mut chat, &options);

        let mut conversation = Conversation::new(&model, None, 1);
        conversation.push(&whole).unwrap();
        let mut sampler = Sampler::new(Sampling::default()).unwrap();
        let mut reply = mixlora::text::Reply::new(&mut conversation, &mut sampler, &text.tokenizer, &options);
        reply.by_ref().for_each(|piece| drop(piece.unwrap()));
        assert_eq!(reply.finish().text, kept.text);
        assert_eq!(chat.messages().len(), 5);
    }
}

#[test]
fn answers_end_before_stop_texts_that_span_tokens() {
    let (model, text) = open();
    let ask = |options: &ReplyOptions| {
        let mut chat = Chat::new(&text, Conversation::new(&model, None, 1), None);
        chat.ask("What is the capital of France?").unwrap();
        let said = answer(&mut chat, options);
        (said, chat.ask("Why?").unwrap().again)
    };
    let (whole, again) = ask(&stops(&[], 40));
    assert!(!again && whole.text.len() > 6, "{whole:?}");
    for from in 1..whole.text.len() - 2 {
        let Some(stop) = whole.text.get(from..from + 2) else { continue };
        let (said, again) = ask(&stops(&["never said", stop], 40));
        assert_eq!(said.text, whole.text[..whole.text.find(stop).unwrap()]);
        assert_eq!(said.ending, Ending::StopText);
        assert!(again, "the cache went on behind the answer");
    }
    let (said, _) = ask(&stops(&[], 1));
    assert_eq!((said.tokens, said.ending), (1, Ending::MaxTokens));
    // The start of a stop text that does not come is given out all the same.
    let almost = format!("{}#", &whole.text[whole.text.len() - 1..]);
    assert_eq!(ask(&stops(&[&almost], 40)).0.text, whole.text);
}

#[test]
fn a_full_context_is_refused_and_nothing_is_lost() {
    let (model, text) = open();
    let mut chat = Chat::new(&text, Conversation::new(&model, None, 1), None);
    chat.ask("Hello.").unwrap();
    answer(&mut chat, &stops(&[], 3));
    let before = chat.messages().to_vec();
    let long = "word ".repeat(model.config().max_positions());
    assert!(matches!(chat.ask(&long), Err(Error::Context { .. })));
    assert_eq!(chat.messages(), before);
    chat.ask("Hello again.").unwrap();
    let said = answer(&mut chat, &stops(&[], usize::MAX));
    assert!(matches!(said.ending, Ending::EndToken | Ending::Context), "{said:?}");
}

#[test]
fn generate_repeats_stops_and_refuses() {
    let path = tiny();
    let base = ["generate", "--model", path.to_str().unwrap(), "--prompt", "Name a colour."];
    let with = |more: &[&str]| base.iter().chain(more).map(|a| a.to_string()).collect::<Vec<_>>();
    let (plain, err) = mixlora(&with(&["--max-tokens", "12"]), "", 0);
    assert!(plain.trim().len() > 3 && err.contains("tok/s"), "{plain} {err}");
    let stop = &plain[1..3];
    assert_eq!(
        mixlora(&with(&["--max-tokens", "12", "--stop", stop]), "", 0).0,
        format!("{}\n", &plain[..1])
    );
    assert!(mixlora(&with(&["--max-tokens", "2"]), "", 0).1.contains("cut off by --max-tokens"));
    let hot = |seed: &str| {
        let args = ["--temperature", "1.5", "--top-p", "0.95", "--top-k", "40", "--seed", seed];
        mixlora(&with(&[&args[..], &["--max-tokens", "12"]].concat()), "", 0).0
    };
    assert_eq!(hot("1"), hot("1"));
    assert!((2..6).any(|seed| hot(&seed.to_string()) != hot("1")));
    let threads = mixlora(&with(&["--max-tokens", "12", "--threads", "1"]), "", 0).0;
    assert_eq!(threads, plain, "the number of threads changes nothing");
    for (bad, says) in [
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--top-p", "0"], "top-p"),
        (["--top-p", "1.5"], "top-p"),
        (["--max-tokens", "0"], "max-tokens"),
        (["--stop", ""], "stop"),
        (["--decode-route", "never"], "freeze_prefill"),
        (["--device", "toaster"], "toaster"),
        (["--threads", "0"], "threads"),
    ] {
        let code = if bad[0] == "--device" { 4 } else { 2 };
        let (_, err) = mixlora(&with(&bad), "", code);
        assert!(err.contains(says), "{bad:?}: {err}");
    }
    let long = "word ".repeat(3000);
    let (_, err) = mixlora(&["generate", "--model", path.to_str().unwrap(), "--prompt", &long], "", 3);
    assert!(err.contains("the model's context is full"), "{err}");
}

#[test]
fn a_reader_that_leaves_ends_generate_in_peace() {
    let path = tiny();
    let args =
        ["generate", "--model", path.to_str().unwrap(), "--prompt", "Tell me a story.", "--temperature", "2"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_mixlora"))
        .env("MIXLORA_DEVICE", "cpu")
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{err}");
    assert!(!err.contains("panicked") && !err.contains("error"), "{err}");
}

#[test]
fn chat_reads_lines_and_obeys_commands() {
    let path = tiny();
    let base = ["chat", "--model", path.to_str().unwrap(), "--max-tokens", "8"];
    let (one, _) = mixlora(&base, "Name a colour.\n", 0);
    let (text, err) = mixlora(
        &base,
        "Name a colour.\nAnd an animal.\n/reset\nName a colour.\n/nothing\n/help\n/exit\nnot read\n",
        0,
    );
    let lines: Vec<&str> = text.lines().collect();
    assert!(text.starts_with(&one) && text.ends_with(&one), "after /reset as at the start: {text}");
    assert!(lines.len() >= 3 && err.contains("no command /nothing") && err.contains("/system TEXT"), "{err}");
    let (system, _) = mixlora(&[&base[..], &["--system", "Speak of dogs."]].concat(), "Name a colour.\n", 0);
    assert_eq!(mixlora(&base, "/system Speak of dogs.\nName a colour.\n", 0).0, system);
    let long = format!("{}\nName a colour.\n", "word ".repeat(3000));
    let (text, err) = mixlora(&base, &long, 0);
    assert!(text == one && err.contains("/reset"), "{text} {err}");

    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(tiny().join(file), dir.path().join(file)).unwrap();
    }
    let bare = dir.path().to_str().unwrap();
    let (_, err) = mixlora(&["chat", "--model", bare], "Hi\n", 3);
    assert!(err.contains("--template chatml"), "{err}");
    mixlora(&["chat", "--model", bare, "--template", "chatml", "--max-tokens", "2"], "Hi\n", 0);
}

/// Sum of the cross-entropy of the trained tokens in f64, one position at a time, and their number.
fn loss_by_hand(path: &Path) -> (f64, usize) {
    let device = Device::reference();
    let model = Model::open_f32(&tiny(), &device).unwrap();
    let text = ModelText::open(&tiny()).unwrap();
    let encoder = Encoder::new(&text.tokenizer, text.template.as_ref(), EncodeOptions::default()).unwrap();
    let mut sum = 0.0;
    let mut n = 0;
    for sample in read_samples(path).unwrap() {
        let e = encoder.sample(path, &sample).unwrap().example;
        let ids = Tensor::from_u32(&device, &[1, e.ids.len()], &e.ids).unwrap();
        let pass = Pass::new(Units::instances(&device, 1, e.ids.len()).unwrap());
        let hidden = no_grad(|| model.forward(&ids, &pass, Step::default())).unwrap();
        let logits = no_grad(|| model.logits(&hidden)).unwrap().to_f64().unwrap();
        for (t, row) in logits.chunks(model.config().vocab_size).enumerate().take(e.ids.len() - 1) {
            if e.trained[t + 1] {
                let log_sum = row.iter().map(|v| v.exp()).sum::<f64>().ln();
                sum += log_sum - row[e.ids[t + 1] as usize];
                n += 1;
            }
        }
    }
    (sum, n)
}

#[test]
fn eval_gives_the_loss_and_the_answers_that_were_counted_by_hand() {
    let path = tiny();
    let dir = tempfile::tempdir().unwrap();
    let model = path.to_str().unwrap();
    let ask = |q: &str| {
        let out = mixlora(&["generate", "--model", model, "--prompt", q, "--max-tokens", "30"], "", 0).0;
        out.trim().to_string()
    };
    let questions = ["Name a colour.", "What is the capital of France?"];
    let answers = questions.map(ask);
    let line = |task: &str, q: &str, a: &str| {
        let messages = [Message::new(Role::User, q), Message::new(Role::Assistant, a)];
        json!({ "task": task, "messages": messages }).to_string() + "\n"
    };
    let mut lines = line("known", questions[0], &answers[0]) + &line("known", questions[1], "not that");
    lines += &line("wrong", questions[0], "never this");
    lines += &line("wrong", questions[1], &"far too long for an exact match ".repeat(8));
    std::fs::write(dir.path().join("test.jsonl"), lines).unwrap();
    let args = ["eval", "--model", model, "--data", dir.path().to_str().unwrap()];
    let (text, _) = mixlora(&[&args[..], &["--json"]].concat(), "", 0);
    let report: Value = serde_json::from_str(&text).unwrap();
    let (sum, n) = loss_by_hand(&dir.path().join("test.jsonl"));
    assert_eq!(report["tokens"], n);
    let loss = report["loss"].as_f64().unwrap();
    let want = sum / n as f64;
    assert!((loss - want).abs() < 1e-5 * want, "{loss} instead of {want}");
    assert!((report["perplexity"].as_f64().unwrap() - loss.exp()).abs() < 1e-9 * loss.exp());
    let tasks = &report["tasks"];
    assert_eq!((&tasks["known"]["right"], &tasks["known"]["questions"]), (&json!(1), &json!(2)), "{text}");
    assert_eq!((&tasks["wrong"]["right"], &tasks["wrong"]["questions"]), (&json!(0), &json!(1)), "{text}");
    assert_eq!(report["exact_match"], 0.25);
    let (text, _) = mixlora(&[&args[..], &["--show", "1"]].concat(), "", 0);
    assert!(text.contains("wanted \"never this\"") && text.contains("25.0 %"), "{text}");
    mixlora(&[&args[..], &["--split", "train"]].concat(), "", 3);
}
