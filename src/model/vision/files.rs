//! The tensors of towers and projectors by Hugging Face's names, from a folder of safetensors or a GGUF file (mmproj).

use super::{ProjectorKind, VisionConfig};
use crate::io::{Checkpoint, GgufFile, RawTensor};
use crate::model::load::Source;
use crate::model::{Expected, LoadOptions, SiteLinear, Weights};
use crate::{Device, Error, Format, Result, Tensor, Weight};
use std::collections::BTreeMap;
use std::path::Path;

/// Tensors of which each tower has one: that of a transformer, and that of an EfficientNet.
const FIRST_OF_TOWER: [&str; 2] = ["embeddings.patch_embedding.weight", "_conv_stem.weight"];
/// What towers' names begin with here; files have other words before it, or none.
const TOWER: &str = "vision_model.";

/// Names of Hugging Face, and what llama.cpp has in their place.
const NAMES: [(&str, &str); 15] = [
    ("vision_model.embeddings.patch_embedding.", "v.patch_embd."),
    ("vision_model.embeddings.class_embedding", "v.class_embd"),
    ("vision_model.embeddings.position_embedding.", "v.position_embd."),
    ("vision_model.pre_layrnorm.", "v.pre_ln."),
    ("vision_model.post_layernorm.", "v.post_ln."),
    ("vision_model.encoder.layers.", "v.blk."),
    (".self_attn.q_proj.", ".attn_q."),
    (".self_attn.k_proj.", ".attn_k."),
    (".self_attn.v_proj.", ".attn_v."),
    (".self_attn.out_proj.", ".attn_out."),
    (".layer_norm1.", ".ln1."),
    (".layer_norm2.", ".ln2."),
    ("multi_modal_projector.linear_1.", "mm.0."),
    ("multi_modal_projector.linear_2.", "mm.2."),
    ("connector.modality_projection.proj.", "mm.model.fc."),
];
const FIRST: &str = ".mlp.fc1.";
const SECOND: &str = ".mlp.fc2.";
/// What the original LLaVA calls the linears of its projector.
const ORIGINAL: [(&str, &str); 2] = [
    ("multi_modal_projector.linear_1", "mm_projector.0"),
    ("multi_modal_projector.linear_2", "mm_projector.2"),
];

/// The open files of a vision part.
#[derive(Debug)]
pub struct VisionFiles {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// With what stands before the tower's names, and the names of the projector's linears.
    Folder { file: Checkpoint, tower: String, linears: BTreeMap<&'static str, String> },
    /// Whether the two linears of an MLP have each other's names, as an old converter of llama.cpp gave them.
    Gguf { file: GgufFile, swapped: bool },
}

/// The one name that ends like this, without that ending.
fn before<'a>(file: &'a Checkpoint, ending: &str) -> Option<&'a str> {
    let mut found = file.names().filter_map(|name| {
        let before = name.strip_suffix(ending)?;
        (before.is_empty() || before.ends_with('.')).then_some(before)
    });
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

impl VisionFiles {
    /// Those of a folder of safetensors, whatever stands before the names of the tower.
    ///
    /// # Errors
    /// There is no tower, or several.
    pub fn of_checkpoint(file: Checkpoint) -> Result<Self> {
        let Some(tower) = FIRST_OF_TOWER.iter().find_map(|name| before(&file, name)).map(String::from) else {
            let what = format!(
                "has no vision tower, or several: one tensor must end in '{}'",
                FIRST_OF_TOWER.join("' or '")
            );
            return Err(Error::file(file.path(), what));
        };
        Ok(Self::with_prefix(file, tower))
    }

    /// The same, with what stands before the names of the tower.
    pub(crate) fn with_prefix(file: Checkpoint, tower: String) -> Self {
        let kinds = [ProjectorKind::Mlp(Default::default()), ProjectorKind::Shuffle { factor: 1 }];
        let mut linears = BTreeMap::new();
        for linear in kinds.into_iter().flat_map(|kind| kind.linears()) {
            let original = ORIGINAL.iter().find(|(ours, _)| ours == linear).map(|(_, theirs)| *theirs);
            // A projector of one linear has no number there.
            let names = [Some(*linear), original, Some("mm_projector").filter(|_| *linear == ORIGINAL[0].0)];
            let stored = names.into_iter().flatten().find_map(|name| {
                let before = before(&file, &format!("{name}.weight"))?;
                Some(format!("{before}{name}"))
            });
            linears.extend(stored.map(|stored| (*linear, stored)));
        }
        VisionFiles { kind: Kind::Folder { file, tower, linears } }
    }

    /// Those of a GGUF file whose architecture is `clip`; `intermediate_size` is the width inside its MLPs.
    ///
    /// # Errors
    /// It has no layers.
    pub fn of_gguf(file: GgufFile, intermediate_size: usize) -> Result<Self> {
        let swapped = file.tensor("v.blk.0.ffn_down.weight")?.rows() == intermediate_size;
        let square = file.tensor("v.blk.0.ffn_up.weight")?.rows() == intermediate_size;
        Ok(VisionFiles { kind: Kind::Gguf { swapped: swapped && !square, file } })
    }

    /// The file, or the index of several, for messages.
    pub fn path(&self) -> &Path {
        match &self.kind {
            Kind::Folder { file, .. } => file.path(),
            Kind::Gguf { file, .. } => file.path(),
        }
    }

    /// The name of a tensor in these files.
    pub fn stored_name(&self, name: &str) -> String {
        match &self.kind {
            Kind::Folder { tower, linears, .. } => match name.strip_prefix(TOWER) {
                Some(rest) => format!("{tower}{rest}"),
                None => {
                    let linear = linears.iter().find(|(ours, _)| name.starts_with(**ours));
                    linear.map_or(name.into(), |(ours, theirs)| name.replacen(ours, theirs, 1))
                }
            },
            Kind::Gguf { swapped, .. } => gguf_name(name, *swapped),
        }
    }

    /// Length of each axis of a tensor, outermost first; none where there is no such tensor.
    pub fn dims(&self, name: &str) -> Option<Vec<usize>> {
        let stored = self.stored_name(name);
        match &self.kind {
            Kind::Folder { file, .. } => file.dims(&stored).ok().map(<[usize]>::to_vec),
            Kind::Gguf { file, .. } => Some(file.tensor(&stored).ok()?.dims.iter().rev().copied().collect()),
        }
    }

    /// The format of a tensor; none where there is no such tensor.
    pub fn format(&self, name: &str) -> Option<Format> {
        self.raw(name).ok().map(|raw| raw.format)
    }

    /// The tensors on a device.
    pub(crate) fn source<'a>(&'a self, device: &'a Device, options: &LoadOptions) -> impl Source + 'a {
        Stored { files: self, device, weights: options.weights }
    }

    pub(super) fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let stored = self.stored_name(name);
        match &self.kind {
            Kind::Folder { file, .. } => file.raw(&stored),
            Kind::Gguf { file, .. } => file.raw(&stored),
        }
    }

    /// Checks that the tensors are there with their shapes. Others of the files are of no interest.
    ///
    /// # Errors
    /// Tensors are missing, and all are listed; or a shape is another, with the fields of the configuration.
    pub(super) fn check(&self, expected: &[Expected]) -> Result<()> {
        let names: Vec<String> = expected.iter().map(|e| self.stored_name(&e.name)).collect();
        let names = names.iter().map(String::as_str);
        match &self.kind {
            Kind::Folder { file, .. } => file.expect_tensors(names)?,
            Kind::Gguf { file, .. } => file.expect_tensors(names)?,
        };
        expected.iter().try_for_each(|e| {
            let found = self.dims(&e.name).unwrap_or_default();
            e.check(&found).map_err(|what| {
                Error::file(self.path(), format!("tensor '{}' {what}", self.stored_name(&e.name)))
            })
        })
    }
}

/// llama.cpp's name of a tensor; whether the two linears of an MLP have each other's.
pub(super) fn gguf_name(name: &str, swapped: bool) -> String {
    let name =
        NAMES.into_iter().fold(name.to_string(), |name, (ours, theirs)| name.replacen(ours, theirs, 1));
    let [first, second] = if swapped { [".ffn_down.", ".ffn_up."] } else { [".ffn_up.", ".ffn_down."] };
    name.replacen(FIRST, first, 1).replacen(SECOND, second, 1)
}

/// The tensors of files on a device.
pub(super) struct Stored<'a> {
    pub files: &'a VisionFiles,
    pub device: &'a Device,
    pub weights: Weights,
}

impl Source for Stored<'_> {
    fn weight(&self, name: &str) -> Result<Weight> {
        let t = self.files.raw(name)?;
        let weight = Weight::from_bytes(self.device, [t.rows, t.cols], t.bytes, t.format);
        weight.store_as(self.weights.of(t.format, t.cols)).build()
    }
    fn vector(&self, name: &str) -> Result<Tensor> {
        let values = self.files.raw(name)?.values()?;
        Tensor::from_f32(self.device, &[values.len()], &values)
    }
}

impl VisionConfig {
    /// Every tensor of the tower, up to its feature, and of the projector.
    pub fn tensors(&self) -> Vec<Expected> {
        [self.tower.tensors(self.feature), self.projector_tensors()].concat()
    }

    /// Every tensor of the projector.
    pub fn projector_tensors(&self) -> Vec<Expected> {
        let mut all = Vec::new();
        let width = (self.width, "hidden_size of the decoder");
        for (i, SiteLinear { path, d_in, .. }) in self.projector_places().into_iter().enumerate() {
            let d_in = if i == 0 { (d_in, "features") } else { width };
            all.push(Expected::matrix(format!("{path}.weight"), width, d_in));
            if self.projector_bias {
                all.push(Expected::vector(format!("{path}.bias"), width));
            }
        }
        all
    }

    /// The linears of the projector, as places of adapters.
    pub fn projector_places(&self) -> Vec<SiteLinear> {
        let features = self.projector.width_in(self.tower.width(self.feature));
        let place = |(i, path): (usize, &&str)| SiteLinear {
            path: (*path).into(),
            d_in: if i == 0 { features } else { self.width },
            d_out: self.width,
        };
        self.projector.linears().iter().enumerate().map(place).collect()
    }
}
