//! Pictures: from a file to the pixels that a vision tower reads (feature `images`).
//!
//! A [`PictureFile`] is opened, which looks at its header alone, then decoded to a [`Picture`]: upright rows of RGB
//! bytes. A [`Processor`] is what a model's `preprocessor_config.json` says: it resizes, pads, crops and cuts a picture to
//! [`Tiles`], and makes f32 values of them. Resizing has Pillow's bits, and tiles and values those of transformers'
//! Pillow image processors. docs/IMAGES.md has the rules and the limits.
//!
//! ```
//! use mixlora::picture::{Alpha, Limits, Picture, PictureFile, Processor};
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("red.png");
//! std::fs::write(&path, Picture::filled(40, 30, [200, 30, 30])?.to_png()?)?;
//! std::fs::write(folder.path().join("preprocessor_config.json"), r#"{"image_processor_type": "CLIPImageProcessor"}"#)?;
//!
//! let file = PictureFile::open(&path, &Limits::default())?;
//! assert_eq!((file.about().width, file.about().height), (40, 30));
//! let processor = Processor::of_model(folder.path())?;
//! let tiles = processor.tiles(&file.decode(processor.alpha)?.picture)?;
//! assert_eq!((tiles.count(), tiles.height(), tiles.width()), (1, 224, 224));
//! assert_eq!(processor.values(&tiles).len(), 3 * 224 * 224);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod color;
mod file;
mod filter;
mod jpeg;
mod kind;
mod layout;
mod pixels;
mod processor;
mod raster;
mod resize;
mod settings;
mod size;
mod stored;
mod tiles;

pub use self::color::Alpha;
pub use self::file::{About, Decoded, Limits, PictureFile};
pub use self::filter::Filter;
pub use self::kind::Kind;
pub use self::layout::Layout;
pub use self::pixels::Picture;
pub use self::processor::{Fit, Processor};
pub use self::size::Size;
pub use self::tiles::Tiles;
