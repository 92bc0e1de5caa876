//! An allocator for programs that train: the system's, with large aligned blocks cut from plain ones.
//!
//! The kernels of dense products take a few hundred KiB with an alignment of 128 for every call. The aligned allocation
//! of glibc up to 2.37 does not find again what was freed, so that each thread's heap grows by some 60 MiB of holes.

use std::alloc::{GlobalAlloc, Layout, System};

/// Bytes from which blocks are cut from plain ones.
const LARGE: usize = 64 << 10;
/// What the system aligns plain blocks to, at least.
const PLAIN: usize = 16;

/// To be declared by a program:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: mixlora::Allocator = mixlora::Allocator;
/// let values = vec![1.0f32; 3];
/// assert_eq!(values.len(), 3);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Allocator;

/// The layout of the plain block that an aligned one is cut from.
fn plain(layout: Layout) -> Option<Layout> {
    let cut = layout.size() >= LARGE && layout.align() > PLAIN;
    let size = layout.size().checked_add(layout.align()).filter(|_| cut)?;
    Layout::from_size_align(size, PLAIN).ok()
}

// SAFETY: everything is the system's allocator, but for large aligned blocks. Those begin behind a word that holds
// where their plain block begins: plain blocks begin at multiples of 16, so that at least 16 bytes are before them.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout is the caller's.
        let Some(whole) = plain(layout) else { return unsafe { System.alloc(layout) } };
        // SAFETY: a plain block is larger than what is asked for, which is not empty.
        let start = unsafe { System.alloc(whole) };
        if start.is_null() {
            return start;
        }
        let skip = layout.align() - start as usize % layout.align();
        // SAFETY: the plain block has `align` bytes more than the block, and at least a word before it.
        unsafe {
            let block = start.add(skip);
            block.cast::<*mut u8>().sub(1).write(start);
            block
        }
    }

    // SAFETY: as the trait demands, the block is one of `alloc` with this layout.
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match plain(layout) {
            // SAFETY: it came from `System.alloc` with this layout.
            None => unsafe { System.dealloc(block, layout) },
            // SAFETY: the word before the block holds where its plain block begins.
            Some(whole) => unsafe { System.dealloc(block.cast::<*mut u8>().sub(1).read(), whole) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if plain(layout).is_none() {
            // SAFETY: the layout is the caller's.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: the layout is the caller's.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: the block has so many bytes.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let new = Layout::from_size_align(size, layout.align());
        let Ok(new) = new else { return std::ptr::null_mut() };
        if plain(layout).is_none() && plain(new).is_none() {
            // SAFETY: the block came from `System` with this layout.
            return unsafe { System.realloc(block, layout, size) };
        }
        // SAFETY: the new size is not 0, as the caller promises.
        let moved = unsafe { self.alloc(new) };
        if !moved.is_null() {
            // SAFETY: both blocks have the bytes that are copied, and the old one is given up.
            unsafe {
                moved.copy_from_nonoverlapping(block, layout.size().min(size));
                self.dealloc(block, layout);
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_keep_their_bytes() {
        for (size, align) in [(1, 1), (LARGE, 16), (LARGE, 128), (LARGE + 3, 4096), (100, 256)] {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: every block is used within its size and with its layout.
            unsafe {
                let block = Allocator.alloc_zeroed(layout);
                assert_eq!(block as usize % align, 0);
                assert!((0..size).all(|i| block.add(i).read() == 0));
                block.add(size - 1).write(7);
                // Over the limit and back.
                let larger = Allocator.realloc(block, layout, size + LARGE);
                let layout = Layout::from_size_align(size + LARGE, align).unwrap();
                assert_eq!((larger as usize % align, larger.add(size - 1).read()), (0, 7));
                let smaller = Allocator.realloc(larger, layout, size);
                let layout = Layout::from_size_align(size, align).unwrap();
                assert_eq!((smaller as usize % align, smaller.add(size - 1).read()), (0, 7));
                Allocator.dealloc(smaller, layout);
            }
        }
    }
}
