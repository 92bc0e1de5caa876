//! Inputs from seeds: a few random changes each, the same for the same number.

use std::ops::Range;

/// Values that stand at the edges of types.
const NUMBERS: [&str; 14] = [
    "0",
    "1",
    "-1",
    "7",
    "255",
    "65536",
    "2147483648",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "1e308",
    "1e999",
    "1e-320",
    "0.5",
];
const OPEN: [&str; 8] = ["[", "{", "{\"a\":", "(", "[[", "{{ ", "{% if 1 %}", "-"];
/// Bytes of a file that are changed more often.
const NEAR_START: usize = 1024;
/// Changes of one input at most.
const MOST_CHANGES: usize = 6;
/// Most times, as a power of two, that an opening bracket is repeated.
const DEEPEST: usize = 16;

/// Numbers by SplitMix64.
pub struct Random(u64);

impl Random {
    /// The numbers of one input of a run.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut mixed = Random(seed);
        Random(mixed.next() ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below a bound, or 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn one_of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }

    /// A place in a text or behind it, more often near its start, where headers are.
    fn place(&mut self, len: usize) -> usize {
        let most = [len, len.min(NEAR_START)][self.below(2)];
        self.below(most + 1)
    }

    fn range(&mut self, len: usize) -> Range<usize> {
        let start = self.place(len);
        let most = (len - start).min(1 << self.below(10));
        start..start + self.below(most + 1)
    }
}

/// Makes inputs for one target.
pub struct Mutator {
    pub seeds: Vec<Vec<u8>>,
    pub words: &'static [&'static str],
}

impl Mutator {
    /// The input of a number.
    pub fn input(&self, random: &mut Random) -> Vec<u8> {
        let mut input = self.seeds[random.below(self.seeds.len())].clone();
        let changes = 1 + random.below(MOST_CHANGES).min(random.below(MOST_CHANGES));
        (0..changes).for_each(|_| self.change(&mut input, random));
        input
    }

    fn change(&self, input: &mut Vec<u8>, random: &mut Random) {
        let len = input.len();
        let place = random.place(len);
        match random.below(16) {
            0 => flip(input, place, random),
            1 => set(input, place, random),
            2 => put(input, place..place, self.word(random).as_bytes()),
            3..=5 => put(input, token(input, place), self.word(random).as_bytes()),
            6 => {
                let other = self.seeds[random.below(self.seeds.len())].clone();
                let piece = token(&other, random.place(other.len()));
                put(input, token(input, place), &other[piece]);
            }
            7 => {
                let other = &self.seeds[random.below(self.seeds.len())];
                let piece = random.range(other.len());
                put(input, place..place, &other[piece]);
            }
            8 | 9 => number(input, place, random),
            10 | 11 => counted(input, place, self.word(random).as_bytes()),
            12 => input.truncate(len - random.place(len)),
            13 => drop(input.drain(random.range(len))),
            14 => {
                let piece = input[random.range(len)].to_vec();
                put(input, place..place, &piece);
            }
            _ => {
                let deep = 1 << random.below(DEEPEST).min(random.below(DEEPEST));
                put(input, place..place, random.one_of(&OPEN).repeat(deep).as_bytes());
            }
        }
    }

    fn word(&self, random: &mut Random) -> &'static str {
        match random.below(2) {
            0 if !self.words.is_empty() => random.one_of(self.words),
            _ => random.one_of(&NUMBERS),
        }
    }
}

fn put(input: &mut Vec<u8>, at: Range<usize>, bytes: &[u8]) {
    input.splice(at, bytes.iter().copied());
}

fn flip(input: &mut [u8], place: usize, random: &mut Random) {
    if let Some(byte) = input.get_mut(place) {
        *byte ^= 1 << random.below(8);
    }
}

fn set(input: &mut [u8], place: usize, random: &mut Random) {
    if let Some(byte) = input.get_mut(place) {
        *byte = random.below(256) as u8;
    }
}

/// The word, number or quoted text that begins at a place or next behind it.
fn token(input: &[u8], place: usize) -> Range<usize> {
    let of_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.+".contains(byte);
    let begins = input[place..].iter().position(|byte| of_word(byte) || *byte == b'"');
    let Some(start) = begins.map(|at| place + at) else { return place..place };
    let rest = &input[start + 1..];
    let end = match input[start] {
        b'"' => rest.iter().position(|byte| *byte == b'"').map(|at| at + 1),
        _ => rest.iter().position(|byte| !of_word(byte)),
    };
    start..start + 1 + end.unwrap_or(rest.len())
}

/// Writes a number of a binary format: small, an edge of a type, or near one that stands there.
fn number(input: &mut [u8], place: usize, random: &mut Random) {
    let width = [4, 8][random.below(2)];
    let Some(field) = input.get_mut(place..place + width) else { return };
    let mut old = [0; 8];
    old[..width].copy_from_slice(field);
    let near = u64::from_le_bytes(old).wrapping_add(random.below(5) as u64).wrapping_sub(2);
    let edges = [near, random.below(16) as u64, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX];
    field.copy_from_slice(&edges[random.below(edges.len())].to_le_bytes()[..width]);
}

/// Farthest from a place that a counted text is looked for.
const NEAR: usize = 64;

/// Replaces a text that follows its length in 8 bytes, as in GGUF, and the length with it.
fn counted(input: &mut Vec<u8>, place: usize, word: &[u8]) {
    let length = |at: usize| {
        let count = input.get(at..at + 8)?;
        let count = usize::try_from(u64::from_le_bytes(count.try_into().ok()?)).ok()?;
        let fits = (1..=NEAR).contains(&count) && at + 8 + count <= input.len();
        fits.then_some(at..at + 8 + count)
    };
    let Some(found) = (place..place + NEAR).find_map(length) else { return };
    let bytes = [&(word.len() as u64).to_le_bytes()[..], word].concat();
    put(input, found, &bytes);
}

/// Makes the length before the header of a safetensors file that of its JSON, where it ends.
pub fn frame(input: &mut [u8]) {
    let Some((length, rest)) = input.split_first_chunk_mut::<8>() else { return };
    let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<serde_json::Value>();
    if let Some(Ok(_)) = values.next() {
        *length = (values.byte_offset() as u64).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_repeat_and_differ() {
        let mutator = Mutator { seeds: vec![b"{\"a\": [1, 2]}".to_vec()], words: &["word"] };
        let all: Vec<Vec<u8>> = (0..200).map(|i| mutator.input(&mut Random::new(1, i))).collect();
        let again: Vec<Vec<u8>> = (0..200).map(|i| mutator.input(&mut Random::new(1, i))).collect();
        assert_eq!(all, again);
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert!(distinct.len() > 150, "{}", distinct.len());
        assert!(all.iter().any(|input| input.windows(4).any(|part| part == b"word")));
    }

    #[test]
    fn tokens_are_whole() {
        let text = b"{\"ab\": -1.5}";
        assert_eq!(token(text, 0), 1..5);
        assert_eq!(token(text, 5), 7..11);
        assert_eq!(token(text, 12), 12..12);
    }

    #[test]
    fn lengths_follow_their_texts() {
        let mut text = [&3u64.to_le_bytes()[..], b"abc!"].concat();
        counted(&mut text, 0, b"longer");
        assert_eq!(text, [&6u64.to_le_bytes()[..], b"longer!"].concat());
        let mut file = [&[9; 8][..], b"{\"a\":{}}data"].concat();
        frame(&mut file);
        assert_eq!(file[0], 8);
    }
}
