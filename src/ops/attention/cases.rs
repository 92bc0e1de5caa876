//! Cases: grouped heads, key masks, caches, windows, caps, and their combinations.

use super::AttentionOptions;
use crate::Tensor;
use crate::engine::{Case, Operand, Timed, TimedSizes};

/// Whether a key of a batch row is there.
type Mask = fn(usize, usize) -> u32;

const PLAIN: AttentionOptions = AttentionOptions { causal: true, window: None, softcap: None, scale: None };
const BOTH: AttentionOptions = AttentionOptions { causal: false, ..PLAIN };
const CAPPED: AttentionOptions = AttentionOptions { softcap: Some(0.7), scale: Some(0.4), ..PLAIN };

fn window(size: usize) -> AttentionOptions {
    AttentionOptions { window: Some(size), ..PLAIN }
}

fn name(options: &AttentionOptions) -> String {
    let mut name = String::from(if options.causal { "" } else { " both ways" });
    if let Some(window) = options.window {
        name += &format!(" window {window}");
    }
    if let Some(cap) = options.softcap {
        name += &format!(" cap {cap}");
    }
    name
}

fn case([b, s, t, h, kv, d]: [usize; 6], options: AttentionOptions, mask: Option<Mask>) -> Case {
    let keys = [b, t, kv, d];
    let mut inputs =
        vec![Operand::normal("q", &[b, s, h, d]), Operand::normal("k", &keys), Operand::normal("v", &keys)];
    if let Some(f) = mask {
        let mask = (0..b * t).map(|i| f(i / t, i % t)).collect();
        inputs.push(Operand::indices(&[b, t], mask));
    }
    let masked = if mask.is_some() { " masked" } else { "" };
    let seen = |i: usize| {
        let position = t - s + i;
        let reach = options.window.map_or(t, |w| w - 1);
        let end = if options.causal { position + 1 } else { t.min(position + reach + 1) };
        end - position.saturating_sub(reach)
    };
    let pairs = b * h * (0..s).map(seen).sum::<usize>();
    let most = (0..s).map(seen).max().unwrap_or(0);
    let label = format!("B{b} S{s} T{t} H{h}/{kv} D{d}{masked}{}", name(&options));
    Case::new(label, inputs, move |x| Ok(vec![x[0].attention(&x[1], &x[2], x.get(3), &options)?]))
        .sums(d.max(t * h / kv))
        .cost(4 * pairs * d, 4 * (2 * b * s * h * d + 2 * b * t * kv * d))
        // With one visible key the weight is 1 whatever the score: gradients of q and k are zero on paper.
        .floor(if most == 1 { 1.0 } else { 1e-30 })
}

/// Over the first rows of a cache; the others hold NaN.
fn cached([b, s, t, room, h, kv, d]: [usize; 7], options: AttentionOptions) -> Case {
    let keys = [b, t, kv, d];
    let inputs = [("q", [b, s, h, d]), ("k", keys), ("v", keys)];
    let inputs = inputs.iter().map(|(name, dims)| Operand::normal(name, dims).frozen()).collect();
    let mask: Vec<u32> = (0..b * t).map(|i| u32::from(i % 7 != 3)).collect();
    let options = AttentionOptions { scale: Some(0.3), ..options };
    let label = format!("B{b} S{s} T{t} of {room} H{h}/{kv} D{d}{}", name(&options));
    Case::new(label, inputs, move |x| {
        let device = x[0].device();
        let mut cache = [1, 2].map(|_| Tensor::full(device, &[b, room, kv, d], f32::NAN));
        for (cache, x) in cache.iter_mut().zip(&x[1..]) {
            if let Ok(cache) = cache {
                cache.write_rows(0, x)?;
            }
        }
        let [k, v] = cache;
        let valid = Tensor::from_u32(device, &[b, t], &mask)?;
        Ok(vec![x[0].cached_attention(&k?, &v?, t, Some(&valid), &options)?])
    })
    .sums(t * d)
    // Making the caches counts: they are filled, written, and bound as a whole.
    .cost(4 * b * h * s * t * d, 8 * b * (s * h * d + kv * d * (3 * room + t)))
}

pub(super) fn cases() -> Vec<Case> {
    // Padding on the left of every second sequence, so that its first queries see nothing; holes; nothing visible.
    let left: Mask = |b, j| u32::from(b % 2 == 0 || j >= 3);
    let holes: Mask = |b, j| ((b + j) % 3) as u32;
    let none: Mask = |b, _| b as u32;
    let mut all = vec![
        case([0, 3, 3, 2, 1, 4], PLAIN, None),
        case([2, 0, 0, 2, 1, 4], PLAIN, None),
        case([1, 0, 5, 2, 1, 4], PLAIN, Some(left)),
        case([1, 1, 1, 1, 1, 1], PLAIN, None),
        case([2, 5, 5, 2, 2, 3], PLAIN, Some(left)),
        case([2, 4, 9, 4, 2, 8], PLAIN, Some(holes)),
        case([2, 3, 3, 2, 1, 4], PLAIN, Some(none)),
        case([1, 1, 200, 3, 1, 16], PLAIN, None),
        case([2, 67, 67, 6, 2, 64], PLAIN, Some(left)),
        case([1, 130, 163, 2, 1, 72], PLAIN, None),
        case([1, 40, 40, 2, 1, 256], PLAIN, Some(holes)),
        case([1, 33, 300, 1, 1, 130], PLAIN, None),
        case([2, 200, 231, 2, 1, 8], PLAIN, Some(holes)),
        case([1, 400, 400, 1, 1, 4], PLAIN, None),
    ];
    // More workgroups than a grid has in one dimension. Forward only: lavapipe takes 10 s for the rest.
    let mut many = case([33_000, 9, 9, 2, 1, 1], PLAIN, None);
    many.inputs = many.inputs.into_iter().map(Operand::frozen).collect();
    all.push(many);
    all.extend([
        // Few queries: their keys in slices.
        case([1, 8, 260, 2, 1, 256], PLAIN, Some(holes)),
        case([2, 3, 128, 4, 2, 130], CAPPED, Some(left)),
        cached([2, 3, 140, 150, 2, 1, 16], PLAIN),
        cached([2, 1, 5, 9, 4, 2, 8], PLAIN),
        cached([2, 3, 40, 64, 2, 1, 16], PLAIN),
        // A window at both ends of its range, within a tile, across tiles, and beyond the sequence.
        case([1, 5, 5, 2, 1, 3], window(1), None),
        case([2, 4, 9, 4, 2, 8], window(3), Some(holes)),
        case([2, 3, 3, 2, 1, 4], window(usize::MAX), Some(left)),
        case([1, 70, 103, 2, 1, 8], window(33), None),
        case([1, 700, 700, 2, 1, 4], window(50), Some(holes)),
        case([1, 1, 500, 2, 1, 8], window(300), None),
        // Both ways: whole, and in a window.
        case([2, 5, 5, 4, 2, 3], BOTH, Some(holes)),
        case([1, 70, 140, 2, 1, 8], BOTH, None),
        case([1, 450, 450, 1, 1, 4], BOTH, Some(left)),
        case([2, 7, 9, 2, 1, 3], AttentionOptions { window: Some(3), ..BOTH }, Some(left)),
        case([1, 300, 333, 2, 1, 4], AttentionOptions { window: Some(40), ..BOTH }, None),
        // Capped scores, alone and with everything else.
        case([2, 5, 5, 4, 2, 3], CAPPED, Some(left)),
        case([1, 130, 163, 2, 1, 72], CAPPED, None),
        case([2, 6, 9, 4, 2, 4], AttentionOptions { window: Some(4), ..CAPPED }, Some(holes)),
        case(
            [1, 300, 333, 2, 1, 8],
            AttentionOptions { window: Some(40), causal: false, ..CAPPED },
            Some(holes),
        ),
        cached([2, 1, 40, 64, 4, 2, 8], AttentionOptions { window: Some(7), ..CAPPED }),
        cached([2, 3, 140, 150, 2, 1, 16], window(20)),
        cached([2, 3, 40, 64, 2, 1, 16], AttentionOptions { causal: false, ..CAPPED }),
    ]);
    all
}

pub(super) fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [h, kv, d] = [9, 3, 64];
    let case = |s: usize| {
        let key = |name| Operand::normal(name, &[1, s, kv, d]);
        let pairs = h * s * (s + 1) / 2;
        let bytes = 8 * s * d * (h + kv);
        let inputs = vec![Operand::normal("q", &[1, s, h, d]), key("k"), key("v")];
        // Two products forward; backward five, with the scores computed again.
        Timed::plain(format!("1x{s}x{h}/{kv}x{d}"), inputs, (4 * pairs * d, bytes), |x| {
            x[0].attention(&x[1], &x[2], None, &PLAIN)
        })
        .sums(s * h / kv)
        .backward(10 * pairs * d, 2 * bytes)
    };
    sizes.pick([67, 450], [512, 2048]).map(case).into()
}
