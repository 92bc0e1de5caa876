//! Rows in groups that chose the same entry: a CPU reads the entry's pool rows once for all of them.

use super::slots::{SlotView, Slots};
use std::ops::Range;

/// Rows from which it serves to group them.
const GROUPED_FROM: usize = 32;
/// Pool rows that are multiplied at once: entries have a multiple of them.
pub(crate) const QUAD: usize = 4;

/// A row and which of its choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    pub row: usize,
    /// 0 for its first.
    pub of: usize,
}

/// Choices of a range of rows for one linear, sorted by entry; those of an entry are in the order of rows.
pub(crate) struct ByEntry {
    starts: Vec<usize>,
    choices: Vec<Choice>,
}

impl ByEntry {
    /// The entries that were chosen, and by which choices.
    pub fn groups(&self) -> impl Iterator<Item = (usize, &[Choice])> {
        let ranges = self.starts.windows(2).map(|w| &self.choices[w[0]..w[1]]);
        ranges.enumerate().filter(|(_, choices)| !choices.is_empty())
    }
}

impl Slots {
    /// Whether the products of so many rows are best grouped by entry: every row chooses for itself, and an entry has
    /// enough pool rows to be worth it.
    pub fn grouped(&self, rows: usize) -> bool {
        !self.dense && self.units.is_tokens() && self.block.is_multiple_of(QUAD) && rows >= GROUPED_FROM
    }
}

impl SlotView<'_> {
    /// The choices `of` (their ranks) of `rows`, which are units of their own, for linear `linear` of these slots.
    pub fn by_entry(&self, rows: Range<usize>, linear: usize, of: Range<usize>) -> ByEntry {
        let entries = self.entries();
        let mut starts = vec![0; entries + 2];
        let chosen = |row: usize| self.chosen(row, linear)[of.clone()].iter().map(|&e| e as usize);
        for e in rows.clone().flat_map(&chosen) {
            starts[e + 2] += 1;
        }
        for e in 2..entries + 2 {
            starts[e] += starts[e - 1];
        }
        let mut choices = vec![Choice { row: 0, of: 0 }; starts[entries + 1]];
        for row in rows {
            for (e, of) in chosen(row).zip(of.clone()) {
                choices[starts[e + 1]] = Choice { row, of };
                starts[e + 1] += 1;
            }
        }
        starts.pop();
        ByEntry { starts, choices }
    }
}

#[cfg(test)]
mod tests {
    use crate::routing::{Selection, Units};
    use crate::{Device, Tensor};

    #[test]
    fn every_choice_is_in_the_group_of_its_entry() {
        let idx = [[2, 0], [1, 2], [2, 1], [0, 2], [2, 1]];
        let cpu = Device::cpu();
        let flat = Tensor::from_u32(&cpu, &[1, 1, 5, 2], idx.as_flattened()).unwrap();
        let selection = Selection::new(flat, None, &Units::tokens(5), 4, 4).unwrap();
        let slots = selection.slots_b(0);
        let groups = |of| {
            let sorted = slots.view().by_entry(1..5, 0, of);
            sorted.groups().map(|(e, c)| (e, c.iter().map(|c| (c.row, c.of)).collect())).collect::<Vec<_>>()
        };
        assert_eq!(groups(1..2), [(1, vec![(2, 1), (4, 1)]), (2, vec![(1, 1), (3, 1)])]);
        let all = groups(0..2);
        assert_eq!(all[0], (0, vec![(3, 0)]));
        assert_eq!(all[1], (1, vec![(1, 0), (2, 1), (4, 1)]));
        assert_eq!(all[2], (2, vec![(1, 1), (2, 0), (3, 1), (4, 0)]));
        assert_eq!(all.len(), 3);
    }
}
