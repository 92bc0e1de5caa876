//! The quickstart's training set: seven tasks with short answers, made from a seed and a few lists of public facts.
//!
//! Four tasks are about what the input says or names (`category`, `continent`, `holder`, `language`), the others about
//! its form (`date`, `number`, `reverse`).

use super::dice::Dice;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const CONTINENTS: &str = include_str!("../../../../data/quickstart/continents.txt");
const WORDS: &str = include_str!("../../../../data/quickstart/words.txt");
const SENTENCES: &str = include_str!("../../../../data/quickstart/sentences.txt");

/// The seed of all samples.
pub const SEED: u64 = 2026;
/// The system message of every sample; use the same in `chat --system`.
pub const SYSTEM: &str = "Answer briefly.";
/// Numbers of training and held-out samples of a task with unlimited samples.
const TRAINED: usize = 240;
const HELD_OUT: usize = 48;
/// The largest number of held-out samples with the same answer in lookup tasks, so that no answer is common.
const MOST_HELD_OUT: usize = 10;
/// The number of samples in a row that were there already, after which a task is taken to have no others.
const PATIENCE: usize = 1000;

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub task: &'static str,
    /// What the question is about, apart from its wording: a word, a date, a list.
    pub item: String,
    pub question: String,
    pub answer: String,
}

impl Item {
    /// A question that is an item of its own.
    fn new(task: &'static str, question: String, answer: impl Into<String>) -> Self {
        Item { task, item: question.clone(), question, answer: answer.into() }
    }
    /// A question in the form `what: item`.
    fn of(task: &'static str, what: &str, item: impl Into<String>, answer: impl Into<String>) -> Self {
        let item = item.into();
        Item { task, question: format!("{what}{item}"), item, answer: answer.into() }
    }
    fn value(&self) -> Value {
        let messages = [("system", SYSTEM), ("user", &self.question), ("assistant", &self.answer)]
            .map(|(role, content)| json!({ "role": role, "content": content }));
        json!({ "messages": messages, "task": self.task })
    }
    /// The line of the question in a JSONL file.
    pub fn line(&self) -> String {
        self.value().to_string()
    }
    /// The same with the item.
    pub fn line_with_item(&self) -> String {
        let mut value = self.value();
        value["item"] = json!(self.item);
        value.to_string()
    }
}

/// Parts of a set by the names of their files.
pub type Parts = Vec<(&'static str, Vec<Item>)>;

/// Samples for training and for questions.
pub struct Set {
    pub train: Vec<Item>,
    pub test: Vec<Item>,
}

/// Makes the set, which is always the same.
pub fn set() -> Set {
    let mut set = Set { train: Vec::new(), test: Vec::new() };
    for task in &GENERATED {
        let mut items = task.make(SEED, TRAINED + HELD_OUT, |item| item.question.clone());
        set.test.extend(items.split_off(TRAINED));
        set.train.extend(items);
    }
    for (mut items, held_out) in listed(SEED) {
        set.test.extend(items.split_off(items.len() - held_out));
        set.train.extend(items);
    }
    Dice::new(SEED, "order").shuffle(&mut set.train);
    set
}

/// Samples of each task of a set in three parts.
pub struct Sizes {
    pub train: usize,
    pub tuning: usize,
    pub last: usize,
}

/// The tasks of the set in three parts that share no item: `train`, `tuning`, `final`. Lists of words and countries give
/// as many as they have. Fails with the name of a generated task that has not so many items.
pub fn thirds(sizes: &Sizes, seed: u64) -> Result<Parts, &'static str> {
    let mut parts: Parts = ["train", "tuning", "final"].map(|name| (name, Vec::new())).into();
    let mut add = |items: Vec<Item>, tuning: usize, last: usize| {
        let train = items.len() - tuning - last;
        for (index, item) in items.into_iter().enumerate() {
            parts[usize::from(index >= train) + usize::from(index >= train + tuning)].1.push(item);
        }
    };
    for task in &GENERATED {
        let count = sizes.train + sizes.tuning + sizes.last;
        let items = task.make(seed, count, |item| item.item.clone());
        if items.len() < count {
            return Err(task.name);
        }
        add(items, sizes.tuning, sizes.last);
    }
    for (items, held_out) in listed(seed) {
        add(items, held_out.div_ceil(2).min(sizes.tuning), held_out.min(sizes.last));
    }
    parts.iter_mut().for_each(|(name, items)| Dice::new(seed, name).shuffle(items));
    Ok(parts)
}

/// A task whose samples are made, not listed.
struct Generated {
    name: &'static str,
    sample: fn(&mut Dice) -> Item,
}

const GENERATED: [Generated; 5] = [
    Generated { name: "date", sample: date },
    Generated { name: "number", sample: number },
    Generated { name: "reverse", sample: reverse },
    Generated { name: "holder", sample: holder },
    Generated { name: "language", sample: language },
];

impl Generated {
    /// `count` samples with different keys, or fewer if the task has no others.
    fn make(&self, seed: u64, count: usize, key: impl Fn(&Item) -> String) -> Vec<Item> {
        let mut dice = Dice::new(seed, self.name);
        let mut items = Vec::new();
        let mut seen = BTreeSet::new();
        let mut known = 0;
        while items.len() < count && known < PATIENCE {
            let item = (self.sample)(&mut dice);
            if seen.insert(key(&item)) {
                items.push(item);
                known = 0;
            } else {
                known += 1;
            }
        }
        items
    }
}

/// Lookup tasks, whose held-out words are never trained: the samples with one answer, and how many of them, the last,
/// are held out.
fn listed(seed: u64) -> Vec<(Vec<Item>, usize)> {
    let mut all = Vec::new();
    for (task, what, lists) in
        [("category", "Kind of thing: ", WORDS), ("continent", "Continent of ", CONTINENTS)]
    {
        let mut dice = Dice::new(seed, task);
        for (answer, list) in lists.lines().filter_map(|line| line.split_once(": ")) {
            let mut items: Vec<Item> =
                list.split(", ").map(|word| Item::of(task, what, word, answer)).collect();
            dice.shuffle(&mut items);
            let held_out = (items.len() / 4).min(MOST_HELD_OUT);
            all.push((items, held_out));
        }
    }
    all
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

fn date(dice: &mut Dice) -> Item {
    let day = 1 + dice.below(28);
    let month = dice.below(12);
    let year = 1900 + dice.below(125);
    let name = MONTHS[month];
    let text = match dice.below(3) {
        0 => format!("{day} {name} {year}"),
        1 => format!("{name} {day}, {year}"),
        _ => format!("{}. {day} {year}", &name[..3]),
    };
    let date = format!("{year}-{:02}-{day:02}", month + 1);
    Item { item: date.clone(), ..Item::new("date", format!("Date: {text}"), date) }
}

fn number(dice: &mut Dice) -> Item {
    let number = match dice.below(3) {
        0 => 11 + dice.below(89),
        1 => 100 + dice.below(900),
        _ => 1000 + dice.below(9000),
    };
    Item::of("number", "In digits: ", words(number), number.to_string())
}

/// A number below 10,000 in words.
fn words(number: usize) -> String {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 10] =
        ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    let tens = number / 10 % 10;
    let ones = number % 10;
    match number {
        0..20 => SMALL[number].into(),
        20..100 if ones == 0 => TENS[tens].into(),
        20..100 => format!("{}-{}", TENS[tens], SMALL[ones]),
        100..1000 if number.is_multiple_of(100) => format!("{} hundred", SMALL[number / 100]),
        100..1000 => format!("{} hundred and {}", SMALL[number / 100], words(number % 100)),
        _ if number.is_multiple_of(1000) => format!("{} thousand", SMALL[number / 1000]),
        _ if number % 1000 < 100 => format!("{} thousand and {}", SMALL[number / 1000], words(number % 1000)),
        _ => format!("{} thousand {}", SMALL[number / 1000], words(number % 1000)),
    }
}

fn reverse(dice: &mut Dice) -> Item {
    const THINGS: [&str; 24] = [
        "red", "blue", "green", "black", "white", "brown", "pink", "gray", "cat", "dog", "bird", "fish",
        "tree", "house", "river", "stone", "bread", "milk", "salt", "sugar", "paper", "glass", "iron",
        "gold",
    ];
    let count = 3 + dice.below(2);
    let mut list = dice.some(&THINGS, count);
    let item = list.join(", ");
    list.reverse();
    Item::of("reverse", "Reverse: ", item, list.join(", "))
}

/// A question about the holder of a thing at the end of a short story.
fn holder(dice: &mut Dice) -> Item {
    const NAMES: [&str; 20] = [
        "Anna", "Tom", "Mia", "Paul", "Lena", "Max", "Sara", "John", "Emma", "David", "Julia", "Peter",
        "Nina", "Mark", "Laura", "Simon", "Eva", "Adam", "Kate", "Leo",
    ];
    const THINGS: [&str; 10] =
        ["lamp", "book", "ball", "bag", "watch", "coat", "phone", "bike", "key", "ring"];
    let thing = dice.pick(&THINGS);
    let names = dice.some(&NAMES, 3);
    let [first, second, third] = names[..] else { unreachable!("three were drawn") };
    let give = dice.pick(&["gave", "sold", "handed"]);
    let (story, last) = match dice.below(4) {
        0 => (format!("{first} {give} the {thing} to {second}. {second} {give} it to {third}."), third),
        1 => (format!("{first} {give} the {thing} to {second}. {third} looked at it."), second),
        2 => (format!("{first} showed {second} the {thing}. Then {third} {give} {second} a coin."), first),
        _ => {
            (format!("{first} got the {thing} from {second}. {third} asked for it, but got nothing."), first)
        }
    };
    Item::new("holder", format!("{story} Who has the {thing}?"), last)
}

fn language(dice: &mut Dice) -> Item {
    let lines: Vec<&str> = SENTENCES.lines().collect();
    let parts: Vec<&str> = dice.pick(&lines).split('|').map(str::trim).collect();
    let [name, subjects, verbs, places] = parts[..] else {
        unreachable!("four parts a line, as a test checks")
    };
    let mut part = |list: &str| {
        let all: Vec<&str> = list.split(',').map(str::trim).collect();
        dice.pick(&all).to_string()
    };
    let sentence = format!("{} {} {}.", part(subjects), part(verbs), part(places));
    Item::of("language", "Language: ", sentence, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_set_is_large_enough_and_leaks_nothing() {
        let set = set();
        assert!(set.train.len() >= 1500 && set.test.len() >= 300, "{} {}", set.train.len(), set.test.len());
        let asked: BTreeSet<&str> = set.train.iter().map(|item| item.question.as_str()).collect();
        assert_eq!(asked.len(), set.train.len(), "no question twice");
        for item in &set.test {
            assert!(!asked.contains(item.question.as_str()), "{item:?} is trained");
        }
        let mut tasks: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
        for item in &set.test {
            *tasks.entry(item.task).or_default().entry(&item.answer).or_default() += 1;
        }
        assert_eq!(tasks.len(), 7);
        for (task, answers) in tasks {
            let most = answers.values().max().unwrap();
            let all = answers.values().sum::<usize>();
            assert!(4 * most <= all, "{task}: {answers:?}");
        }
        assert_eq!(super::set().train, set.train);
    }

    #[test]
    fn answers_are_right() {
        assert_eq!(words(4), "four");
        assert_eq!(words(340), "three hundred and forty");
        assert_eq!(words(2017), "two thousand and seventeen");
        assert_eq!(words(9999), "nine thousand nine hundred and ninety-nine");
        for item in set().train {
            assert!(
                !item.answer.is_empty() && item.question.is_ascii() || item.task == "language",
                "{item:?}"
            );
        }
        assert!(SENTENCES.lines().all(|line| line.split('|').count() == 4));
    }
}
