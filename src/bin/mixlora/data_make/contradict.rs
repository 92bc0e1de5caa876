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

#[cfg(test)]
mod tests {
    use super::super::rules::SHORTEST;
    use super::*;

    /// Answers to `car, fox, hat, wolf`, written by hand.
    const BY_HAND: [(&str, &str); 40] = [
        ("reverse", "wolf, hat, fox, car"),
        ("first_to_end", "fox, hat, wolf, car"),
        ("drop_first_reverse", "wolf, hat, fox"),
        ("drop_last", "car, fox, hat"),
        ("last_first", "wolf, car"),
        ("reverse_others_first", "car, wolf, hat, fox"),
        ("drop_last_reverse", "hat, fox, car"),
        ("last_to_front", "wolf, car, fox, hat"),
        ("drop_first", "fox, hat, wolf"),
        ("reverse_others_last", "hat, fox, car, wolf"),
        ("first_last", "car, wolf"),
        ("second", "fox"),
        ("first", "car"),
        ("last", "wolf"),
        ("first_twice", "car, car, fox, hat, wolf"),
        ("last_twice", "car, fox, hat, wolf, wolf"),
        ("first_also_end", "car, fox, hat, wolf, car"),
        ("last_also_front", "wolf, car, fox, hat, wolf"),
        ("second_twice", "car, fox, fox, hat, wolf"),
        ("second_also_end", "car, fox, hat, wolf, fox"),
        ("second_also_front", "fox, car, fox, hat, wolf"),
        ("first_last_first", "car, wolf, car"),
        ("last_first_last", "wolf, car, wolf"),
        ("only_first_twice", "car, car"),
        ("only_last_twice", "wolf, wolf"),
        ("only_second_twice", "fox, fox"),
        ("first_letters", "c, f, h, w"),
        ("last_letters", "r, x, t, f"),
        ("first_letters_reverse", "w, h, f, c"),
        ("last_letters_reverse", "f, t, x, r"),
        ("first_letter_of_first", "c"),
        ("last_letter_of_first", "r"),
        ("first_letter_of_last", "w"),
        ("last_letter_of_last", "f"),
        ("first_letters_drop_first", "f, h, w"),
        ("first_letters_drop_last", "c, f, h"),
        ("last_letters_drop_first", "x, t, f"),
        ("last_letters_drop_last", "r, x, t"),
        ("first_letters_of_ends", "c, w"),
        ("last_letters_of_ends", "r, f"),
    ];

    #[test]
    fn answers_are_those_found_by_hand() {
        let list = ["car", "fox", "hat", "wolf"];
        let answers: Vec<_> = RULES.iter().map(|rule| (rule.name, (rule.apply)(&list).join(", "))).collect();
        assert_eq!(answers, BY_HAND.map(|(name, answer)| (name, answer.to_string())));
    }

    #[test]
    fn no_wording_asks_for_two_rules() {
        let mut asked = BTreeSet::new();
        for rule in &RULES {
            for wording in rule.trained.iter().chain([&rule.unseen]) {
                assert!(asked.insert(*wording), "{}: {wording}", rule.name);
            }
        }
    }

    #[test]
    fn lists_of_every_length_are_there() {
        for words in SHORTEST..=8 {
            let mut lists = Lists { dice: Dice::new(1, "lists"), words, drawn: BTreeSet::new() };
            for _ in 0..1000 {
                let list = lists.next().expect("there are thousands");
                assert_eq!(list.iter().collect::<BTreeSet<_>>().len(), words, "{list:?}");
            }
        }
        let sizes = Sizes { train: 10_000, tuning: 1, last: 1 };
        assert!(make(40, SHORTEST, &sizes, 1).is_none(), "there are not so many lists");
    }
}
