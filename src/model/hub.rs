//! Models by their name on the Hugging Face Hub: nothing is fetched, but what `hf download` has put into its cache is
//! found.

use std::path::{Component, Path, PathBuf};

/// A name as `ORG/NAME`, where the path is one and no file or folder.
fn hub_name(path: &Path) -> Option<&str> {
    let plain = |part: &Component<'_>| matches!(part, Component::Normal(_));
    let is_file = path.extension().is_some_and(|e| e == "gguf" || e == "safetensors" || e == "json");
    let named = path.components().count() == 2 && path.components().all(|part| plain(&part));
    path.to_str().filter(|_| named && !is_file && !path.exists())
}

/// The folder of a model in the cache of the Hub.
pub fn hub_snapshot(path: &Path) -> Option<PathBuf> {
    snapshot_in(&cache()?, hub_name(path)?)
}

/// `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in the user's cache folder.
fn cache() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || {
        var("HF_HOME")
            .or_else(|| Some(var("HOME").or_else(|| var("USERPROFILE"))?.join(".cache/huggingface")))
    };
    var("HF_HUB_CACHE").or_else(|| Some(home()?.join("hub")))
}

/// The snapshot that `main` names, else the only one.
fn snapshot_in(cache: &Path, name: &str) -> Option<PathBuf> {
    let model = cache.join(format!("models--{}", name.replace('/', "--")));
    let snapshots = model.join("snapshots");
    let main =
        std::fs::read_to_string(model.join("refs/main")).ok().map(|commit| snapshots.join(commit.trim()));
    let only = || {
        let mut folders = std::fs::read_dir(&snapshots).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        folders.next().filter(|_| folders.next().is_none())
    };
    main.filter(|dir| dir.is_dir()).or_else(only)
}

/// What to do about a path that is none but may be a name on the Hub.
pub(super) fn hub_hint(path: &Path) -> Option<String> {
    let name = hub_name(path)?;
    Some(format!(
        "is no file or folder; if it is a model of the Hugging Face Hub, `hf download {name}` fetches it, and this name \
         then works"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};

    #[test]
    fn only_names_are_taken_for_names() {
        for (path, named) in [
            ("Org/Model-1.5B", true),
            ("model", false),
            ("a/b/c", false),
            ("../x", false),
            ("a/b.gguf", false),
            ("src/model", false),
        ] {
            assert_eq!(hub_name(Path::new(path)).is_some(), named, "{path}");
        }
        assert!(hub_hint(Path::new("Org/M")).unwrap().contains("hf download Org/M"));
    }

    #[test]
    fn the_snapshot_of_main_is_taken_or_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("models--Org--M");
        let found = || snapshot_in(dir.path(), "Org/M");
        assert_eq!(found(), None);
        create_dir_all(model.join("snapshots/aaa")).unwrap();
        assert_eq!(found(), Some(model.join("snapshots/aaa")));
        create_dir_all(model.join("snapshots/bbb")).unwrap();
        assert_eq!(found(), None);
        create_dir_all(model.join("refs")).unwrap();
        write(model.join("refs/main"), "bbb\n").unwrap();
        assert_eq!(found(), Some(model.join("snapshots/bbb")));
    }
}
