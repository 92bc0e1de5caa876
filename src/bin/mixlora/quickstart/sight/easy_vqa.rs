//! Tasks of easy-VQA (MIT, Victor Zhou): `DIR/{train,test}/questions.json` holds `[question, answer, number of picture]`,
//! `DIR/{train,test}/images/NUMBER.png` the pictures. Its split is kept.

use super::draw::{COLORS, Shape};
use super::drawn::{WHAT_COLOR, WHAT_SHAPE};
use super::{Sample, Set, TEST, TRAIN, deal};
use crate::quickstart::dice::Dice;
use mixlora::{Error, Result};
use std::collections::BTreeMap;
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
        for (task, pictures) in TASKS.iter().zip(pictures.chunks(third.max(1))) {
            let mut piles: BTreeMap<String, Vec<Asked>> = BTreeMap::new();
            for asked in pictures.iter().filter_map(|asked| (task.choose)(dice, asked)) {
                piles.entry((task.pile)(&asked)).or_default().push(asked);
            }
            let dealt = deal(&mut piles, count);
            if dealt.len() < count {
                let what = format!("has {} pictures for the task {}, not {count}", dealt.len(), task.name);
                return Err(Error::File { path: folder, what });
            }
            for (question, answer, number) in dealt {
                let png = read(&folder.join(format!("images/{number}.png")))?;
                samples.push(Sample { task: task.name, question, answer, png });
            }
        }
    }
    Ok(())
}

/// How questions of a task are found.
struct Task {
    name: &'static str,
    /// A question about a picture, from all that the source asks about it.
    choose: fn(&mut Dice, &[Asked]) -> Option<Asked>,
    /// What should be equally frequent.
    pile: fn(&Asked) -> String,
}

const TASKS: [Task; 3] = [
    Task {
        name: "shape",
        choose: |_, asked| {
            let shapes = Shape::ALL.map(Shape::name);
            let (_, shape, number) = asked.iter().find(|(_, answer, _)| shapes.contains(&answer.as_str()))?;
            Some((WHAT_SHAPE.into(), shape.clone(), *number))
        },
        pile: |(_, answer, _)| answer.clone(),
    },
    Task {
        name: "colour",
        choose: |_, asked| {
            let colors = COLORS.map(|(name, _)| name);
            let (_, color, number) = asked.iter().find(|(_, answer, _)| colors.contains(&answer.as_str()))?;
            Some((WHAT_COLOR.into(), color.clone(), *number))
        },
        pile: |(_, answer, _)| answer.clone(),
    },
    Task {
        name: "yesno",
        choose: |dice, asked| {
            let fits = |(_, answer, _): &&Asked| matches!(answer.as_str(), "yes" | "no");
            let asked: Vec<&Asked> = asked.iter().filter(fits).collect();
            let (question, answer, number) = *asked.get(dice.below(asked.len().max(1)))?;
            let mut letters = question.chars();
            let first = letters.next()?.to_uppercase();
            Some((first.chain(letters).collect(), answer.clone(), *number))
        },
        // Most questions with "not" have the answer yes in the source, and most of the others no.
        pile: |(question, answer, _)| format!("{answer} {}", question.contains(" not ")),
    },
];

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
