//! How far a target is, in a file that outlives the process which tries inputs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Counts of a target.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Progress {
    /// Inputs that were begun; the last one is being tried.
    pub begun: u64,
    /// Inputs that the parser took.
    pub accepted: u64,
    pub findings: u64,
    /// Most bytes that one input took.
    pub bytes: u64,
    /// Longest time of an input.
    pub nanoseconds: u64,
}

impl Progress {
    pub fn write(&self, file: &File) -> io::Result<()> {
        let counts = [self.begun, self.accepted, self.findings, self.bytes, self.nanoseconds];
        file.write_all_at(bytemuck::bytes_of(&counts), 0)
    }

    pub fn read(file: &File) -> io::Result<Self> {
        let mut counts = [0; 5];
        file.read_exact_at(bytemuck::bytes_of_mut(&mut counts), 0)?;
        let [begun, accepted, findings, bytes, nanoseconds] = counts;
        Ok(Progress { begun, accepted, findings, bytes, nanoseconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_back() {
        let file = tempfile::tempfile().unwrap();
        let progress = Progress { begun: 5, accepted: 4, findings: 3, bytes: 2, nanoseconds: 1 };
        progress.write(&file).unwrap();
        assert_eq!(Progress::read(&file).unwrap(), progress);
    }
}
