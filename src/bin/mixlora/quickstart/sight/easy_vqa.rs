//! Tasks of easy-VQA (MIT, Victor Zhou): `DIR/{train,test}/questions.json` holds `[question, answer, number of picture]`,
//! `DIR/{train,test}/images/NUMBER.png` the pictures. Its split is kept.

use super::draw::{COLORS, Shape};
use super::drawn::{WHAT_COLOR, WHAT_SHAPE};
use super::{Sample, Set, TEST, TRAIN, deal};
use crate::quickstart::dice::Dice;
use mixlora::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A question, its answer and the number of its picture.
type Asked = (String, String, usize);

/// Adds the tasks `shape`, `colour` and `yesno`.
pub fn add(set: &mut Set, seed: u64, folder: &Path) -> Result<()> {
    for (part, samples, count) in [("train", &mut set.train, TRAIN), ("test", &mut set.test, TEST)] {
        let folder = folder.join(part);
        let dice = &mut Dice::new(seed, &format!("easy-VQA {part}"));
        let mut pictures = by_picture(&folder)?;
        dice.shuffle(&mut pictures);
        // No picture is in two tasks.
        let third = pictures.len() / 3;
        let (shapes, rest) = pictures.split_at(third);
        let (colors, rest) = rest.split_at(third);
        for (task, asked) in [
            ("shape", named(shapes, WHAT_SHAPE, &Shape::ALL.map(Shape::name), count)),
            ("colour", named(colors, WHAT_COLOR, &COLORS.map(|(name, _)| name), count)),
            ("yesno", yes_and_no(dice, rest, count)),
        ] {
            if asked.len() < count {
                let what =
                    format!("has pictures for {} samples of the task {task}, not {count}", asked.len());
                return Err(Error::File { path: folder, what });
            }
            for (question, answer, number) in asked {
                let png = read(&folder.join(format!("images/{number}.png")))?;
                samples.push(Sample { task, question, answer, png });
            }
        }
    }
    Ok(())
}

/// A question that is answered by one of these names, all equally frequent.
fn named(pictures: &[Vec<Asked>], question: &str, names: &[&str], count: usize) -> Vec<Asked> {
    let mut piles: BTreeMap<&str, Vec<Asked>> = BTreeMap::new();
    let is_named = |(_, answer, _): &&Asked| names.contains(&answer.as_str());
    for (_, answer, number) in pictures.iter().filter_map(|asked| asked.iter().find(is_named)) {
        piles.entry(answer).or_default().push((question.into(), answer.clone(), *number));
    }
    deal(&mut piles, count)
}

/// Questions of the source, each as often with the answer yes as with no: who reads the question alone is right half the
/// time. In the source most questions with "not" have the answer yes, and most of the others no.
fn yes_and_no(dice: &mut Dice, pictures: &[Vec<Asked>], count: usize) -> Vec<Asked> {
    const ANSWERS: [&str; 2] = ["yes", "no"];
    let mut questions: BTreeMap<&str, [Vec<usize>; 2]> = BTreeMap::new();
    for (question, answer, number) in pictures.iter().flatten() {
        if let Some(at) = ANSWERS.iter().position(|known| known == answer) {
            questions.entry(question).or_default()[at].push(*number);
        }
    }
    let mut questions: Vec<_> = questions.into_iter().collect();
    dice.shuffle(&mut questions);
    let mut found = Vec::new();
    let mut used: BTreeSet<usize> = BTreeSet::new();
    // Each question in turn, until one of its answers has no more pictures.
    while found.len() < count && !questions.is_empty() {
        questions.retain_mut(|(question, piles)| {
            piles.iter_mut().for_each(|pile| pile.retain(|number| !used.contains(number)));
            let pair: Vec<usize> = piles.iter_mut().filter_map(Vec::pop).collect();
            if pair.len() == 2 && found.len() < count {
                for (number, answer) in pair.iter().zip(ANSWERS) {
                    found.push((capitalised(question), answer.to_string(), *number));
                }
                used.extend(&pair);
            }
            pair.len() == 2
        });
    }
    found
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

/// All questions, by picture.
fn by_picture(folder: &Path) -> Result<Vec<Vec<Asked>>> {
    let path = folder.join("questions.json");
    let all: Vec<Asked> = serde_json::from_slice(&read(&path)?).map_err(|error| {
        let what = format!("is not a list of question, answer and number of a picture: {error}");
        Error::File { path, what }
    })?;
    let mut pictures: BTreeMap<usize, Vec<Asked>> = BTreeMap::new();
    for asked in all {
        pictures.entry(asked.2).or_default().push(asked);
    }
    Ok(pictures.into_values().collect())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| Error::File { path: path.into(), what: format!("cannot be read: {error}") })
}
