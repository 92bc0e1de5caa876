//! Tasks whose pictures are drawn here.

use super::draw::{COLORS, Figure, Shape, png, within};
use super::{Sample, Set, TEST, TRAIN};
use crate::quickstart::dice::Dice;
use mixlora::Result;
use std::collections::BTreeSet;

/// A task, and how its sample of a number is made: the number decides the answer, so that all are equally frequent.
#[derive(Clone, Copy)]
pub struct Task {
    name: &'static str,
    pub make: fn(&mut Dice, usize) -> Result<Sample>,
}

pub const TASKS: [Task; 3] = [
    Task { name: "count", make: count },
    Task { name: "where", make: place },
    Task { name: "relation", make: relation },
];
/// What stands in for the tasks of easy-VQA.
pub const INSTEAD_OF_EASY_VQA: [Task; 2] =
    [Task { name: "shape", make: shape }, Task { name: "colour", make: color }];

pub const WHAT_SHAPE: &str = "What shape is in the image?";
pub const WHAT_COLOR: &str = "What color is the shape?";

/// Adds samples of these tasks, all with different pictures.
pub fn add(set: &mut Set, seed: u64, tasks: &[Task]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for task in tasks {
        let mut samples = samples(task, seed, TRAIN + TEST, &mut seen)?;
        set.test.extend(samples.split_off(TRAIN));
        set.train.extend(samples);
    }
    Ok(())
}

/// `count` samples of a task with pictures that were not `seen`.
pub fn samples(task: &Task, seed: u64, count: usize, seen: &mut BTreeSet<Vec<u8>>) -> Result<Vec<Sample>> {
    let mut dice = Dice::new(seed, task.name);
    let mut samples = Vec::new();
    while samples.len() < count {
        let sample = (task.make)(&mut dice, samples.len())?;
        if seen.insert(sample.png.clone()) {
            samples.push(sample);
        }
    }
    Ok(samples)
}

/// A large figure of this shape and colour.
fn alone(dice: &mut Dice, shape: Shape, color: [u8; 3]) -> Result<Vec<u8>> {
    let center = (within(dice, &(34..95)), within(dice, &(34..95)));
    let figure = Figure { shape, ..Figure::any(dice, color, center, &(10..33)) };
    png(dice, &[figure])
}

fn shape(dice: &mut Dice, number: usize) -> Result<Sample> {
    let shape = Shape::ALL[number % 3];
    let png = alone(dice, shape, COLORS[number % 8].1)?;
    Ok(Sample { task: "shape", question: WHAT_SHAPE.into(), answer: shape.name().into(), png })
}

fn color(dice: &mut Dice, number: usize) -> Result<Sample> {
    let (name, color) = COLORS[number % 8];
    let png = alone(dice, Shape::ALL[number % 3], color)?;
    Ok(Sample { task: "colour", question: WHAT_COLOR.into(), answer: name.into(), png })
}

/// One to five figures, each in a field of its own of a grid of 3 x 3.
fn count(dice: &mut Dice, number: usize) -> Result<Sample> {
    const NUMBERS: [&str; 5] = ["one", "two", "three", "four", "five"];
    let fields: Vec<usize> = (0..9).collect();
    let figures: Vec<Figure> = dice
        .some(&fields, 1 + number % 5)
        .into_iter()
        .map(|field| {
            let color = dice.pick(&COLORS).1;
            let center = [field % 3, field / 3].map(|at| within(dice, &(20..25)) + 42 * at);
            Figure::any(dice, color, center.into(), &(9..17))
        })
        .collect();
    let question = "How many shapes are there?".into();
    Ok(Sample { task: "count", question, answer: NUMBERS[number % 5].into(), png: png(dice, &figures)? })
}

/// Two or three figures of different colours, each in a quarter of its own.
fn place(dice: &mut Dice, number: usize) -> Result<Sample> {
    const PLACES: [&str; 4] = ["top left", "top right", "bottom left", "bottom right"];
    let asked = number % 4;
    let others: Vec<usize> = (0..4).filter(|&quarter| quarter != asked).collect();
    let more = 1 + dice.below(2);
    let quarters = [vec![asked], dice.some(&others, more)].concat();
    // All places are equally frequent for each colour too.
    let color = COLORS[number / 4 % 8];
    let other_colors: Vec<_> = COLORS.into_iter().filter(|other| *other != color).collect();
    let colors = [vec![color], dice.some(&other_colors, more)].concat();
    let mut figures = Vec::new();
    for (quarter, (_, color)) in quarters.into_iter().zip(&colors) {
        let center = [quarter % 2, quarter / 2].map(|at| within(dice, &(24..41)) + 64 * at);
        figures.push(Figure::any(dice, *color, center.into(), &(12..21)));
    }
    let question = format!("Where is the {} shape?", colors[0].0);
    Ok(Sample { task: "where", question, answer: PLACES[asked].into(), png: png(dice, &figures)? })
}

/// Two figures that are well apart along the axis of the question.
fn relation(dice: &mut Dice, number: usize) -> Result<Sample> {
    const RELATIONS: [&str; 4] = ["left of", "right of", "above", "below"];
    let relation = number / 2 % 4;
    let holds = number.is_multiple_of(2);
    // "Right of" and "below" hold where the first figure has the larger coordinate.
    let first_is_low = relation.is_multiple_of(2) == holds;
    let low = within(dice, &(24..39));
    let high = within(dice, &(90..105));
    let along = if first_is_low { [low, high] } else { [high, low] };
    // A pair of numbers has one question with both answers, so that it tells nothing about them.
    let colors = Dice::new(number as u64 / 2, "colors of a pair").some(&COLORS, 2);
    let mut figures = Vec::new();
    for (along, (_, color)) in along.into_iter().zip(&colors) {
        let across = within(dice, &(24..105));
        let center = if relation < 2 { (along, across) } else { (across, along) };
        figures.push(Figure::any(dice, *color, center, &(12..21)));
    }
    let question = format!("Is the {} shape {} the {} one?", colors[0].0, RELATIONS[relation], colors[1].0);
    let answer = if holds { "yes" } else { "no" };
    Ok(Sample { task: "relation", question, answer: answer.into(), png: png(dice, &figures)? })
}

#[cfg(test)]
mod tests {
    use super::super::draw::{SIDE, decoded};
    use super::*;

    /// The mean column and row of the pixels of a colour.
    fn center(sample: &Sample, color: &str) -> (f64, f64) {
        let color = COLORS.iter().find(|(name, _)| *name == color).unwrap().1;
        let picture = decoded(&sample.png).unwrap();
        let found: Vec<usize> = (0..SIDE * SIDE).filter(|at| picture.rgb()[3 * at..][..3] == color).collect();
        let mean = |of: fn(usize) -> usize| {
            found.iter().map(|&at| of(at)).sum::<usize>() as f64 / found.len() as f64
        };
        (mean(|at| at % SIDE), mean(|at| at / SIDE))
    }

    #[test]
    fn answers_about_places_are_those_of_the_pixels() {
        let mut dice = Dice::new(3, "places");
        for number in 0..64 {
            let sample = place(&mut dice, number).unwrap();
            let words: Vec<&str> = sample.question.split(' ').collect();
            let (x, y) = center(&sample, words[3]);
            let row = if y < 64.0 { "top" } else { "bottom" };
            let column = if x < 64.0 { "left" } else { "right" };
            assert_eq!(sample.answer, format!("{row} {column}"), "{}", sample.question);

            let sample = relation(&mut dice, number).unwrap();
            let words: Vec<&str> = sample.question.split(' ').collect();
            let (x, y) = center(&sample, words[2]);
            let (other_x, other_y) = center(&sample, words[words.len() - 2]);
            let holds = match words[4] {
                "left" => x < other_x,
                "right" => x > other_x,
                "above" => y < other_y,
                _ => y > other_y,
            };
            assert_eq!(sample.answer == "yes", holds, "{}", sample.question);
        }
    }

    #[test]
    fn counted_figures_are_apart() {
        let mut dice = Dice::new(3, "apart");
        for number in 0..50 {
            let sample = count(&mut dice, number).unwrap();
            let picture = decoded(&sample.png).unwrap();
            let rgb = picture.rgb();
            let is_figure = |at: usize| rgb[3 * at..][..3].iter().any(|&value| value < 230);
            let mut left: BTreeSet<usize> = (0..SIDE * SIDE).filter(|&at| is_figure(at)).collect();
            let mut found = 0;
            while let Some(first) = left.pop_first() {
                found += 1;
                let mut open = vec![first];
                while let Some(at) = open.pop() {
                    let near = [at + 1, at.wrapping_sub(1), at + SIDE, at.wrapping_sub(SIDE)];
                    open.extend(near.into_iter().filter(|next| left.remove(next)));
                }
            }
            assert_eq!(["one", "two", "three", "four", "five"][found - 1], sample.answer);
        }
    }
}
