//! Tasks that contradict each other: the same list of words has another answer under every rule.

use super::rules::{RULES, Rule};
use crate::quickstart::dice::Dice;
use crate::quickstart::set::{Item, Parts, Sizes};
use std::collections::BTreeSet;

/// Words of lists, of those that the tiny model was trained on: short ones, each with another first letter.
const WORDS: [&str; 24] = [
    "apple", "bear", "car", "drum", "eagle", "fox", "grape", "hat", "jeep", "kiwi", "lime", "melon", "nurse",
    "otter", "plum", "quince", "rake", "shirt", "tie", "uniform", "van", "wolf", "yacht", "zebra",
];
/// The number of tasks that one list occurs under, where there are as many.
const SHARED: usize = 4;

/// The number of lists in a row that cannot be used, after which there are taken to be no others.
const PATIENCE: usize = 10_000;

/// Makes the set of a seed, if there are as many lists: `train`, `tuning`, `final` in the wordings that are trained, and
/// `wording` in those that are not.
pub fn make(tasks: usize, words: usize, sizes: &Sizes, seed: u64) -> Option<Parts> {
    let rules = &RULES[..tasks];
    let mut lists = Lists { dice: Dice::new(seed, "lists"), words, drawn: BTreeSet::new() };
    let trained: Wording = |rule, dice| dice.pick(&rule.trained);
    let unseen: Wording = |rule, _| rule.unseen;
    [
        ("train", sizes.train, trained),
        ("tuning", sizes.tuning, trained),
        ("final", sizes.last, trained),
        ("wording", sizes.last, unseen),
    ]
    .into_iter()
    .map(|(name, samples, wording)| {
        Some((name, asked(rules, samples, &mut lists, &mut Dice::new(seed, name), wording)?))
    })
    .collect()
}

/// The wording in which a rule is asked for.
type Wording = fn(&Rule, &mut Dice) -> &'static str;

/// Lists of words, none twice.
struct Lists {
    dice: Dice,
    words: usize,
    drawn: BTreeSet<Vec<&'static str>>,
}

impl Lists {
    /// A new list to which every rule has another answer.
    fn next(&mut self) -> Option<Vec<&'static str>> {
        for _ in 0..PATIENCE {
            let list = self.dice.some(&WORDS, self.words);
            let answers: BTreeSet<_> = RULES.iter().map(|rule| (rule.apply)(&list)).collect();
            if answers.len() == RULES.len() && self.drawn.insert(list.clone()) {
                return Some(list);
            }
        }
        None
    }
}

/// Samples of every rule, each list under several rules.
fn asked(
    rules: &[Rule],
    samples: usize,
    lists: &mut Lists,
    dice: &mut Dice,
    wording: Wording,
) -> Option<Vec<Item>> {
    let mut lines = Vec::new();
    let mut have = vec![0; rules.len()];
    loop {
        // The rules with the fewest samples, in an order of chance among equals.
        let mut order: Vec<usize> = (0..rules.len()).filter(|&rule| have[rule] < samples).collect();
        if order.is_empty() {
            break;
        }
        dice.shuffle(&mut order);
        order.sort_by_key(|&rule| have[rule]);
        let list = lists.next()?;
        for &index in order.iter().take(SHARED) {
            let rule = &rules[index];
            have[index] += 1;
            lines.push(Item {
                task: rule.name,
                item: list.join(", "),
                question: format!("{}: {}", wording(rule, dice), list.join(", ")),
                answer: (rule.apply)(&list).join(", "),
            });
        }
    }
    dice.shuffle(&mut lines);
    Some(lines)
}
