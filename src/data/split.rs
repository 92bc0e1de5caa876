//! Samples that are set apart for validation.

use super::sample::{Body, Sample};
use crate::rng::Stream;
use crate::text::Role;

/// Sets about this share of the samples apart, at least one: those for training and those for validation.
///
/// What is asked decides, so that all samples with one question are on one side, also in a file that grew. Of plain text the
/// end is set apart, from a line break on where one is near.
pub fn set_apart(samples: Vec<Sample>, share: f64) -> (Vec<Sample>, Vec<Sample>) {
    if let [Sample { body: Body::Document(text), .. }] = &samples[..] {
        let Some(at) = cut(text, share) else { return (samples, Vec::new()) };
        let [first, last] = [&text[..at], &text[at..]].map(|text| Body::Document(text.into()));
        let part = |body| vec![Sample { body, ..samples[0].clone() }];
        return (part(first), part(last));
    }
    let drawn: Vec<f64> = samples.iter().map(|sample| drawn(&question(sample))).collect();
    let lowest = drawn.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = drawn.iter().copied().fold(0.0, f64::max);
    let most = share.max(lowest).min(highest.next_down());
    let (mut train, mut valid) = (Vec::new(), Vec::new());
    for (sample, drawn) in samples.into_iter().zip(drawn) {
        if drawn <= most { valid.push(sample) } else { train.push(sample) }
    }
    (train, valid)
}

/// A number in 0 to 1 that belongs to a text.
fn drawn(text: &str) -> f64 {
    f64::from(Stream::new(0).named("valid share").named(text).bits(0)) / f64::from(u32::MAX)
}

/// What a sample asks: all that is not its answer.
fn question(sample: &Sample) -> String {
    match &sample.body {
        Body::Completion { prompt, .. } => prompt.clone(),
        Body::Text(text) | Body::Document(text) => text.clone(),
        Body::Messages(messages) => {
            let asked = messages.iter().filter(|message| message.role != Role::Assistant);
            asked.map(|message| format!("{}: {}\n", message.role.name(), message.content)).collect()
        }
    }
}

/// Where a text is cut so that about this share is behind it: at the nearest line break that changes the share by less than
/// half, else where it falls.
fn cut(text: &str, share: f64) -> Option<usize> {
    let mut exact = ((1.0 - share) * text.len() as f64) as usize;
    while !text.is_char_boundary(exact) {
        exact += 1;
    }
    let before = text[..exact].rfind('\n').map(|at| at + 1);
    let after = text[exact..].find('\n').map(|at| exact + at + 1);
    let least = share.min(1.0 - share) * text.len() as f64;
    let near = |at: &usize| 2.0 * (at.abs_diff(exact) as f64) < least;
    let at = [before, after].into_iter().flatten().filter(near).min_by_key(|at| at.abs_diff(exact));
    let at = at.unwrap_or(exact);
    (!text[..at].trim().is_empty() && !text[at..].trim().is_empty()).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(prompt: String, completion: &str) -> Sample {
        Sample::new(1, None, Body::Completion { prompt, completion: completion.into() })
    }

    #[test]
    fn questions_stay_together_and_where_they_were() {
        let samples =
            |n: usize| (0..n).map(|i| asks(format!("question {}", i / 2), &i.to_string())).collect();
        let (train, valid) = set_apart(samples(2000), 0.1);
        assert!((140..260).contains(&valid.len()), "{}", valid.len());
        assert_eq!(train.len() + valid.len(), 2000);
        let questions =
            |samples: &[Sample]| samples.iter().map(question).collect::<std::collections::HashSet<_>>();
        assert!(questions(&train).is_disjoint(&questions(&valid)));
        let (_, of_more) = set_apart(samples(3000), 0.1);
        assert_eq!(of_more[..valid.len()], valid);
    }

    #[test]
    fn both_sides_get_a_sample_where_two_questions_are() {
        for share in [1e-9, 0.5, 0.999_999] {
            let (train, valid) = set_apart(vec![asks("a".into(), "1"), asks("b".into(), "2")], share);
            assert_eq!([train.len(), valid.len()], [1, 1], "{share}");
        }
        let (train, valid) = set_apart(vec![asks("a".into(), "1"), asks("a".into(), "2")], 0.5);
        assert_eq!([train.len(), valid.len()].iter().sum::<usize>(), 2);
        assert!(train.is_empty() || valid.is_empty());
    }

    #[test]
    fn the_end_of_a_text_is_set_apart() {
        let document = |text: &str| vec![Sample::new(1, None, Body::Document(text.into()))];
        let (train, valid) = set_apart(document("one two\nthree\nfour\n"), 0.3);
        assert_eq!(train, document("one two\nthree\n"));
        assert_eq!(valid, document("four\n"));
        let (train, valid) = set_apart(document("\u{e9}\u{e9}"), 0.6);
        assert_eq!([train, valid], [document("\u{e9}"), document("\u{e9}")]);
        // A paragraph is longer than the share.
        let (train, valid) = set_apart(document(&format!("title\n{}", "word ".repeat(100))), 0.1);
        let bytes = |samples: &[Sample]| question(&samples[0]).len();
        assert_eq!([bytes(&train), bytes(&valid)], [455, 51]);
        assert!(set_apart(document("a"), 0.5).1.is_empty());
    }
}
