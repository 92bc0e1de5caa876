//! A host program: several threads answer requests with one model, and each request chooses its adapter.
//!
//! ```sh
//! cargo run --release --example threads
//! ```

use mixlora::adapter::{ALL_LINEAR, Adapter, Conversation};
use mixlora::mixture::find;
use mixlora::model::{Model, Sampler, Sampling};
use mixlora::text::{Chat, ModelText, ReplyOptions};
use mixlora::{Device, Result, Stream, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What a server holds for as long as it runs. Cloning it is cheap: all clones share the model and the adapters.
#[derive(Clone)]
struct Server {
    model: Arc<Model>,
    text: ModelText,
    adapters: BTreeMap<&'static str, Adapter>,
}

/// A question, and the adapter that is to answer it.
struct Request {
    adapter: Option<&'static str>,
    question: &'static str,
}

impl Server {
    fn open(path: &Path) -> Result<Self> {
        let text = ModelText::open(path)?;
        let model = Model::open_f32(path, &Device::cpu())?;
        let mut adapters = BTreeMap::new();
        // A server would load them: Adapter::load(folder, &model).
        for (name, method, seed) in [("first", "lora", 1), ("second", "mixlora-cond", 2)] {
            let targets = [ALL_LINEAR.to_string()];
            let adapter = Adapter::attach(&model, &find(method)?.defaults(), &targets, Stream::new(seed))?;
            for p in adapter.trainable() {
                let value = p.value();
                let values = Stream::new(seed).named(&p.name()).normal_vec(value.len(), 0.2);
                p.set(Tensor::from_f32(value.device(), value.dims(), &values)?)?;
            }
            adapters.insert(name, adapter);
        }
        Ok(Server { model, text, adapters })
    }

    fn answer(&self, request: &Request) -> Result<String> {
        let adapter = request.adapter.and_then(|name| self.adapters.get(name));
        let mut chat = Chat::new(&self.text, Conversation::new(&self.model, adapter, 1), None);
        chat.ask(request.question)?;
        let options = ReplyOptions { max_tokens: 12, ..ReplyOptions::default() };
        let mut sampler = Sampler::new(Sampling::default())?;
        let reply = chat.reply(&mut sampler, &options);
        reply.collect()
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let server = Server::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny")))?;
    let adapters = [None, Some("first"), Some("second")];
    let questions = ["Name a colour.", "Count to three."];
    let requests: Vec<Request> =
        questions.iter().flat_map(|question| adapters.map(|adapter| Request { adapter, question })).collect();
    let alone = requests.iter().map(|r| server.answer(r)).collect::<Result<Vec<_>>>()?;

    let requests = Arc::new(requests);
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let (server, requests) = (server.clone(), requests.clone());
            std::thread::spawn(move || -> Result<Vec<(usize, String)>> {
                // Each thread takes the requests in another order.
                let order = (0..requests.len()).map(|i| (i * 5 + thread) % requests.len());
                order.map(|i| Ok((i, server.answer(&requests[i])?))).collect()
            })
        })
        .collect();
    for thread in threads {
        for (i, answer) in thread.join().expect("a thread that answers")? {
            assert_eq!(answer, alone[i], "the same answer in every thread");
        }
    }
    for (request, answer) in requests.iter().zip(&alone) {
        println!(
            "{} [{}]: {}",
            request.question,
            request.adapter.unwrap_or("no adapter"),
            answer.escape_debug()
        );
    }
    Ok(())
}
