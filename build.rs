//! Tells the crate the commit that it is built from, for its reports: MIXLORA_COMMIT where it is set, else what git's
//! files or those of a published package say. Git itself is not needed, and neither is a repository.
//!
//! Cuts the files of recipes out of their pages, for the tests that compile them.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=MIXLORA_COMMIT");
    let set = std::env::var("MIXLORA_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = set.or_else(published).or_else(checked_out).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=MIXLORA_COMMIT={commit}");
    let page = "docs/ADD_AN_OP.md";
    cut_files(page).unwrap_or_else(|e| println!("cargo:warning={page}: {e}"));
}

/// Writes each code block of a page whose heading names a file as that file, under `recipe` in cargo's folder. Comments
/// on the module as a whole become plain ones: `include!` takes no others.
fn cut_files(page: &str) -> std::io::Result<()> {
    println!("cargo:rerun-if-changed={page}");
    let text = read_to_string(page)?;
    let to = Path::new(&std::env::var("OUT_DIR").unwrap_or_default()).join("recipe");
    for section in text.split("\n## ").skip(1) {
        let (heading, body) = section.split_once('\n').unwrap_or((section, ""));
        let (Some(file), Some(block)) = (heading.split('`').nth(1), body.split("\n```").nth(1)) else {
            continue;
        };
        let code = block.split_once('\n').map_or("", |(_language, code)| code);
        let file = to.join(file);
        std::fs::create_dir_all(file.parent().unwrap_or(&to))?;
        std::fs::write(file, code.replace("//!", "//") + "\n")?;
    }
    Ok(())
}

/// The commit that cargo wrote into a published package.
fn published() -> Option<String> {
    let info = read_to_string(".cargo_vcs_info.json").ok()?;
    let behind = info.split_once("\"sha1\"")?.1;
    hash(behind.split('"').nth(1)?)
}

/// The commit of the repository whose top this folder is.
fn checked_out() -> Option<String> {
    let git = git_folder()?;
    let head = watched(&git.join("HEAD"))?;
    let Some(branch) = head.trim().strip_prefix("ref: ") else { return hash(head.trim()) };
    let common =
        read_to_string(git.join("commondir")).map_or_else(|_| git.clone(), |path| git.join(path.trim()));
    let loose = watched(&common.join(branch));
    loose.as_deref().and_then(|text| hash(text.trim())).or_else(|| packed(&common, branch))
}

/// `.git`, or what it names where it is a file, as in a second worktree.
fn git_folder() -> Option<PathBuf> {
    let here = Path::new(".git");
    if here.is_dir() {
        return Some(here.into());
    }
    let text = read_to_string(here).ok()?;
    Some(text.strip_prefix("gitdir: ")?.trim().into())
}

/// The commit of a branch without a file of its own.
fn packed(common: &Path, branch: &str) -> Option<String> {
    let refs = watched(&common.join("packed-refs"))?;
    let line = refs.lines().find(|line| line.ends_with(&format!(" {branch}")))?;
    hash(line.split(' ').next()?)
}

/// The text of a file; the commit is looked up again when it changes.
fn watched(path: &Path) -> Option<String> {
    let text = read_to_string(path).ok()?;
    println!("cargo:rerun-if-changed={}", path.display());
    Some(text)
}

/// The first twelve digits of a hash.
fn hash(text: &str) -> Option<String> {
    let digits = text.get(..12)?;
    (text.len() >= 40 && text.chars().all(|c| c.is_ascii_hexdigit())).then(|| digits.into())
}
