use super::*;
use half::f16;

#[test]
fn formats_round_trip_in_shards() {
    let values: Vec<f32> = (0..35).map(|i| i as f32 * 0.25 - 3.0).collect();
    for format in [Format::F32, Format::F16, Format::Bf16] {
        let cpu = Device::cpu();
        let w = Weight::from_values(&cpu, [7, 5], &values).store_as(format).shard_bytes(40);
        let w = w.build().unwrap();
        assert!(w.shards().len() >= 3);
        let all: Vec<f32> = w.shards().iter().flat_map(|s| w.decode(s, 0..s.rows).into_owned()).collect();
        assert_eq!((&all, w.to_f32().unwrap()), (&values, values.clone()), "{format:?}");
        assert_eq!(w.shard_of(6).unwrap().first, w.shards().last().unwrap().first);
        assert!(w.shard_of(7).is_none());
    }
}

#[test]
fn a_row_that_does_not_fit_is_refused() {
    assert!(Weight::from_values(&Device::cpu(), [1, 64], &[0.0; 64]).shard_bytes(128).build().is_err());
}

/// A row with these halves in front.
fn with_halves(values: &[f32], rest: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let mut bytes: Vec<u8> = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    bytes.extend(rest);
    bytes
}

fn decoded(format: Format, cols: usize, bytes: &[u8]) -> Vec<f32> {
    let mut all = Vec::new();
    for device in [Device::cpu(), Device::reference()] {
        all = Weight::from_bytes(&device, [1, cols], bytes, format).build().unwrap().to_f32().unwrap();
        assert_eq!(all.len(), cols);
    }
    all
}

/// Blocks worked out by hand from ggml's description: `x` are the elements named.
fn expect(format: Format, cols: usize, bytes: &[u8], x: &[(usize, f32)]) {
    let got = decoded(format, cols, bytes);
    for &(i, want) in x {
        assert_eq!(got[i], want, "{format:?} element {i}");
    }
}

#[test]
fn blocks_of_32_by_hand() {
    let q8 = with_halves(&[0.5], (0..32).map(|i| (8 * i - 128) as u8));
    expect(Format::Q8_0, 32, &q8, &[(0, -64.0), (1, -60.0), (16, 0.0), (31, 60.0)]);
    // Byte i has i in its low bits (element i) and 15 - i in its high bits (element i + 16).
    let nibbles = || (0..16u8).map(|i| i | (15 - i) << 4);
    let q4 = with_halves(&[2.0], nibbles());
    expect(Format::Q4_0, 32, &q4, &[(0, -16.0), (1, -14.0), (15, 14.0), (16, 14.0), (31, -16.0)]);
    let q4 = with_halves(&[2.0, -3.0], nibbles());
    expect(Format::Q4_1, 32, &q4, &[(0, -3.0), (15, 27.0), (16, 27.0), (30, -1.0), (31, -3.0)]);
    // Elements 0, 9, 17 and 31 have their fifth bit.
    let high: u32 = 1 | 1 << 9 | 1 << 17 | 1 << 31;
    let q5 = with_halves(&[2.0], high.to_le_bytes().into_iter().chain(nibbles()));
    expect(Format::Q5_0, 32, &q5, &[(0, 0.0), (1, -30.0), (9, 18.0), (16, -2.0), (17, 28.0), (31, 0.0)]);
    let q5 = with_halves(&[2.0, 1.0], high.to_le_bytes().into_iter().chain(nibbles()));
    expect(Format::Q5_1, 32, &q5, &[(0, 33.0), (1, 3.0), (9, 51.0), (16, 31.0), (17, 61.0), (31, 33.0)]);
    // Scales of a row stand in pairs: three blocks take one word and a half.
    let three: Vec<u8> = [1.0, 2.0, -4.0].into_iter().flat_map(|d| with_halves(&[d], [3; 32])).collect();
    expect(Format::Q8_0, 96, &three, &[(0, 3.0), (32, 6.0), (64, -12.0), (95, -12.0)]);
}

#[test]
fn blocks_of_256_by_hand() {
    // Groups 0..4 have scales 1, 2, 3, 60 and minimums 4, 5, 6, 61; groups 4..8 have 17, 34, 51, 63 and 0, 16, 33, 63.
    let packed = {
        let sc = [1u8, 2, 3, 60, 17, 34, 51, 63];
        let mn = [4u8, 5, 6, 61, 0, 16, 33, 63];
        let mut p = [0u8; 12];
        for i in 0..4 {
            p[i] = sc[i] | sc[i + 4] >> 4 << 6;
            p[i + 4] = mn[i] | mn[i + 4] >> 4 << 6;
            p[i + 8] = sc[i + 4] & 15 | (mn[i + 4] & 15) << 4;
        }
        p
    };
    // Byte i of a group of 32: the low bits belong to an even group, the high bits to the odd one behind it.
    let nibbles = || (0..128u32).map(|i| (i % 16 + (15 - i % 16) * 16) as u8);
    let q4 = with_halves(&[2.0, 0.5], packed.into_iter().chain(nibbles()));
    let x = [(0, -2.0), (5, 8.0), (32, 57.5), (47, -2.5), (64, -3.0), (96, 1769.5), (111, -30.5)];
    expect(Format::Q4_K, 256, &q4, &x);
    expect(Format::Q4_K, 256, &q4, &[(128, 0.0), (129, 34.0), (160, 1012.0), (255, -31.5)]);
    // Every 32nd byte of the fifth bits: bit g belongs to group g. Byte 1 sets groups 0 and 7, byte 5 group 2.
    let high = (0..32u8).map(|i| [0, 0x81, 0, 0, 0, 4][(i as usize).min(5)] * u8::from(i < 6));
    let q5 = with_halves(&[2.0, 0.5], packed.into_iter().chain(high).chain(nibbles()));
    expect(Format::Q5_K, 256, &q5, &[(0, -2.0), (1, 32.0), (5, 8.0), (69, 123.0), (225, 3748.5)]);
    // Q6_K: four low bits, two high bits, 16 signed scales, and the scale of all at the end.
    let low = (0..128u32).map(|i| if i < 64 { 0x21 } else { 0x4f });
    let high = (0..64u32).map(|i| if i < 32 { 0b1110_0100 } else { 0b0001_1011 });
    let scales = (0..16).map(|i| (i as i8 - 8) as u8);
    let mut q6: Vec<u8> = low.chain(high).chain(scales).collect();
    q6.extend(f16::from_f32(0.25).to_le_bytes());
    // First half: low bits 1 (elements 0..64) and 2 (64..128), high bits 0, 1, 2, 3 by quarters.
    // Quants: 1, 17, 34, 50 less 32. Second half: 15 and 4 with 3, 2, 1, 0: 63, 47, 20, 4 less 32.
    let x =
        [(0, 62.0), (16, 54.25), (32, 22.5), (48, 18.75), (64, -2.0), (80, -1.5), (96, -9.0), (127, -4.5)];
    expect(Format::Q6_K, 256, &q6, &x);
    expect(Format::Q6_K, 256, &q6, &[(128, 0.0), (144, 7.75), (160, 7.5), (192, -12.0), (255, -49.0)]);
}

#[test]
fn rows_come_in_the_order_asked_for() {
    for format in [Format::F32, Format::Bf16, Format::Q4_1, Format::Q6_K] {
        let rows = 5;
        let cols = 256;
        let bytes = sample(format, rows, cols, 1);
        let cpu = Device::cpu();
        let from = || Weight::from_bytes(&cpu, [rows, cols], &bytes, format);
        let plain = from().build().unwrap();
        let turned = from().rows(|i| (i * 2) % 5).build().unwrap();
        let a = plain.to_f32().unwrap();
        let b = turned.to_f32().unwrap();
        for i in 0..rows {
            assert_eq!(b[i * cols..][..cols], a[(i * 2) % 5 * cols..][..cols], "{format:?} row {i}");
        }
        let error = from().rows(|i| i + 1).build().unwrap_err();
        assert_eq!(error.to_string(), "weight: expected an order of 5 rows, found row 5");
        let wide = plain.with_format(Format::F32).unwrap();
        assert_eq!((wide.format(), wide.to_f32().unwrap()), (Format::F32, a.clone()));
        let direct: Vec<f32> = turned.decode(&turned.shards()[0], 1..3).into_owned();
        assert_eq!(direct, b[cols..3 * cols]);
    }
}

#[test]
fn bytes_that_do_not_fit_are_refused() {
    let refused = |rows, cols, bytes: &[u8], format| {
        Weight::from_bytes(&Device::cpu(), [rows, cols], bytes, format).build().unwrap_err().to_string()
    };
    assert_eq!(
        refused(1, 48, &[0; 51], Format::Q8_0),
        "weight: expected columns in blocks of 32, as q8_0 has, found 48"
    );
    assert_eq!(
        refused(2, 32, &[0; 67], Format::Q8_0),
        "weight: expected the bytes of q8_0 [2, 32], found 67"
    );
    for (rows, cols) in [(usize::MAX, 32), (1 << 40, 1 << 40), (2, usize::MAX & !255), (usize::MAX, 0)] {
        for format in Format::ALL {
            refused(rows, cols, &[0; 64], format);
            let order = |i| i;
            assert!(
                Weight::from_bytes(&Device::cpu(), [rows, cols], &[], format).rows(order).build().is_err()
            );
        }
    }
    let empty = Weight::from_bytes(&Device::cpu(), [0, 64], &[], Format::Q4_0).build().unwrap();
    assert!(empty.to_f32().unwrap().is_empty());
    let rows_of_48 = |format| Weight::new(&Device::cpu(), 1, 48, &[0.0; 48], format);
    assert!(rows_of_48(Format::Q8_0).is_err() && rows_of_48(Format::Q4_K).is_err());
    let mut large = [0.0; 64];
    large[40] = 1e7;
    for (format, most) in [(Format::F16, "f16"), (Format::Q8_0, "q8_0"), (Format::Q5_1, "q5_1")] {
        let error = Weight::new(&Device::cpu(), 2, 32, &large, format).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("weight: expected values that {most} can hold, found larger ones in row 1")
        );
    }
    large[40] = f32::NAN;
    assert!(Weight::new(&Device::cpu(), 2, 32, &large, Format::Q8_0).is_ok());
}
