//! What of a method's pools can be dropped, and what goes with it.

/// How a part that goes with the entries of a pool holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// So many rows for each entry, one entry behind the other.
    Rows(usize),
    /// A column for each.
    Columns,
}

/// Entries that are chosen together: of one side where A and B have choices of their own, else of both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entries {
    /// The parts of a linear with a row for each entry, whose norms count in its importance.
    pub factors: &'static [&'static str],
    /// Parts that go with the entries: routers, biases.
    pub beside: Vec<(&'static str, Beside)>,
}

/// Whether rows of a method's pools can be dropped after training.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prunes {
    /// They cannot: why.
    No(&'static str),
    /// The pools of rank-1 rows of each linear, of which a router chooses.
    Rows {
        /// The option that says how many entries a pool has.
        size: &'static str,
        /// A's side and then B's, where each has choices of its own.
        sides: Vec<Entries>,
    },
}

impl Prunes {
    /// A pool of rows that A and B share.
    pub fn pairs(size: &'static str, beside: Vec<(&'static str, Beside)>) -> Self {
        Prunes::Rows { size, sides: vec![Entries { factors: &["lora_a", "lora_b"], beside }] }
    }
}
