//! Dense products on the GPU: the kernels of `shaders/common/product.wgsl`, and which of them to use.
//!
//! `matmul` and `fused_ba_matmul` share them; their shaders say what is done with a finished block. A storage format
//! is a fragment that reads four values, so that every tiling works with every format. Cooperative matrices are one
//! more tiling, which only the frozen product uses: see `fused_ba_matmul/coop.rs`.

use super::launch::each_format;
use crate::Format;
use crate::device::parts;

use crate::Result;
use crate::device::{AdapterClass, Bind, CoopSize, Dispatch, Gpu, Grid, Parameters, Shader, Tuned};

/// A kernel with its sizes. All give the same result within rounding; tests force each by name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Tiling {
    pub name: &'static str,
    pub entry: &'static str,
    /// Rows and vectors of four columns that an invocation holds.
    r: u32,
    v: u32,
    /// Invocations of a workgroup.
    x: u32,
    y: u32,
    /// With cooperative matrices: how many there really are, and the fragments of the entry.
    lanes: u32,
    parts: Parts,
}

const fn tiling(name: &'static str, entry: &'static str, [r, v, x, y]: [u32; 4]) -> Tiling {
    Tiling { name, entry, r, v, x, y, lanes: x * y, parts: &[] }
}

/// For rows of the second operand that are read in pieces.
const fn stream(name: &'static str, sizes: [u32; 4]) -> Tiling {
    Tiling { parts: &[parts::PIECE, parts::PRODUCT_STREAM], ..tiling(name, "stream", sizes) }
}

pub(crate) const DIRECT: Tiling = tiling("direct", "direct", [8, 1, 8, 8]);
const DIRECT_N16: Tiling = tiling("direct n16", "direct", [8, 1, 4, 16]);
const DIRECT_M4: Tiling = tiling("direct m4", "direct", [4, 1, 32, 1]);
const DIRECT_M1: Tiling = tiling("direct m1", "direct", [1, 1, 32, 1]);
pub(crate) const TILE: Tiling = tiling("tile", "tile", [8, 2, 8, 8]);
const TILE_N64: Tiling = tiling("tile n64", "tile", [4, 2, 8, 8]);
const TILE_N16: Tiling = tiling("tile n16", "tile", [4, 1, 4, 16]);
const VECTOR_M8: Tiling = tiling("vector m8", "vector", [8, 1, 16, 4]);
const VECTOR_M4: Tiling = tiling("vector m4", "vector", [4, 1, 16, 4]);
const VECTOR_M1: Tiling = tiling("vector m1", "vector", [1, 1, 16, 4]);
const STREAM_M8: Tiling = stream("stream m8", [8, 1, 32, 2]);
const STREAM_M4: Tiling = stream("stream m4", [4, 1, 32, 2]);
pub(crate) const STREAM_M1: Tiling = stream("stream m1", [1, 1, 32, 2]);

/// For `k` a multiple of 16.
pub(crate) const AHEAD: Tiling =
    Tiling { parts: &[parts::PRODUCT_AHEAD], ..tiling("ahead", "ahead", [8, 2, 8, 8]) };

/// All of them.
pub(crate) static TILINGS: [Tiling; 14] = [
    DIRECT, DIRECT_N16, DIRECT_M4, DIRECT_M1, TILE, TILE_N64, TILE_N16, VECTOR_M8, VECTOR_M4, VECTOR_M1,
    STREAM_M8, STREAM_M4, STREAM_M1, AHEAD,
];

/// Bytes of workgroup memory that the entries take in their largest tiling.
pub(crate) const TILE_BYTES: u32 = 2 * 16 * 17 * 16;
pub(crate) const VECTOR_BYTES: u32 = 64 * 8 * 16;
pub(crate) const COOP_BYTES: u32 = 2 * (64 + 128) * 24 + 4 * 4 * 16 * 16;

/// Shapes that share a kernel on hardware, one that stands for them, and the built-in choice.
pub(crate) struct ShapeClass {
    pub name: &'static str,
    pub shape: [usize; 3],
    tiling: Tiling,
}

const fn class(name: &'static str, shape: [usize; 3], tiling: Tiling) -> ShapeClass {
    ShapeClass { name, shape, tiling }
}

/// Few rows are a stream of the second operand, and narrow results get narrow tiles. A step of k is 16: shorter sums
/// would fill little of it.
pub(crate) static CLASSES: [ShapeClass; 8] = [
    class("one row", [1, 2048, 2048], STREAM_M1),
    class("four rows", [4, 2048, 2048], STREAM_M4),
    class("eight rows", [8, 2048, 2048], STREAM_M8),
    class("short sums, 16 columns", [512, 16, 8], DIRECT_N16),
    class("short sums", [512, 2048, 8], DIRECT),
    class("16 columns", [512, 16, 2048], TILE_N16),
    class("64 columns", [512, 64, 2048], TILE_N64),
    class("wide", [512, 2048, 2048], TILE),
];

/// The class of `[m, k] [k, n]`.
pub(crate) fn class_of(m: usize, n: usize, k: usize) -> &'static ShapeClass {
    let at = match (m, n) {
        (0..=1, _) => 0,
        (2..=4, _) => 1,
        (5..=8, _) => 2,
        (_, 0..=16) if k < 16 => 3,
        _ if k < 16 => 4,
        (_, 0..=16) => 5,
        (_, 17..=64) => 6,
        _ => 7,
    };
    &CLASSES[at]
}

/// The tiling for `[m, k] [k, n]`: what was measured best on this adapter, else the built-in one. Software adapters pay
/// for barriers and for every load, so that registers alone are best there; they are not tuned.
pub(crate) fn choose(class: AdapterClass, tuned: &Tuned, m: usize, n: usize, k: usize) -> Tiling {
    match (class, m, n) {
        (AdapterClass::Software, 0..=1, _) => DIRECT_M1,
        (AdapterClass::Software, 2..=4, _) => DIRECT_M4,
        (AdapterClass::Software, _, 0..=16) => DIRECT_N16,
        (AdapterClass::Software, ..) => DIRECT,
        _ => {
            let shapes = class_of(m, n, k);
            let measured = tuned.get(shapes.name).and_then(|name| TILINGS.iter().find(|t| t.name == name));
            measured.copied().unwrap_or(shapes.tiling)
        }
    }
}

/// The tiling of cooperative matrices of that size.
pub(crate) fn cooperative(CoopSize { side, lanes }: CoopSize) -> Tiling {
    let (name, sizes, fragments): (_, _, Parts) = match side {
        16 => ("coop 16", [8, 4, 8, 8], &[parts::COOP_16, parts::PRODUCT_COOP]),
        _ => ("coop 8", [4, 2, 8, 8], &[parts::COOP_8, parts::PRODUCT_COOP]),
    };
    Tiling { lanes, parts: fragments, ..tiling(name, "coop", sizes) }
}

impl Tiling {
    /// Values of the constants that every tiling has.
    pub fn consts(&self) -> [(&'static str, u32); 5] {
        [("R", self.r), ("V", self.v), ("X", self.x), ("Y", self.y), ("LANES", self.lanes)]
    }

    /// Rows and columns of the result that a workgroup computes.
    fn sides(&self) -> (usize, usize) {
        let (rows, cols) = match self.entry {
            "vector" | "stream" => (self.r, 4 * self.y),
            _ => (self.r * self.y, 4 * self.v * self.x),
        };
        (rows as usize, cols as usize)
    }
}

/// One launch: what the shader of an op adds to the product is in `consts`, `parts`, and its parameters.
pub(crate) struct Product<'a> {
    pub shader: &'static Shader,
    pub tiling: Tiling,
    pub format: Format,
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// The first operand is stored `[K, M]`, the second `[N, K]`.
    pub ta: bool,
    pub tb: bool,
    /// Values in a stored row of the first operand, and where it starts.
    pub a_row: usize,
    pub a_first: usize,
    /// Values in a stored row of the second operand, and its first row.
    pub w_row: usize,
    pub w_first: usize,
    pub bind: &'a [Bind<'a>],
    pub consts: &'a [(&'static str, u32)],
    pub parts: &'a [&'static str],
}

/// The parameters that every product has.
pub(crate) struct Sizes {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub groups: u32,
    pub a_stride: u32,
    pub a_first: u32,
    pub w_first: u32,
    pub w_words: u32,
}

impl Product<'_> {
    /// What the kernel is told about the product.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            m: self.m as u32,
            n: self.n as u32,
            k: self.k as u32,
            groups: self.batch as u32,
            a_stride: self.a_row as u32,
            a_first: self.a_first as u32,
            w_first: self.w_first as u32,
            w_words: self.format.row_words(self.w_row) as u32,
        }
    }

    /// The tiling, or the one that stands in for it where it cannot read the operands.
    fn usable(&self, a_aligned: bool) -> Tiling {
        let pieces = self.tb && !self.ta && self.k.is_multiple_of(piece_len(self.format));
        let steps = self.k.is_multiple_of(16) && self.w_row.is_multiple_of(4);
        match (self.tiling.entry, self.tiling.r) {
            ("stream", _) if a_aligned && pieces => self.tiling,
            ("stream", 1) => VECTOR_M1,
            ("stream", 4) => VECTOR_M4,
            ("stream", _) => VECTOR_M8,
            ("ahead", _) if !a_aligned || !steps => TILE,
            _ => self.tiling,
        }
    }

    /// Records the launch: `params` are the [`sizes`](Self::sizes), and what the op adds.
    pub fn run(self, gpu: &Gpu, params: &impl Parameters) -> Result<()> {
        let a_aligned = self.a_row.is_multiple_of(4)
            && self.a_first.is_multiple_of(4)
            && (self.ta || self.k.is_multiple_of(4));
        let tiling = self.usable(a_aligned);
        let whole = self.format.row_words(self.w_row).is_multiple_of(4);
        let words = if whole { parts::WORDS4 } else { parts::WORDS4_ANY };
        let pieces = [words, PIECES[self.format as usize]];
        let (rows, cols) = tiling.sides();
        let edge = u32::from(!self.k.is_multiple_of(4));
        let flags = [("TA", u32::from(self.ta)), ("TB", u32::from(self.tb)), ("EDGE", edge)];
        let read = if a_aligned { parts::READ4 } else { parts::READ4_ANY };
        gpu.dispatch(Dispatch {
            shader: self.shader,
            entry: tiling.entry,
            consts: &[&tiling.consts()[..], &flags, self.consts].concat(),
            parts: &[
                &[parts::PRODUCT, parts::GRID, read][..],
                loader(self.format, self.w_row),
                self.parts,
                tiling.parts,
                if tiling.entry == "stream" { &pieces[..] } else { &[] },
            ]
            .concat(),
            bind: self.bind,
            params: params.bytes(),
            grid: Grid::Linear(self.batch * self.m.div_ceil(rows) * self.n.div_ceil(cols)),
            flops: 2 * (self.batch * self.m * self.n * self.k) as u64,
        })
    }
}

macro_rules! fragments {
    ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
        &[parts::HALF, parts::$load4]
    };
}
macro_rules! single {
    ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
        &[parts::HALF, parts::$load, parts::LOAD4_ANY]
    };
}
macro_rules! piece {
    ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
        parts::$piece
    };
}
type Parts = &'static [&'static str];
static LOADERS: [Parts; 11] = each_format!(fragments);
static SINGLE: [Parts; 11] = each_format!(single);
static PIECES: [&str; 11] = each_format!(piece);

/// Weights that an invocation of `stream` reads at once: `PIECE` of the format's fragment.
const fn piece_len(format: Format) -> usize {
    match format {
        Format::F32 => 4,
        Format::F16 | Format::Bf16 => 8,
        Format::Q4_K | Format::Q5_K => 64,
        Format::Q6_K => 16,
        _ => 32,
    }
}

/// The fragments that read four values of a row of this length.
pub(crate) fn loader(format: Format, row: usize) -> Parts {
    let all = if row.is_multiple_of(4) { &LOADERS } else { &SINGLE };
    all[format as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use AdapterClass::{Discrete, Integrated, Software};

    #[test]
    fn shape_classes_have_their_variants() {
        let table = [
            (Software, [1, 4096, 4096], "direct m1"),
            (Software, [3, 4096, 4096], "direct m4"),
            (Software, [512, 8, 576], "direct n16"),
            (Software, [512, 512, 512], "direct"),
            (Discrete, [1, 4096, 4096], "stream m1"),
            (Discrete, [4, 4096, 4096], "stream m4"),
            (Discrete, [8, 4096, 4096], "stream m8"),
            (Discrete, [9, 16, 4096], "tile n16"),
            (Discrete, [512, 64, 4096], "tile n64"),
            (Integrated, [512, 65, 4096], "tile"),
            (Integrated, [512, 2048, 8], "direct"),
            (Integrated, [512, 16, 8], "direct n16"),
        ];
        for (class, [m, n, k], name) in table {
            assert_eq!(choose(class, &Tuned::new(), m, n, k).name, name, "{class:?} {m} x {n} x {k}");
        }
    }

    #[test]
    fn pieces_are_as_long_as_their_fragments_say() {
        for format in Format::ALL {
            let text = PIECES[format as usize];
            assert!(text.contains(&format!("const PIECE: u32 = {}u;", piece_len(format))), "{format:?}");
        }
    }

    #[test]
    fn a_measured_kernel_is_used_on_hardware_alone() {
        for c in &CLASSES {
            let [m, n, k] = c.shape;
            assert_eq!(class_of(m, n, k).name, c.name);
            let table = |kernel: &str| Tuned::from([(c.name.to_string(), kernel.to_string())]);
            assert_eq!(choose(Discrete, &table("tile n16"), m, n, k).name, "tile n16");
            assert_eq!(choose(Discrete, &table("no such kernel"), m, n, k), c.tiling);
            assert_eq!(
                choose(Software, &table("tile n16"), m, n, k),
                choose(Software, &Tuned::new(), m, n, k)
            );
        }
        let other = Tuned::from([("wide".to_string(), "direct".to_string())]);
        assert_eq!(choose(Discrete, &other, 1, 2048, 2048).name, "stream m1");
    }

    #[test]
    fn workgroups_fit_the_floor() {
        for t in TILINGS {
            let (rows, cols) = t.sides();
            let bytes = match t.entry {
                "tile" | "ahead" => 16 * (rows / 4 + 1 + cols / 4 + 1) * 16,
                "vector" | "stream" => (t.x * t.y * t.r) as usize * 16,
                _ => 0,
            };
            assert!(t.x * t.y <= 256 && bytes <= TILE_BYTES as usize, "{t:?}: {bytes} bytes");
        }
    }
}
