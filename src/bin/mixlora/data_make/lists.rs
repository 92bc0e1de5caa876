//! What rules do with lists of words and with words.

pub fn last(list: &[&'static str]) -> &'static str {
    list[list.len() - 1]
}

pub fn but_last<'a>(list: &'a [&'static str]) -> &'a [&'static str] {
    &list[..list.len() - 1]
}

pub fn backwards(list: &[&'static str]) -> Vec<&'static str> {
    list.iter().rev().copied().collect()
}

pub fn letters(list: &[&'static str], letter: fn(&'static str) -> &'static str) -> Vec<&'static str> {
    list.iter().map(|word| letter(word)).collect()
}

/// Words are ASCII.
pub fn first_letter(word: &'static str) -> &'static str {
    &word[..1]
}

pub fn last_letter(word: &'static str) -> &'static str {
    &word[word.len() - 1..]
}
