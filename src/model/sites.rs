//! The places of a model where adapters can join it, as data made from the configuration.

use super::ModelConfig;

/// What an adapter can take at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SiteKind {
    /// Linears of an attention block that read the same input.
    AttentionLinears,
    /// Linears of an MLP block that read the same input.
    MlpLinears,
    /// A gated MLP block.
    Mlp,
    /// A decoder block.
    Block,
    /// The moment before the first layer.
    Start,
}

impl SiteKind {
    /// Whether it is a group of linears.
    pub fn is_linears(self) -> bool {
        matches!(self, SiteKind::AttentionLinears | SiteKind::MlpLinears)
    }
}

/// A linear at a site.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// A place of a model where an adapter can join it. Its number is its index in [`ModelConfig::sites`].
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
    /// Width inside an MLP block; the same as `width` for other kinds.
    pub inner: usize,
}

impl ModelConfig {
    /// Every site, in the order of their numbers: [`SiteKind::Start`], then for each layer its block, its attention,
    /// its MLP.
    pub fn sites(&self) -> Vec<Site> {
        let start = self.site(0, "start", "model", SiteKind::Start, Vec::new());
        std::iter::once(start).chain((0..self.num_hidden_layers).flat_map(|i| self.layer_sites(i))).collect()
    }

    /// The sites of one layer.
    pub fn layer_sites(&self, layer: usize) -> Vec<Site> {
        let d = self.hidden_size;
        let f = self.intermediate_size;
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        let path = format!("model.layers.{layer}");
        let linears = |module: &str, d_in: usize, outs: &[(&str, usize)]| -> Vec<SiteLinear> {
            let linear = |(name, d_out): &(&str, usize)| SiteLinear {
                path: format!("{path}.{module}.{name}"),
                d_in,
                d_out: *d_out,
            };
            outs.iter().map(linear).collect()
        };
        let attention = format!("{path}.self_attn");
        let mlp = format!("{path}.mlp");
        let qkv = linears("self_attn", d, &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)]);
        let o = linears("self_attn", q, &[("o_proj", d)]);
        let gate_up = linears("mlp", d, &[("gate_proj", f), ("up_proj", f)]);
        let down = linears("mlp", f, &[("down_proj", d)]);
        vec![
            self.site(layer, "block", &path, SiteKind::Block, Vec::new()),
            self.site(layer, "qkv", &attention, SiteKind::AttentionLinears, qkv),
            self.site(layer, "o", &attention, SiteKind::AttentionLinears, o),
            self.site(layer, "mlp", &mlp, SiteKind::Mlp, Vec::new()),
            self.site(layer, "gate_up", &mlp, SiteKind::MlpLinears, gate_up),
            self.site(layer, "down", &mlp, SiteKind::MlpLinears, down),
        ]
    }

    /// The last parts of the paths of all linears that adapters can take, each once, in the order of a layer.
    pub fn target_modules(&self) -> Vec<String> {
        let mut modules: Vec<String> = Vec::new();
        for site in self.sites() {
            for linear in &site.linears {
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
            inner: if kind == SiteKind::Mlp { self.intermediate_size } else { width },
        }
    }
}
