//! The picture set of the quickstart: eight tasks with short answers about pictures of 64 to 128 pixels.
//!
//! Shapes come from easy-VQA (`shape`, `colour`, `yesno`), digits and icons from bundled sheets (`digit`, `kind`), the rest is
//! drawn here (`count`, `where`, `relation`). Without easy-VQA `shape` and `colour` are drawn too, and there is no `yesno`.
//! Each sample has a picture of its own, so that no held-out picture is trained.

mod draw;
mod drawn;
mod easy_vqa;
mod lesson;
mod report;
mod sheets;

pub use lesson::run;

use super::base::file_error;
use super::dice::Dice;
use super::set::{SEED, SYSTEM};
use mixlora::Result;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The number of training samples of a task.
pub const TRAIN: usize = 240;
/// The number of held-out samples of a task.
pub const TEST: usize = 60;

/// A question about a picture, with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub task: &'static str,
    pub question: String,
    pub answer: String,
    /// The bytes of the picture's file.
    pub png: Vec<u8>,
}

impl Sample {
    /// The line of the sample in a JSONL file; `path` is that of its picture.
    fn line(&self, path: &str) -> String {
        let question = format!("<image>{}", self.question);
        let messages = [("system", SYSTEM), ("user", &question), ("assistant", &self.answer)]
            .map(|(role, content)| json!({ "role": role, "content": content }));
        json!({ "images": [path], "messages": messages, "task": self.task }).to_string()
    }
}

/// Samples for training and for questions.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Set {
    pub train: Vec<Sample>,
    pub test: Vec<Sample>,
}

/// Makes the set, which is always the same for a seed. `easy_vqa` is the package's folder; without it the set needs nothing
/// that lies outside this program.
///
/// # Errors
/// The folder is not that of easy-VQA.
pub fn set(seed: u64, easy_vqa: Option<&Path>) -> Result<Set> {
    let mut set = Set::default();
    let mut tasks = Vec::new();
    match easy_vqa {
        Some(folder) => easy_vqa::add(&mut set, seed, folder)?,
        None => tasks.extend(drawn::INSTEAD_OF_EASY_VQA),
    }
    sheets::add(&mut set, seed)?;
    tasks.extend(drawn::TASKS);
    drawn::add(&mut set, seed, &tasks)?;
    Dice::new(seed, "order").shuffle(&mut set.train);
    Ok(set)
}

/// A larger set, whose samples to train on are drawn with another seed: `count` of each task, of digits and icons as many as
/// there are. It needs nothing that lies outside this program. The held-out part is that of the usual set; none of its
/// pictures is trained.
pub fn larger(seed: u64, count: usize) -> Result<Set> {
    let test = set(SEED, None)?.test;
    let mut seen: BTreeSet<Vec<u8>> = test.iter().map(|sample| sample.png.clone()).collect();
    let mut train = sheets::more(seed, count, &mut seen)?;
    for task in drawn::INSTEAD_OF_EASY_VQA.iter().chain(&drawn::TASKS) {
        train.extend(drawn::samples(task, seed, count, &mut seen)?);
    }
    Dice::new(seed, "order").shuffle(&mut train);
    Ok(Set { train, test })
}

impl Set {
    /// The samples of these tasks alone.
    fn of(mut self, tasks: &[&str]) -> Self {
        for part in [&mut self.train, &mut self.test] {
            part.retain(|sample| tasks.contains(&sample.task));
        }
        self
    }

    /// Writes `train.jsonl` and `test.jsonl` into a folder, and the pictures into its folder `images`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let images = folder.join("images");
        std::fs::create_dir_all(&images).map_err(|error| file_error(&images, &error))?;
        let write =
            |path: &Path, bytes: &[u8]| std::fs::write(path, bytes).map_err(|error| file_error(path, &error));
        for (part, samples) in [("train", &self.train), ("test", &self.test)] {
            let mut lines = String::new();
            for (sample, number) in samples.iter().zip(1..) {
                let path = format!("images/{part}-{number:04}-{}.png", sample.task);
                write(&folder.join(&path), &sample.png)?;
                lines += &(sample.line(&path) + "\n");
            }
            write(&folder.join(part).with_extension("jsonl"), lines.as_bytes())?;
        }
        Ok(())
    }
}

/// Takes up to `count` things off piles, one of each in turn, so that no pile is common.
fn deal<K: Ord, T>(piles: &mut BTreeMap<K, Vec<T>>, count: usize) -> Vec<T> {
    let mut dealt = Vec::with_capacity(count);
    while dealt.len() < count && piles.values().any(|pile| !pile.is_empty()) {
        let left = count - dealt.len();
        dealt.extend(piles.values_mut().filter_map(Vec::pop).take(left));
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A folder like that of easy-VQA: drawings with all its kinds of questions.
    fn like_easy_vqa(folder: &Path) {
        let mut dice = Dice::new(1, "like easy-VQA");
        let figure = drawn::INSTEAD_OF_EASY_VQA[0];
        for (part, count) in [("train", 1500), ("test", 400)] {
            let mut questions = Vec::new();
            fs::create_dir_all(folder.join(part).join("images")).unwrap();
            for number in 0..count {
                let sample = (figure.make)(&mut dice, number).unwrap();
                fs::write(folder.join(format!("{part}/images/{number}.png")), sample.png).unwrap();
                let color = draw::COLORS[number % 8].0;
                let other = if number % 2 == 0 { color } else { draw::COLORS[(number + 3) % 8].0 };
                let is_there = if number % 2 == 0 { ["yes", "no"] } else { ["no", "yes"] };
                questions.push(json!(["what shape is present?", sample.answer, number]));
                questions.push(json!(["what is the color of the shape?", color, number]));
                questions.push(json!([format!("is there a {other} shape?"), is_there[0], number]));
                questions.push(json!([format!("is there not a {other} shape?"), is_there[1], number]));
            }
            fs::write(folder.join(part).join("questions.json"), json!(questions).to_string()).unwrap();
        }
    }

    /// Numbers of samples by task and answer.
    fn answers(samples: &[Sample]) -> BTreeMap<&str, BTreeMap<&str, usize>> {
        let mut tasks: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
        for sample in samples {
            *tasks.entry(sample.task).or_default().entry(&sample.answer).or_default() += 1;
        }
        tasks
    }

    fn check_set(set: &Set, tasks: &[&str]) {
        for (samples, count) in [(&set.train, TRAIN), (&set.test, TEST)] {
            let answers = answers(samples);
            assert_eq!(answers.keys().copied().collect::<Vec<_>>(), tasks);
            for (task, answers) in answers {
                let all: usize = answers.values().sum();
                assert_eq!(all, count, "{task}");
                // Some kinds of icons have too few for a like share of the training samples.
                let most = if task == "kind" && count == TRAIN { 22 } else { all.div_ceil(answers.len()) };
                assert!(answers.values().all(|&n| n <= most), "{task}: {answers:?}");
            }
        }
        // Questions with a text of their own do not tell the answer by it.
        for samples in [&set.train, &set.test] {
            let mut by_question: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
            for sample in samples.iter().filter(|s| ["where", "relation", "yesno"].contains(&s.task)) {
                *by_question.entry(&sample.question).or_default().entry(&sample.answer).or_default() += 1;
            }
            for (question, answers) in by_question {
                let expected = if question.starts_with("Where") { 4 } else { 2 };
                let equal = answers.values().collect::<BTreeSet<_>>().len() == 1;
                assert!(equal && answers.len() == expected, "{question} {answers:?}");
            }
        }
        let pixels = |sample: &Sample| draw::decoded(&sample.png).unwrap();
        let trained: BTreeSet<Vec<u8>> = set.train.iter().map(|s| pixels(s).rgb().to_vec()).collect();
        assert_eq!(trained.len(), set.train.len(), "no picture twice");
        for sample in &set.test {
            assert!(!trained.contains(pixels(sample).rgb()), "{} {}", sample.task, sample.answer);
        }
    }

    #[test]
    fn without_easy_vqa_seven_tasks_are_balanced_and_leak_nothing() {
        let set = super::set(5, None).unwrap();
        check_set(&set, &["colour", "count", "digit", "kind", "relation", "shape", "where"]);
        let kinds = answers(&set.test)["kind"].clone();
        assert!(kinds.len() == 15 && kinds.values().all(|&n| n >= 3), "{kinds:?}");
        assert_eq!(super::set(5, None).unwrap(), set);
        assert_ne!(super::set(6, None).unwrap(), set);
    }

    #[test]
    fn easy_vqa_keeps_its_split_and_gives_its_questions() {
        let dir = tempfile::tempdir().unwrap();
        like_easy_vqa(dir.path());
        let set = super::set(5, Some(dir.path())).unwrap();
        check_set(&set, &["colour", "count", "digit", "kind", "relation", "shape", "where", "yesno"]);
        assert_eq!(super::set(5, Some(dir.path())).unwrap(), set);
        let of_part = |part: &str| -> BTreeSet<Vec<u8>> {
            let images = fs::read_dir(dir.path().join(part).join("images")).unwrap();
            images.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
        };
        for (part, samples) in [("train", &set.train), ("test", &set.test)] {
            let files = of_part(part);
            let mut asked = samples.iter().filter(|s| ["shape", "colour", "yesno"].contains(&s.task));
            assert!(asked.all(|sample| files.contains(&sample.png)), "pictures of {part} alone");
        }
        fs::write(dir.path().join("test/questions.json"), "[[1]]").unwrap();
        let why = super::set(5, Some(dir.path())).unwrap_err().to_string();
        assert!(why.contains("questions.json"), "{why}");
    }

    /// Pictures are compared as pixels: the sheets may hold one twice.
    #[test]
    fn a_larger_set_trains_nothing_that_is_held_out() {
        let usual = super::set(SEED, None).unwrap();
        // With the seed of the usual set the same pictures are drawn again.
        for (seed, count) in [(SEED, 320), (7, 2000)] {
            let set = larger(seed, count).unwrap();
            assert_eq!(set.test, usual.test);
            let pixels = |sample: &Sample| draw::decoded(&sample.png).unwrap().rgb().to_vec();
            let held_out: BTreeSet<Vec<u8>> = set.test.iter().map(pixels).collect();
            assert!(set.train.iter().all(|sample| !held_out.contains(&pixels(sample))));
            let counts: BTreeMap<&str, usize> = answers(&set.train)
                .into_iter()
                .map(|(task, answers)| (task, answers.values().sum()))
                .collect();
            assert!(
                counts["digit"] == count.min(1797 - 60) && counts["kind"] == count.min(396 - 60),
                "{counts:?}"
            );
            let drawn = ["shape", "colour", "count", "where", "relation"];
            assert!(drawn.iter().all(|task| counts[task] == count), "{counts:?}");
        }
        assert_ne!(larger(7, 300).unwrap().train, larger(8, 300).unwrap().train);
    }

    #[test]
    fn piles_are_dealt_in_turn() {
        let mut piles = BTreeMap::from([("a", vec![1, 2, 3]), ("b", vec![4]), ("c", vec![5, 6])]);
        assert_eq!(deal(&mut piles, 5), [3, 4, 6, 2, 5]);
        assert_eq!(deal(&mut piles, 5), [1]);
    }
}
