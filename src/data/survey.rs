//! Oddities of valid samples that are often unintended.

use super::sample::{Body, Sample};
use crate::text::Role;
use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The largest number of listed names; further ones are counted.
const MOST_NAMES: usize = 10;

/// A test of a sample and the message about samples that pass it.
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

/// Sentences about oddities of the samples of a file, with the count and the first line of each kind.
pub fn oddities(samples: &[Sample]) -> Vec<String> {
    let mut found: Vec<String> = ODD.iter().filter_map(|(test, what)| count(samples, test, what)).collect();
    let mut seen = HashSet::new();
    let again: HashSet<usize> =
        samples.iter().filter(|sample| !seen.insert(fingerprint(sample))).map(|sample| sample.line).collect();
    found.extend(count(samples, |sample| again.contains(&sample.line), "the text of an earlier sample"));
    let mut unread: BTreeMap<&str, usize> = BTreeMap::new();
    for key in samples.iter().flat_map(|sample| &sample.unread) {
        *unread.entry(key).or_default() += 1;
    }
    if !unread.is_empty() {
        let keys = unread.iter().map(|(key, count)| format!("{key} ({count})")).collect();
        found.push(format!("keys that are not read, with their samples: {}", some_of(keys)));
    }
    found
}

/// Lists names, and the number of further ones if there are many.
pub(super) fn some_of(names: Vec<String>) -> String {
    let more = names.len().saturating_sub(MOST_NAMES);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

/// The number of samples of `others` that are also in `samples`.
pub fn shared(samples: &[Sample], others: &[Sample]) -> usize {
    let known: HashSet<u64> = samples.iter().map(fingerprint).collect();
    others.iter().filter(|sample| known.contains(&fingerprint(sample))).count()
}

fn count(samples: &[Sample], test: impl Fn(&Sample) -> bool, what: &str) -> Option<String> {
    let mut lines = samples.iter().filter(|sample| test(sample)).map(|sample| sample.line);
    let first = lines.next()?;
    Some(format!(
        "{} of {} samples have {what} (the first in line {first})",
        1 + lines.count(),
        samples.len()
    ))
}

/// A hash of the content of a sample.
fn fingerprint(sample: &Sample) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{:?}", sample.body).hash(&mut hasher);
    sample.pictures.hash(&mut hasher);
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
        Body::Text(_) | Body::Document(_) => false,
    }
}

fn repeats_a_role(sample: &Sample) -> bool {
    matches!(&sample.body, Body::Messages(turns) if turns.windows(2).any(|pair| pair[0].role == pair[1].role))
}

fn splits_at_a_space(sample: &Sample) -> bool {
    let Body::Completion { prompt, completion } = &sample.body else { return false };
    prompt.ends_with([' ', '\t']) && !completion.starts_with(char::is_whitespace)
}
