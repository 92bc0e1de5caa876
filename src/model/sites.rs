//! The places of a model where adapters can join it, as data made from the description.

use super::{MlpKind, ModelConfig};
use serde::{Deserialize, Serialize};

/// What an adapter can take at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SiteKind {
    /// Linears of an attention block that read the same input.
    AttentionLinears,
    /// Linears of an MLP block that read the same input.
    MlpLinears,
    /// Linears of one expert that read the same input.
    ExpertLinears,
    /// The linear by which a layer of experts chooses.
    ExpertRouter,
    /// A gated MLP block.
    Mlp,
    /// A decoder block.
    Block,
    /// A linear of the projector between a vision tower and the decoder.
    ProjectorLinears,
    /// The moment before the first layer.
    Start,
}

impl SiteKind {
    /// Whether it is a group of linears.
    pub fn is_linears(self) -> bool {
        matches!(
            self,
            SiteKind::AttentionLinears
                | SiteKind::MlpLinears
                | SiteKind::ExpertLinears
                | SiteKind::ExpertRouter
                | SiteKind::ProjectorLinears
        )
    }
}

/// A linear at a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteLinear {
    /// Path as Hugging Face names it, for example `model.layers.3.self_attn.q_proj`.
    pub path: String,
    pub d_in: usize,
    pub d_out: usize,
}

impl SiteLinear {
    /// The last part of its path, which target modules name.
    pub fn module(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or("")
    }
}

/// A place of a model where an adapter can join it. Its number is its index in [`ModelConfig::sites`]; those of a projector
/// come behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Unique in the model, for example `layers.3.qkv`; also the key of choices and random streams.
    pub name: String,
    /// Path of the module as Hugging Face names it, for example `model.layers.3.mlp`.
    pub path: String,
    pub kind: SiteKind,
    /// Number of the layer; 0 for the site before the first one.
    pub layer: usize,
    /// Number of layers of the model.
    pub layers: usize,
    /// The linears, in order; empty for other kinds.
    pub linears: Vec<SiteLinear>,
    /// Width of the state that the site reads.
    pub width: usize,
    /// Width inside a gated MLP block, 0 where the layer has none; the same as `width` for other kinds.
    pub inner: usize,
}

impl Site {
    /// The sites of a projector between a vision tower and a decoder of so many layers.
    pub fn of_projector(linears: &[SiteLinear], layers: usize) -> impl Iterator<Item = Site> {
        linears.iter().map(move |linear| Site {
            name: linear.path.clone(),
            path: linear.path.clone(),
            kind: SiteKind::ProjectorLinears,
            layer: 0,
            layers,
            linears: vec![linear.clone()],
            width: linear.d_in,
            inner: linear.d_in,
        })
    }
}

/// Sites of each layer. Layers that lack one, such as a gated MLP, have it without linears and without a use.
pub(super) const LAYER_SITES: usize = 6;
/// Numbers of the sites of a layer behind its first one.
pub(super) mod at {
    pub const BLOCK: usize = 0;
    pub const QKV: usize = 1;
    pub const O: usize = 2;
    pub const MLP: usize = 3;
    pub const GATE_UP: usize = 4;
    pub const DOWN: usize = 5;
}

/// The number of a site of a layer.
pub(super) fn number(layer: usize, site: usize) -> usize {
    1 + layer * LAYER_SITES + site
}

impl ModelConfig {
    /// Every site, in the order of their numbers: [`SiteKind::Start`], then for each layer its block, its attention,
    /// its MLP; and behind all of these, for each layer of experts, [its own](ModelConfig::expert_sites).
    pub fn sites(&self) -> Vec<Site> {
        let start = self.site(0, "start", "model", SiteKind::Start, Vec::new());
        let layers = (0..self.num_hidden_layers).flat_map(|i| self.layer_sites(i));
        let experts = (0..self.num_hidden_layers).flat_map(|i| self.expert_sites(i));
        std::iter::once(start).chain(layers).chain(experts).collect()
    }

    /// The sites inside the experts of a layer: its router; for each expert gate with up, and down; the same for the expert
    /// that all tokens use. None where the layer has no experts.
    pub fn expert_sites(&self, layer: usize) -> Vec<Site> {
        let Some(experts) = self.experts.filter(|_| self.has_experts(layer)) else { return Vec::new() };
        let names = self.expert_names(layer);
        let d = self.hidden_size;
        let linear = |path: String, d_in: usize, d_out: usize| SiteLinear { path, d_in, d_out };
        let router = vec![linear(names.router.clone(), d, experts.count)];
        let mut all = vec![self.site(layer, "router", &names.router, SiteKind::ExpertRouter, router)];
        let mut add = |name: String, path: String, [gate, up, down]: [&str; 3], f: usize| {
            let first = [gate, up].map(|what| linear(format!("{path}.{what}"), d, f)).into();
            let second = vec![linear(format!("{path}.{down}"), f, d)];
            for (what, linears) in [("gate_up", first), ("down", second)] {
                all.push(self.site(
                    layer,
                    &format!("{name}.{what}"),
                    &path,
                    SiteKind::ExpertLinears,
                    linears,
                ));
            }
        };
        for e in 0..experts.count {
            add(format!("experts.{e}"), format!("{}.{e}", names.experts), names.linears, experts.width);
        }
        if let Some(shared) = experts.shared {
            add("shared_expert".into(), names.shared, ["gate_proj", "up_proj", "down_proj"], shared);
        }
        all
    }

    /// The number of the first of a layer's [`expert_sites`](ModelConfig::expert_sites).
    pub(super) fn first_expert_site(&self, layer: usize) -> usize {
        let each = self.experts.map_or(0, |e| 1 + 2 * e.count + 2 * usize::from(e.shared.is_some()));
        let before = (0..layer).filter(|&i| self.has_experts(i)).count();
        number(self.num_hidden_layers, 0) + before * each
    }

    /// The sites of one layer.
    pub fn layer_sites(&self, layer: usize) -> Vec<Site> {
        let d = self.hidden_size;
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        let path = format!("{}.{layer}", self.names.layers);
        let attention = format!("{path}.self_attn");
        let mlp = format!("{path}.mlp");
        let linears = |module: &str, d_in: usize, outs: &[(&str, usize)]| -> Vec<SiteLinear> {
            let linear = |(name, d_out): &(&str, usize)| SiteLinear {
                path: format!("{module}.{name}"),
                d_in,
                d_out: *d_out,
            };
            outs.iter().map(linear).collect()
        };
        let qkv = if self.fused_qkv {
            linears(&attention, d, &[("qkv_proj", q + 2 * kv)])
        } else {
            linears(&attention, d, &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)])
        };
        let o = linears(&attention, q, &[(self.names.o_proj, d)]);
        let f = self.intermediate_size;
        let (first, second) = match (self.has_experts(layer), self.mlp) {
            (true, _) => (Vec::new(), Vec::new()),
            (_, MlpKind::Gated) => {
                (linears(&mlp, d, &[("gate_proj", f), ("up_proj", f)]), linears(&mlp, f, &[("down_proj", d)]))
            }
            (_, MlpKind::Fused) => {
                (linears(&mlp, d, &[("gate_up_proj", 2 * f)]), linears(&mlp, f, &[("down_proj", d)]))
            }
            (_, MlpKind::Plain) => {
                let [first, second] = self.names.plain_mlp;
                (linears(&mlp, d, &[(first, f)]), linears(&mlp, f, &[(second, d)]))
            }
        };
        vec![
            self.site(layer, "block", &path, SiteKind::Block, Vec::new()),
            self.site(layer, "qkv", &attention, SiteKind::AttentionLinears, qkv),
            self.site(layer, "o", &attention, SiteKind::AttentionLinears, o),
            self.site(layer, "mlp", &mlp, SiteKind::Mlp, Vec::new()),
            self.site(layer, "gate_up", &mlp, SiteKind::MlpLinears, first),
            self.site(layer, "down", &mlp, SiteKind::MlpLinears, second),
        ]
    }

    /// Whether the MLP of a layer is one of experts.
    pub fn has_experts(&self, layer: usize) -> bool {
        self.experts.is_some() && self.layers.get(layer).is_some_and(|l| l.experts)
    }

    /// Whether a layer has a gated MLP of two products, which an MLP adapter can take.
    pub fn has_gated_mlp(&self, layer: usize) -> bool {
        !self.has_experts(layer) && self.mlp == MlpKind::Gated
    }

    /// The last parts of the paths of all linears that adapters can take, each once, in the order of a layer.
    pub fn target_modules(&self) -> Vec<String> {
        let mut modules: Vec<String> = Vec::new();
        for layer in 0..self.num_hidden_layers {
            let kind = (self.has_experts(layer), layer);
            if layer > 0 && kind.0 == self.has_experts(0) {
                continue;
            }
            for linear in self.layer_sites(layer).iter().flat_map(|site| &site.linears) {
                if !modules.iter().any(|m| m == linear.module()) {
                    modules.push(linear.module().to_string());
                }
            }
        }
        modules
    }

    fn site(&self, layer: usize, name: &str, path: &str, kind: SiteKind, linears: Vec<SiteLinear>) -> Site {
        let name = if kind == SiteKind::Start { name.to_string() } else { format!("layers.{layer}.{name}") };
        let width = linears.first().map_or(self.hidden_size, |l| l.d_in);
        Site {
            name,
            path: path.to_string(),
            kind,
            layer,
            layers: self.num_hidden_layers,
            linears,
            width,
            inner: match kind {
                SiteKind::Mlp if self.has_gated_mlp(layer) => self.intermediate_size,
                SiteKind::Mlp => 0,
                _ => width,
            },
        }
    }
}

/// The paths of the linears of one expert, gate, up and down, and of the router.
pub(super) struct ExpertNames {
    pub router: String,
    pub experts: String,
    pub linears: [&'static str; 3],
    pub shared: String,
    pub shared_gate: String,
}

impl ModelConfig {
    /// Whether a tensor chooses experts, or how much of a shared one.
    pub(super) fn routes_experts(&self, name: &str) -> bool {
        let ends = [".gate.weight", ".shared_expert_gate.weight"];
        self.experts.is_some() && ends.iter().any(|end| name.ends_with(end))
    }

    /// The names of the experts of a layer.
    pub(super) fn expert_names(&self, layer: usize) -> ExpertNames {
        let mixtral = self.experts.is_some_and(|e| e.mixtral_names);
        let module = format!("model.layers.{layer}.{}", if mixtral { "block_sparse_moe" } else { "mlp" });
        ExpertNames {
            router: format!("{module}.gate"),
            experts: format!("{module}.experts"),
            linears: if mixtral { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] },
            shared: format!("{module}.shared_expert"),
            shared_gate: format!("{module}.shared_expert_gate"),
        }
    }
}
