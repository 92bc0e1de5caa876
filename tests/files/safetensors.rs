//! Reading safetensors models: what is in them, and every way to refuse one. Row numbers are those of the list of bad
//! inputs in docs/FORMATS.md.

use mixlora::io::Checkpoint;
use mixlora::{Device, Format, Stream};
use std::path::{Path, PathBuf};

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// `a` f32 [2, 2], `b` bf16 [1, 3], `c` f16 [2], `i` i64 [2].
fn small() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},
        "a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
        "i":{"dtype":"I64","shape":[2],"data_offsets":[16,32]},
        "b":{"dtype":"BF16","shape":[1,3],"data_offsets":[32,38]},
        "c":{"dtype":"F16","shape":[2],"data_offsets":[38,42]}}"#;
    let mut data: Vec<u8> = [1f32, 2.0, -3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    data.extend([5i64, 7].iter().flat_map(|v| v.to_le_bytes()));
    data.extend([1f32, 0.5, -2.0].iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()));
    data.extend([0.25f32, 8.0].iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()));
    file(header, &data)
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn with(self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
        std::fs::write(self.path().join(name), bytes).unwrap();
        self
    }
    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
    fn error(&self, name: &str) -> String {
        Checkpoint::open(self.file(name)).unwrap_err().to_string()
    }
}

/// Opened as a file of its own.
fn refused(bytes: Vec<u8>, what: &str) {
    let folder = Folder::new().with("x.safetensors", bytes);
    let error = folder.error("x.safetensors");
    assert!(error.contains("x.safetensors: ") && error.contains(what), "'{error}' does not say '{what}'");
}

#[test]
fn a_small_file_gives_what_is_in_it() {
    let folder = Folder::new().with("adapter_model.safetensors", small());
    let opened = [folder.path(), &folder.file("adapter_model.safetensors")].map(Checkpoint::open);
    for all in opened.into_iter().chain([Checkpoint::from_bytes("memory", small())]) {
        let all = all.unwrap();
        assert_eq!(all.names().collect::<Vec<_>>(), ["a", "b", "c", "i"]);
        assert_eq!((all.dims("b").unwrap(), all.metadata("format").unwrap()), (&[1, 3][..], "pt"));
        assert_eq!(all.values_f32("a").unwrap(), [1.0, 2.0, -3.0, 4.0]);
        assert_eq!(all.values_f32("b").unwrap(), [1.0, 0.5, -2.0]);
        assert_eq!(all.f32("c", &[2]).unwrap(), [0.25, 8.0]);
        assert_eq!(all.indices("i", &[2], 8).unwrap(), [5, 7]);
        let w = all.weight("b", &Device::cpu()).unwrap();
        assert_eq!((w.format(), w.to_f32().unwrap()), (Format::Bf16, vec![1.0, 0.5, -2.0]));
        assert_eq!(all.expect_tensors(["a", "c", "i"]).unwrap(), ["b"]);
        let error = |r: mixlora::Result<()>| r.unwrap_err().to_string();
        // Rows 7, 8 and 9.
        let e = error(all.weight("i", &Device::cpu()).map(|_| ()));
        assert!(e.ends_with("tensor 'i' has type I64, expected values in f32, f16 or bf16"), "{e}");
        let e = error(all.weight("c", &Device::cpu()).map(|_| ()));
        assert!(e.ends_with("tensor 'c' has shape [2], expected a matrix"), "{e}");
        let e = error(all.f32("a", &[4]).map(|_| ()));
        assert!(e.ends_with("tensor 'a' has shape [2, 2], expected [4]"), "{e}");
        let e = error(all.indices("i", &[2], 7).map(|_| ()));
        assert!(e.ends_with("tensor 'i' holds 7, expected 0..7"), "{e}");
        let e = error(all.expect_tensors(["x", "a", "y"]).map(|_| ()));
        assert!(e.ends_with("2 tensors are missing: 'x', 'y'"), "{e}");
    }
}

#[test]
fn files_that_are_none_are_refused() {
    // Interrupted downloads.
    refused(vec![], "not a safetensors file (0 bytes)");
    refused(vec![1; 7], "not a safetensors file (7 bytes)");
    // A Git-LFS pointer.
    refused(b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "git lfs pull");
    // A header that is too long.
    for n in [1 << 63, u64::MAX, 200 << 20] {
        refused([&n.to_le_bytes()[..], b"{}"].concat(), "not a valid safetensors file");
    }
    // A malformed header.
    refused([&[2, 0, 0, 0, 0, 0, 0, 0][..], &[0xff, 0xfe]].concat(), "not a valid safetensors file");
    refused(file("{\"a\":", &[]), "column");
    let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    refused(file(twice, &[0]), "'a' occurs twice at line 1 column");
    // Offsets that overlap, leave gaps or go beyond the end, and a product of axes beyond 64 bits.
    let tensor = |shape: &str, offsets: &str| {
        file(&format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#), &[0; 8])
    };
    refused(tensor("[1]", "[4,8]"), "not a valid safetensors file");
    refused(tensor("[1]", "[0,4]"), "cut short or something was appended");
    refused(tensor("[4]", "[0,16]"), "cut short or something was appended");
    refused(tensor("[3]", "[0,8]"), "not a valid safetensors file");
    refused(tensor("[4294967296,4294967296,4294967296]", "[0,8]"), "not a valid safetensors file");
    // An element type that is not read.
    let unknown = r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,1]}}"#;
    refused(file(unknown, &[0]), "BF16");
    // Pickles.
    refused(b"PK\x03\x04.........".to_vec(), "is a pickle file");
    let folder = Folder::new().with("pytorch_model.bin", [0x80, 2]).with("config.json", "{}");
    let error = folder.error("");
    assert!(
        error.contains("pytorch_model.bin: is a pickle file") && error.contains("safe_serialization"),
        "{error}"
    );
    assert!(folder.error("none.safetensors").contains("cannot be read"));
    assert!(Folder::new().error("").contains("has no model.safetensors"));
    let many = Folder::new().with("x.safetensors", small()).with("y.safetensors", small());
    assert!(many.error("").contains("has 2 .safetensors files"));
}

fn one(name: &str, value: f32) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}}}"#);
    file(&header, &value.to_le_bytes())
}

const INDEX: &str = "model.safetensors.index.json";

fn index(map: &[(&str, &str)]) -> String {
    let entries: Vec<String> = map.iter().map(|(k, v)| format!("{k:?}:{v:?}")).collect();
    format!("{{\"metadata\":{{\"total_size\":8}},\"weight_map\":{{{}}}}}", entries.join(","))
}

#[test]
fn a_model_in_several_files_is_read_by_its_index() {
    let folder = Folder::new()
        .with("m-1.safetensors", one("a", 1.0))
        .with("m-2.safetensors", one("b", 2.0))
        .with("m-3.safetensors", small())
        .with(INDEX, index(&[("a", "m-1.safetensors"), ("b", "m-2.safetensors"), ("i", "m-3.safetensors")]));
    for name in ["", INDEX] {
        let all = Checkpoint::open(folder.file(name)).unwrap();
        assert_eq!((all.values_f32("a").unwrap(), all.values_f32("b").unwrap()), (vec![1.0], vec![2.0]));
        assert_eq!(all.names().collect::<Vec<_>>(), ["a", "b", "i"]);
        // Tensors that the index does not list are reported and not read.
        assert_eq!(all.unlisted(), ["a", "b", "c"]);
    }
}

/// An index lists files of its own folder only.
#[test]
fn an_index_stays_in_its_folder_and_names_what_is_there() {
    let outside = Folder::new().with("x.safetensors", one("a", 1.0));
    let inside = outside.path().join("model");
    std::fs::create_dir(&inside).unwrap();
    let error = |text: &str| {
        std::fs::write(inside.join(INDEX), text).unwrap();
        Checkpoint::open(&inside).unwrap_err().to_string()
    };
    let absolute = outside.file("x.safetensors").to_string_lossy().into_owned();
    for path in ["../x.safetensors", "a/../../x.safetensors", "", ".", "..", "a/b", "..\\x", "C:x", &absolute]
    {
        let e = error(&index(&[("a", path)]));
        assert!(e.contains("is not a file of the same folder"), "{path}: {e}");
    }
    let e = error(&index(&[("a", "m-1.safetensors"), ("b", "m-2.safetensors")]));
    assert!(e.ends_with("2 files are missing: 'm-1.safetensors', 'm-2.safetensors'"), "{e}");
    std::fs::write(inside.join("m-1.safetensors"), one("a", 1.0)).unwrap();
    let e = error(&index(&[("a", "m-1.safetensors"), ("b", "m-1.safetensors"), ("c", "m-1.safetensors")]));
    assert!(e.ends_with("2 tensors are not in the files named: 'b', 'c'"), "{e}");
    let e = error(r#"{"weight_map":{"a":"m-1.safetensors","a":"m-1.safetensors"}}"#);
    assert!(e.contains("'a' occurs twice at line 1"), "{e}");
    for text in ["", "{}", "[]", r#"{"weight_map":3}"#, r#"{"weight_map":{"a":1}}"#] {
        error(text);
    }
}

#[test]
fn damaged_files_never_panic() {
    let whole = small();
    let bits = Stream::new(6);
    let folder = Folder::new();
    let path = folder.file("x.safetensors");
    for i in 0..3000u32 {
        let random = |k: u32| bits.bits(8 * i + k) as usize;
        let mut bytes = whole.clone();
        for k in 0..1 + random(0) as u32 % 3 {
            let at = random(1 + k) % bytes.len();
            bytes[at] = random(4 + k) as u8;
        }
        if i % 5 == 0 {
            bytes.truncate(random(7) % whole.len());
        }
        // A new file each time: a mapped one is never overwritten.
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).unwrap();
        let Ok(all) = Checkpoint::open(&path) else { continue };
        for name in all.names() {
            let _ = (all.values_f32(name), all.weight(name, &Device::Reference), all.indices(name, &[2], 8));
        }
    }
}
