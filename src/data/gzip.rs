//! Files that gzip packed, unpacked while they are read.

use flate2::bufread::MultiGzDecoder;
use std::io::{self, BufRead, BufReader, Read};

/// How packed data begins.
pub(super) const GZIP: &[u8] = b"\x1f\x8b";
/// Bytes that any file may unpack to.
const ALWAYS: u64 = 16 << 20;
/// How often its own size a larger one may unpack to. Text and tables shrink 3 to 30 times.
const MOST_TIMES: u64 = 200;

/// Counts what is taken of a reader.
struct Counted<R> {
    inner: R,
    taken: u64,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(to)?;
        self.taken += n as u64;
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }
    fn consume(&mut self, n: usize) {
        self.taken += n as u64;
        self.inner.consume(n);
    }
}

/// What is in a packed file; refuses one that grows without measure.
struct Unpacked<R> {
    packed: MultiGzDecoder<Counted<R>>,
    given: u64,
}

impl<R: BufRead> Read for Unpacked<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let damaged = |error| io::Error::other(format!("the gzip data is damaged or cut off ({error})"));
        let n = self.packed.read(to).map_err(damaged)?;
        self.given += n as u64;
        if self.given > ALWAYS.max(MOST_TIMES * self.packed.get_ref().taken) {
            let what =
                format!("its gzip data grows to more than {MOST_TIMES} times its size; unpack it to read it");
            return Err(io::Error::other(what));
        }
        Ok(n)
    }
}

/// The reader itself, or what it unpacks to.
pub(super) fn unpacked<'a>(mut reader: impl BufRead + 'a) -> io::Result<Box<dyn BufRead + 'a>> {
    let packed = reader.fill_buf()?.starts_with(GZIP);
    if !packed {
        return Ok(Box::new(reader));
    }
    let packed = MultiGzDecoder::new(Counted { inner: reader, taken: 0 });
    Ok(Box::new(BufReader::new(Unpacked { packed, given: 0 })))
}
