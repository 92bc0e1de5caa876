//! Pictures: files that cannot be read, oddities that are noted, and the command that shows what a model sees.
#![cfg(feature = "images")]

use crate::common::edit::{Edit, golden};
use mixlora::picture::{Alpha, Decoded, Filter, Limits, Picture, PictureFile, Processor};
use mixlora::{Error, Result, Stream};
use std::path::Path;

/// The file that a reference file holds.
fn stored(name: &str) -> Vec<u8> {
    let file = Edit::open(&golden().join(format!("vision/{name}.safetensors")));
    file.tensors["file"].2.clone()
}

/// One file of each kind and way of coding.
fn each_kind() -> Vec<(&'static str, Vec<u8>)> {
    let stored_ones = [
        ("a.png", "png_rgba_60x45"),
        ("b.png", "png_palette_alpha_44x44"),
        ("c.png", "png_rgb16_39x47"),
        ("d.jpg", "jpeg_420_97x64"),
        ("e.jpg", "jpeg_progressive_77x77"),
        ("f.jpg", "jpeg_cmyk_64x48"),
        ("g.webp", "webp_lossless_45x61"),
        ("h.gif", "gif_40x52"),
    ];
    let mut all: Vec<_> = stored_ones.map(|(name, file)| (name, stored(file))).to_vec();
    all.push(("i.bmp", bmp(9, 5)));
    all
}

/// A BMP file of 24 bits a pixel.
fn bmp(width: u32, height: u32) -> Vec<u8> {
    let row = (3 * width).next_multiple_of(4);
    let mut file = b"BM".to_vec();
    for word in [54 + row * height, 0, 54, 40, width, height, 1 | 24 << 16, 0, row * height, 2835, 2835, 0, 0]
    {
        file.extend(word.to_le_bytes());
    }
    file.extend((0..row * height).map(|at| (at * 7) as u8));
    file
}

/// A part of a PNG file with its checksum.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&kind[..], data].concat();
    let sum = crc(&body).to_be_bytes();
    [&(data.len() as u32).to_be_bytes()[..], &body, &sum].concat()
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(
            sum ^ u32::from(*byte),
            |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb88320 } else { sum >> 1 },
        )
    })
}

/// A PNG file that says it has this size.
fn png_of_size(width: u32, height: u32) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &header), chunk(b"IDAT", &[]), chunk(b"IEND", &[])]
        .concat()
}

fn read(name: &str, bytes: &[u8]) -> Result<Decoded> {
    PictureFile::from_bytes(name, bytes.to_vec(), &Limits::default())?.decode(Alpha::Drop)
}

/// The error names the file and says the text.
fn refused<T>(done: Result<T>, name: &str, text: &str) {
    match done.map(|_| ()) {
        Err(Error::File { path, what }) => {
            assert!(path.ends_with(name), "{name}: {}", path.display());
            assert!(what.contains(text), "{name}: '{text}' is not in: {what}");
        }
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn bytes_that_are_no_picture_are_named() {
    let cases: [(&[u8], &str); 16] = [
        (b"", "is empty (0 bytes)"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "is a HEIC file"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1", "is a HEIC file"),
        (b"\0\0\0\x20ftypavif\0\0\0\0avif", "is an AVIF file"),
        (b"\0\0\0\x20ftypisom\0\0\0\0isom", "is a video (MP4)"),
        (b"II*\0\x08\0\0\0\0\0", "is a TIFF file"),
        (b"MM\0*\0\0\0\x08", "is a TIFF file"),
        (b"\0\0\x01\0\x01\0", "is an icon (ICO)"),
        (b"%PDF-1.7", "is a PDF file"),
        (b"<!DOCTYPE html><html>", "is a web page (HTML)"),
        (b"a cat on a mat\n", "is text, not a picture"),
        (b"BMI of patients\n", "is text, not a picture"),
        (b"\x80\x02}q\0", "is no picture of a known kind"),
        (b"RIFF\0\0\0\0WAVE", "is no picture of a known kind"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "Git-LFS pointer"),
    ];
    for (bytes, text) in cases {
        refused(read("photo.png", bytes), "photo.png", text);
    }
    refused(
        read("photo.png", b"II*\0"),
        "photo.png",
        "PNG, JPEG, WebP, GIF and BMP are read: convert it first",
    );
}

#[test]
fn places_that_are_no_file_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| PictureFile::open(path, &Limits::default());
    refused(open(&folder.path().join("absent.png")), "absent.png", "cannot be read");
    refused(
        open(folder.path()),
        folder.path().file_name().unwrap().to_str().unwrap(),
        "is a folder, not a picture",
    );
    refused(open(Path::new("https://example.org/cat.png")), "cat.png", "only files are read: download");
    let path = folder.path().join("large.bmp");
    std::fs::write(&path, bmp(30, 30)).unwrap();
    refused(
        PictureFile::open(&path, &Limits { bytes: 1000, ..Limits::default() }),
        "large.bmp",
        "more than 1000 bytes",
    );
    assert_eq!(open(&path).unwrap().about().height, 30);
}

/// The header alone is read: nothing of the size that it claims is asked for.
#[test]
fn sizes_beyond_the_limits_are_refused_before_decoding() {
    refused(
        read("wide.png", &png_of_size(60_000, 60_000)),
        "wide.png",
        "has 60000 x 60000 pixels; at most 30000",
    );
    refused(read("long.png", &png_of_size(1, 30_001)), "long.png", "has 1 x 30001 pixels");
    refused(read("many.png", &png_of_size(20_000, 20_000)), "many.png", "100000000 in all");
    refused(read("none.png", &png_of_size(0, 7)), "none.png", "");
    refused(read("huge.png", &png_of_size(u32::MAX, u32::MAX)), "huge.png", "");
    refused(read("none.bmp", &bmp(0, 0)), "none.bmp", "");
    let mut jpeg = stored("jpeg_420_97x64");
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xea, 0x60, 0xea, 0x60]);
    refused(read("wide.jpg", &jpeg), "wide.jpg", "has 60000 x 60000 pixels");
    // The limits can be set.
    let limits = Limits { pixels: 44 * 44 - 1, ..Limits::default() };
    let bytes = stored("png_palette_alpha_44x44");
    refused(PictureFile::from_bytes("small.png", bytes, &limits), "small.png", "1935 in all");
}

/// Compressed data that grow to more than the header says, in a file that claims a picture of a few pixels.
#[test]
fn more_data_than_the_size_says_are_not_kept() {
    let pixels = Picture::filled(3000, 3000, [0; 3]).unwrap().to_png().unwrap();
    assert!(pixels.len() < 200_000, "{}", pixels.len());
    let data = pixels.windows(4).position(|kind| kind == b"IDAT").unwrap();
    let small = png_of_size(3, 3);
    let end = small.windows(4).position(|kind| kind == b"IDAT").unwrap() - 4;
    let bomb = [&small[..end], &pixels[data - 4..]].concat();
    if let Ok(decoded) = read("bomb.png", &bomb) {
        assert_eq!(decoded.picture.rgb().len(), 27);
    }
}

/// A file that is cut off is refused, or all of its picture was there.
#[test]
fn truncated_files_are_refused() {
    for (name, bytes) in each_kind() {
        let whole = read(name, &bytes).unwrap().picture;
        let step = (bytes.len() / 150).max(1);
        let mut errors = 0;
        for end in (1..bytes.len()).rev().step_by(step) {
            match read(name, &bytes[..end]) {
                Ok(decoded) => assert_eq!(decoded.picture, whole, "{name} cut at {end}"),
                Err(Error::File { path, .. }) => {
                    assert!(path.ends_with(name));
                    errors += 1;
                }
                Err(other) => panic!("{name}: {other:?}"),
            }
        }
        assert!(errors > 100.min(bytes.len() / step - 20), "{name}: {errors}");
        refused(read(name, &bytes[..2 * bytes.len() / 3]), name, "is a damaged or truncated ");
    }
}

#[test]
fn no_changed_byte_is_a_panic() {
    let limits = Limits { pixels: 1 << 20, ..Limits::default() };
    for (name, bytes) in each_kind() {
        let random = Stream::new(7).named(name);
        for i in 0..300 {
            let mut changed = bytes.clone();
            for k in 0..3 {
                let at = random.bits(9 * i + 3 * k) as usize;
                // Half of the changes near the start, where headers are.
                let most = if at & 1 == 0 { changed.len() } else { changed.len().min(200) };
                changed[at / 2 % most] = random.bits(9 * i + 3 * k + 1) as u8;
            }
            let _ =
                PictureFile::from_bytes(name, changed, &limits).and_then(|file| file.decode(Alpha::White));
        }
    }
}

#[test]
fn oddities_are_noted_and_read() {
    let notes = |name: &str, bytes: Vec<u8>| read(name, &bytes).unwrap().notes;
    assert_eq!(notes("a.png", stored("png_rgb16_39x47")), [""; 0]);
    assert_eq!(
        notes("a.png", stored("webp_lossless_45x61")),
        ["is a WebP file, although its name ends in .png"]
    );
    assert_eq!(notes("noise", stored("webp_lossless_45x61")), [""; 0]);
    let pixel = Picture::filled(1, 1, [1, 2, 3]).unwrap();
    assert_eq!(notes("one.png", pixel.to_png().unwrap()), ["is a single pixel"]);
    // The frame of a GIF file once more.
    let gif = stored("gif_40x52");
    let frame = gif
        .windows(10)
        .rposition(|block| block[..5] == [0x2c, 0, 0, 0, 0] && block[5..9] == gif[6..10])
        .unwrap();
    let twice = [&gif[..gif.len() - 1], &gif[frame..]].concat();
    assert_eq!(notes("two.gif", twice.clone()), ["has several frames, of which the first is taken"]);
    assert_eq!(read("two.gif", &twice).unwrap().picture, read("one.gif", &gif).unwrap().picture);
    let alpha = read("a.png", &stored("png_palette_alpha_44x44")).unwrap();
    assert!(alpha.transparent > 0.01 && alpha.notes[0].contains("are transparent"), "{:?}", alpha.notes);
}

#[test]
fn orientation_is_applied() {
    let file =
        PictureFile::from_bytes("a.jpg", stored("jpeg_444_turned6_64x90"), &Limits::default()).unwrap();
    let about = file.about();
    let picture = file.decode(Alpha::Drop).unwrap().picture;
    assert_eq!((about.orientation, about.width, about.height), (6, picture.width(), picture.height()));
}

#[test]
fn a_written_png_has_the_same_pixels() {
    let picture = read("a.jpg", &stored("jpeg_420_97x64")).unwrap().picture;
    let again = read("a.png", &picture.to_png().unwrap()).unwrap().picture;
    assert_eq!(again, picture);
    assert_eq!(again.checksum(), picture.checksum());
}

fn processor(text: &str) -> Result<Processor> {
    Processor::of_settings(Path::new("p.json"), &serde_json::from_str(text).unwrap())
}

#[test]
fn settings_that_cannot_be() {
    let cases = [
        ("{}", "'image_processor_type': is missing"),
        (r#"{"image_processor_type": "LlavaNextImageProcessor"}"#, "LLaVA-NeXT's tiles"),
        (r#"{"image_processor_type": "Qwen2VLImageProcessorFast"}"#, "Qwen2-VL's pictures"),
        (
            r#"{"image_processor_type": "ViTImageProcessor"}"#,
            "ViTImageProcessor is not supported: those of CLIP",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 0}}"#,
            "'size.shortest_edge': is 0",
        ),
        (r#"{"image_processor_type": "CLIPImageProcessor", "size": "big"}"#, "'size.height': is missing"),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 9}}"#,
            "'crop_size.width': is missing",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "resample": 6}"#,
            "'resample': is 6, must be 0 to 5",
        ),
        (
            r#"{"image_processor_type": "CLIPImageProcessor", "do_pad": 1, "do_resize": false}"#,
            "'do_resize': is false",
        ),
        (
            r#"{"image_processor_type": "SiglipImageProcessor", "image_std": [0.5, 0, 0.5]}"#,
            "'image_std': has a zero",
        ),
        (
            r#"{"image_processor_type": "SiglipImageProcessor", "image_mean": [0.5, 0.5]}"#,
            "must be three numbers",
        ),
        (r#"{"image_processor_type": "SiglipImageProcessor", "size": 99999999}"#, "'size': is 99999999"),
        (
            r#"{"image_processor_type": "SiglipImageProcessor", "rescale_factor": "a"}"#,
            "'rescale_factor': is",
        ),
        (
            r#"{"image_processor_type": "Idefics3ImageProcessor", "do_image_splitting": 3}"#,
            "must be true or false",
        ),
    ];
    for (text, what) in cases {
        refused(processor(text), "p.json", what);
    }
    let empty = tempfile::tempdir().unwrap();
    let name = empty.path().file_name().unwrap().to_str().unwrap();
    refused(Processor::of_model(empty.path()), name, "has no preprocessor_config.json");
}

#[test]
fn processors_are_read_where_programs_write_them() {
    let folder = tempfile::tempdir().unwrap();
    let newer = r#"{"image_processor": {"image_processor_type": "SmolVLMImageProcessorFast", "size": {"longest_edge": 64},
        "max_image_size": {"longest_edge": 32}}, "image_seq_len": 4}"#;
    std::fs::write(folder.path().join("processor_config.json"), newer).unwrap();
    let found = Processor::of_model(folder.path()).unwrap();
    let steps = "put on white, longest edge 64, tiles of 32 x 32 and the whole picture (lanczos)";
    assert!(found.to_string().starts_with(steps), "{found}");
    // What is stored is read again, to the bit.
    let stored: Processor = serde_json::from_str(&serde_json::to_string(&found).unwrap()).unwrap();
    assert_eq!(stored, found);
    let tiles = found.tiles(&Picture::filled(60, 20, [9; 3]).unwrap()).unwrap();
    assert_eq!((tiles.count(), tiles.rows(), tiles.columns()), (3, 1, 2));
    let sheet = tiles.sheet().unwrap();
    assert_eq!((sheet.width(), sheet.height()), (66, 66));
    // An older file comes first.
    let older = r#"{"feature_extractor_type": "CLIPFeatureExtractor", "size": 48, "crop_size": 40}"#;
    std::fs::write(folder.path().join("preprocessor_config.json"), older).unwrap();
    let found = Processor::of_model(folder.path()).unwrap();
    assert!(found.to_string().contains("shortest edge 48 (bicubic), cropped to 40 x 40"), "{found}");
}

/// Lines of pixels become pictures of millions, which are not computed where a crop leaves them out.
#[test]
fn unequal_sides_take_no_memory() {
    let line = Picture::filled(1, 30_000, [7; 3]).unwrap();
    let clip = processor(r#"{"image_processor_type": "CLIPImageProcessor"}"#).unwrap();
    let tiles = clip.tiles(&line).unwrap();
    assert!(tiles.bytes() == [7; 3 * 224 * 224]);
    let uncropped = Processor { crop: None, ..clip.clone() };
    assert!(uncropped.tiles(&line).unwrap_err().to_string().contains("pixels on its way"));
    let padded = Processor { pad: Some([0; 3]), ..clip };
    assert!(padded.tiles(&line).unwrap_err().to_string().contains("pixels on its way"));
    let tiled = processor(r#"{"image_processor_type": "Idefics3ImageProcessor"}"#).unwrap();
    assert!(tiled.tiles(&line).unwrap_err().to_string().contains("200 times the other"));
}

/// Values by hand: 227 less 224 is 3, and half of that is cut off to 1.
#[test]
fn crops_begin_at_the_floor() {
    let rgb = (0..227 * 227).flat_map(|at| [(at % 227) as u8; 3]).collect();
    let picture = Picture::new(227, 227, rgb).unwrap();
    let text = r#"{"image_processor_type": "CLIPImageProcessor", "size": 227, "crop_size": 224}"#;
    let tiles = processor(text).unwrap().tiles(&picture).unwrap();
    assert_eq!(tiles.bytes()[..6], [1, 1, 1, 2, 2, 2]);
}

#[test]
fn every_filter_keeps_a_plain_colour() {
    let picture = Picture::filled(13, 5, [0, 128, 255]).unwrap();
    for filter in Filter::ALL {
        for (width, height) in [(1, 1), (40, 3), (13, 9), (2, 5), (13, 5)] {
            let resized = picture.resized(width, height, filter);
            assert_eq!(resized, Picture::filled(width, height, [0, 128, 255]).unwrap(), "{filter}");
        }
    }
}

#[cfg(feature = "cli")]
#[test]
fn the_command_shows_what_a_model_sees() {
    use crate::common::cli::{mixlora, output};
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    std::fs::write(at("photo.png"), stored("jpeg_444_turned6_64x90")).unwrap();
    let settings = r#"{"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}"#;
    std::fs::write(at("preprocessor_config.json"), settings).unwrap();
    let model = folder.path().to_string_lossy().into_owned();
    let args = ["inspect", "--image", &at("photo.png"), "--model", &model, "--png", &at("seen.png")];
    let (out, _) = output(mixlora(&args), 0);
    for text in [
        "kind: JPEG (RGB",
        "EXIF orientation: 6 (turned upright)",
        "tiles: 5 of 32 x 32",
        "note: is a JPEG file",
    ] {
        assert!(out.contains(text), "'{text}' is not in: {out}");
    }
    let (report, _) = output(mixlora(&[&args[..], &["--json"]].concat()), 0);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["kind"], &report["model"]["tiles"]), (&"JPEG".into(), &5.into()));
    assert!(out.contains(report["model"]["checksum"].as_str().unwrap()), "{out}");
    let seen = PictureFile::open(Path::new(&at("seen.png")), &Limits::default()).unwrap();
    assert_eq!((seen.about().width, seen.about().height), (66, 100));
    for (name, text) in
        [("absent.jpg", "cannot be read"), ("", "is a folder"), ("preprocessor_config.json", "is text")]
    {
        let (_, err) = output(mixlora(&["inspect", "--image", &at(name)]), 3);
        assert!(err.contains(text), "{err}");
    }
    output(mixlora(&["inspect", "--image", &at("photo.png"), "--max-pixels", "100"]), 3);
    output(mixlora(&["inspect"]), 2);
    output(mixlora(&["inspect", "--model", &model]), 2);
}
