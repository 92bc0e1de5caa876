//! A row of a report.

use super::{Roof, Summary, Timer};
use crate::device::Place;
use crate::engine::Costs;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// A description of the timed work.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// `roof`, `ops`, `layer`, `train`, `model` or `tower`.
    pub bench: String,
    /// The operation, the method, or the part of a model.
    pub op: String,
    /// Options that matter for the time.
    pub variant: String,
    pub shape: String,
    /// Format of the weights, or of the values.
    pub dtype: String,
    /// `fwd`, `bwd`, `sum` (both) or empty.
    pub dir: String,
}

/// One measurement. Absent figures do not apply to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    #[serde(flatten)]
    pub place: Place,
    #[serde(flatten)]
    pub work: Work,
    pub timer: Timer,
    /// The number of samples.
    pub n: usize,
    pub median_us: f64,
    pub p20_us: f64,
    pub p80_us: f64,
    pub min_us: f64,
    pub std_us: f64,
    /// The sum of the samples, for rows whose samples are launches of a kernel.
    #[serde(default)]
    pub total_us: Option<f64>,
    pub gflops: Option<f64>,
    pub gbps: Option<f64>,
    /// FLOP per byte moved.
    pub ai_flop_per_byte: Option<f64>,
    /// The bound of the measured roof at this intensity.
    pub roof_gflops: Option<f64>,
    /// The reached percentage of the roof, or of the bandwidth for work without arithmetic.
    pub roof_pct: Option<f64>,
    /// The median of the ratios to the frozen linear (or the dense products) in the same round, with their quantiles.
    pub ratio: Option<f64>,
    pub ratio_p20: Option<f64>,
    pub ratio_p80: Option<f64>,
    /// Tokens a second.
    pub tok_s: Option<f64>,
    /// Launches beyond those of the frozen linear.
    pub extra_dispatches: Option<i64>,
    pub submits: Option<u64>,
    pub readbacks: Option<u64>,
    pub bound_mib: Option<f64>,
    /// Largest amount of live buffers on the device.
    pub peak_mem_mib: Option<f64>,
    /// The peak resident memory of the process, if the system reports it.
    pub peak_rss_mib: Option<f64>,
    pub loss: Option<f64>,
    /// Whether the computation agrees with the f64 reference; absent if there is none.
    pub verified: Option<bool>,
    pub verified_nmse: Option<f64>,
}

impl Row {
    /// A row with its times in seconds.
    pub fn new(place: &Place, work: Work, timer: Timer, samples: &[f64]) -> Self {
        let summary = super::watch::micros(samples);
        Row {
            place: place.clone(),
            work,
            timer,
            n: summary.n,
            median_us: summary.median,
            p20_us: summary.p20,
            p80_us: summary.p80,
            min_us: summary.min,
            std_us: summary.std,
            total_us: None,
            gflops: None,
            gbps: None,
            ai_flop_per_byte: None,
            roof_gflops: None,
            roof_pct: None,
            ratio: None,
            ratio_p20: None,
            ratio_p80: None,
            tok_s: None,
            extra_dispatches: None,
            submits: None,
            readbacks: None,
            bound_mib: None,
            peak_mem_mib: None,
            peak_rss_mib: None,
            loss: None,
            verified: None,
            verified_nmse: None,
        }
    }

    /// Fills the columns of speed and of the roof from the median.
    pub fn costs(mut self, costs: Option<Costs>, roof: Option<&Roof>) -> Self {
        let Some(Costs { flops, bytes }) = costs else { return self };
        let seconds = self.median_us * 1e-6;
        let rate = |work: f64| (work > 0.0 && seconds > 0.0).then(|| work / seconds * 1e-9);
        (self.gflops, self.gbps) = (rate(flops), rate(bytes));
        self.ai_flop_per_byte = (flops > 0.0 && bytes > 0.0).then(|| flops / bytes);
        match roof {
            Some(roof) => self.under(roof),
            None => self,
        }
    }

    /// Fills the columns of the roof.
    pub fn under(mut self, roof: &Roof) -> Self {
        self.roof_gflops = self.ai_flop_per_byte.map(|intensity| roof.at(intensity));
        self.roof_pct = match (self.gflops, self.roof_gflops, self.gbps) {
            (Some(reached), Some(roof), _) => Some(100.0 * reached / roof),
            (None, _, Some(reached)) => Some(100.0 * reached / roof.copy_gbps),
            _ => None,
        };
        self
    }

    /// Fills the columns of the ratio.
    pub fn ratio(mut self, ratio: Summary) -> Self {
        (self.ratio, self.ratio_p20, self.ratio_p80) = (Some(ratio.median), Some(ratio.p20), Some(ratio.p80));
        self
    }

    /// The values that comparable rows share.
    pub fn key(&self) -> (&Work, &str, &str, &str) {
        (&self.work, &self.place.backend, &self.place.adapter, self.timer.name())
    }
}

impl Roof {
    /// Both figures as rows of a report. Their times are medians; the roof itself is the best sample.
    pub fn rows(&self) -> Vec<Row> {
        let row = |figure: usize, op: &str| {
            let work = Work { bench: "roof".into(), op: op.into(), dtype: "f32".into(), ..Work::default() };
            Row::new(&self.place, work, self.timer, &self.samples[figure])
        };
        let mut copy = row(0, "copy");
        let mut fused = row(1, "fma");
        (copy.gbps, fused.gflops) = (Some(self.copy_gbps), Some(self.fma_gflops));
        (copy.work.shape, fused.work.shape) =
            (format!("{} bytes", self.work[0]), format!("{} FLOP", self.work[1]));
        vec![copy, fused]
    }
}

/// The sizes `M x N x K` of a product `[M, K] [K, N]`, or another number of sizes.
///
/// ```
/// let shape: mixlora::bench::Shape<2> = "576x1536".parse()?;
/// assert_eq!(shape.0, [576, 1536]);
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape<const N: usize>(pub [usize; N]);

impl<const N: usize> std::str::FromStr for Shape<N> {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let parts: Option<Vec<usize>> =
            text.split('x').map(|part| part.trim().parse().ok().filter(|&number| number > 0)).collect();
        let example = ["", "512", "576x1536", "256x1024x1024"].get(N).copied().unwrap_or_default();
        parts.and_then(|parts| parts.try_into().ok()).map(Shape).ok_or_else(|| {
            Error::config("shape", format!("'{text}'"), format!("{N} positive numbers such as {example}"))
        })
    }
}

impl<const N: usize> std::fmt::Display for Shape<N> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0.map(|number| number.to_string()).join("x"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn shapes_are_read_and_written() {
        let shape: Shape<3> = "2x30x4".parse().unwrap();
        assert_eq!((shape.0, shape.to_string()), ([2, 30, 4], "2x30x4".to_string()));
        for bad in ["", "2x3", "2x3x0", "2x3x4x5", "axbxc"] {
            assert!(bad.parse::<Shape<3>>().is_err(), "{bad}");
        }
    }

    #[test]
    fn percents_are_of_the_lower_roof() {
        let device = Device::cpu();
        let roof = Roof { copy_gbps: 10.0, fma_gflops: 100.0, ..Roof::unmeasured(&device) };
        let row = |flops, bytes| {
            let row = Row::new(&Place::of(&device), Work::default(), Timer::Wall, &[1.0]);
            row.costs(Some(Costs { flops, bytes }), Some(&roof))
        };
        // 2 FLOP/B: bandwidth allows 20 GFLOP/s.
        assert_eq!((row(2e9, 1e9).roof_gflops, row(2e9, 1e9).roof_pct), (Some(20.0), Some(10.0)));
        assert_eq!((row(50e9, 1e9).roof_gflops, row(50e9, 1e9).roof_pct), (Some(100.0), Some(50.0)));
        assert_eq!((row(0.0, 5e9).gflops, row(0.0, 5e9).roof_pct), (None, Some(50.0)));
    }
}
