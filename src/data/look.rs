//! What the pictures of a file's samples are.

use super::Sample;
use super::problems::Problems;
use super::survey::some_of;
use crate::picture::{Alpha, Limits};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Counts of the pictures of a file. One that several samples have counts for each.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pictures {
    pub pictures: usize,
    /// Samples that have any.
    pub samples: usize,
    /// Samples with a picture that cannot be read, where those are skipped.
    pub bad: usize,
    pub kinds: BTreeMap<&'static str, usize>,
    /// The least and the largest width, turned upright.
    pub width: [usize; 2],
    /// The least and the largest height, turned upright.
    pub height: [usize; 2],
    /// Pictures that are turned or mirrored by their orientation.
    pub turned: usize,
    /// Pictures that may be transparent.
    pub alpha: usize,
    /// What is odd about pictures, with their number.
    pub notes: BTreeMap<String, usize>,
}

/// A sample's pictures, or what is wrong with one.
type Seen = std::result::Result<Vec<(crate::picture::About, Vec<String>)>, String>;

impl Pictures {
    /// Opens the pictures of samples: their headers, and with `pixels` all of them. With `skip`, samples with one that
    /// cannot be read are counted. `step` is called after each sample, by several threads.
    ///
    /// # Errors
    /// Pictures cannot be read; all are listed with the lines of their samples, up to a limit.
    pub fn of(
        path: &Path,
        samples: &[Sample],
        pixels: bool,
        skip: bool,
        step: &(dyn Fn() + Sync),
    ) -> Result<Self> {
        let limits = Limits::default();
        let look = |sample: &Sample| -> Seen {
            let one = |source: &super::PictureSource| -> Result<_> {
                let file = source.open(&limits)?;
                let about = file.about().clone();
                let notes = if pixels { file.decode(Alpha::Drop)?.notes } else { about.notes.clone() };
                Ok((about, notes))
            };
            let seen = sample.pictures.iter().map(one).collect::<Result<_>>();
            step();
            seen.map_err(|error: Error| error.to_string())
        };
        let seen: Vec<Seen> = samples.par_iter().map(look).collect();
        let mut found = Pictures { width: [usize::MAX, 0], height: [usize::MAX, 0], ..Pictures::default() };
        let mut problems = Problems::default();
        for (sample, seen) in samples.iter().zip(seen) {
            match seen {
                Ok(seen) => {
                    found.samples += usize::from(!seen.is_empty());
                    seen.into_iter().for_each(|(about, notes)| found.add(&about, notes));
                }
                Err(_) if skip => found.bad += 1,
                Err(what) => problems.push(sample.problem(what)),
            }
        }
        if found.pictures == 0 {
            found.width = [0, 0];
            found.height = [0, 0];
        }
        problems.result(path, found)
    }

    fn add(&mut self, about: &crate::picture::About, notes: Vec<String>) {
        let wider = |[least, most]: [usize; 2], n: usize| [least.min(n), most.max(n)];
        self.pictures += 1;
        self.width = wider(self.width, about.width);
        self.height = wider(self.height, about.height);
        self.turned += usize::from(about.orientation > 1);
        self.alpha += usize::from(about.alpha);
        *self.kinds.entry(about.kind).or_default() += 1;
        for note in notes {
            *self.notes.entry(note).or_default() += 1;
        }
    }

    /// Sentences about them: what they are, then what is odd.
    pub fn sentences(&self) -> Vec<String> {
        let mut said = Vec::new();
        if self.bad > 0 {
            said.push(format!("{} samples are left out: a picture cannot be read", self.bad));
        }
        if self.pictures == 0 {
            return said;
        }
        let kinds: Vec<String> = self.kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        let from_to = |[least, most]: [usize; 2]| {
            if least == most { format!("{least}") } else { format!("{least} to {most}") }
        };
        said.push(format!(
            "{} pictures in {} samples: {}; {} wide, {} high; {} turned by their orientation, {} with transparency",
            self.pictures,
            self.samples,
            kinds.join(", "),
            from_to(self.width),
            from_to(self.height),
            self.turned,
            self.alpha
        ));
        let notes: Vec<String> = self.notes.iter().map(|(what, n)| format!("{n} {what}")).collect();
        if !notes.is_empty() {
            said.push(format!("of these pictures {}", some_of(notes)));
        }
        said
    }
}
