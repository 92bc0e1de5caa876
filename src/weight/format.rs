//! Storage formats: how a row stands in a file, and how it is packed into 32-bit words.
//!
//! docs/FORMATS.md has the layouts in words. The block formats are ggml's.

use std::ops::Range;

/// How the elements of a [`Weight`](super::Weight) are stored.
///
/// The `Q` formats are ggml's: blocks of 32 elements, or of 256 for `K`, with a scale (and a minimum) per block.
#[allow(non_camel_case_types)] // their names everywhere else
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// Where the parts of a block stand in a file, as (first byte, bytes).
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Elements.
    pub block: usize,
    pub bytes: usize,
    /// Quants; K blocks with everything that stands beside them.
    pub quants: (usize, usize),
    /// The fifth bits.
    pub high: (usize, usize),
    /// One half (the scale), or two (scale and minimum), or nothing.
    pub scale: (usize, usize),
}

const fn block(
    len: usize,
    bytes: usize,
    quants: (usize, usize),
    high: (usize, usize),
    scale: (usize, usize),
) -> Option<Layout> {
    Some(Layout { block: len, bytes, quants, high, scale })
}

fn le(b: &[u8]) -> u32 {
    b.iter().rev().fold(0, |w, &b| w << 8 | b as u32)
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 11] = [
        Format::F32,
        Format::F16,
        Format::Bf16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
    ];

    /// Lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::F16 => "f16",
            Format::Bf16 => "bf16",
            Format::Q8_0 => "q8_0",
            Format::Q4_0 => "q4_0",
            Format::Q4_1 => "q4_1",
            Format::Q5_0 => "q5_0",
            Format::Q5_1 => "q5_1",
            Format::Q4_K => "q4_k",
            Format::Q5_K => "q5_k",
            Format::Q6_K => "q6_k",
        }
    }

    pub(super) const fn layout(self) -> Option<Layout> {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => None,
            Format::Q8_0 => block(32, 34, (2, 32), (0, 0), (0, 2)),
            Format::Q4_0 => block(32, 18, (2, 16), (0, 0), (0, 2)),
            Format::Q4_1 => block(32, 20, (4, 16), (0, 0), (0, 4)),
            Format::Q5_0 => block(32, 22, (6, 16), (2, 4), (0, 2)),
            Format::Q5_1 => block(32, 24, (8, 16), (4, 4), (0, 4)),
            Format::Q4_K => block(256, 144, (0, 144), (0, 0), (0, 0)),
            Format::Q5_K => block(256, 176, (0, 176), (0, 0), (0, 0)),
            Format::Q6_K => block(256, 210, (0, 208), (0, 0), (208, 2)),
        }
    }

    /// Where the halves of a block stand that scale it: for blocks alone.
    pub(super) fn scales_in_block(self) -> Option<Range<usize>> {
        let layout = self.layout()?;
        Some(match layout.scale {
            // Those of most K blocks stand in front, and go with the quants.
            (_, 0) => 0..4,
            (first, bytes) => first..first + bytes,
        })
    }

    /// The format for rows of so many values: this one, or the nearest of smaller blocks, as llama.cpp falls back. What has
    /// no whole blocks of 32 is f16.
    ///
    /// ```
    /// use mixlora::Format;
    /// assert_eq!(Format::Q4_K.for_columns(4096), Format::Q4_K);
    /// assert_eq!(Format::Q4_K.for_columns(576), Format::Q5_0);
    /// assert_eq!(Format::Q6_K.for_columns(576), Format::Q8_0);
    /// assert_eq!(Format::Q8_0.for_columns(70), Format::F16);
    /// ```
    pub const fn for_columns(self, cols: usize) -> Format {
        let smaller = match self {
            Format::Q4_K => Format::Q5_0,
            Format::Q5_K => Format::Q5_1,
            Format::Q6_K => Format::Q8_0,
            other => other,
        };
        if cols.is_multiple_of(self.block_len()) {
            self
        } else if cols.is_multiple_of(smaller.block_len()) {
            smaller
        } else {
            Format::F16
        }
    }

    /// Elements of a block; a row is a whole number of blocks.
    pub const fn block_len(self) -> usize {
        match self.layout() {
            Some(l) => l.block,
            None => 1,
        }
    }

    /// Bytes of a block in a file.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::Bf16 => 2,
            _ => match self.layout() {
                Some(l) => l.bytes,
                None => 1,
            },
        }
    }

    /// Bytes of a row of `cols` elements in a file; none if that is no whole number of blocks, or too large.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// 32-bit words of a packed row of `cols` elements; a row starts at a word.
    pub const fn row_words(self, cols: usize) -> usize {
        let Some(l) = self.layout() else {
            return if self.block_bytes() == 4 { cols } else { cols.div_ceil(2) };
        };
        let blocks = cols.div_ceil(l.block);
        blocks * ((l.quants.1 + l.high.1) / 4) + (blocks * (l.scale.1 / 2)).div_ceil(2)
    }

    /// A row as it stands in a file, packed: all quants, then all fifth bits, then all scales.
    pub(super) fn pack(self, row: &[u8], words: &mut [u32]) {
        let Some(l) = self.layout() else {
            words.iter_mut().zip(row.chunks(4)).for_each(|(w, b)| *w = le(b));
            return;
        };
        let blocks = row.len() / l.bytes;
        let (quants, rest) = words.split_at_mut(blocks * l.quants.1 / 4);
        let (high, scales) = rest.split_at_mut(blocks * l.high.1 / 4);
        scales.fill(0);
        for (b, block) in row.chunks_exact(l.bytes).enumerate() {
            let part = |(first, bytes): (usize, usize)| &block[first..first + bytes];
            let n = l.quants.1 / 4;
            let (q, _) = part(l.quants).as_chunks();
            quants[b * n..][..n].iter_mut().zip(q).for_each(|(w, &q)| *w = u32::from_le_bytes(q));
            if l.high.1 > 0 {
                high[b] = le(part(l.high));
            }
            match l.scale.1 {
                2 => scales[b / 2] |= le(part(l.scale)) << (16 * (b % 2)),
                4 => scales[b] = le(part(l.scale)),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_ggml() {
        let bytes = Format::ALL.map(|f| (f.block_len(), f.block_bytes()));
        let quants = [(32, 34), (32, 18), (32, 20), (32, 22), (32, 24), (256, 144), (256, 176), (256, 210)];
        assert_eq!(bytes[..3], [(1, 4), (1, 2), (1, 2)]);
        assert_eq!(bytes[3..], quants);
        assert_eq!(Format::Q8_0.row_bytes(33), None);
        assert_eq!(Format::F32.row_bytes(usize::MAX / 2), None);
        // Scales of Q8_0 stand in pairs: three of them take two words.
        assert_eq!((Format::Q8_0.row_words(96), Format::Q6_K.row_words(768)), (24 + 2, 3 * 52 + 2));
        assert_eq!((Format::Q4_1.row_words(96), Format::Q5_1.row_words(96)), (15, 18));
    }
}
