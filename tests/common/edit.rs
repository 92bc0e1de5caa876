//! Copies of reference files with something changed.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The folder of reference files.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The first reference file whose path contains the text.
pub fn file(part: &str) -> PathBuf {
    let files = mixlora::check::golden::find_files(&[golden()]).unwrap();
    let found = files.into_iter().find(|p| p.to_string_lossy().replace('\\', "/").contains(part));
    found.unwrap_or_else(|| panic!("no reference file {part}"))
}

/// A file taken apart.
#[derive(Clone)]
pub struct Edit {
    pub tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    pub metadata: HashMap<String, String>,
}

impl Edit {
    pub fn open(path: &Path) -> Edit {
        let bytes = std::fs::read(path).unwrap();
        let metadata = SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone().unwrap_or_default();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors =
            file.iter().map(|(n, v)| (n.to_string(), (v.dtype(), v.shape().to_vec(), v.data().to_vec())));
        Edit { tensors: tensors.collect(), metadata: metadata.into_iter().collect() }
    }

    /// Changes one value of a tensor.
    pub fn value(mut self, name: &str, at: usize, f: impl Fn(f32) -> f32) -> Edit {
        let bytes = &mut self.tensors.get_mut(name).unwrap().2[4 * at..4 * at + 4];
        let old = f32::from_le_bytes(bytes.try_into().unwrap());
        bytes.copy_from_slice(&f(old).to_le_bytes());
        self
    }
    /// The largest value of a tensor, and where it is.
    pub fn largest(&self, name: &str) -> usize {
        let v: Vec<f32> =
            self.tensors[name].2.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (0..v.len()).max_by(|&a, &b| v[a].abs().total_cmp(&v[b].abs())).unwrap()
    }
    /// Replaces four bytes of a tensor by an index.
    pub fn index(mut self, name: &str, at: usize, value: i32) -> Edit {
        self.tensors.get_mut(name).unwrap().2[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
        self
    }
    /// Swaps two entries.
    pub fn swap(mut self, name: &str, a: usize, b: usize) -> Edit {
        let bytes = &mut self.tensors.get_mut(name).unwrap().2;
        (0..4).for_each(|i| bytes.swap(4 * a + i, 4 * b + i));
        self
    }
    /// Changes the configuration's text.
    pub fn config(mut self, from: &str, to: &str) -> Edit {
        let text = self.metadata.get_mut("config").unwrap();
        assert!(text.contains(from), "{text}");
        *text = text.replace(from, to);
        self
    }
    /// Changes type and shape without changing bytes.
    pub fn retype(mut self, name: &str, dtype: Dtype, dims: &[usize]) -> Edit {
        let t = self.tensors.get_mut(name).unwrap();
        (t.0, t.1) = (dtype, dims.to_vec());
        self
    }
    pub fn without(mut self, name: &str) -> Edit {
        self.tensors.remove(name).unwrap();
        self
    }
    /// Adds a tensor of ones.
    pub fn with(mut self, name: &str, dims: &[usize]) -> Edit {
        let bytes = 1f32.to_le_bytes().repeat(dims.iter().product());
        self.tensors.insert(name.into(), (Dtype::F32, dims.to_vec(), bytes));
        self
    }

    pub fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let views = self.tensors.iter().map(|(n, (dtype, dims, bytes))| {
            (n.clone(), TensorView::new(*dtype, dims.clone(), bytes).unwrap())
        });
        let path = folder.join(format!("{name}.safetensors"));
        let bytes = safetensors::serialize(views, Some(self.metadata.clone().into_iter().collect())).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }
}
