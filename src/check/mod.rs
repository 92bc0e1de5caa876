//! Harnesses that verify the engine: cases of every op on every backend, derivatives against central differences, and
//! layers against reference files. Tests and the commands `ops test` and `verify` use them.

pub mod golden;
mod gradcheck;
mod method;
mod parity;

pub use gradcheck::{GRADCHECK_BOUND, GradError, gradcheck, gradcheck_directions, gradcheck_params};
pub use method::gradcheck_method;
pub use parity::{F16_BOUND, Parity, bits, parity};

/// The largest error relative to the largest reference value (or `floor`), and the normalised mean square error.
///
/// ```
/// use mixlora::check::Deviation;
/// assert_eq!(Deviation::of(&[3.0, 4.0], &[3.0, 5.0], 0.0).max, 0.2);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Deviation {
    /// `max |got - want| / max(max |want|, floor)`
    pub max: f64,
    /// `sum (got - want)^2 / sum want^2`
    pub nmse: f64,
}

impl Deviation {
    /// Compares values; a NaN or infinity on either side or a difference in length counts as infinite.
    pub fn of(got: &[f64], want: &[f64], floor: f64) -> Self {
        if got.len() != want.len() || got.iter().chain(want).any(|value| !value.is_finite()) {
            return Deviation { max: f64::INFINITY, nmse: f64::INFINITY };
        }
        let largest = want.iter().fold(floor, |largest, value| largest.max(value.abs()));
        let mut worst = 0f64;
        let mut error = 0f64;
        let mut power = 0f64;
        for (got, want) in got.iter().zip(want) {
            worst = worst.max((got - want).abs());
            error += (got - want) * (got - want);
            power += want * want;
        }
        let ratio = |error: f64, scale: f64| if error == 0.0 { 0.0 } else { error / scale };
        Deviation { max: ratio(worst, largest), nmse: ratio(error, power.max(floor * floor)) }
    }
    /// The larger figures of two comparisons.
    pub fn worst(self, other: Self) -> Self {
        Deviation { max: self.max.max(other.max), nmse: self.nmse.max(other.nmse) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_not_finite_never_pass() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for (got, want) in [([1.0, bad], [1.0, 2.0]), ([1.0, 2.0], [1.0, bad]), ([1.0, bad], [1.0, bad])]
            {
                assert_eq!(Deviation::of(&got, &want, 0.0).max, f64::INFINITY);
            }
        }
        assert_eq!(Deviation::of(&[1.0], &[1.0, 2.0], 0.0).max, f64::INFINITY);
        assert_eq!(Deviation::of(&[0.0], &[0.0], 0.0).max, 0.0);
        assert_eq!(Deviation::of(&[3.0, 4.0], &[3.0, 5.0], 0.0).max, 0.2);
    }
}
