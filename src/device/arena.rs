//! Memory of the CPU device: pieces of large mappings, on huge pages where the system has them.
//!
//! A model is read from end to end for every token. On pages of 4 KiB a good part of that time is spent on finding
//! the pages: measured, generation from quantised weights is a sixth slower.

use memmap2::MmapMut;
use std::fmt;
use std::io::Result;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Bytes of a mapping; larger pieces have their own.
const MAPPING: usize = 32 << 20;
/// Bytes at which pieces begin.
const ALIGN: usize = 64;

/// Hands out pieces.
#[derive(Debug, Default)]
pub(super) struct Arena {
    /// The mapping that has room left, and the bytes of it that are handed out.
    current: Option<(Arc<Mapping>, usize)>,
}

/// Kept alive by its pieces.
struct Mapping {
    map: MmapMut,
    start: *mut u8,
}

// SAFETY: the mapping itself is never read or written, only its pieces are, and no two of them overlap.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl fmt::Debug for Mapping {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Mapping({} bytes)", self.map.len())
    }
}

/// 32-bit words that nobody else has.
#[derive(Debug, Default)]
pub(super) struct Piece {
    /// None for no words.
    mapping: Option<Arc<Mapping>>,
    /// In bytes.
    first: usize,
    /// In words.
    len: usize,
}

impl Arena {
    /// `len` words; zeros, if no piece that went before had them.
    pub fn piece(&mut self, len: usize) -> Result<Piece> {
        let bytes = (4 * len).next_multiple_of(ALIGN);
        if bytes > MAPPING / 2 {
            return Ok(Piece { mapping: Some(Arc::new(Mapping::new(bytes)?)), first: 0, len });
        }
        let (mapping, used) = match self.current.take().filter(|(m, used)| used + bytes <= m.map.len()) {
            Some(current) => current,
            None => (Arc::new(Mapping::new(MAPPING)?), 0),
        };
        self.current = Some((mapping.clone(), used + bytes));
        Ok(Piece { mapping: Some(mapping), first: used, len })
    }
}

impl Mapping {
    fn new(bytes: usize) -> Result<Mapping> {
        let mut map = MmapMut::map_anon(bytes.max(1))?;
        // Only a wish: without huge pages everything works.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = map.as_mut_ptr();
        Ok(Mapping { map, start })
    }
}

impl Piece {
    fn at(&self) -> *mut u32 {
        match &self.mapping {
            // SAFETY: `first` lies in the mapping.
            Some(mapping) => unsafe { mapping.start.add(self.first).cast() },
            None => std::ptr::NonNull::dangling().as_ptr(),
        }
    }
}

impl Deref for Piece {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        // SAFETY: `len` aligned words of the mapping, which this piece keeps alive and has for itself.
        unsafe { std::slice::from_raw_parts(self.at(), self.len) }
    }
}

impl DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above, and this piece is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at(), self.len) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // The mapping stays as long as other pieces of it do: the pages of this one are given back at once.
        #[cfg(target_os = "linux")]
        if let Some(mapping) = &self.mapping {
            // The largest pages of any Linux: whole ones only, or those of a neighbour would go too.
            const PAGE: usize = 64 << 10;
            let from = self.first.next_multiple_of(PAGE);
            let to = (self.first + 4 * self.len) / PAGE * PAGE;
            if from < to {
                let advice = memmap2::UncheckedAdvice::DontNeed;
                // SAFETY: nobody reads these bytes again: pieces are never handed out twice.
                let _ = unsafe { mapping.map.unchecked_advise_range(advice, from, to - from) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_apart_and_zero() {
        let mut arena = Arena::default();
        let sizes = [1, 16, 17, 5000, 0, 3 << 20, 1 << 20, 9 << 20, 40];
        let mut all: Vec<Piece> = sizes.iter().map(|&n| arena.piece(n).unwrap()).collect();
        for (i, (piece, n)) in all.iter_mut().zip(sizes).enumerate() {
            assert_eq!(piece.len(), n);
            assert!(piece.iter().all(|w| *w == 0));
            assert_eq!(piece.as_ptr() as usize % ALIGN, 0);
            piece.fill(i as u32 + 1);
        }
        all.swap_remove(3);
        drop(arena);
        let mut left: Vec<u32> = vec![];
        for piece in all.iter().filter(|p| !p.is_empty()) {
            assert!(piece.iter().all(|w| *w == piece[0]));
            left.push(piece[0]);
        }
        assert_eq!(left, [1, 2, 3, 9, 6, 7, 8]);
        assert!(Piece::default().is_empty());
    }
}
