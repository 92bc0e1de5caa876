//! Cases: whole and partial heads, both pairings, and an amplitude.

use super::{Pairs, Rope, RopeScaling, Yarn};
use crate::engine::{Case, Computation, Operand, Timed, TimedSizes};
use crate::rng::Stream;
use crate::{Device, Result};

struct Setting {
    outer: &'static [usize],
    heads: usize,
    head_dim: usize,
    /// Values of a head that are rotated.
    dims: usize,
    positions: usize,
}

fn case(setting: Setting, pairs: Pairs, scaling: RopeScaling) -> Case {
    let Setting { outer, heads, head_dim, dims, positions } = setting;
    let tokens = outer.iter().product::<usize>();
    let at = (0..tokens as u32).map(|i| Stream::new(4).bits(i) % positions as u32).collect();
    let shape = [outer, &[heads, head_dim]].concat();
    let n: usize = shape.iter().product();
    let label = format!("{shape:?}, {dims} rotated, {pairs:?}, {positions} positions");
    let inputs = vec![Operand::normal("x", &shape), Operand::indices(outer, at)];
    Case::new(label, inputs, move |x| {
        let frequencies = scaling.frequencies(dims, 10_000.0, positions)?;
        let rope = Rope::from_frequencies(x[0].device(), &frequencies, positions)?.with_pairs(pairs);
        Ok(vec![x[0].rope(&rope, &x[1])?])
    })
    .cost(3 * n, 8 * n)
}

pub(super) fn cases() -> Vec<Case> {
    let whole = |outer: &'static [usize], heads: usize, head_dim: usize, positions: usize| {
        let setting = Setting { outer, heads, head_dim, dims: head_dim, positions };
        case(setting, Pairs::Halves, RopeScaling::Default)
    };
    let part = |outer: &'static [usize], heads: usize, head_dim: usize, dims: usize, pairs: Pairs| {
        let setting = Setting { outer, heads, head_dim, dims, positions: 40 };
        case(setting, pairs, RopeScaling::Yarn(Yarn::new(4.0, 16)))
    };
    vec![
        whole(&[0, 3], 2, 4, 5),
        whole(&[2, 2], 0, 4, 5),
        whole(&[1, 1], 1, 2, 1),
        whole(&[], 3, 6, 4),
        // Differences would build this long table again for every sample.
        whole(&[2, 7], 3, 10, 131_072).no_gradcheck(),
        whole(&[3, 11], 9, 64, 2048),
        whole(&[70_000], 1, 2, 100),
        part(&[2, 3], 2, 7, 4, Pairs::Halves),
        part(&[2, 3], 2, 7, 4, Pairs::Neighbours),
        part(&[3, 5], 4, 16, 16, Pairs::Neighbours),
        part(&[3, 11], 9, 96, 72, Pairs::Halves),
        part(&[3, 11], 9, 96, 48, Pairs::Neighbours),
    ]
}

pub(super) fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [s, h, d] = [sizes.pick(33, 1024), 32, 64];
    let n = s * h * d;
    let position = Operand::indices(&[1, s], (0..s as u32).collect());
    let inputs = vec![Operand::normal("x", &[1, s, h, d]), position];
    let make = move |device: &Device| -> Result<Computation> {
        let rope = Rope::new(device, d, s, 10_000.0)?;
        Ok(Box::new(move |x| Ok(vec![x[0].rope(&rope, &x[1])?])))
    };
    vec![Timed::new(format!("1x{s}x{h}x{d}"), inputs, (3 * n, 8 * n), make).backward(3 * n, 8 * n)]
}
