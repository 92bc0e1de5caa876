//! The places of a model where adapters can join it, and the tensors of its files, as data made from the description.

use super::{BlockNorms, Expected, MlpKind, ModelConfig, QkNorm};

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
    /// Width inside a gated MLP block, 0 where the layer has none; the same as `width` for other kinds.
    pub inner: usize,
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
    /// its MLP. The linears of experts are no sites.
    pub fn sites(&self) -> Vec<Site> {
        let start = self.site(0, "start", "model", SiteKind::Start, Vec::new());
        std::iter::once(start).chain((0..self.num_hidden_layers).flat_map(|i| self.layer_sites(i))).collect()
    }

    /// The sites of one layer.
    pub fn layer_sites(&self, layer: usize) -> Vec<Site> {
        let d = self.hidden_size;
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        let path = format!("model.layers.{layer}");
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
        let o = linears(&attention, q, &[("o_proj", d)]);
        let f = self.intermediate_size;
        let (first, second) = match (self.has_experts(layer), self.mlp) {
            (true, _) => (Vec::new(), Vec::new()),
            (_, MlpKind::Gated) => {
                (linears(&mlp, d, &[("gate_proj", f), ("up_proj", f)]), linears(&mlp, f, &[("down_proj", d)]))
            }
            (_, MlpKind::Fused) => {
                (linears(&mlp, d, &[("gate_up_proj", 2 * f)]), linears(&mlp, f, &[("down_proj", d)]))
            }
            (_, MlpKind::Plain) => (linears(&mlp, d, &[("c_fc", f)]), linears(&mlp, f, &[("c_proj", d)])),
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

/// A length of an axis, and the field that gives it.
type Axis = (usize, &'static str);

/// The paths of the linears of one expert, gate, up and down, and of the router.
pub(super) struct ExpertNames {
    pub router: String,
    pub experts: String,
    pub linears: [&'static str; 3],
    pub shared: String,
    pub shared_gate: String,
}

impl ModelConfig {
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

    /// Every tensor that the model has: name and shape, with the fields of `config.json` that give it.
    pub fn tensors(&self) -> Vec<Expected> {
        let mut outer = self.outer_tensors();
        let behind = outer.split_off(1);
        let layers = (0..self.num_hidden_layers).flat_map(|i| self.layer_tensors(i));
        outer.into_iter().chain(layers).chain(behind).collect()
    }

    /// The embedding, the last norm, and the head.
    pub(super) fn outer_tensors(&self) -> Vec<Expected> {
        let d = (self.hidden_size, "hidden_size");
        let v = (self.vocab_size, "vocab_size");
        let mut all = vec![Expected::matrix("model.embed_tokens.weight", v, d)];
        all.extend(self.norm_tensors("model.norm"));
        if !self.tie_word_embeddings {
            all.push(Expected::matrix("lm_head.weight", v, d));
        }
        all
    }

    fn norm_tensors(&self, path: &str) -> Vec<Expected> {
        let d = (self.hidden_size, "hidden_size");
        let mut all = vec![Expected::vector(format!("{path}.weight"), d)];
        if self.norm.bias {
            all.push(Expected::vector(format!("{path}.bias"), d));
        }
        all
    }

    /// The tensors of one layer.
    pub(super) fn layer_tensors(&self, layer: usize) -> Vec<Expected> {
        let path = format!("model.layers.{layer}");
        let BlockNorms { before_attention, after_attention, before_mlp, after_mlp } = self.norms;
        let norm =
            |name: Option<&str>| name.map_or(Vec::new(), |name| self.norm_tensors(&format!("{path}.{name}")));
        let mut all = norm(before_attention);
        let sites = self.layer_sites(layer);
        let linears = |kind: SiteKind, all: &mut Vec<Expected>| {
            for linear in sites.iter().filter(|s| s.kind == kind).flat_map(|s| &s.linears) {
                let [rows, cols] =
                    [(linear, linear.d_out), (linear, linear.d_in)].map(|(l, n)| self.axis(l, n));
                all.push(Expected::matrix(format!("{}.weight", linear.path), rows, cols));
                if self.has_bias(&linear.path) {
                    all.push(Expected::vector(format!("{}.bias", linear.path), rows));
                }
            }
        };
        linears(SiteKind::AttentionLinears, &mut all);
        let (q, kv) = self.head_widths();
        match self.qk_norm {
            None => {}
            Some(QkNorm::Head) => all.extend(["q_norm", "k_norm"].map(|name| {
                Expected::vector(format!("{path}.self_attn.{name}.weight"), (self.head_dim, "head_dim"))
            })),
            Some(QkNorm::Whole) => all.extend(
                [("q_norm", q), ("k_norm", kv)]
                    .map(|(name, n)| Expected::vector(format!("{path}.self_attn.{name}.weight"), n)),
            ),
        }
        all.extend(norm(after_attention));
        if self.has_experts(layer) {
            all.extend(self.expert_tensors(layer));
        }
        linears(SiteKind::MlpLinears, &mut all);
        all.extend(norm(before_mlp));
        all.extend(norm(after_mlp));
        all
    }

    fn expert_tensors(&self, layer: usize) -> Vec<Expected> {
        let Some(experts) = &self.experts else { return Vec::new() };
        let names = self.expert_names(layer);
        let d = (self.hidden_size, "hidden_size");
        let block = |path: String, linears: [&str; 3], width: Axis| {
            let [gate, up, down] = linears.map(|name| format!("{path}.{name}.weight"));
            [
                Expected::matrix(gate, width, d),
                Expected::matrix(up, width, d),
                Expected::matrix(down, d, width),
            ]
        };
        let mut all =
            vec![Expected::matrix(format!("{}.weight", names.router), (experts.count, "num_experts"), d)];
        let width = (
            experts.width,
            if experts.mixtral_names { "intermediate_size" } else { "moe_intermediate_size" },
        );
        for i in 0..experts.count {
            all.extend(block(format!("{}.{i}", names.experts), names.linears, width));
        }
        if let Some(shared) = experts.shared {
            let linears = ["gate_proj", "up_proj", "down_proj"];
            all.extend(block(names.shared, linears, (shared, "shared_expert_intermediate_size")));
            all.push(Expected::matrix(format!("{}.weight", names.shared_gate), (1, "one"), d));
        }
        all
    }

    /// Widths of all queries and of all keys.
    fn head_widths(&self) -> (Axis, Axis) {
        (
            (self.num_attention_heads * self.head_dim, "num_attention_heads x head_dim"),
            (self.num_key_value_heads * self.head_dim, "num_key_value_heads x head_dim"),
        )
    }

    /// The field that gives a length of a linear.
    fn axis(&self, linear: &SiteLinear, n: usize) -> Axis {
        let (q, kv) = self.head_widths();
        let field = match linear.module() {
            "q_proj" if n == linear.d_out => q.1,
            "k_proj" | "v_proj" if n == linear.d_out => kv.1,
            "o_proj" if n == linear.d_in => q.1,
            "qkv_proj" if n == linear.d_out => "(num_attention_heads + 2 num_key_value_heads) x head_dim",
            "gate_up_proj" if n == linear.d_out => "2 x intermediate_size",
            "gate_proj" | "up_proj" | "c_fc" if n == linear.d_out => "intermediate_size",
            "down_proj" | "c_proj" if n == linear.d_in => "intermediate_size",
            _ => "hidden_size",
        };
        (n, field)
    }
}
