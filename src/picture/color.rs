//! From what files hold to RGB bytes.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What becomes of transparency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Alpha {
    /// Left out: a transparent pixel shows the colour that is stored under it. CLIP, SigLIP and LLaVA do so.
    #[default]
    Drop,
    /// The picture is put on white: `round(c a/255 + 255 (1 - a/255))`. Idefics3 and SmolVLM do so.
    White,
}

impl Alpha {
    pub const ALL: [Alpha; 2] = [Alpha::Drop, Alpha::White];

    pub fn name(self) -> &'static str {
        match self {
            Alpha::Drop => "drop",
            Alpha::White => "white",
        }
    }

    fn apply(self, color: u8, alpha: u8) -> u8 {
        match self {
            Alpha::Drop => color,
            Alpha::White => {
                let mixed = u32::from(color) * u32::from(alpha) + 255 * u32::from(255 - alpha);
                // The nearest integer of a quotient by an odd number: there are no ties.
                ((mixed + 127) / 255) as u8
            }
        }
    }

    /// RGB bytes of RGBA bytes.
    pub(super) fn rgb(self, rgba: &[u8]) -> Vec<u8> {
        let pixels = rgba.as_chunks::<4>().0.iter();
        pixels
            .flat_map(|[red, green, blue, alpha]| [*red, *green, *blue].map(|c| self.apply(c, *alpha)))
            .collect()
    }
}

impl fmt::Display for Alpha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A pixel of CMYK, 255 being full ink: `n = 255 - K; t = C n + 128; R = n - ((t >> 8) + t >> 8)`, the same for G and B.
pub(super) fn rgb_of_cmyk([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let light = 255 - u32::from(black);
    [cyan, magenta, yellow].map(|ink| {
        let shade = u32::from(ink) * light + 128;
        light.saturating_sub(((shade >> 8) + shade) >> 8) as u8
    })
}

/// A pixel of YCbCr in the 16-bit fixed point of the JPEG group's library:
/// `R = Y + 1.402 (Cr - 128)`, `G = Y - 0.34414 (Cb - 128) - 0.71414 (Cr - 128)`, `B = Y + 1.772 (Cb - 128)`.
pub(super) fn rgb_of_ycbcr([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let y = i32::from(y);
    let blue = i32::from(cb) - 128;
    let red = i32::from(cr) - 128;
    let parts =
        [(91881 * red + HALF) >> 16, (HALF - 22554 * blue - 46802 * red) >> 16, (116130 * blue + HALF) >> 16];
    parts.map(|part| (y + part).clamp(0, 255) as u8)
}
