//! Tasks whose pictures lie in this program: sheets that `scripts/sheets.py` makes. data/quickstart/SOURCES.md names
//! authors and licences.

use super::{Sample, Set, TEST, TRAIN, deal};
use crate::quickstart::dice::Dice;
use mixlora::Result;
use mixlora::picture::{Alpha, Filter, Limits, Picture, PictureFile};
use std::collections::BTreeMap;

const DIGITS: &[u8] = include_bytes!("../../../../../data/quickstart/digits.png");
/// A character for each cell.
const DIGIT_NAMES: &str = include_str!("../../../../../data/quickstart/digits.txt");
const ICONS: &[u8] = include_bytes!("../../../../../data/quickstart/icons.png");
/// A line of kind and name for each cell.
const ICON_NAMES: &str = include_str!("../../../../../data/quickstart/icons.txt");

/// Width and height of a picture.
const SIDE: usize = 64;

/// Adds the tasks `digit` and `kind`.
pub fn add(set: &mut Set, seed: u64) -> Result<()> {
    let digits = DIGIT_NAMES.lines().flat_map(|line| line.split("").filter(|digit| !digit.is_empty()));
    let digits = digits.zip(cells("digits.png", DIGITS, 8)?);
    let larger = |(digit, cell): (_, Picture)| (digit, cell.resized(SIDE, SIDE, Filter::Bicubic));
    add_task(set, seed, "digit", "Which digit is this?", digits.map(larger))?;
    let kinds = ICON_NAMES.lines().filter_map(|line| Some(line.split_once(' ')?.0));
    let icons = kinds.zip(cells("icons.png", ICONS, SIDE)?);
    add_task(set, seed, "kind", "What kind of thing is this?", icons)
}

/// Adds a task with held-out pictures of every answer.
fn add_task<'a>(
    set: &mut Set,
    seed: u64,
    task: &'static str,
    question: &str,
    pictures: impl Iterator<Item = (&'a str, Picture)>,
) -> Result<()> {
    let mut piles: BTreeMap<&str, Vec<(&str, Picture)>> = BTreeMap::new();
    for (answer, picture) in pictures {
        piles.entry(answer).or_default().push((answer, picture));
    }
    let mut dice = Dice::new(seed, task);
    piles.values_mut().for_each(|pile| dice.shuffle(pile));
    let sample = |(answer, picture): (&str, Picture)| {
        let png = picture.to_png()?;
        Ok(Sample { task, question: question.into(), answer: answer.into(), png })
    };
    for (part, count) in [(&mut set.test, TEST), (&mut set.train, TRAIN)] {
        part.extend(deal(&mut piles, count).into_iter().map(sample).collect::<Result<Vec<Sample>>>()?);
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
