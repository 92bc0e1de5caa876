//! What a file is, told by its first bytes.

use std::fmt;

/// Kinds of files that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Png,
    Jpeg,
    WebP,
    Gif,
    Bmp,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Png => "PNG",
            Kind::Jpeg => "JPEG",
            Kind::WebP => "WebP",
            Kind::Gif => "GIF",
            Kind::Bmp => "BMP",
        }
    }

    /// Endings of names that such files have, in lower case.
    pub(super) fn endings(self) -> &'static [&'static str] {
        match self {
            Kind::Png => &["png", "apng"],
            Kind::Jpeg => &["jpg", "jpeg", "jpe", "jfif", "mpo"],
            Kind::WebP => &["webp"],
            Kind::Gif => &["gif"],
            Kind::Bmp => &["bmp", "dib"],
        }
    }

    /// The kind of a file, or what it is instead.
    pub(super) fn of(bytes: &[u8]) -> Result<Kind, &'static str> {
        let starts = |magic: &[u8]| bytes.starts_with(magic);
        let at = |place: usize, magic: &[u8]| bytes.get(place..).is_some_and(|rest| rest.starts_with(magic));
        if starts(b"\x89PNG\r\n\x1a\n") {
            return Ok(Kind::Png);
        }
        if starts(b"\xff\xd8\xff") {
            return Ok(Kind::Jpeg);
        }
        if starts(b"RIFF") && at(8, b"WEBP") {
            return Ok(Kind::WebP);
        }
        if starts(b"GIF87a") || starts(b"GIF89a") {
            return Ok(Kind::Gif);
        }
        // Two letters are not much: the length of the next header is looked at too.
        let is_bmp_header = |length: &u8| [12, 16, 40, 52, 56, 64, 108, 124].contains(length);
        if starts(b"BM") && bytes.get(14).is_some_and(is_bmp_header) && at(15, &[0; 3]) {
            return Ok(Kind::Bmp);
        }
        Err(other(bytes))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// First bytes of other files that people take for pictures.
const OTHERS: &[(&[u8], &str)] = &[
    (b"II*\0", "a TIFF file"),
    (b"MM\0*", "a TIFF file"),
    (b"II+\0", "a TIFF file"),
    (b"MM\0+", "a TIFF file"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL file"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (b"\0\0\x01\0", "an icon (ICO)"),
    (b"8BPS", "a Photoshop file"),
    (b"%PDF", "a PDF file"),
    (b"PK\x03\x04", "a zip archive"),
];

/// The name of a file that is not read.
fn other(bytes: &[u8]) -> &'static str {
    if bytes.get(4..8) == Some(b"ftyp") {
        return match bytes.get(8..12).unwrap_or_default() {
            b"avif" | b"avis" => "an AVIF file",
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => "a HEIC file",
            _ => "a video (MP4)",
        };
    }
    if let Some((_, name)) = OTHERS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return name;
    }
    let start = &bytes[..bytes.len().min(1024)];
    let is_text = match std::str::from_utf8(start) {
        Ok(_) => true,
        // A character may be cut in two.
        Err(error) => error.error_len().is_none() && error.valid_up_to() > 0,
    };
    if !is_text || start.contains(&0) {
        return "no picture of a known kind";
    }
    let text = String::from_utf8_lossy(start).to_lowercase();
    if text.contains("<svg") {
        return "an SVG drawing";
    }
    if text.contains("<!doctype html") || text.contains("<html") {
        return "a web page (HTML), perhaps the error message of a download";
    }
    "text, not a picture"
}
