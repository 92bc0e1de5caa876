//! The header of a GGUF file. Every number is checked against what is left of the file before it is used.

use super::value::{Array, Value};
use super::{DEFAULT_ALIGNMENT, TensorInfo};
use crate::io::mapped::Bytes;
use crate::{Error, Format, Result};
use std::collections::BTreeMap;
use std::path::Path;

const MAX_STRING: u64 = 64 << 20;
const MAX_NAME: usize = 65_535;
const MAX_DIMS: u32 = 4;
const MAX_DEPTH: u32 = 4;
/// Memory that the headers of a model may take beside its files.
pub(super) const HEADER_ROOM: usize = 48 << 20;
/// Memory of an entry or a tensor in its map, besides what its own text and lists take.
const ENTRY_ROOM: usize = 256;
/// Memory of the smallest block that an allocator gives out.
const BLOCK_ROOM: usize = 32;
/// Bytes of the smallest entry: a key of length 0, type and value; a name of length 0, no axes, type and offset.
const MIN_ENTRY: usize = 8 + 4 + 1;
const MIN_TENSOR: usize = 8 + 4 + 4 + 8;

/// The types of ggml by number, for messages.
const TYPES: [&str; 31] = [
    "f32", "f16", "q4_0", "q4_1", "q4_2", "q4_3", "q5_0", "q5_1", "q8_0", "q8_1", "q2_k", "q3_k", "q4_k",
    "q5_k", "q6_k", "q8_k", "iq2_xxs", "iq2_xs", "iq3_xxs", "iq1_s", "iq4_nl", "iq3_s", "iq2_s", "iq4_xs",
    "i8", "i16", "i32", "i64", "f64", "iq1_m", "bf16",
];

/// What a file says before its tensors' data begin.
pub(super) struct Header {
    pub version: u32,
    pub bytes: Bytes,
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, TensorInfo>,
}

struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    /// Bytes of memory that the header may still take.
    room: &'a mut usize,
}

macro_rules! number {
    ($($name:ident: $type:ident,)+) => {
        $(fn $name(&mut self, what: &str) -> Result<$type> {
            let b = self.take(size_of::<$type>(), what)?;
            Ok($type::from_le_bytes(b.try_into().unwrap_or_default()))
        })+
    };
}

impl<'a> Reader<'a> {
    fn fail<T>(&self, what: String) -> Result<T> {
        Err(Error::file(self.path, what))
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let at = self.at;
        let left = self.left();
        if n > left {
            return self.fail(format!(
                "{what} at byte {at} takes {n} bytes, but the file ends after {left}: {} bytes are missing",
                n - left
            ));
        }
        self.at += n;
        Ok(&self.bytes[at..at + n])
    }

    number! { u8: u8, u32: u32, u64: u64, }

    /// Counts memory before it is asked for.
    fn charge(&mut self, bytes: usize, what: &str) -> Result<()> {
        match self.room.checked_sub(bytes) {
            Some(left) => {
                *self.room = left;
                Ok(())
            }
            None => self.fail(format!(
                "{what} at byte {}: the header takes more than {} MiB of memory",
                self.at,
                HEADER_ROOM >> 20
            )),
        }
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, least: usize, what: &str) -> Result<usize> {
        let at = self.at;
        let n = self.u64(what)?;
        match usize::try_from(n) {
            Ok(count) if count <= self.left() / least => Ok(count),
            _ => self.fail(format!("{what} at byte {at} is {n}, for which the file is too short")),
        }
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let at = self.at;
        let n = self.u64(what)?;
        if n > MAX_STRING {
            return self
                .fail(format!("{what} at byte {at} is {n} bytes long, at most {MAX_STRING} are read"));
        }
        let bytes = self.take(n as usize, what)?;
        if !bytes.is_empty() {
            self.charge(BLOCK_ROOM + bytes.len(), what)?;
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_string()),
            Err(e) => {
                self.fail(format!("{what} at byte {at} is not UTF-8 from its byte {} on", e.valid_up_to()))
            }
        }
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let name = self.string(what)?;
        match name.len() {
            0..=MAX_NAME => Ok(name),
            n => self.fail(format!("{what} is {n} bytes long, at most {MAX_NAME} are allowed")),
        }
    }

    fn boolean(&mut self, what: &str) -> Result<bool> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            v => self.fail(format!("{what} at byte {} is the bool {v}, expected 0 or 1", self.at - 1)),
        }
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        let what = &format!("'{key}'");
        macro_rules! number {
            ($variant:ident, $type:ident) => {
                Value::$variant($type::from_le_bytes(
                    self.take(size_of::<$type>(), what)?.try_into().unwrap_or_default(),
                ))
            };
        }
        Ok(match self.u32(what)? {
            0 => number!(U8, u8),
            1 => number!(I8, i8),
            2 => number!(U16, u16),
            3 => number!(I16, i16),
            4 => number!(U32, u32),
            5 => number!(I32, i32),
            6 => number!(F32, f32),
            7 => Value::Bool(self.boolean(what)?),
            8 => Value::String(self.string(what)?),
            9 => Value::Array(self.array(what, 1)?),
            10 => number!(U64, u64),
            11 => number!(I64, i64),
            12 => number!(F64, f64),
            id => return self.fail(format!("{what} has the unknown type {id}, expected 0..=12")),
        })
    }

    fn list<T>(
        &mut self,
        n: usize,
        what: &str,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.charge(n.saturating_mul(size_of::<T>()), what)?;
        let mut all = Vec::with_capacity(n);
        for _ in 0..n {
            all.push(item(self)?);
        }
        Ok(all)
    }

    fn array(&mut self, what: &str, depth: u32) -> Result<Array> {
        if depth > MAX_DEPTH {
            return self.fail(format!("{what}: arrays are nested more than {MAX_DEPTH} deep"));
        }
        macro_rules! numbers {
            ($variant:ident, $type:ident) => {{
                const SIZE: usize = size_of::<$type>();
                let n = self.count(SIZE, what)?;
                self.charge(n * SIZE, what)?;
                let (values, _) = self.take(n * SIZE, what)?.as_chunks::<SIZE>();
                Array::$variant(values.iter().map(|b| $type::from_le_bytes(*b)).collect())
            }};
        }
        Ok(match self.u32(what)? {
            0 => numbers!(U8, u8),
            1 => numbers!(I8, i8),
            2 => numbers!(U16, u16),
            3 => numbers!(I16, i16),
            4 => numbers!(U32, u32),
            5 => numbers!(I32, i32),
            6 => numbers!(F32, f32),
            7 => {
                let n = self.count(1, what)?;
                Array::Bool(self.list(n, what, |r| r.boolean(what))?)
            }
            8 => {
                let n = self.count(8, what)?;
                Array::String(self.list(n, what, |r| r.string(what))?)
            }
            9 => {
                let n = self.count(12, what)?;
                Array::Array(self.list(n, what, |r| r.array(what, depth + 1))?)
            }
            10 => numbers!(U64, u64),
            11 => numbers!(I64, i64),
            12 => numbers!(F64, f64),
            id => return self.fail(format!("{what} is an array of the unknown type {id}, expected 0..=12")),
        })
    }

    /// One entry of the tensor list; its offset is still counted from the start of the data.
    fn tensor(&mut self) -> Result<(String, TensorInfo)> {
        let name = self.name("a tensor's name")?;
        let what = &format!("tensor '{name}'");
        let axes = self.u32(what)?;
        if axes > MAX_DIMS {
            return self.fail(format!("{what} has {axes} axes, at most {MAX_DIMS} are allowed"));
        }
        let stored = self.list(axes as usize, what, |r| r.u64(what))?;
        let id = self.u32(what)?;
        let offset = self.u64(what)?;
        let Some(kind) = format(id) else {
            let known = TYPES.get(id as usize).copied().unwrap_or("unknown");
            let read = Format::ALL.map(Format::name).join(", ");
            return self
                .fail(format!("{what} has type {id} ({known}), which is not supported; read are {read}"));
        };
        let overflow = || Error::file(self.path, format!("{what}: the size of {stored:?} overflows"));
        let dims: Vec<usize> =
            stored.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>().ok_or_else(overflow)?;
        // Even an empty tensor must have a size that can be computed.
        dims.iter().filter(|d| **d > 0).try_fold(8usize, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
        let rows = dims.iter().skip(1).product::<usize>();
        let cols = dims.first().copied().unwrap_or(1);
        let block = kind.block_len();
        if !cols.is_multiple_of(block) {
            return self.fail(format!(
                "{what} has rows of {cols} elements, not a multiple of the {block} of a {} block",
                kind.name()
            ));
        }
        let bytes = kind.row_bytes(cols).and_then(|b| b.checked_mul(rows)).ok_or_else(overflow)?;
        let offset = usize::try_from(offset).map_err(|_| overflow())?;
        Ok((name, TensorInfo { dims, kind, file: 0, offset, bytes }))
    }
}

fn format(id: u32) -> Option<Format> {
    let name = TYPES.get(usize::try_from(id).ok()?)?;
    Format::ALL.into_iter().find(|f| f.name() == *name)
}

/// From here on the tensors' data is counted.
fn data_start(r: &Reader<'_>, alignment: usize) -> Result<usize> {
    match r.at.checked_next_multiple_of(alignment) {
        Some(start) => Ok(start),
        None => r.fail("the header is too long".into()),
    }
}

fn alignment(r: &Reader<'_>, metadata: &BTreeMap<String, Value>) -> Result<usize> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    match value {
        Value::U32(a) if a.is_power_of_two() && (8..=65_536).contains(a) => Ok(*a as usize),
        Value::U32(a) => {
            r.fail(format!("'general.alignment' is {a}, expected a power of two from 8 to 65536"))
        }
        v => r.fail(format!("'general.alignment' is {}, expected u32", v.kind())),
    }
}

/// Offsets become places in the file; they must be aligned, inside of it, and apart from each other.
fn place(
    r: &Reader<'_>,
    tensors: &mut BTreeMap<String, TensorInfo>,
    start: usize,
    alignment: usize,
) -> Result<()> {
    for (name, t) in tensors.iter_mut() {
        let offset = t.offset;
        let have = r.bytes.len();
        if !offset.is_multiple_of(alignment) {
            return r.fail(format!("tensor '{name}': offset {offset} is not a multiple of {alignment}"));
        }
        let end = start.checked_add(offset).and_then(|o| o.checked_add(t.bytes));
        match end {
            Some(end) if end <= have || t.bytes == 0 => t.offset += start,
            Some(end) => {
                return r.fail(format!(
                    "tensor '{name}' lies at bytes {}..{end}, but the file has {have}: {} bytes are missing",
                    end - t.bytes,
                    end - have
                ));
            }
            None => return r.fail(format!("tensor '{name}': offset {offset} overflows")),
        }
    }
    let mut places: Vec<_> = tensors.iter().filter(|(_, t)| t.bytes > 0).collect();
    places.sort_by_key(|(_, t)| t.offset);
    for pair in places.windows(2) {
        let [(a, first), (b, second)] = pair else { continue };
        if first.offset + first.bytes > second.offset {
            return r.fail(format!("tensors '{a}' and '{b}' overlap at byte {}", second.offset));
        }
    }
    Ok(())
}

/// Reads a header; `room` is the memory that it may take, and is counted down.
pub(super) fn parse(path: &Path, bytes: Bytes, room: &mut usize) -> Result<Header> {
    let mut r = Reader { path, bytes: &bytes, at: 0, room };
    if !r.bytes.starts_with(b"GGUF") {
        let start = String::from_utf8_lossy(&r.bytes[..r.bytes.len().min(4)]).escape_debug().to_string();
        return r.fail(format!("not a GGUF file: it starts with '{start}'"));
    }
    r.at = 4;
    let version = r.u32("the version")?;
    match version {
        2 | 3 => {}
        v if v.swap_bytes() <= 3 => {
            return r.fail("is a big-endian GGUF file; only little-endian ones are read".into());
        }
        v => return r.fail(format!("has GGUF version {v}; versions 2 and 3 are read")),
    }
    let at = r.at;
    let n_tensors = r.u64("the number of tensors")?;
    let n_entries = r.count(MIN_ENTRY, "the number of metadata entries")?;
    let n_tensors = match usize::try_from(n_tensors) {
        Ok(n) if n <= r.left() / MIN_TENSOR => n,
        _ => {
            return r.fail(format!(
                "the number of tensors at byte {at} is {n_tensors}, for which the file is too short"
            ));
        }
    };
    let mut metadata = BTreeMap::new();
    for _ in 0..n_entries {
        r.charge(ENTRY_ROOM, "a metadata entry")?;
        let key = r.name("a metadata key")?;
        let value = r.value(&key)?;
        if metadata.contains_key(&key) {
            return r.fail(format!("metadata '{key}' occurs twice"));
        }
        metadata.insert(key, value);
    }
    let mut tensors = BTreeMap::new();
    for _ in 0..n_tensors {
        r.charge(ENTRY_ROOM, "a tensor")?;
        let (name, info) = r.tensor()?;
        if tensors.contains_key(&name) {
            return r.fail(format!("tensor '{name}' occurs twice"));
        }
        tensors.insert(name, info);
    }
    let alignment = alignment(&r, &metadata)?;
    let start = data_start(&r, alignment)?;
    place(&r, &mut tensors, start, alignment)?;
    Ok(Header { version, bytes, metadata, tensors })
}
