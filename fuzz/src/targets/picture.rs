//! Pictures, and the settings of their processors.

use super::{Case, Target, file, said, write};
use mixlora::io::Checkpoint;
use mixlora::picture::{Alpha, Limits, Picture, PictureFile, Processor};

/// Small, so that the memory of a picture that is read stays below the bound.
const LIMITS: Limits = Limits { pixels: 1 << 19, side: 30_000, bytes: 1 << 20 };

pub const PICTURE: Target = Target {
    name: "picture",
    seconds: 1,
    words: &[
        "\u{89}PNG",
        "IHDR",
        "PLTE",
        "tRNS",
        "IDAT",
        "IEND",
        "acTL",
        "eXIf",
        "RIFF",
        "WEBP",
        "VP8 ",
        "VP8L",
        "VP8X",
        "ALPH",
        "ANMF",
        "GIF89a",
        "BM",
        "Exif\0\0",
        "Adobe",
    ],
    framed: false,
    open: |_| Case {
        seeds: pictures(),
        parse: Box::new(|input| {
            let file =
                PictureFile::from_bytes("input", input.to_vec(), &LIMITS).map_err(|e| e.to_string())?;
            said(file.decode(Alpha::White).map(|_| ()))
        }),
    },
};

/// The files that reference files hold, the smaller ones.
fn pictures() -> Vec<Vec<u8>> {
    let names = [
        "gif_40x52",
        "jpeg_420_97x64",
        "jpeg_444_turned6_64x90",
        "jpeg_cmyk_64x48",
        "jpeg_gray_51x80",
        "jpeg_progressive_77x77",
        "png_gray_alpha_50x33",
        "png_palette_alpha_44x44",
        "webp_lossless_45x61",
    ];
    let stored = |name: &str| {
        let file = Checkpoint::open(file(&format!("tests/golden/vision/{name}.safetensors")));
        file.and_then(|file| Ok(file.tensor_bytes("file")?.to_vec())).expect("a reference file")
    };
    let mut all: Vec<Vec<u8>> = names.map(stored).to_vec();
    all.push(bmp());
    all
}

/// A BMP file of 3 x 2 pixels.
fn bmp() -> Vec<u8> {
    let words: [u32; 13] = [78, 0, 54, 40, 3, 2, 1 | 24 << 16, 0, 24, 2835, 2835, 0, 0];
    let header = words.iter().flat_map(|word| word.to_le_bytes());
    b"BM".iter().copied().chain(header).chain(0..24).collect()
}

pub const PROCESSOR: Target = Target {
    name: "processor",
    seconds: 1,
    words: &[
        "\"CLIPImageProcessor\"",
        "\"SiglipImageProcessor\"",
        "\"LlavaImageProcessor\"",
        "\"Idefics3ImageProcessor\"",
        "\"image_processor\"",
        "\"size\"",
        "\"shortest_edge\"",
        "\"longest_edge\"",
        "\"height\"",
        "\"width\"",
        "\"max_image_size\"",
        "\"do_pad\"",
        "16384",
        "null",
        "true",
        "[]",
        "{}",
    ],
    framed: false,
    open: |dir| {
        let path = dir.join("preprocessor_config.json");
        let picture = Picture::filled(7, 5, [1, 2, 3]).expect("a picture");
        Case {
            seeds: SETTINGS.map(|text| text.as_bytes().to_vec()).to_vec(),
            parse: Box::new(move |input| {
                write(&path, input);
                let processor = Processor::of_model(&path).map_err(|e| e.to_string())?;
                // Settings may ask for large pictures; what those of a few pixels cost is tried.
                if is_small(&processor) {
                    let tiles = processor.tiles(&picture).map_err(|e| e.to_string())?;
                    processor.values(&tiles);
                }
                Ok(())
            }),
        }
    },
};

const SETTINGS: [&str; 3] = [
    r#"{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 28, "resample": 3}"#,
    r#"{"image_processor": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 24}}}"#,
    r#"{"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}"#,
];

fn is_small(processor: &Processor) -> bool {
    use mixlora::picture::Fit;
    let side = match processor.fit {
        Fit::Shortest { edge } => edge,
        Fit::Exact(size) => size.height.max(size.width),
        Fit::Tiles { longest, tile, .. } => longest.max(tile),
    };
    let crop = processor.crop.map_or(0, |size| size.height.max(size.width));
    side.max(crop) <= 1024
}
