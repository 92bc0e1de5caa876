//! Reading GGUF: what is in a file, and every way to refuse one. Row numbers are those of the list of bad inputs in
//! docs/FORMATS.md.
//!
//! `MIXLORA_SMOLLM2=path/to/SmolLM2-135M-Instruct.Q4_1.gguf` adds a real model.

use mixlora::io::GgufFile;
use mixlora::io::gguf::{Array, Value};
use mixlora::{Device, Format, Result, Stream};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Remembers the largest single allocation of each thread.
struct Counting;
thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|l| l.set(l.get().max(layout.size())));
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A file as bytes, piece by piece.
#[derive(Clone, Default)]
struct Build {
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
    counts: [Option<u64>; 2],
    version: u32,
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat()
}

impl Build {
    fn new() -> Self {
        Build { version: 3, ..Build::default() }
    }
    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries.push([&text(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }
    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let mut t = text(name);
        t.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| t.extend(d.to_le_bytes()));
        t.extend(kind.to_le_bytes());
        t.extend(offset.to_le_bytes());
        self.tensors.push(t);
        self
    }
    fn data(mut self, data: Vec<u8>) -> Self {
        self.data = data;
        self
    }
    fn bytes(&self, alignment: usize) -> Vec<u8> {
        let mut b = b"GGUF".to_vec();
        b.extend(self.version.to_le_bytes());
        b.extend(self.counts[0].unwrap_or(self.tensors.len() as u64).to_le_bytes());
        b.extend(self.counts[1].unwrap_or(self.entries.len() as u64).to_le_bytes());
        b.extend(self.entries.concat());
        b.extend(self.tensors.concat());
        b.resize(b.len().next_multiple_of(alignment), 0);
        b.extend(&self.data);
        b
    }
    fn open(&self) -> Result<GgufFile> {
        GgufFile::from_bytes("x.gguf", self.bytes(32))
    }
}

fn array(kind: u32, n: u64, items: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &n.to_le_bytes(), items].concat()
}

/// Refused within 10 ms, with this in the message and nothing large allocated.
fn refused(bytes: Vec<u8>, what: &str) {
    let budget = 4 * bytes.len() + (1 << 20);
    LARGEST.set(0);
    let started = Instant::now();
    let error = GgufFile::from_bytes("x.gguf", bytes).expect_err(what).to_string();
    let took = started.elapsed();
    assert!(error.starts_with("x.gguf: ") && error.contains(what), "'{error}' does not say '{what}'");
    assert!(took < Duration::from_millis(10), "{what}: {took:?}");
    assert!(LARGEST.get() < budget, "{what}: {} bytes at once", LARGEST.get());
}

fn small() -> Build {
    let f16 = |v: f32| half::f16::from_f32(v).to_le_bytes();
    let mut data: Vec<u8> = [1.0f32, -2.0, 3.5].iter().flat_map(|v| v.to_le_bytes()).collect();
    data.resize(32, 0);
    // Two rows of one Q8_0 block each.
    for d in [0.5, 2.0] {
        data.extend(f16(d));
        data.extend((0..32).map(|i| (i as i8 - 16) as u8));
    }
    let strings: Vec<u8> = ["a", "", "ü"].iter().flat_map(|s| text(s)).collect();
    let nested = [array(5, 2, &[1, 0, 0, 0, 255, 255, 255, 255]), array(5, 0, &[])].concat();
    Build::new()
        .entry("general.architecture", 8, &text("llama"))
        .entry("n", 4, &7u32.to_le_bytes())
        .entry("small", 1, &[0xff])
        .entry("long", 10, &(1u64 << 40).to_le_bytes())
        .entry("eps", 6, &1e-5f32.to_le_bytes())
        .entry("wide", 12, &0.25f64.to_le_bytes())
        .entry("yes", 7, &[1])
        .entry("words", 9, &array(8, 3, &strings))
        .entry("scores", 9, &array(6, 2, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0x40]))
        .entry("types", 9, &array(5, 2, &[3, 0, 0, 0, 6, 0, 0, 0]))
        .entry("flags", 9, &array(7, 2, &[0, 1]))
        .entry("nested", 9, &array(9, 2, &nested))
        .tensor("norm", &[3], 0, 0)
        .tensor("table", &[32, 2], 8, 32)
        .data(data)
}

#[test]
fn a_small_file_gives_what_is_in_it() {
    for version in [2, 3] {
        let file = Build { version, ..small() }.open().unwrap();
        assert_eq!((file.version(), file.str("general.architecture").unwrap()), (version, "llama"));
        assert_eq!((file.u32("n").unwrap(), file.u64("long").unwrap()), (7, 1 << 40));
        assert_eq!((file.f32("eps").unwrap(), file.f32("wide").unwrap()), (1e-5, 0.25));
        assert!(file.bool("yes").unwrap());
        assert_eq!(file.strings("words").unwrap(), ["a", "", "ü"]);
        assert_eq!(file.f32s("scores").unwrap(), [1.0, 2.0]);
        assert_eq!((file.u32s("types").unwrap(), file.i32s("types").unwrap()), (vec![3, 6], vec![3, 6]));
        assert_eq!(file.get("small"), Some(&Value::I8(-1)));
        assert_eq!(file.get("flags"), Some(&Value::Array(Array::Bool(vec![false, true]))));
        let nested = Array::Array(vec![Array::I32(vec![1, -1]), Array::I32(vec![])]);
        assert_eq!(file.get("nested"), Some(&Value::Array(nested)));
        assert_eq!(file.values_f32("norm").unwrap(), [1.0, -2.0, 3.5]);
        let table = file.tensor("table").unwrap();
        assert_eq!((table.rows(), table.cols(), table.kind, table.bytes), (2, 32, Format::Q8_0, 68));
        let w = file.weight("table", &Device::cpu()).unwrap();
        assert_eq!((w.format(), w.rows(), w.cols()), (Format::Q8_0, 2, 32));
        let values = w.to_f32().unwrap();
        assert_eq!((values[0], values[31], values[32], values[63]), (-8.0, 7.5, -32.0, 30.0));
        assert_eq!(values, file.values_f32("table").unwrap());
        let turned = file.weight_rows("table", &Device::cpu(), |i| 1 - i).unwrap().to_f32().unwrap();
        assert_eq!(turned, [&values[32..], &values[..32]].concat());
        assert_eq!(file.expect_tensors(["norm"]).unwrap(), ["table"]);
    }
}

#[test]
fn wrong_requests_name_file_key_and_types() {
    let file = small().open().unwrap();
    let says = |e: mixlora::Error, what: &str| assert_eq!(e.to_string(), format!("x.gguf: {what}"));
    says(file.u32("eps").unwrap_err(), "metadata 'eps' is f32, expected u32");
    says(file.u32("long").unwrap_err(), "metadata 'long' is u64 1099511627776, expected u32");
    says(file.u32("small").unwrap_err(), "metadata 'small' is i8 -1, expected u32");
    says(file.str("words").unwrap_err(), "metadata 'words' is array of string, expected string");
    says(file.f32s("types").unwrap_err(), "metadata 'types' is array of i32, expected array of f32");
    says(file.bool("scorez").unwrap_err(), "metadata 'scorez' is missing; there is 'scores'");
    says(file.tensor_bytes("tables").unwrap_err(), "tensor 'tables' is missing; there is 'table'");
    says(file.weight("norm", &Device::cpu()).unwrap_err(), "tensor 'norm' has 1 axes, expected a matrix");
    // Missing and extra tensors.
    let missing = file.expect_tensors(["norm", "a", "b"]).unwrap_err();
    says(missing, "2 tensors are missing: 'a', 'b'");
    assert!(file.weight_rows("table", &Device::cpu(), |i| i + 1).is_err());
}

/// A file may be cut off at any byte.
#[test]
fn truncation_is_seen_everywhere() {
    let whole = small().bytes(32);
    for n in 0..whole.len() {
        assert!(GgufFile::from_bytes("x.gguf", whole[..n].to_vec()).is_err(), "cut to {n} bytes");
    }
    refused(whole[..whole.len() - 5].to_vec(), "5 bytes are missing");
    refused(whole[..50].to_vec(), "the number of metadata entries at byte 16 is 12");
    let key = Build::new().entry("a longer key than there are bytes", 4, &[0; 4]);
    refused(key.bytes(8)[..60].to_vec(), "5 bytes are missing");
    refused(b"PK\x03\x04....".to_vec(), "not a GGUF file: it starts with 'PK\\u{3}\\u{4}'");
    refused(Build { version: 1, ..small() }.bytes(32), "has GGUF version 1; versions 2 and 3 are read");
    refused(Build { version: 3 << 24, ..small() }.bytes(32), "big-endian");
}

/// Counts that no file can hold are refused before memory is allocated.
#[test]
fn absurd_counts_are_refused_at_once() {
    for n in [1 << 63, u64::MAX, 1 << 32, 1 << 20] {
        refused(Build { counts: [Some(n), None], ..small() }.bytes(32), "the number of tensors");
        refused(Build { counts: [None, Some(n)], ..small() }.bytes(32), "the number of metadata entries");
        for kind in 0..=12u32 {
            let long = Build::new().entry("list", 9, &array(kind, n, &[]));
            refused(long.bytes(32), "'list' at byte");
        }
        let mut key = Build::new();
        key.entries.push(n.to_le_bytes().to_vec());
        key.entries[0].extend([0; 64]);
        refused(key.bytes(32), "a metadata key at byte");
        refused(Build::new().entry("s", 8, &n.to_le_bytes()).bytes(32), "'s' at byte");
        refused(Build::new().tensor("t", &[n, n, n, n], 0, 0).bytes(32), "");
    }
    refused(Build::new().tensor("t", &[1 << 62], 0, 0).bytes(32), "tensor 't': the size of");
    refused(Build::new().tensor("t", &[(1 << 42) + 1, 1 << 22], 0, 0).bytes(32), "overflows");
    // The size of an empty tensor must not wrap either.
    refused(Build::new().tensor("t", &[0, u64::MAX, 8], 0, 0).bytes(32), "overflows");
    refused(Build::new().tensor("t", &[4], 0, u64::MAX - 31).bytes(32), "overflows");
}

/// Alignments, axes, types and nesting follow the format.
#[test]
fn rules_of_the_format_are_kept() {
    for (alignment, fine) in
        [(0u32, false), (3, false), (4, false), (8, true), (65_536, true), (1 << 30, false)]
    {
        let file = Build::new().entry("general.alignment", 4, &alignment.to_le_bytes());
        match fine {
            true => drop(file.open().unwrap()),
            false => refused(file.bytes(32), "expected a power of two from 8 to 65536"),
        }
    }
    refused(Build::new().entry("general.alignment", 8, &text("32")).bytes(32), "is string, expected u32");
    let one = |dims: &[u64], kind, offset| Build::new().tensor("t", dims, kind, offset).data(vec![0; 1024]);
    refused(one(&[1; 5], 0, 0).bytes(32), "tensor 't' has 5 axes, at most 4");
    refused(
        one(&[32], 16, 0).bytes(32),
        "tensor 't' has type 16 (iq2_xxs), which is not supported; read are f32",
    );
    refused(one(&[32], 99, 0).bytes(32), "tensor 't' has type 99 (unknown)");
    refused(
        one(&[33], 2, 0).bytes(32),
        "tensor 't' has rows of 33 elements, not a multiple of the 32 of a q4_0",
    );
    refused(one(&[4], 0, 4).bytes(32), "offset 4 is not a multiple of 32");
    refused(one(&[4], 0, 1024).bytes(32), "16 bytes are missing");
    let two = one(&[16], 0, 0).tensor("u", &[4], 0, 32);
    refused(two.bytes(32), "tensors 't' and 'u' overlap");
    refused(one(&[4], 0, 0).tensor("t", &[4], 0, 32).bytes(32), "tensor 't' occurs twice");
    let twice = Build::new().entry("k", 0, &[1]).entry("k", 0, &[1]);
    refused(twice.bytes(32), "metadata 'k' occurs twice");
    refused(Build::new().entry("k", 13, &[0; 8]).bytes(32), "'k' has the unknown type 13");
    refused(Build::new().entry("k", 9, &array(13, 0, &[])).bytes(32), "array of the unknown type 13");
    refused(Build::new().entry("k", 7, &[2]).bytes(32), "is the bool 2");
    refused(Build::new().entry("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]).bytes(32), "is not UTF-8");
    refused(Build::new().entry(&"k".repeat(70_000), 0, &[1]).bytes(32), "70000 bytes long");
    let depth = |n: usize| (1..n).fold(array(4, 0, &[]), |inner, _| array(9, 1, &inner));
    Build::new().entry("k", 9, &depth(4)).open().unwrap();
    for n in [5, 100] {
        refused(Build::new().entry("k", 9, &depth(n)).bytes(32), "nested more than 4 deep");
    }
}

/// Rows 1 and 2.
#[test]
fn files_that_are_none_are_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let error = || GgufFile::open(&path).unwrap_err().to_string();
    assert!(error().contains("cannot be read"));
    std::fs::write(&path, "").unwrap();
    assert!(error().contains("not a GGUF file (0 bytes)"));
    std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n").unwrap();
    assert!(error().contains("run `git lfs pull`"));
    let error = GgufFile::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("is a folder") || error.contains("cannot be read"), "{error}");
    std::fs::write(&path, small().bytes(32)).unwrap();
    assert_eq!(GgufFile::open(&path).unwrap().values_f32("norm").unwrap(), [1.0, -2.0, 3.5]);
}

#[test]
fn damaged_files_never_panic_and_never_take_much_memory() {
    let whole = small().bytes(32);
    let mut opened = 0;
    let bits = Stream::new(5);
    LARGEST.set(0);
    for i in 0..20_000u32 {
        let random = |k: u32| bits.bits(8 * i + k) as usize;
        let mut bytes = whole.clone();
        for k in 0..1 + random(0) as u32 % 3 {
            let at = random(1 + k) % bytes.len();
            bytes[at] = match random(4 + k) % 4 {
                0 => 0,
                1 => 0xff,
                2 => bytes[at] ^ 1 << (random(5) % 8),
                _ => random(6) as u8,
            };
        }
        if i % 5 == 0 {
            bytes.truncate(random(7) % whole.len());
        }
        let Ok(file) = GgufFile::from_bytes("x.gguf", bytes) else { continue };
        opened += 1;
        for name in file.tensors().keys() {
            let _ = file.values_f32(name);
            let _ = file.weight(name, &Device::Reference);
        }
    }
    let largest = LARGEST.get();
    assert!(opened > 1000, "{opened} files opened: the damage is too great to test much");
    assert!(largest < 1 << 20, "{largest} bytes were allocated at once");
}

#[test]
fn a_real_model_opens() {
    let Some(path) = std::env::var_os("MIXLORA_SMOLLM2") else {
        return eprintln!("SKIPPED: MIXLORA_SMOLLM2 does not name SmolLM2-135M-Instruct.Q4_1.gguf");
    };
    let file = GgufFile::open(path).unwrap();
    assert_eq!(file.str("general.architecture").unwrap(), "llama");
    assert_eq!((file.u32("llama.block_count").unwrap(), file.tensors().len()), (30, 272));
    let count = |f: Format| file.tensors().values().filter(|t| t.kind == f).count();
    assert_eq!((count(Format::Q4_1), count(Format::F32), count(Format::Q8_0)), (210, 61, 1));
    let table = file.tensor("token_embd.weight").unwrap();
    assert_eq!((table.rows(), table.cols(), table.kind), (49_152, 576, Format::Q8_0));
    assert_eq!(file.strings("tokenizer.ggml.tokens").unwrap().len(), 49_152);
    for (name, t) in file.tensors() {
        let values = file.values_f32(name).unwrap();
        assert_eq!(values.len(), t.rows() * t.cols(), "{name}");
        let largest = values.iter().fold(0f32, |a, v| a.max(v.abs()));
        assert!(
            values.iter().all(|v| v.is_finite()) && largest > 0.0 && largest < 100.0,
            "{name}: {largest}"
        );
    }
}
