//! JPEG files: baseline and progressive; grey, colour and CMYK.
//!
//! The decoder gives the channels as they are stored; what makes RGB of them is in `color.rs`. Its inverse transform and
//! the way it enlarges chroma differ from those of the JPEG group's library, which Pillow uses: by 3 or 4 levels at most in
//! usual files with 4:2:0, more at sharp edges of colour.

use super::color::{rgb_of_cmyk, rgb_of_ycbcr};
use super::raster;
use super::stored::{Header, Stored};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// What the segments of a file say.
#[derive(Default)]
struct Outline {
    width: usize,
    height: usize,
    components: u8,
    /// Adobe's programs wrote it: CMYK is stored inverted.
    adobe: bool,
    orientation: Option<u8>,
    /// The picture has its end.
    complete: bool,
}

/// Reads the segments up to the end of the picture. Compressed data are passed over.
fn outline(bytes: &[u8]) -> Result<Outline, String> {
    let mut outline = Outline::default();
    let mut at = 2;
    while let Some(marker) = next_marker(bytes, &mut at) {
        match marker {
            0xd9 => {
                outline.complete = true;
                break;
            }
            0x01 | 0xd0..=0xd8 => continue,
            _ => {}
        }
        let length = bytes.get(at..at + 2).map(|pair| usize::from(u16::from_be_bytes([pair[0], pair[1]])));
        let Some(segment) = length.and_then(|length| bytes.get(at + 2..at + length.max(2))) else { break };
        match (marker, segment) {
            (0xc0..=0xc2, [8, h1, h0, w1, w0, components, ..]) => {
                outline.height = usize::from(u16::from_be_bytes([*h1, *h0]));
                outline.width = usize::from(u16::from_be_bytes([*w1, *w0]));
                outline.components = *components;
            }
            (0xc0..=0xc2, [bits, ..]) if *bits != 8 => {
                return Err(format!("{bits} bits a value are not read, only 8"));
            }
            (0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf, _) => {
                return Err("lossless, hierarchical and arithmetic coding are not read".into());
            }
            (0xe1, [b'E', b'x', b'i', b'f', 0, 0, ..]) if outline.orientation.is_none() => {
                outline.orientation = Some(raster::orientation(segment));
            }
            (0xee, [b'A', b'd', b'o', b'b', b'e', ..]) => outline.adobe = true,
            _ => {}
        }
        at += 2 + segment.len();
    }
    if outline.components == 0 {
        return Err("it ends before its size".into());
    }
    Ok(outline)
}

/// Goes behind the next marker. Inside of compressed data a zero or the number of a restart follows the byte 255.
fn next_marker(bytes: &[u8], at: &mut usize) -> Option<u8> {
    loop {
        *at += bytes.get(*at..)?.iter().position(|&byte| byte == 0xff)?;
        *at += bytes[*at..].iter().position(|&byte| byte != 0xff)?;
        let marker = bytes[*at];
        *at += 1;
        if marker != 0 {
            return Some(marker);
        }
    }
}

pub(super) fn header(bytes: &[u8]) -> Result<Header, String> {
    let outline = outline(bytes)?;
    let pixel = match outline.components {
        1 => "grey",
        3 => "RGB",
        4 => "CMYK",
        count => return Err(format!("it has {count} channels; 1, 3 and 4 are read")),
    };
    if !outline.complete {
        return Err("it ends before its end marker".into());
    }
    let orientation = outline.orientation.unwrap_or(1);
    Ok(Header {
        width: outline.width,
        height: outline.height,
        pixel,
        alpha: false,
        orientation,
        moves: false,
    })
}

pub(super) fn decode(bytes: &[u8]) -> Result<Stored, String> {
    let outline = outline(bytes)?;
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(outline.width)
        .set_max_height(outline.height);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| error.to_string())?;
    let stored = decoder.input_colorspace().ok_or("it has no channels")?;
    let space = match (outline.components, stored) {
        (1, _) => ColorSpace::Luma,
        // Adobe's mark of no transform means CMYK of four channels, RGB of three.
        (3, ColorSpace::RGB | ColorSpace::CMYK) => ColorSpace::RGB,
        (3, _) => ColorSpace::YCbCr,
        (4, ColorSpace::YCCK) => ColorSpace::YCCK,
        _ => ColorSpace::CMYK,
    };
    decoder.set_options(options.jpeg_set_out_colorspace(space));
    let values = decoder.decode().map_err(|error| error.to_string())?;
    let threes = || values.as_chunks::<3>().0.iter();
    let fours = || values.as_chunks::<4>().0.iter();
    let rgb: Vec<u8> = match space {
        ColorSpace::Luma => values.iter().flat_map(|&grey| [grey; 3]).collect(),
        ColorSpace::RGB => values,
        ColorSpace::YCbCr => threes().flat_map(|&pixel| rgb_of_ycbcr(pixel)).collect(),
        ColorSpace::YCCK => {
            // Cyan, magenta and yellow were turned to Y, Cb and Cr as red, green and blue are.
            let ink = |&[y, cb, cr, black]: &[u8; 4]| {
                let [red, green, blue] = rgb_of_ycbcr([y, cb, cr]);
                [255 - red, 255 - green, 255 - blue, black]
            };
            fours().flat_map(|pixel| rgb_of_cmyk(upright(ink(pixel), outline.adobe))).collect()
        }
        _ => fours().flat_map(|&pixel| rgb_of_cmyk(upright(pixel, outline.adobe))).collect(),
    };
    Ok(Stored { rgb, transparent: 0.0 })
}

/// Ink as 255 for full ink.
fn upright(pixel: [u8; 4], inverted: bool) -> [u8; 4] {
    if inverted { pixel.map(|ink| 255 - ink) } else { pixel }
}
