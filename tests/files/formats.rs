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
