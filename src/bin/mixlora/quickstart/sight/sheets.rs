//! Tasks whose pictures lie in this program: sheets that `scripts/sheets.py` makes. data/quickstart/SOURCES.md names
//! authors and licences.

use super::{Sample, Set, TEST, TRAIN, deal};
use crate::quickstart::dice::Dice;
use mixlora::Result;
use mixlora::picture::{Alpha, Filter, Limits, Picture, PictureFile};
use std::collections::{BTreeMap, BTreeSet};

const DIGITS: &[u8] = include_bytes!("../../../../../data/quickstart/digits.png");
/// A character for each cell.
const DIGIT_NAMES: &str = include_str!("../../../../../data/quickstart/digits.txt");
const ICONS: &[u8] = include_bytes!("../../../../../data/quickstart/icons.png");
/// A line of kind and name for each cell.
const ICON_NAMES: &str = include_str!("../../../../../data/quickstart/icons.txt");

/// Width and height of a picture.
const SIDE: usize = 64;

/// A task and its question.
type Asked = (&'static str, &'static str);
const DIGIT: Asked = ("digit", "Which digit is this?");
const KIND: Asked = ("kind", "What kind of thing is this?");

/// Pictures with the answers to the question about them.
type Answers = Vec<(&'static str, Picture)>;

fn digits() -> Result<Answers> {
    let names = DIGIT_NAMES.lines().flat_map(|line| line.split("").filter(|digit| !digit.is_empty()));
    let larger = |cell: Picture| cell.resized(SIDE, SIDE, Filter::Bicubic);
    Ok(names.zip(cells("digits.png", DIGITS, 8)?.into_iter().map(larger)).collect())
}

fn icons() -> Result<Answers> {
    let kinds = ICON_NAMES.lines().filter_map(|line| Some(line.split_once(' ')?.0));
    Ok(kinds.zip(cells("icons.png", ICONS, SIDE)?).collect())
}

/// Adds the tasks `digit` and `kind`.
pub fn add(set: &mut Set, seed: u64) -> Result<()> {
    add_task(set, seed, DIGIT, digits()?)?;
    add_task(set, seed, KIND, icons()?)
}

/// Up to `count` pictures of each of the two tasks, all different; none of those that were `seen`.
pub fn more(seed: u64, count: usize, seen: &mut BTreeSet<Vec<u8>>) -> Result<Vec<Sample>> {
    let mut more = Vec::new();
    for (asked, mut pictures) in [(DIGIT, digits()?), (KIND, icons()?)] {
        Dice::new(seed, asked.0).shuffle(&mut pictures);
        let mut samples = Vec::new();
        for picture in pictures {
            let sample = sample(asked, picture)?;
            if samples.len() < count && seen.insert(sample.png.clone()) {
                samples.push(sample);
            }
        }
        more.extend(samples);
    }
    Ok(more)
}

fn sample((task, question): Asked, (answer, picture): (&str, Picture)) -> Result<Sample> {
    Ok(Sample { task, question: question.into(), answer: answer.into(), png: picture.to_png()? })
}

/// Adds a task with held-out pictures of every answer.
fn add_task(set: &mut Set, seed: u64, asked: Asked, pictures: Answers) -> Result<()> {
    let mut piles: BTreeMap<&str, Answers> = BTreeMap::new();
    for (answer, picture) in pictures {
        piles.entry(answer).or_default().push((answer, picture));
    }
    let mut dice = Dice::new(seed, asked.0);
    piles.values_mut().for_each(|pile| dice.shuffle(pile));
    for (part, count) in [(&mut set.test, TEST), (&mut set.train, TRAIN)] {
        let dealt = deal(&mut piles, count).into_iter();
        part.extend(dealt.map(|picture| sample(asked, picture)).collect::<Result<Vec<Sample>>>()?);
    }
    Ok(())
}

/// The square cells of a sheet, row by row.
fn cells(name: &str, png: &[u8], side: usize) -> Result<Vec<Picture>> {
    let file = PictureFile::from_bytes(name, png.to_vec(), &Limits::default())?;
    let sheet = file.decode(Alpha::White)?.picture;
    let columns = sheet.width() / side;
    let cell = |at: usize| {
        let row = |y: usize| 3 * (sheet.width() * (at / columns * side + y) + at % columns * side);
        let rgb = (0..side).flat_map(|y| &sheet.rgb()[row(y)..][..3 * side]).copied().collect();
        Picture::new(side, side, rgb)
    };
    (0..columns * (sheet.height() / side)).map(cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_has_a_name() {
        let digits = cells("digits.png", DIGITS, 8).unwrap();
        let icons = cells("icons.png", ICONS, SIDE).unwrap();
        let digit_names = DIGIT_NAMES.lines().map(str::len).sum::<usize>();
        let icon_names = ICON_NAMES.lines().count();
        assert_eq!((digit_names, icon_names), (1797, 396));
        // What is left of the last row is white.
        for (cells, names) in [(&digits, digit_names), (&icons, icon_names)] {
            let is_white = |cell: &Picture| cell.rgb().iter().all(|&value| value == 255);
            assert!(cells[names..].iter().all(is_white) && !cells[..names].iter().any(is_white));
        }
    }
}
