//! What is odd about samples that can be read: it is often not what was meant.

use super::sample::{Body, Sample};
use crate::text::Role;
use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Names that are listed; the rest is counted.
const MOST_NAMES: usize = 10;

/// A question about a sample, and what is said where the answer is yes.
type Odd = (fn(&Sample) -> bool, &'static str);

const ODD: [Odd; 4] = [
    (has_no_answer, "no turn of the assistant: there is nothing to train"),
    (has_empty_answer, "an empty answer: the model learns to say nothing"),
    (repeats_a_role, "two turns of one role in a row"),
    (
        splits_at_a_space,
        "a prompt that ends in a space: put it at the start of the completion, as models write the words",
    ),
];

/// What is odd about the samples of a file, with a count and the first line of each kind.
pub fn oddities(samples: &[Sample]) -> Vec<String> {
    let mut found: Vec<String> = ODD.iter().filter_map(|(is, what)| count(samples, is, what)).collect();
    let mut seen = HashSet::new();
    let again: HashSet<usize> =
        samples.iter().filter(|sample| !seen.insert(print(sample))).map(|sample| sample.line).collect();
    found.extend(count(samples, |sample| again.contains(&sample.line), "the text of an earlier sample"));
    let mut unread: BTreeMap<&str, usize> = BTreeMap::new();
    for key in samples.iter().flat_map(|sample| &sample.unread) {
        *unread.entry(key).or_default() += 1;
    }
    if !unread.is_empty() {
        let keys = unread.iter().map(|(key, n)| format!("{key} ({n})")).collect();
        found.push(format!("keys that are not read, with their samples: {}", some_of(keys)));
    }
    found
}

/// A list of names that is not too long to be read.
pub(super) fn some_of(names: Vec<String>) -> String {
    let more = names.len().saturating_sub(MOST_NAMES);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

/// How many samples of `others` are also in `samples`.
pub fn shared(samples: &[Sample], others: &[Sample]) -> usize {
    let known: HashSet<u64> = samples.iter().map(print).collect();
    others.iter().filter(|sample| known.contains(&print(sample))).count()
}

fn count(samples: &[Sample], is: impl Fn(&Sample) -> bool, what: &str) -> Option<String> {
    let mut lines = samples.iter().filter(|sample| is(sample)).map(|sample| sample.line);
    let first = lines.next()?;
    Some(format!(
        "{} of {} samples have {what} (the first in line {first})",
        1 + lines.count(),
        samples.len()
    ))
}

/// Tells samples apart.
fn print(sample: &Sample) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{:?}", sample.body).hash(&mut hasher);
    hasher.finish()
}

fn has_no_answer(sample: &Sample) -> bool {
    matches!(&sample.body, Body::Messages(turns) if turns.iter().all(|turn| turn.role != Role::Assistant))
}

fn has_empty_answer(sample: &Sample) -> bool {
    match &sample.body {
        Body::Messages(turns) => {
            turns.iter().any(|turn| turn.role == Role::Assistant && turn.content.trim().is_empty())
        }
        Body::Completion { completion, .. } => completion.trim().is_empty(),
        Body::Text(_) => false,
    }
}

fn repeats_a_role(sample: &Sample) -> bool {
    matches!(&sample.body, Body::Messages(turns) if turns.windows(2).any(|pair| pair[0].role == pair[1].role))
}

fn splits_at_a_space(sample: &Sample) -> bool {
    let Body::Completion { prompt, completion } = &sample.body else { return false };
    prompt.ends_with([' ', '\t']) && !completion.starts_with(char::is_whitespace)
}
