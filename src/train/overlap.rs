//! How much an answer and the wanted one have in common: equality, F1 over words, ROUGE-L.

use std::collections::HashMap;

/// An answer beside the wanted one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// Equal but for white space around.
    pub exact: bool,
    /// F1 of their words as the script of SQuAD counts it.
    pub f1: f64,
    /// F1 of their longest common subsequence of words as the package rouge-score counts it, without stemming.
    pub rouge_l: f64,
}

impl Judged {
    /// Compares an answer with the wanted one.
    ///
    /// ```
    /// use mixlora::train::Judged;
    /// let judged = Judged::of("The cat sat down.", "a cat sat");
    /// // Of "cat sat down" and "cat sat" two words are the same; with articles the sequences have four and three words.
    /// assert_eq!((judged.exact, judged.f1), (false, 0.8));
    /// assert!((judged.rouge_l - 4.0 / 7.0).abs() < 1e-15);
    /// ```
    pub fn of(answer: &str, reference: &str) -> Self {
        Judged {
            exact: answer.trim() == reference.trim(),
            f1: word_f1(answer, reference),
            rouge_l: rouge_l(answer, reference),
        }
    }
}

/// `2 p r / (p + r)` where so many words of both are the same.
fn f1(same: usize, answer: usize, reference: usize) -> f64 {
    if same == 0 {
        return 0.0;
    }
    let precision = same as f64 / answer as f64;
    let recall = same as f64 / reference as f64;
    2.0 * precision * recall / (precision + recall)
}

/// F1 of the words of two texts, without case, punctuation and articles. Where one has none, 1 if the other has none either.
fn word_f1(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (plain(answer), plain(reference));
    let (answer, reference) = (words(&answer), words(&reference));
    if answer.is_empty() || reference.is_empty() {
        return f64::from(u8::from(answer == reference));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    reference.iter().for_each(|word| *left.entry(word).or_default() += 1);
    let mut same = 0;
    for word in &answer {
        if let Some(left) = left.get_mut(word).filter(|left| **left > 0) {
            *left -= 1;
            same += 1;
        }
    }
    f1(same, answer.len(), reference.len())
}

/// A text in lower case without punctuation of ASCII, and with a space in the place of each article.
fn plain(text: &str) -> String {
    let text: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let mut without = String::with_capacity(text.len());
    for run in text.split_inclusive(|c: char| !c.is_alphanumeric()) {
        let end = run.chars().next_back().filter(|c| !c.is_alphanumeric()).map_or(0, char::len_utf8);
        let (word, behind) = run.split_at(run.len() - end);
        without += if matches!(word, "a" | "an" | "the") { " " } else { word };
        without += behind;
    }
    without
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// ROUGE-L: F1 by the longest common subsequence of the runs of letters and digits of ASCII.
fn rouge_l(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (answer.to_lowercase(), reference.to_lowercase());
    let (answer, reference) = (runs(&answer), runs(&reference));
    f1(common(&answer, &reference), answer.len(), reference.len())
}

fn runs(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|run| !run.is_empty()).collect()
}

/// The length of the longest common subsequence.
fn common(a: &[&str], b: &[&str]) -> usize {
    let mut row = vec![0usize; b.len() + 1];
    for x in a {
        let mut before = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { before + 1 } else { above.max(row[j]) };
            before = above;
        }
    }
    row[b.len()]
}
