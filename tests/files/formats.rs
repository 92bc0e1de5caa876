//! Storage formats against blocks that the `gguf` package made: tests/fixtures/make_quants.py.

use mixlora::{Device, Format, Tensor, Weight};

struct Recorded {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: &'static [u8],
    values: Vec<f32>,
}

fn recorded() -> Vec<Recorded> {
    let mut rest: &[u8] = include_bytes!("../fixtures/quants.bin");
    let mut all = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|&b| b == b'\n').unwrap();
        let line = std::str::from_utf8(&rest[..end]).unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let number = |i: usize| words[i].parse::<usize>().unwrap();
        let rows = number(1);
        let cols = number(2);
        let n = number(3);
        let format = Format::ALL.into_iter().find(|f| f.name() == words[0]).unwrap();
        let (bytes, tail) = rest[end + 1..].split_at(n);
        let (values, tail) = tail.split_at(4 * rows * cols);
        let values = values.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        all.push(Recorded { format, rows, cols, bytes, values });
        rest = tail;
    }
    assert_eq!(all.len(), Format::ALL.len());
    all
}

fn devices() -> Vec<Device> {
    let mut all = vec![Device::cpu(), Device::reference()];
    all.extend(crate::common::gpu());
    all
}

#[test]
fn recorded_blocks_decode_to_the_recorded_bits() {
    for r in recorded() {
        for device in devices() {
            let w = Weight::from_bytes(&device, [r.rows, r.cols], r.bytes, r.format).build().unwrap();
            assert_eq!(w.to_f32().unwrap(), r.values, "{:?} on {}", r.format, device.name());
        }
    }
}

#[test]
fn rows_are_looked_up_in_every_format_on_every_device() {
    for r in recorded() {
        for device in devices() {
            let w = Weight::from_bytes(&device, [r.rows, r.cols], r.bytes, r.format).build().unwrap();
            let index: Vec<u32> = (0..r.rows as u32).rev().collect();
            let index = Tensor::from_u32(&device, &[index.len()], &index).unwrap();
            let got = w.embedding(&index).unwrap().to_f32().unwrap();
            let want: Vec<f32> = r.values.rchunks(r.cols).flatten().copied().collect();
            let largest = want.iter().fold(0f32, |a, v| a.max(v.abs()));
            // Per row: rows differ in size by powers of ten down to subnormal scales.
            for (i, (got, want)) in got.chunks(r.cols).zip(want.chunks(r.cols)).enumerate() {
                let largest = want.iter().fold(0f32, |a, v| a.max(v.abs())).max(largest * 1e-7);
                let worst = got.iter().zip(want).fold(0f32, |a, (g, w)| a.max((g - w).abs()));
                // A GPU may flush subnormal f16 weights, and fuses d q + m.
                let bound = if r.format == Format::F16 { 6.2e-5 / largest } else { 3e-7 };
                assert!(
                    worst <= bound * largest,
                    "{:?} row {i} on {}: off by {worst:e} of {largest:e}",
                    r.format,
                    device.name()
                );
            }
        }
    }
}

/// What other quantisers made of values: tests/fixtures/make_encoded.py.
struct Encoded {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
    formats: Vec<(Format, &'static [u8])>,
}

fn encoded() -> Encoded {
    let mut rest: &[u8] = include_bytes!("../fixtures/encoded.bin");
    let mut line = |bytes: &dyn Fn(&[&str]) -> usize| {
        let end = rest.iter().position(|&b| b == b'\n').unwrap();
        let words: Vec<&str> = std::str::from_utf8(&rest[..end]).unwrap().split(' ').collect();
        let (part, tail) = rest[end + 1..].split_at(bytes(&words));
        rest = tail;
        (words, part, tail.is_empty())
    };
    let (words, bytes, _) =
        line(&|words| 4 * words[1..].iter().map(|n| n.parse::<usize>().unwrap()).product::<usize>());
    let [rows, cols] = [1, 2].map(|i: usize| words[i].parse().unwrap());
    let values = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let mut formats = Vec::new();
    loop {
        let (words, bytes, last) = line(&|words| words[1].parse().unwrap());
        formats.push((Format::ALL.into_iter().find(|f| f.name() == words[0]).unwrap(), bytes));
        if last {
            return Encoded { rows, cols, values, formats };
        }
    }
}

#[test]
fn values_are_quantised_as_ggml_does_or_better() {
    let Encoded { rows, cols, values, formats } = encoded();
    assert_eq!(formats.len(), Format::ALL.len() - 1);
    let cpu = Device::cpu();
    for (format, bytes) in formats {
        let ours = Weight::new(&cpu, rows, cols, &values, format).unwrap();
        let theirs = Weight::from_bytes(&cpu, [rows, cols], bytes, format).build().unwrap();
        assert_eq!(ours.format(), format);
        let ours = ours.to_f32().unwrap();
        let theirs = theirs.to_f32().unwrap();
        if format.block_len() < 256 {
            assert_eq!(ours, theirs, "{format:?}");
            continue;
        }
        // Rows of one distribution.
        for part in 0..rows / 4 {
            let of = |all: &[f32]| {
                let all = &all[part * 4 * cols..][..4 * cols];
                let wrong = all.iter().zip(&values[part * 4 * cols..]).map(|(a, b)| (a - b) as f64);
                wrong.map(|w| w * w).sum::<f64>()
            };
            let ratio = of(&ours) / of(&theirs);
            println!("{format:?} part {part}: {ratio:.4} of ggml's squared error");
            assert!(ratio < 1.03, "{format:?} part {part}: {ratio}");
        }
    }
}
