//! PNG, GIF, WebP and BMP files.

use super::color::Alpha;
use super::kind::Kind;
use super::stored::{Header, Stored};
use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, ImageResult};
use std::io::Cursor;

/// Memory that a decoder may take beyond the pixels: tables, text, colour profiles.
const MORE_BYTES: u64 = 32 << 20;

/// A decoder of such a file, and whether the file has several frames.
fn decoder<'a>(kind: Kind, bytes: &'a [u8], pixels: u64) -> ImageResult<(Box<dyn ImageDecoder + 'a>, bool)> {
    let reader = Cursor::new(bytes);
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(pixels.saturating_mul(8).saturating_add(MORE_BYTES));
    let (mut decoder, moves): (Box<dyn ImageDecoder + 'a>, bool) = match kind {
        Kind::Png => {
            let decoder = PngDecoder::with_limits(reader, limits.clone())?;
            let moves = decoder.is_apng()?;
            (Box::new(decoder), moves)
        }
        Kind::Gif => (Box::new(GifDecoder::new(reader)?), gif_moves(bytes)),
        Kind::WebP => {
            let decoder = WebPDecoder::new(reader)?;
            let moves = decoder.has_animation();
            (Box::new(decoder), moves)
        }
        Kind::Bmp | Kind::Jpeg => (Box::new(BmpDecoder::new(reader)?), false),
    };
    decoder.set_limits(limits)?;
    Ok((decoder, moves))
}

/// The header of a file; `pixels` bounds the memory that is taken.
pub(super) fn header(kind: Kind, bytes: &[u8], pixels: u64) -> Result<Header, String> {
    let (mut decoder, moves) = decoder(kind, bytes, pixels).map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    // A damaged description of the camera is no reason to refuse a picture.
    let exif = decoder.exif_metadata().ok().flatten();
    let color = decoder.color_type();
    Ok(Header {
        width: width as usize,
        height: height as usize,
        pixel: pixel(color),
        alpha: color.has_alpha(),
        orientation: exif.map_or(1, |exif| orientation(&exif)),
        moves,
    })
}

/// The orientation, 1 to 8, in EXIF data.
pub(super) fn orientation(exif: &[u8]) -> u8 {
    let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    Orientation::from_exif_chunk(exif).map_or(1, Orientation::to_exif)
}

fn pixel(color: ColorType) -> &'static str {
    match color {
        ColorType::L8 => "grey",
        ColorType::La8 => "grey with alpha",
        ColorType::Rgb8 => "RGB",
        ColorType::Rgba8 => "RGB with alpha",
        ColorType::L16 => "grey, 16 bits",
        ColorType::La16 => "grey with alpha, 16 bits",
        ColorType::Rgb16 => "RGB, 16 bits",
        ColorType::Rgba16 => "RGB with alpha, 16 bits",
        _ => "unknown",
    }
}

/// Decodes a file whose header was found to have this width and height.
pub(super) fn decode(kind: Kind, bytes: &[u8], size: (usize, usize), alpha: Alpha) -> Result<Stored, String> {
    let pixels = size.0 * size.1;
    let (decoder, _) = decoder(kind, bytes, pixels as u64).map_err(|error| error.to_string())?;
    let color = decoder.color_type();
    let channels = usize::from(color.channel_count());
    let bytes_of_a_value = usize::from(color.bytes_per_pixel()) / channels;
    if !matches!(bytes_of_a_value, 1 | 2)
        || decoder.total_bytes() != (pixels * channels * bytes_of_a_value) as u64
    {
        return Err("its header says one thing and then another".into());
    }
    let mut values = vec![0; pixels * channels * bytes_of_a_value];
    decoder.read_image_boxed(&mut values).map_err(|error| error.to_string())?;
    if bytes_of_a_value == 2 {
        values =
            values.as_chunks::<2>().0.iter().map(|pair| (u16::from_ne_bytes(*pair) >> 8) as u8).collect();
    }
    let mut transparent = 0.0;
    if color.has_alpha() {
        let seen_through = values.chunks_exact(channels).filter(|pixel| pixel[channels - 1] < 255).count();
        transparent = seen_through as f64 / pixels as f64;
    }
    let rgb = match channels {
        1 => values.iter().flat_map(|&grey| [grey; 3]).collect(),
        2 => {
            let pairs = values.as_chunks::<2>().0.iter();
            alpha.rgb(&pairs.flat_map(|&[grey, alpha]| [grey, grey, grey, alpha]).collect::<Vec<u8>>())
        }
        3 => values,
        _ => alpha.rgb(&values),
    };
    Ok(Stored { rgb, transparent })
}

/// Tests whether a GIF file has more than one frame, from the outline of its blocks.
fn gif_moves(bytes: &[u8]) -> bool {
    let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let mut frames = 0;
    let mut at = 13 + table(bytes.get(10).copied().unwrap_or(0));
    while let Some(block) = bytes.get(at) {
        match block {
            0x2c => {
                frames += 1;
                // The descriptor, its colours, and the width of the first code.
                at += 10 + table(bytes.get(at + 9).copied().unwrap_or(0)) + 1;
            }
            0x21 => at += 2,
            _ => break,
        }
        while let Some(&length) = bytes.get(at) {
            at += 1 + usize::from(length);
            if length == 0 {
                break;
            }
        }
    }
    frames > 1
}
