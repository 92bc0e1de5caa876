//! Samples with pictures: the formats of several tools, bad pictures, and what becomes of them among tokens.
#![cfg(all(feature = "tokenizer", feature = "images", feature = "cli"))]

use crate::common::cli::{mixlora, output};
use mixlora::adapter::Conversation;
use mixlora::data::{
    Body, EncodeOptions, Encoder, OnBadImage, PictureSource, ReadOptions, Sample, read_samples,
    read_samples_with,
};
use mixlora::model::vision::VisionPlace;
use mixlora::model::{LoadOptions, Model};
use mixlora::picture::{Picture, Processor};
use mixlora::text::{Message, ModelText, PictureTokens, Role, Seen, Sight};
use mixlora::train::{Questions, look_at_pictures};
use mixlora::{Device, Stream};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

struct Place(tempfile::TempDir);

/// Colours and sizes of the pictures of a place.
const PICTURES: [(&str, usize, usize, [u8; 3]); 3] =
    [("a.png", 40, 40, [200, 30, 30]), ("b.png", 90, 30, [30, 200, 30]), ("c.png", 30, 64, [30, 30, 200])];

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        for folder in ["data/img", "model"] {
            std::fs::create_dir_all(place.path(folder)).unwrap();
        }
        for (name, ..) in PICTURES {
            place.write(&format!("data/img/{name}"), png(name));
        }
        place
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }
    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }
    fn read(&self, name: &str, text: impl AsRef<[u8]>) -> mixlora::Result<Vec<Sample>> {
        read_samples(&self.write(name, text))
    }
    /// What is said of one bad sample, without the folder.
    fn refused(&self, sample: &Value) -> String {
        let error = self.read("data/train.jsonl", format!("\n{sample}\n")).unwrap_err().to_string();
        error.split_once("train.jsonl:").expect("the file is named").1.to_string()
    }
    /// `data check` of a file, with what it says on stdout and stderr.
    fn check(&self, more: &[&str], code: i32) -> (String, String) {
        output(mixlora(&[&["data", "check", &self.text("data/train.jsonl")], more].concat()), code)
    }
    /// A model folder without weights: LLaVA with 16 rows a picture, or Idefics3 with 4 rows a tile of 32 pixels.
    fn model(&self, tiles: bool) {
        let mut words: Vec<String> =
            ["<unk>", "<s>", "</s>", "<image>", "<fake_token_around_image>", "<global-img>"]
                .map(String::from)
                .to_vec();
        let grid = (1..=2).flat_map(|r| (1..=3).map(move |c| format!("<row_{r}_col_{c}>")));
        words.extend(grid);
        let added: Vec<Value> = (1..words.len())
            .map(|i| {
                json!({"id": i, "content": words[i], "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": true})
            })
            .collect();
        words.extend(["USER", "ASSISTANT", ":", "what", "where", "left", "red", "green"].map(String::from));
        let vocab: serde_json::Map<String, Value> =
            words.iter().enumerate().map(|(i, word)| (word.clone(), json!(i))).collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
        });
        self.write("model/tokenizer.json", tokenizer.to_string());
        let template = "{% for m in messages %}{% if m.role == 'user' %}USER: {% for p in m.content %}{% if p.type == \
                        'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %} {% else %}ASSISTANT: {{ \
                        m.content[0].text }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}";
        self.write(
            "model/tokenizer_config.json",
            json!({"eos_token": "</s>", "chat_template": template}).to_string(),
        );
        let (config, processor) = if tiles {
            (
                json!({"model_type": "idefics3", "image_token_id": 3, "scale_factor": 2, "vision_config":
                    {"model_type": "idefics3_vision", "hidden_size": 32, "image_size": 32, "patch_size": 8}}),
                json!({"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 64},
                       "max_image_size": {"longest_edge": 32}}),
            )
        } else {
            (
                json!({"model_type": "llava", "image_token_index": 3, "vision_config":
                    {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8}}),
                json!({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32},
                       "crop_size": {"height": 32, "width": 32}}),
            )
        };
        self.write("model/config.json", config.to_string());
        self.write("model/preprocessor_config.json", processor.to_string());
    }
    fn encoder(&self, options: EncodeOptions) -> Encoder {
        let text = ModelText::open(&self.path("model")).unwrap();
        let pictures = PictureTokens::of(&self.path("model"), None, &text.tokenizer).unwrap();
        assert!(pictures.is_some());
        Encoder::new(&text.tokenizer, text.template.as_ref(), options)
            .unwrap()
            .with_pictures(pictures)
            .unwrap()
    }
}

/// The vision part of a model's folder.
fn open(folder: &Path, model: &Model, text: &ModelText) -> Sight {
    let place = VisionPlace::of(folder, None).unwrap().unwrap();
    let options = &LoadOptions::default();
    Sight::open(&place, model, &text.tokenizer, options, false, Stream::new(0)).unwrap().unwrap()
}

fn png(name: &str) -> Vec<u8> {
    let (_, width, height, color) = PICTURES.into_iter().find(|picture| picture.0 == name).unwrap();
    Picture::filled(width, height, color).unwrap().to_png().unwrap()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(*chunk.get(i).unwrap_or(&0)));
        for i in 0..4 {
            let digit = char::from(DIGITS[(bits >> (18 - 6 * i)) as usize & 63]);
            text.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

fn turn(role: &str, content: impl Into<Value>) -> Value {
    json!({"role": role, "content": content.into()})
}

fn shown(question: &str) -> Value {
    json!({"images": ["img/a.png"], "messages": [turn("user", question), turn("assistant", "red")]})
}

/// The two samples that every format says: two pictures with a question between, and text alone.
fn wanted() -> [Vec<Message>; 2] {
    let two = Message { pictures: 2, ..Message::new(Role::User, "<image>what <image>where") };
    [
        vec![two, Message::new(Role::Assistant, "red")],
        vec![Message::new(Role::User, "what"), Message::new(Role::Assistant, "green")],
    ]
}

#[test]
fn every_format_is_one_sample() {
    let place = Place::new();
    let marked = "<image>what <image>where";
    let text = json!({"type": "text", "text": "what "});
    let rest = json!({"type": "text", "text": "where"});
    let picture = json!({"type": "image"});
    let images = json!(["img/a.png", "img/b.png"]);
    let said = |question: &str, answer: &str| json!([{"from": "human", "value": question}, {"from": "gpt", "value": answer}]);
    let url = |name: &str| {
        let url = format!("data:image/png;base64,{}", base64(&png(name)));
        json!({"type": "image_url", "image_url": {"url": url}})
    };
    let alone = json!({"messages": [turn("user", "what"), turn("assistant", "green")]});
    let formats = [
        (
            "llava.json",
            json!([
                {"id": "1", "image": images, "conversations": said(marked, "red")},
                {"id": "2", "conversations": said("what", "green")},
            ]),
        ),
        (
            "vision_flan.json",
            json!([
                {"id": "1", "image": images, "conversations": said(marked, "red"), "task_name": "colours"},
                {"id": "2", "image": null, "conversations": said("what", "green"), "task_name": "colours"},
            ]),
        ),
        (
            "trl.jsonl",
            json!([
                {"images": images, "messages": [turn("user", json!([picture, text, picture, rest])), turn("assistant", json!([{"type": "text", "text": "red"}]))]},
                alone,
            ]),
        ),
        (
            "mlx_vlm.jsonl",
            json!([
                {"messages": [turn("user", json!([{"type": "image", "image": "img/a.png"}, text, {"type": "image", "path": "img/b.png"}, rest])), turn("assistant", "red")]},
                alone,
            ]),
        ),
        (
            "llama_factory.json",
            json!([
                {"images": images, "messages": [turn("user", marked), turn("assistant", "red")]},
                {"images": [], "messages": [turn("user", "what"), turn("assistant", "green")]},
            ]),
        ),
        (
            "llama_factory_turns.json",
            json!([
                {"images": images, "conversations": said(marked, "red")},
                {"conversations": said("what", "green")},
            ]),
        ),
        (
            "ms_swift.jsonl",
            json!([
                {"images": [{"path": "img/a.png", "bytes": null}, {"bytes": base64(&png("b.png"))}], "messages": [turn("user", marked), turn("assistant", "red")]},
                alone,
            ]),
        ),
        (
            "openai.jsonl",
            json!([
                {"messages": [turn("user", json!([url("a.png"), text, url("b.png"), rest])), turn("assistant", "red")]},
                alone,
            ]),
        ),
    ];
    for (name, samples) in formats {
        let lines = samples.as_array().unwrap();
        let (file, text) = if name.ends_with(".json") {
            (format!("data/{name}"), format!("{samples:#}"))
        } else {
            (format!("data/{name}"), lines.iter().map(|line| format!("{line}\n")).collect())
        };
        let samples = place.read(&file, text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let bodies: Vec<&Body> = samples.iter().map(|sample| &sample.body).collect();
        let [two, none] = wanted().map(Body::Messages);
        assert_eq!(bodies, [&two, &none], "{name}");
        assert!(samples[1].pictures.is_empty(), "{name}");
        let of_flan = name == "vision_flan.json";
        assert_eq!(samples[0].task.as_deref(), of_flan.then_some("colours"), "{name}");
        let found: Vec<(usize, usize)> = samples[0]
            .pictures
            .iter()
            .map(|source| {
                let file = source.open(&Default::default()).unwrap();
                (file.about().width, file.about().height)
            })
            .collect();
        assert_eq!(found, [(40, 40), (90, 30)], "{name}");
    }
    // Beside a prompt, and in plain text.
    let lines = [
        json!({"images": "img/a.png", "prompt": "<image> what", "completion": " red"}),
        json!({"image": ["img/c.png"], "text": "red <image>"}),
        json!({"text": "an <image> that is text"}),
    ];
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let samples = place.read("data/others.jsonl", text).unwrap();
    let sources = |sample: &Sample| sample.pictures.clone();
    let at = |name: &str| PictureSource::Path(place.path("data").join(name));
    assert_eq!(
        samples.iter().map(sources).collect::<Vec<_>>(),
        [vec![at("img/a.png")], vec![at("img/c.png")], vec![]]
    );
}

#[test]
fn paths_are_of_a_folder() {
    let place = Place::new();
    let file = place.write(
        "data/train.jsonl",
        json!({"image": "a.png", "messages": shown("<image>")["messages"]}).to_string(),
    );
    let of = |folder: Option<&Path>| {
        let options = ReadOptions { image_folder: folder.map(Path::to_path_buf), ..ReadOptions::default() };
        read_samples_with(&file, &options).unwrap()[0].pictures[0].clone()
    };
    assert_eq!(of(None), PictureSource::Path(place.path("data/a.png")));
    let inside = place.path("data/img");
    assert_eq!(of(Some(&inside)), PictureSource::Path(inside.join("a.png")));
    place.check(&[], 3);
    place.check(&["--image-folder", &place.text("data/img")], 0);
    // Absolute paths are taken as they are; dots may lead through the folder, but not out of it.
    let absolute = json!({"image": place.text("data/img/a.png"), "messages": shown("<image>")["messages"]});
    let through = json!({"image": "img/../img/./a.png", "messages": shown("<image>")["messages"]});
    place.write("data/train.jsonl", format!("{absolute}\n{through}\n"));
    place.check(&[], 0);
}

#[test]
fn places_and_pictures_are_counted() {
    let place = Place::new();
    let cases = [
        (shown("what"), "has 0 places for 1 picture in 'images'"),
        (shown("<image><image>what"), "has 2 places for 1 picture in 'images'"),
        (
            json!({"messages": [turn("user", "<image> what"), turn("assistant", "red")]}),
            "has 1 place for 0 pictures",
        ),
        (json!({"prompt": "<image>", "completion": "red"}), "has 1 place for 0 pictures"),
        (json!({"image": "img/a.png", "text": "red"}), "has 0 places for 1 picture"),
        (
            json!({"image": "img/a.png", "conversations": [{"from": "human", "value": "what"}, {"from": "gpt", "value": "red"}]}),
            "has 0 places for 1 picture",
        ),
        (
            json!({"messages": [turn("user", json!([{"type": "image"}])), turn("assistant", "red")]}),
            "has 1 place for 0 pictures",
        ),
        (
            json!({"messages": [turn("user", json!([{"type": "image", "image": "img/a.png"}, {"type": "text", "text": "<image>"}])), turn("assistant", "red")]}),
            "has pictures as parts and '<image>' in a text",
        ),
        (
            json!({"messages": [turn("user", json!([{"type": "image_url"}])), turn("assistant", "red")]}),
            "part 0 of type 'image_url' names no picture",
        ),
        (
            json!({"messages": [turn("user", json!([{"type": "video", "video": "x"}])), turn("assistant", "red")]}),
            "has a part of type 'video': only text and pictures are read",
        ),
        (
            json!({"image": "img/a.png", "images": ["img/a.png"], "text": "<image>"}),
            "'image' and 'images'; one is wanted",
        ),
        (
            json!({"images": [7], "text": "<image>"}),
            "field 'images' [0] is 7; a picture is a path or a data URL",
        ),
        (json!({"images": ["img/a.png", null], "text": "<image>"}), "field 'images' [1] names no picture"),
        (json!({"messages": [turn("user", "<|image_pad|>")]}), "messages[0] holds '<|image_pad|>'"),
        (
            json!({"conversations": [{"from": "observation", "value": "x"}]}),
            "'observation' is not one of system, user, assistant",
        ),
    ];
    for (sample, wanted) in cases {
        let said = place.refused(&sample);
        assert!(said.starts_with("2:") && said.contains(wanted), "{sample}: {said}");
    }
}

#[test]
fn arrays_say_line_and_element() {
    let place = Place::new();
    let good = shown("<image>");
    let text =
        format!("\u{feff}[\n  {good},\n  {{\"text\":\n    7}}, {good},\n {{\"text\": \"\\ud800\"}}\n]\n");
    let error = place.read("data/train.json", text).unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().map(|line| &line[line.find("train.json").unwrap()..]).collect();
    assert!(lines[0].starts_with("train.json:4:5: element 2: field 'text': invalid type"), "{error}");
    assert!(lines[1].starts_with("train.json:5:") && lines[1].contains("element 4:"), "{error}");
    for (text, wanted) in [
        ("[]", "train.json: the file holds no sample"),
        ("[1]", "train.json:1:2: element 1: invalid type: integer `1`, expected an object"),
        ("[{\"text\": \"a\"}", "train.json:1:2: the array is cut off"),
        ("[{\"text\": \"a", "train.json:1:2: the array is cut off"),
        ("[", "train.json:1:1: the array is cut off"),
        ("[{\"text\": \"a\"},]", "an element is missing behind the comma"),
        ("[,{\"text\": \"a\"}]", "an element is missing before the comma"),
        ("[{\"text\": \"a\"}] 1", "train.json:1:17: is behind the end of the array"),
        ("[{\"text\": \"a\"} {\"text\": \"b\"}]", "element 1: trailing characters"),
        ("[{\"text\": \"a\\\"]\"}}]", "element 1: trailing characters"),
    ] {
        let error = place.read("data/train.json", text).unwrap_err().to_string();
        assert!(error.contains(wanted), "{text}: {error}");
    }
    let samples =
        place.read("data/train.json", "[{\"text\": \"a ]},[{ \\\" b\"}, {\"text\": \"c\"}]").unwrap();
    assert_eq!(samples.iter().map(|s| s.element).collect::<Vec<_>>(), [Some(1), Some(2)]);
    assert_eq!(samples[0].body, Body::Text("a ]},[{ \" b".into()));
    // A folder with such files is found, and a picture's error names the element.
    let missing = json!({"image": "img/none.png", "text": "<image>"});
    place.write("data/train.json", format!("[{good}, {missing}]"));
    let (_, err) = output(mixlora(&["data", "check", &place.text("data")]), 3);
    assert!(err.contains("train.json:1: element 2: ") && err.contains("none.png: cannot be read"), "{err}");
}

#[test]
fn bad_pictures_are_named_with_their_line() {
    let place = Place::new();
    place.write("data/img/empty.png", "");
    place.write("data/img/text.png", "hello");
    place.write("data/img/cut.png", &png("a.png")[..20]);
    let mut late = png("b.png");
    late.truncate(late.len() - 20);
    place.write("data/img/late.png", late);
    let mut huge = png("a.png");
    huge[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let crc = crc32(&huge[12..29]).to_be_bytes();
    huge[29..33].copy_from_slice(&crc);
    place.write("data/img/huge.png", huge);
    place.write("outside.png", png("a.png"));
    let cases = [
        ("img/none.png", "none.png: cannot be read"),
        ("img/empty.png", "empty.png: is empty (0 bytes)"),
        ("img/text.png", "text.png: is text, not a picture"),
        ("img/cut.png", "cut.png: is a damaged or truncated PNG file"),
        ("img/huge.png", "huge.png: has 60000 x 60000 pixels"),
        ("img", "img: is a folder, not a picture"),
        ("../outside.png", "../outside.png: leaves the folder "),
        ("img/../../outside.png", "img/../../outside.png: leaves the folder "),
        ("http://example.com/a.png", "http://example.com/a.png: is an address in the network"),
        ("s3://bucket/a.png", "s3://bucket/a.png: is an address in the network"),
        ("data:image/png,abc", "is a data URL that is not in base64"),
        ("data:image/png;base64,%%%", "is not base64: character 1"),
        ("data:image/png;base64,aGVsbG8=", "picture of 5 bytes in the sample: is text, not a picture"),
    ];
    let sample = |path: &str| json!({"image": path, "messages": shown("<image>")["messages"]});
    let mut lines = vec![shown("<image>")];
    lines.extend(cases.iter().map(|(path, _)| sample(path)));
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    place.write("data/train.jsonl", &text);
    let (out, err) = place.check(&[], 3);
    assert!(out.is_empty(), "{out}");
    let said: Vec<&str> =
        err.lines().filter(|line| line.contains("train.jsonl:") && !line.starts_with("looking")).collect();
    assert_eq!(said.len(), cases.len(), "{err}");
    for (at, (said, (_, wanted))) in said.iter().zip(cases).enumerate() {
        assert!(said.contains(&format!("train.jsonl:{}: ", at + 2)) && said.contains(wanted), "{said}");
    }
    let (out, _) = place.check(&["--json"], 3);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report[0]["problems"][0]["line"], 2, "{out}");
    // Samples that are skipped are counted.
    let (out, _) = place.check(&["--on-bad-image", "skip"], 0);
    assert!(out.contains("13 samples are left out: a picture cannot be read"), "{out}");
    let (out, _) = place.check(&["--on-bad-image", "skip", "--json"], 0);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report[0]["pictures"]["bad"], &report[0]["pictures"]["pictures"]), (&json!(13), &json!(1)));
    // Encoding says the same, and counts the same.
    place.model(false);
    let path = place.path("data/train.jsonl");
    let samples = read_samples(&path).unwrap();
    let error = place.encoder(EncodeOptions::default()).dataset(&path, &samples).unwrap_err().to_string();
    assert!(error.contains("train.jsonl:2: ") && error.contains("none.png: cannot be read"), "{error}");
    let skip = EncodeOptions { on_bad_image: OnBadImage::Skip, ..EncodeOptions::default() };
    let data = place.encoder(skip).dataset(&path, &samples).unwrap();
    assert_eq!(
        (data.examples.len(), data.counts.bad_pictures, data.counts.first_bad_picture),
        (1, 13, Some(2))
    );
    assert!(data.counts.note("samples", 9).unwrap().contains("13 left out (a picture cannot be read"));
    // What is cut off behind its header is found by its pixels.
    place.write("data/train.jsonl", sample("img/late.png").to_string());
    place.check(&[], 0);
    let (_, err) = place.check(&["--pixels"], 3);
    assert!(
        err.contains("train.jsonl:1: ") && err.contains("late.png: is a damaged or truncated PNG"),
        "{err}"
    );
}

/// The check sum of a PNG chunk.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

#[test]
fn data_check_says_what_pictures_are() {
    let place = Place::new();
    place.model(true);
    place.write("data/img/odd.jpg", png("c.png"));
    let three = json!({"images": ["img/b.png", "img/odd.jpg", "img/a.png"], "messages":
        [turn("user", "<image><image><image>what"), turn("assistant", "red")]});
    let text = json!({"messages": [turn("user", "what"), turn("assistant", "red")]});
    place.write("data/train.jsonl", format!("{text}\n{three}\n{}\n", shown("<image>")));
    let (out, _) = place.check(&["--model", &place.text("model")], 0);
    assert!(out.contains("4 pictures in 2 samples: 4 PNG; 30 to 90 wide, 30 to 64 high"), "{out}");
    assert!(out.contains("of these pictures 1 is a PNG file, although its name ends in .jpg"), "{out}");
    // b: 64 x 22 becomes 64 x 32, 1 x 2 tiles; odd: 30 x 64 becomes 32 x 64; a: 64 x 64.
    let tokens = |rows: usize, columns: usize| {
        let tiles = rows * columns + 1;
        // Each tile has 4 rows, a frame and a tag; one more frame ends the picture.
        6 * tiles + 1
    };
    let pictures = tokens(1, 2) + tokens(2, 1) + tokens(2, 2);
    let (out, _) = place.check(&["--model", &place.text("model"), "--json"], 0);
    let report: Value = serde_json::from_str(&out).unwrap();
    // USER : what ASSISTANT : red </s>
    let wanted = json!({"all": 7 + pictures + 7 + tokens(2, 2) + 6, "mean": (20 + pictures + tokens(2, 2)) as f64 / 3.0,
        "longest": pictures + 7, "line": 2, "pictures_of_longest": pictures});
    assert_eq!(report[0]["tokens"], wanted, "{out}");
    assert_eq!(report[0]["pictures"]["width"], json!([30, 90]));
    // A model that does not see says so.
    std::fs::remove_file(place.path("model/config.json")).unwrap();
    let (_, err) = place.check(&["--model", &place.text("model")], 3);
    assert!(err.contains("train.jsonl:2: has pictures, but nothing here sees them"), "{err}");
}

#[test]
fn data_show_shows_what_the_model_sees() {
    let place = Place::new();
    place.model(true);
    place.write(
        "data/train.jsonl",
        json!({"image": "img/b.png", "messages": [turn("user", "<image>what"), turn("assistant", "red")]})
            .to_string(),
    );
    let show = ["data", "show", &place.text("data/train.jsonl"), "--model", &place.text("model")];
    let sheets = place.text("sheets");
    let (out, _) = output(mixlora(&[&show[..], &["--png", &sheets]].concat()), 0);
    assert!(out.contains("[image 19 tokens, 32x32, 3 tiles]") && out.contains("[[ red </s>]]"), "{out}");
    assert!(!out.contains("<image>"), "{out}");
    let sheet =
        mixlora::picture::PictureFile::open(&place.path("sheets/1-1.png"), &Default::default()).unwrap();
    let seen = Processor::of_model(&place.path("model")).unwrap();
    let tiles = seen.tiles(&Picture::filled(90, 30, [30, 200, 30]).unwrap()).unwrap();
    assert_eq!(sheet.decode(Default::default()).unwrap().picture, tiles.sheet().unwrap());
    let (out, _) = output(mixlora(&[&show[..], &["--json"]].concat()), 0);
    let report: Value = serde_json::from_str(&out).unwrap();
    let picture = &report[0]["pictures"][0];
    assert_eq!(
        (&picture["first_token"], &picture["tokens"], &picture["grid"]),
        (&json!(2), &json!(19), &json!([1, 2]))
    );
    output(mixlora(&["data", "stats", &place.text("data/train.jsonl"), "--model", &place.text("model")]), 0);
}

/// The words of an example: `[n]` for the rows of a picture, capitals for what is trained.
fn words(place: &Place, options: EncodeOptions, sample: &Value) -> String {
    let path = place.write("data/train.jsonl", sample.to_string());
    let sample = &read_samples(&path).unwrap()[0];
    let encoded = place.encoder(options).sample(&path, sample).unwrap();
    let text = ModelText::open(&place.path("model")).unwrap();
    let mut out = Vec::new();
    let example = &encoded.example;
    for (at, (id, trained)) in example.ids.iter().zip(&example.trained).enumerate() {
        match example.pictures.iter().find(|picture| picture.span.contains(&at)) {
            Some(picture) => {
                assert!(!trained);
                if at == picture.span.start {
                    out.push(format!("[{}]", picture.span.len()));
                }
            }
            None => {
                let word = text.tokenizer.token(*id).unwrap();
                out.push(if *trained { format!("+{word}") } else { word });
            }
        }
    }
    if encoded.too_long {
        out.push("too long".into());
    }
    out.join(" ")
}

#[test]
fn rows_of_pictures_are_not_trained() {
    let place = Place::new();
    place.model(false);
    let all = EncodeOptions { loss_on: mixlora::data::LossOn::All, ..EncodeOptions::default() };
    let show = |sample: &Value| words(&place, EncodeOptions::default(), sample);
    assert_eq!(show(&shown("<image>what")), "USER : [16] what ASSISTANT : +red +</s>");
    assert_eq!(words(&place, all, &shown("<image>what")), "USER +: [16] +what +ASSISTANT +: +red +</s>");
    let prompt =
        json!({"images": ["img/a.png", "img/b.png"], "prompt": "<image> what <image>", "completion": " red"});
    assert_eq!(show(&prompt), "[16] what [16] +red +</s>");
    let text = json!({"images": ["img/a.png"], "text": "what <image> red"});
    assert_eq!(show(&text), "what [16] +red +</s>");
    // Turns behind a picture are found where they are, however many there are.
    let mut turns = vec![turn("user", "<image>what"), turn("assistant", "red")];
    for _ in 0..4 {
        turns.extend([turn("user", "where"), turn("assistant", "left")]);
    }
    let many = show(&json!({"images": ["img/a.png"], "messages": turns}));
    assert_eq!(many.matches("USER : where ASSISTANT : +left +</s>").count(), 4, "{many}");
    place.model(true);
    assert_eq!(show(&shown("<image>what")), "USER : [31] what ASSISTANT : +red +</s>");
    // What looks like a picture in an answer would be one for the model.
    let path = place.write(
        "data/train.jsonl",
        json!({"messages": [turn("user", "what"), turn("assistant", "<image>")]}).to_string(),
    );
    let error = place.encoder(EncodeOptions::default()).sample(&path, &read_samples(&path).unwrap()[0]);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("train.jsonl:1: has 1 tokens '<image>' where its 0 pictures have 0 rows"),
        "{error}"
    );
}

#[test]
fn pictures_are_never_cut() {
    let place = Place::new();
    place.model(false);
    let at = |max_length: usize, sample: &Value| {
        words(&place, EncodeOptions { max_length, ..EncodeOptions::default() }, sample)
    };
    let sample = json!({"images": ["img/a.png"], "messages": [
        turn("user", "what what"), turn("assistant", "green"),
        turn("user", "<image>what"), turn("assistant", "red"),
        turn("user", "left"), turn("assistant", "green"),
        turn("user", "where"), turn("assistant", "left"),
    ]});
    let first = "USER : what what ASSISTANT : +green +</s>";
    let picture = "USER : [16] what ASSISTANT : +red +</s>";
    let third = "USER : left ASSISTANT : +green +</s>";
    let last = "USER : where ASSISTANT : +left +</s>";
    assert_eq!(at(45, &sample), format!("{first} {picture} {third} {last}"));
    // Whole exchanges from the first on, but never one with a picture or the last.
    assert_eq!(at(44, &sample), format!("{picture} {third} {last}"));
    assert_eq!(at(37, &sample), format!("{picture} {third} {last}"));
    assert_eq!(at(36, &sample), format!("{picture} {last}"));
    assert_eq!(at(30, &sample), format!("{picture} {last}"));
    // Then text from the start on, around the picture, up to the last answer.
    assert_eq!(at(28, &sample), format!("[16] what ASSISTANT : +red +</s> {last}"));
    assert_eq!(at(25, &sample), "[16] +red +</s> USER : where ASSISTANT : +left +</s>");
    assert_eq!(at(18, &sample), "[16] +left +</s>");
    // A picture and its answer are never parted: such a sample is left out and counted.
    assert!(at(17, &sample).ends_with("too long"));
    let path = place.path("data/train.jsonl");
    place
        .write("data/train.jsonl", format!("{sample}\n{}\n", json!({"prompt": "what", "completion": "red"})));
    let options = EncodeOptions { max_length: 17, ..EncodeOptions::default() };
    let data = place.encoder(options).dataset(&path, &read_samples(&path).unwrap()).unwrap();
    assert_eq!((data.examples.len(), data.counts.too_long, data.counts.truncated), (1, 1, 0));
    assert!(data.counts.note("samples", 17).unwrap().contains("more than 17 tokens"));
    // What follows the last answer goes first.
    let asked = json!({"images": ["img/a.png"], "messages": [
        turn("user", "<image>what"), turn("assistant", "red"), turn("user", "where where where")]});
    assert_eq!(at(23, &asked), picture);
}

/// A model reads the same tokens in training as when it is asked.
#[test]
fn training_reads_what_is_asked() {
    let place = Place::new();
    for folder in ["vlm_idefics3", "vlm_llava15_new_names"] {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vision").join(folder);
        let text = ModelText::open(&model).unwrap();
        let decoder = Model::open_f32(&model, &Device::cpu()).unwrap();
        let sight = open(&model, &decoder, &text);
        assert_eq!(sight.tokens(), PictureTokens::of(&model, None, &text.tokenizer).unwrap().unwrap());
        let options = EncodeOptions { allow_untrained_eos: true, ..EncodeOptions::default() };
        let encoder = Encoder::new(&text.tokenizer, text.template.as_ref(), options).unwrap();
        let encoder = encoder.with_pictures(Some(sight.tokens())).unwrap();
        let path = place.write(
            "data/train.jsonl",
            json!({"images": ["img/a.png", "img/b.png"], "messages":
            [turn("user", "<image>what <image>where"), turn("assistant", "red")]})
            .to_string(),
        );
        let sample = &read_samples(&path).unwrap()[0];
        let example = encoder.sample(&path, sample).unwrap().example;
        let look = |source: &PictureSource| {
            let file = source.open(&Default::default()).unwrap();
            sight.look(&file.decode(sight.processor.alpha).unwrap().picture).unwrap()
        };
        let seen: Vec<Seen> = sample.pictures.iter().map(look).collect();
        let prompt = text.prompt(&wanted()[0][..1]).unwrap();
        let ids = text.tokenizer.encode(&sight.expand(&prompt, &seen).unwrap(), true).unwrap();
        // A space at the end of a prompt is part of the answer's first word.
        let prompt = ids.len() - usize::from(prompt.ends_with(' '));
        assert_eq!(example.ids[..prompt], ids[..prompt], "{folder}");
        assert_eq!(example.prompt, prompt, "{folder}");
        // The pictures of the example have as many tiles as rows are computed for them.
        for (picture, seen) in example.pictures.iter().zip(&seen) {
            assert_eq!(
                (picture.grid, picture.tiles(), picture.tile),
                (seen.grid, seen.dims[0], [seen.dims[1], seen.dims[2]])
            );
        }
        assert!(sight.features(&example.ids, &seen).unwrap().is_some());
    }
}

/// Questions about pictures, answered many at a time, get what the model says to each of them alone.
#[test]
fn questions_about_pictures_are_asked() {
    let place = Place::new();
    let shown = |images: &[&str], question: &str, answer: &str| {
        json!({"images": images, "task": "colour", "messages":
               [turn("user", question), turn("assistant", answer)]})
    };
    let lines = [
        shown(&["img/a.png"], "<image>What is it?", "red"),
        shown(&["img/c.png"], "<image>What is it?", "blue"),
        shown(&[], "What is it?", "no"),
        shown(&["img/b.png", "img/a.png"], "<image><image>Are they?", "no"),
    ];
    let text = lines.map(|line| line.to_string()).join("\n");
    let path = place.write("data/test.jsonl", text);
    let device = Device::cpu();
    for folder in ["vlm_idefics3", "vlm_llava15_new_names"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vision").join(folder);
        let model = Model::open_f32(&folder, &device).unwrap();
        let text = ModelText::open(&folder).unwrap();
        let sight = open(&folder, &model, &text);
        let options = EncodeOptions { allow_untrained_eos: true, ..EncodeOptions::default() };
        let encoder = Encoder::new(&text.tokenizer, text.template.as_ref(), options).unwrap();
        let encoder = encoder.with_pictures(Some(sight.tokens())).unwrap();
        let samples = read_samples(&path).unwrap();
        let mut data = encoder.dataset(&path, &samples).unwrap();
        let mut questions = Questions::new(&text, &encoder, &samples, 40).unwrap();
        questions.show(&data);
        assert_eq!((questions.list.len(), questions.unseen), (1, 3), "no tower has looked yet");
        look_at_pictures([&mut data], &sight).unwrap();
        let mut questions = Questions::new(&text, &encoder, &samples, 40).unwrap();
        questions.show(&data);
        assert_eq!((questions.list.len(), questions.unseen), (4, 0));
        let answers = questions.answer(&model, None, &mut |_| true).unwrap();
        for (sample, answer) in samples.iter().zip(answers) {
            let Body::Messages(messages) = &sample.body else { unreachable!() };
            let look = |source: &PictureSource| {
                let file = source.open(&Default::default()).unwrap();
                sight.look(&file.decode(sight.processor.alpha).unwrap().picture).unwrap()
            };
            let pictures: Vec<Seen> = sample.pictures.iter().map(look).collect();
            let prompt = sight.expand(&text.prompt(&messages[..1]).unwrap(), &pictures).unwrap();
            let ids = text.tokenizer.encode(&prompt, true).unwrap();
            let mut conversation = Conversation::new(&model, None, 1);
            match sight.features(&ids, &pictures).unwrap() {
                Some(pictures) => conversation.push_with_pictures(&ids, &pictures).unwrap(),
                None => conversation.push(&ids).unwrap(),
            }
            let answer = answer.unwrap();
            let mut said = Vec::new();
            for _ in 0..4 {
                let logits = conversation.logits(0);
                let best = (0..logits.len()).max_by(|&i, &j| logits[i].total_cmp(&logits[j])).unwrap() as u32;
                said.push(best);
                conversation.push(&[best]).unwrap();
            }
            let said = text.tokenizer.decode(&said, true);
            assert!(answer.starts_with(&said) && !said.is_empty(), "{said:?}, asked with others {answer:?}");
        }
        let command =
            ["eval", "--model", folder.to_str().unwrap(), "--data", path.to_str().unwrap(), "--json"];
        let (out, said) = output(mixlora(&[&command[..], &["--device", "cpu"]].concat()), 0);
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["tasks"]["colour"]["questions"], 4, "{out}");
        assert!(!said.contains("exact match asks"), "{said}");
    }
}

/// The layout that is known from the sides is that of the tiles.
#[test]
fn layouts_are_those_of_tiles() {
    let place = Place::new();
    let settings = [
        json!({"image_processor_type": "CLIPImageProcessor", "size": 24, "crop_size": 20}),
        json!({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24}, "do_center_crop": false}),
        json!({"image_processor_type": "LlavaImageProcessor", "size": 24, "crop_size": 24, "do_pad": true}),
        json!({"image_processor_type": "LlavaImageProcessor", "size": 24, "do_center_crop": false, "do_pad": true}),
        json!({"image_processor_type": "SiglipImageProcessor", "size": {"height": 16, "width": 24}}),
        json!({"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 16}}),
        json!({"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 50}, "max_image_size": {"longest_edge": 24}}),
        json!({"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 16}, "max_image_size": {"longest_edge": 16}}),
        json!({"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 16}, "do_image_splitting": false}),
    ];
    let mut compared = 0;
    for (number, settings) in settings.iter().enumerate() {
        let file = place.write("model/preprocessor_config.json", settings.to_string());
        let processor = Processor::of_model(&file).unwrap();
        for step in 0..400usize {
            let width = 1 + step * 37 % 131;
            let height = 1 + step * 53 % 97 * (1 + step % 3);
            let picture = Picture::filled(width, height, [9, 9, 9]).unwrap();
            match (processor.layout(height, width), processor.tiles(&picture)) {
                (Ok(layout), Ok(tiles)) => {
                    compared += 1;
                    let of_tiles =
                        [tiles.rows(), tiles.columns(), tiles.height(), tiles.width(), tiles.count()];
                    let found = [layout.rows, layout.columns, layout.height, layout.width, layout.count()];
                    assert_eq!(found, of_tiles, "{number}: {width} x {height}");
                }
                (Err(layout), Err(tiles)) => assert_eq!(layout, tiles),
                (layout, tiles) => panic!("{number}: {width} x {height}: {layout:?}, {:?}", tiles.err()),
            }
        }
        assert!(processor.layout(0, 5).is_err());
    }
    assert!(compared > 3000, "{compared}");
}
