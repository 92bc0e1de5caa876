//! The header of a GGUF file. Every number is checked against the rest of the file before it is used.

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
/// The largest memory that the headers of a model may take beside its mapped files.
pub(super) const HEADER_CAPACITY: usize = 48 << 20;
/// Memory of an entry or a tensor in its map, without its text and lists.
const ENTRY_COST: usize = 256;
/// Memory of the smallest block that an allocator hands out.
const BLOCK_COST: usize = 32;
/// Bytes of the smallest metadata entry: an empty key, type and value.
const MIN_ENTRY: usize = 8 + 4 + 1;
/// Bytes of the smallest tensor entry: an empty name, no axes, type and offset.
const MIN_TENSOR: usize = 8 + 4 + 4 + 8;

/// The types of ggml by number, for messages.
const TYPES: [&str; 31] = [
    "f32", "f16", "q4_0", "q4_1", "q4_2", "q4_3", "q5_0", "q5_1", "q8_0", "q8_1", "q2_k", "q3_k", "q4_k",
    "q5_k", "q6_k", "q8_k", "iq2_xxs", "iq2_xs", "iq3_xxs", "iq1_s", "iq4_nl", "iq3_s", "iq2_s", "iq4_xs",
    "i8", "i16", "i32", "i64", "f64", "iq1_m", "bf16",
];

/// The part of a file before its tensor data.
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
    /// Memory in bytes that the header may still take.
    capacity: &'a mut usize,
}

macro_rules! number {
    ($($name:ident: $type:ident,)+) => {
        $(fn $name(&mut self, what: &str) -> Result<$type> {
            let bytes = self.take(size_of::<$type>(), what)?;
            Ok($type::from_le_bytes(bytes.try_into().unwrap_or_default()))
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

    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8]> {
        let at = self.at;
        let left = self.left();
        if count > left {
            return self.fail(format!(
                "{what} at byte {at} takes {count} bytes, but the file ends after {left}: {} bytes are missing",
                count - left
            ));
        }
        self.at += count;
        Ok(&self.bytes[at..at + count])
    }

    number! { u8: u8, u32: u32, u64: u64, }

    /// Charges memory to the header before it is allocated.
    fn charge(&mut self, bytes: usize, what: &str) -> Result<()> {
        match self.capacity.checked_sub(bytes) {
            Some(left) => {
                *self.capacity = left;
                Ok(())
            }
            None => self.fail(format!(
                "{what} at byte {}: the header takes more than {} MiB of memory",
                self.at,
                HEADER_CAPACITY >> 20
            )),
        }
    }

    /// Reads a count of items that take at least `least` bytes each.
    fn count(&mut self, least: usize, what: &str) -> Result<usize> {
        let at = self.at;
        let stated = self.u64(what)?;
        match usize::try_from(stated) {
            Ok(count) if count <= self.left() / least => Ok(count),
            _ => self.fail(format!("{what} at byte {at} is {stated}, for which the file is too short")),
        }
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let at = self.at;
        let length = self.u64(what)?;
        if length > MAX_STRING {
            return self
                .fail(format!("{what} at byte {at} is {length} bytes long, at most {MAX_STRING} are read"));
        }
        let bytes = self.take(length as usize, what)?;
        if !bytes.is_empty() {
            self.charge(BLOCK_COST + bytes.len(), what)?;
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_string()),
            Err(error) => self
                .fail(format!("{what} at byte {at} is not UTF-8 from its byte {} on", error.valid_up_to())),
        }
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let name = self.string(what)?;
        match name.len() {
            0..=MAX_NAME => Ok(name),
            length => self.fail(format!("{what} is {length} bytes long, at most {MAX_NAME} are allowed")),
        }
    }

    fn boolean(&mut self, what: &str) -> Result<bool> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            byte => self.fail(format!("{what} at byte {} is the bool {byte}, expected 0 or 1", self.at - 1)),
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
        count: usize,
        what: &str,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.charge(count.saturating_mul(size_of::<T>()), what)?;
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
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
                let count = self.count(SIZE, what)?;
                self.charge(count * SIZE, what)?;
                let (values, _) = self.take(count * SIZE, what)?.as_chunks::<SIZE>();
                Array::$variant(values.iter().map(|bytes| $type::from_le_bytes(*bytes)).collect())
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
                let count = self.count(1, what)?;
                Array::Bool(self.list(count, what, |reader| reader.boolean(what))?)
            }
            8 => {
                let count = self.count(8, what)?;
                Array::String(self.list(count, what, |reader| reader.string(what))?)
            }
            9 => {
                let count = self.count(12, what)?;
                Array::Array(self.list(count, what, |reader| reader.array(what, depth + 1))?)
            }
            10 => numbers!(U64, u64),
            11 => numbers!(I64, i64),
            12 => numbers!(F64, f64),
            id => return self.fail(format!("{what} is an array of the unknown type {id}, expected 0..=12")),
        })
    }

    /// Reads one entry of the tensor list; its offset is relative to the start of the data.
    fn tensor(&mut self) -> Result<(String, TensorInfo)> {
        let name = self.name("a tensor's name")?;
        let what = &format!("tensor '{name}'");
        let axes = self.u32(what)?;
        if axes > MAX_DIMS {
            return self.fail(format!("{what} has {axes} axes, at most {MAX_DIMS} are allowed"));
        }
        let stored = self.list(axes as usize, what, |reader| reader.u64(what))?;
        let id = self.u32(what)?;
        let offset = self.u64(what)?;
        let Some(kind) = format(id) else {
            let known = TYPES.get(id as usize).copied().unwrap_or("unknown");
            let read = Format::ALL.map(Format::name).join(", ");
            return self
                .fail(format!("{what} has type {id} ({known}), which is not supported; read are {read}"));
        };
        let overflow = || Error::file(self.path, format!("{what}: the size of {stored:?} overflows"));
        let dims: Vec<usize> = stored
            .iter()
            .map(|&length| usize::try_from(length).ok())
            .collect::<Option<_>>()
            .ok_or_else(overflow)?;
        // Even an empty tensor must have a size that can be computed.
        dims.iter()
            .filter(|length| **length > 0)
            .try_fold(8usize, |product, &length| product.checked_mul(length))
            .ok_or_else(overflow)?;
        let rows = dims.iter().skip(1).product::<usize>();
        let cols = dims.first().copied().unwrap_or(1);
        let block = kind.block_len();
        if !cols.is_multiple_of(block) {
            return self.fail(format!(
                "{what} has rows of {cols} elements, not a multiple of the {block} of a {} block",
                kind.name()
            ));
        }
        let bytes = kind.row_bytes(cols).and_then(|bytes| bytes.checked_mul(rows)).ok_or_else(overflow)?;
        let offset = usize::try_from(offset).map_err(|_| overflow())?;
        Ok((name, TensorInfo { dims, kind, file: 0, offset, bytes }))
    }
}

fn format(id: u32) -> Option<Format> {
    let name = TYPES.get(usize::try_from(id).ok()?)?;
    Format::ALL.into_iter().find(|format| format.name() == *name)
}

/// The number of a format.
pub(super) fn type_number(format: Format) -> u32 {
    TYPES.iter().position(|name| *name == format.name()).unwrap_or_default() as u32
}

/// The byte at which the tensor data begins.
fn data_start(reader: &Reader<'_>, alignment: usize) -> Result<usize> {
    match reader.at.checked_next_multiple_of(alignment) {
        Some(start) => Ok(start),
        None => reader.fail("the header is too long".into()),
    }
}

fn alignment(reader: &Reader<'_>, metadata: &BTreeMap<String, Value>) -> Result<usize> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    match value {
        Value::U32(bytes) if bytes.is_power_of_two() && (8..=65_536).contains(bytes) => Ok(*bytes as usize),
        Value::U32(bytes) => {
            reader.fail(format!("'general.alignment' is {bytes}, expected a power of two from 8 to 65536"))
        }
        other => reader.fail(format!("'general.alignment' is {}, expected u32", other.kind())),
    }
}

/// Turns relative offsets into places in the file and checks that they are aligned, inside the file and disjoint.
fn place(
    reader: &Reader<'_>,
    tensors: &mut BTreeMap<String, TensorInfo>,
    start: usize,
    alignment: usize,
) -> Result<()> {
    for (name, tensor) in tensors.iter_mut() {
        let offset = tensor.offset;
        let have = reader.bytes.len();
        if !offset.is_multiple_of(alignment) {
            return reader.fail(format!("tensor '{name}': offset {offset} is not a multiple of {alignment}"));
        }
        let end = start.checked_add(offset).and_then(|first| first.checked_add(tensor.bytes));
        match end {
            Some(end) if end <= have || tensor.bytes == 0 => tensor.offset += start,
            Some(end) => {
                return reader.fail(format!(
                    "tensor '{name}' lies at bytes {}..{end}, but the file has {have}: {} bytes are missing",
                    end - tensor.bytes,
                    end - have
                ));
            }
            None => return reader.fail(format!("tensor '{name}': offset {offset} overflows")),
        }
    }
    let mut places: Vec<_> = tensors.iter().filter(|(_, tensor)| tensor.bytes > 0).collect();
    places.sort_by_key(|(_, tensor)| tensor.offset);
    for pair in places.windows(2) {
        let [(first_name, first), (second_name, second)] = pair else { continue };
        if first.offset + first.bytes > second.offset {
            return reader.fail(format!(
                "tensors '{first_name}' and '{second_name}' overlap at byte {}",
                second.offset
            ));
        }
    }
    Ok(())
}

/// Reads a header and subtracts the memory that it takes from `capacity`.
pub(super) fn parse(path: &Path, bytes: Bytes, capacity: &mut usize) -> Result<Header> {
    let mut reader = Reader { path, bytes: &bytes, at: 0, capacity };
    if !reader.bytes.starts_with(b"GGUF") {
        let start =
            String::from_utf8_lossy(&reader.bytes[..reader.bytes.len().min(4)]).escape_debug().to_string();
        return reader.fail(format!("not a GGUF file: it starts with '{start}'"));
    }
    reader.at = 4;
    let version = reader.u32("the version")?;
    match version {
        2 | 3 => {}
        other if other.swap_bytes() <= 3 => {
            return reader.fail("is a big-endian GGUF file; only little-endian ones are read".into());
        }
        other => return reader.fail(format!("has GGUF version {other}; versions 2 and 3 are read")),
    }
    let at = reader.at;
    let n_tensors = reader.u64("the number of tensors")?;
    let n_entries = reader.count(MIN_ENTRY, "the number of metadata entries")?;
    let n_tensors = match usize::try_from(n_tensors) {
        Ok(count) if count <= reader.left() / MIN_TENSOR => count,
        _ => {
            return reader.fail(format!(
                "the number of tensors at byte {at} is {n_tensors}, for which the file is too short"
            ));
        }
    };
    let mut metadata = BTreeMap::new();
    for _ in 0..n_entries {
        reader.charge(ENTRY_COST, "a metadata entry")?;
        let key = reader.name("a metadata key")?;
        let value = reader.value(&key)?;
        if metadata.contains_key(&key) {
            return reader.fail(format!("metadata '{key}' occurs twice"));
        }
        metadata.insert(key, value);
    }
    let mut tensors = BTreeMap::new();
    for _ in 0..n_tensors {
        reader.charge(ENTRY_COST, "a tensor")?;
        let (name, info) = reader.tensor()?;
        if tensors.contains_key(&name) {
            return reader.fail(format!("tensor '{name}' occurs twice"));
        }
        tensors.insert(name, info);
    }
    let alignment = alignment(&reader, &metadata)?;
    let start = data_start(&reader, alignment)?;
    place(&reader, &mut tensors, start, alignment)?;
    Ok(Header { version, bytes, metadata, tensors })
}
