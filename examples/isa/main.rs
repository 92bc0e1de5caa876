//! What a GPU's compiler makes of the kernels, without the GPU: registers, waves, instructions, and the mix of every loop.
//! docs/KERNELS.md says how to read it.
//!
//! ```text
//! RADV_FORCE_FAMILY=navi31 VK_DRIVER_FILES=.../radeon_icd.json RADV_DEBUG=nocache \
//!   cargo run --release --example isa -- [FILTER] [--loops] [--shaders DIR] [--dump DIR]
//! ```
//!
//! FILTER is a part of a kernel's name; `--loops` lists every loop; `--shaders` takes files of that folder instead of those
//! that the program was built with, by name; `--dump` writes what the driver tells of each kernel into a folder.

mod compile;
mod driver;
mod listing;

use driver::Driver;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn main() {
    let mut filter = String::new();
    let mut show_loops = false;
    let mut folders: HashMap<String, PathBuf> = HashMap::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--loops" => show_loops = true,
            "--shaders" | "--dump" => {
                let folder = args.next().unwrap_or_else(|| panic!("{arg} needs a folder"));
                folders.insert(arg, folder.into());
            }
            _ => filter = arg,
        }
    }
    let driver = Driver::open().unwrap_or_else(|error| panic!("{error}"));
    eprintln!("{}", driver.name);
    let edited = folders.get("--shaders").map(|folder| edited(folder)).unwrap_or_default();
    let edit = |text: &'static str| edited.get(text).cloned().unwrap_or_else(|| text.to_string());
    for kernel in compile::dispatched(driver.coop).iter().filter(|kernel| kernel.name.contains(&filter)) {
        let compiled = kernel.kernel(&edit).and_then(|kernel| driver.compile(&kernel));
        let compiled = match compiled {
            Ok(compiled) => compiled,
            Err(error) => {
                println!("{:48} {error}", kernel.name);
                continue;
            }
        };
        println!("{:48} {compiled}", kernel.name);
        if show_loops {
            listing::loops(compiled.assembly()).iter().for_each(|mix| println!("    {mix}"));
        }
        for (name, text) in folders.get("--dump").map_or(&[][..], |_| &compiled.texts) {
            let file = format!("{}.{name}.txt", kernel.name).replace([' ', ':', '/'], "_");
            std::fs::write(folders["--dump"].join(file), text).expect("the folder is writable");
        }
    }
}

/// Files of the project's shaders that have another text in `folder`: what was built in, and the text instead.
fn edited(folder: &Path) -> HashMap<String, String> {
    let mut out = HashMap::new();
    for sub in ["", "common"] {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders").join(sub);
        for file in std::fs::read_dir(&project).into_iter().flatten().flatten() {
            let other = [folder.join(sub).join(file.file_name()), folder.join(file.file_name())];
            let text = |path: &PathBuf| std::fs::read_to_string(path).ok();
            if let (Some(old), Some(new)) = (text(&file.path()), other.iter().find_map(text)) {
                out.insert(old, new);
            }
        }
    }
    out
}
