//! Numbers that a file only claims: they cost no more memory than the file's bytes can stand for.

use crate::common::cli::{mixlora, output};
use crate::common::edit::{Edit, file};
use mixlora::io::{Checkpoint, GgufFile};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

/// A safetensors file of a header and data.
fn write(path: &Path, header: &str, data: &[u8]) {
    std::fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat())
        .unwrap();
}

/// A reference file whose tensors are zeros.
fn reference(
    dir: &Path,
    config: serde_json::Value,
    tensors: &[(&str, &str, &[usize])],
) -> std::path::PathBuf {
    let mut at = 0;
    let mut header = json!({ "__metadata__": { "config": config.to_string() } });
    for (name, dtype, dims) in tensors {
        let end = at + 4 * dims.iter().product::<usize>();
        header[*name] = json!({ "dtype": dtype, "shape": dims, "data_offsets": [at, end] });
        at = end;
    }
    let path = dir.join("x.safetensors");
    write(&path, &header.to_string(), &vec![0; at]);
    path
}

fn verify_fails(path: &Path, expected: &str) {
    let started = Instant::now();
    let (_, err) = output(mixlora(&["verify", path.to_str().unwrap(), "--device", "cpu"]), 3);
    assert!(err.contains(expected), "'{expected}' is not in: {err}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn verify_claims_a_weight() {
    let dir = tempfile::tempdir().unwrap();
    let n = 60_000;
    let layer = |e: usize, i: usize, o: usize, b: usize, cfs: &str| {
        let config = json!({
            "batch": b, "seq": 1, "in": i, "out": o, "E": e, "r": 1, "alpha": 1.0, "base": false, "cfs": cfs,
        });
        let mut tensors = vec![
            ("x", "F32", vec![b, 1, i]),
            ("grad_y", "F32", vec![b, 1, o]),
            ("y", "F32", vec![b, 1, o]),
            ("factors_a", "F32", vec![e, i]),
            ("factors_b", "F32", vec![e, o]),
            ("router_a", "F32", vec![e, i]),
            ("router_b", "F32", vec![e, i]),
            ("idx_a", "I32", vec![b, 1]),
            ("idx_b", "I32", vec![b, 1]),
        ];
        if cfs != "none" {
            tensors.push(("router_cfs", "F32", vec![e, 1, i]));
        }
        let tensors: Vec<_> = tensors.iter().map(|(name, dtype, dims)| (*name, *dtype, &dims[..])).collect();
        reference(dir.path(), config, &tensors)
    };
    verify_fails(
        &layer(1, n, n, 1, "none"),
        "config asks for a base weight of zeros of [60000, 60000] values",
    );
    verify_fails(&layer(n, 1, 1, 20_000, "none"), "config asks for logits of [20000, 2, 60000] values");
    verify_fails(
        &layer(n, 1, 1, 1, "param_linear"),
        "config asks for a table of the condition of [60000, 60000, 1]",
    );
    // A file with the weight that it names stays as it was.
    let small = Edit::open(&file("layer"));
    let path = small.write(dir.path(), "small");
    output(mixlora(&["verify", path.to_str().unwrap(), "--device", "cpu"]), 0);
}

/// A GGUF file of one entry: a list of `n` items of a type.
fn gguf_list(kind: u32, n: u64, item: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend([0u64, 1, 1].iter().flat_map(|v| v.to_le_bytes()));
    bytes.push(b'k');
    bytes.extend([9u32, kind].iter().flat_map(|v| v.to_le_bytes()));
    bytes.extend(n.to_le_bytes());
    bytes.extend(item.repeat(n as usize));
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes
}

#[test]
fn gguf_lists_take_eight_times_the_file() {
    let n = 3_000_000;
    let error = |bytes: Vec<u8>| GgufFile::from_bytes("x.gguf", bytes).unwrap_err().to_string();
    let empty_array = [[0; 4], [0; 4], [0; 4]].concat();
    for bytes in [gguf_list(8, n, &[0; 8]), gguf_list(9, n, &empty_array), gguf_list(0, 60 << 20, &[7])] {
        let e = error(bytes);
        assert!(
            e.contains("x.gguf: 'k' at byte") && e.contains("the header takes more than 48 MiB of memory"),
            "{e}"
        );
    }
    // Strings that each take a block of memory, though they take few bytes of the file.
    let word = [&1u64.to_le_bytes()[..], b"w"].concat();
    assert!(error(gguf_list(8, n / 2, &word)).contains("the header takes more than 48 MiB"));
    // The largest vocabularies have 260,000 tokens and twice as many merges.
    let file = GgufFile::from_bytes("x.gguf", gguf_list(8, 750_000, &word)).unwrap();
    assert_eq!(file.strings("k").unwrap().len(), 750_000);
}

#[test]
fn safetensors_header_thirty_four_times() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let open = || Checkpoint::open(&path).map_err(|e| e.to_string());
    let entries =
        |n: usize, item: &str| (0..n).map(|i| format!("\"{i:x}\":{item}")).collect::<Vec<_>>().join(",");
    let tensor = r#"{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#;
    write(&path, &format!("{{\"__metadata__\":{{{}}}}}", entries(50_001, "\"\"")), &[]);
    assert!(open().unwrap_err().contains("more than 50000 entries"));
    write(&path, &format!("{{{}}}", entries(50_001, tensor)), &[]);
    assert!(open().unwrap_err().contains("more than 50000 entries"));
    write(&path, &format!("{{{}}}", entries(20_000, tensor)), &[]);
    assert_eq!(open().unwrap().names().count(), 20_000);
    let axes = tensor.replace("[0]", &format!("[0{}]", ",1".repeat(9)));
    write(&path, &format!("{{{}}}", entries(1, &axes)), &[]);
    assert!(open().unwrap_err().contains("a list of more than 8 items"));
    write(&path, &format!("{{\"__metadata__\":{{\"a\":\"{}\"}}}}", "a".repeat(17 << 20)), &[]);
    assert!(open().unwrap_err().contains("has a header of"));
    // An index is read with the same limits.
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, format!("{{\"weight_map\":{{{}}}}}", entries(50_001, "\"x.safetensors\"")))
        .unwrap();
    let e = Checkpoint::open(&index).unwrap_err().to_string();
    assert!(e.contains("more than 50000 entries"), "{e}");
}
