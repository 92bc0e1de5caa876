//! A picture's file: looked at, checked against limits, then decoded.

use super::color::Alpha;
use super::kind::Kind;
use super::stored::Header;
use super::{Picture, jpeg, raster};
use crate::io::{cannot_read, refuse_pointer};
use crate::{Error, Result};
use serde::Serialize;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Pictures above these are refused before they are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Width times height; 100,000,000 by default. Decoding takes up to 8 bytes a pixel, and 3 stay.
    pub pixels: u64,
    /// Width and height; 30,000 by default.
    pub side: u64,
    /// The file; 64 MiB by default.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { pixels: 100_000_000, side: 30_000, bytes: 64 << 20 }
    }
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct About {
    pub kind: &'static str,
    /// Of the file.
    pub bytes: u64,
    /// In pixels, turned upright.
    pub width: usize,
    /// In pixels, turned upright.
    pub height: usize,
    /// What a pixel is, as `RGB` or `grey with alpha, 16 bits`.
    pub pixel: &'static str,
    /// Whether pixels may be transparent.
    pub alpha: bool,
    /// The EXIF orientation: 1 is upright, 2 to 8 are turned or mirrored.
    pub orientation: u8,
    /// What is odd about the file and no reason to refuse it.
    pub notes: Vec<String>,
}

/// A decoded picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    pub picture: Picture,
    /// The share of pixels that are not opaque, 0 to 1.
    pub transparent: f64,
    /// What is odd about the picture.
    pub notes: Vec<String>,
}

/// A file in memory whose header is good.
#[derive(Debug, Clone)]
pub struct PictureFile {
    path: PathBuf,
    bytes: Vec<u8>,
    kind: Kind,
    about: About,
}

impl PictureFile {
    /// Reads a file and looks at its header. The kind is told by the content and not by the name.
    ///
    /// # Errors
    /// The file cannot be read, is a folder, empty, of no kind that is read (the error says what it is), above a limit, or
    /// its header is damaged.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let refuse = |what: &str| Err(Error::file(path, what));
        let name = path.to_string_lossy();
        if ["http://", "https://"].iter().any(|scheme| name.starts_with(scheme)) {
            return refuse("is an address in the network; only files are read: download the picture first");
        }
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
        let (about, file) = opened.map_err(cannot_read(path))?;
        if about.is_dir() {
            return refuse("is a folder, not a picture");
        }
        let mut bytes = Vec::new();
        file.take(limits.bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(cannot_read(path))?;
        if bytes.len() as u64 > limits.bytes {
            return refuse(&format!(
                "has more than {} bytes, the most that are read of a picture",
                limits.bytes
            ));
        }
        PictureFile::from_bytes(path, bytes, limits)
    }

    /// The same for the bytes of a file; `name` stands in messages.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) for what the bytes are.
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Vec<u8>, limits: &Limits) -> Result<Self> {
        let path = name.as_ref().to_path_buf();
        if bytes.is_empty() {
            return Err(Error::file(path, "is empty (0 bytes)"));
        }
        refuse_pointer(&path, &bytes)?;
        let kind = Kind::of(&bytes).map_err(|what| {
            Error::file(&path, format!("is {what}; PNG, JPEG, WebP, GIF and BMP are read: convert it first"))
        })?;
        let header = match kind {
            Kind::Jpeg => jpeg::header(&bytes),
            _ => raster::header(kind, &bytes, limits.pixels),
        };
        let header = header.map_err(|what| damaged(&path, kind, &what))?;
        check_size(&path, &header, limits)?;
        let about = about(&path, kind, bytes.len(), &header);
        Ok(PictureFile { path, bytes, kind, about })
    }

    pub fn about(&self) -> &About {
        &self.about
    }
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// CRC-32 of its bytes.
    pub fn checksum(&self) -> u32 {
        crc32fast::hash(&self.bytes)
    }

    /// What tells its bytes from others: their CRC-32, their number, and their FNV-1a of 64 bits.
    pub fn key(&self) -> String {
        let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let hash = self.bytes.iter().fold(0xcbf2_9ce4_8422_2325, step);
        format!("{:08x}-{}-{hash:016x}", self.checksum(), self.bytes.len())
    }

    /// Decodes the picture and turns it upright. Of several frames it is the first; of 16 bits it is the high byte.
    ///
    /// # Errors
    /// The file is damaged or truncated.
    pub fn decode(&self, alpha: Alpha) -> Result<Decoded> {
        let upright = self.about.orientation < 5;
        let width = if upright { self.about.width } else { self.about.height };
        let height = if upright { self.about.height } else { self.about.width };
        let stored = match self.kind {
            Kind::Jpeg => jpeg::decode(&self.bytes),
            _ => raster::decode(self.kind, &self.bytes, (width, height), alpha),
        };
        let stored = stored.map_err(|what| damaged(&self.path, self.kind, &what))?;
        let picture = Picture::new(width, height, stored.rgb)
            .map_err(|error| damaged(&self.path, self.kind, &error.to_string()))?;
        let mut notes = self.about.notes.clone();
        if stored.transparent > 0.01 && alpha == Alpha::Drop {
            notes.push(format!(
                "{:.0} % of its pixels are transparent and show the colour that is stored under it",
                100.0 * stored.transparent
            ));
        }
        Ok(Decoded {
            picture: picture.turned(self.about.orientation),
            transparent: stored.transparent,
            notes,
        })
    }
}

fn damaged(path: &Path, kind: Kind, what: &str) -> Error {
    Error::file(path, format!("is a damaged or truncated {kind} file: {what}"))
}

fn check_size(path: &Path, header: &Header, limits: &Limits) -> Result<()> {
    let width = header.width as u64;
    let height = header.height as u64;
    if width == 0 || height == 0 {
        return Err(Error::file(path, format!("has no pixels: its size is {width} x {height}")));
    }
    if width.max(height) > limits.side || width.saturating_mul(height) > limits.pixels {
        let what = format!(
            "has {width} x {height} pixels; at most {} on a side and {} in all are decoded: make it smaller",
            limits.side, limits.pixels
        );
        return Err(Error::file(path, what));
    }
    Ok(())
}

fn about(path: &Path, kind: Kind, bytes: usize, header: &Header) -> About {
    let mut notes = Vec::new();
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    if let Some(ending) = ending.filter(|ending| !kind.endings().contains(&ending.as_str())) {
        notes.push(format!("is a {kind} file, although its name ends in .{ending}"));
    }
    if header.moves {
        notes.push("has several frames, of which the first is taken".to_string());
    }
    if header.width == 1 && header.height == 1 {
        notes.push("is a single pixel".to_string());
    }
    let upright = header.orientation < 5;
    About {
        kind: kind.name(),
        bytes: bytes as u64,
        width: if upright { header.width } else { header.height },
        height: if upright { header.height } else { header.width },
        pixel: header.pixel,
        alpha: header.alpha,
        orientation: header.orientation,
        notes,
    }
}
