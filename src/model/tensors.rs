//! The tensors of a model's files, as data made from the description.

use super::{BlockNorms, ModelConfig, QkNorm, SiteKind, SiteLinear};

/// A length of an axis, and the field that gives it.
pub(super) type Axis = (usize, &'static str);

/// A tensor that a configuration asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    /// As Hugging Face names it.
    pub name: String,
    /// Length of each axis, outermost first, and the field of `config.json` that gives it.
    pub axes: Vec<Axis>,
}

impl Expected {
    /// Compares the shape of a tensor with that of the configuration; what is wrong, for a message that names it.
    pub(super) fn check(&self, found: &[usize]) -> std::result::Result<(), String> {
        let dims: Vec<usize> = self.axes.iter().map(|a| a.0).collect();
        if found == dims {
            return Ok(());
        }
        let fields: Vec<&str> = self.axes.iter().map(|a| a.1).collect();
        Err(format!("is {found:?}, expected {dims:?} by the configuration ({})", fields.join(", ")))
    }
    pub(super) fn matrix(name: impl Into<String>, rows: Axis, cols: Axis) -> Self {
        Expected { name: name.into(), axes: vec![rows, cols] }
    }
    pub(super) fn vector(name: impl Into<String>, n: Axis) -> Self {
        Expected { name: name.into(), axes: vec![n] }
    }
}

impl ModelConfig {
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

    pub(super) fn norm_tensors(&self, path: &str) -> Vec<Expected> {
        let d = (self.hidden_size, "hidden_size");
        let mut all = vec![Expected::vector(format!("{path}.weight"), d)];
        if self.norm.bias {
            all.push(Expected::vector(format!("{path}.bias"), d));
        }
        all
    }

    /// The tensors of one layer.
    pub(super) fn layer_tensors(&self, layer: usize) -> Vec<Expected> {
        let path = format!("{}.{layer}", self.names.layers);
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
        let [first, second] = self.names.plain_mlp;
        let field = match linear.module() {
            "q_proj" if n == linear.d_out => q.1,
            "k_proj" | "v_proj" if n == linear.d_out => kv.1,
            name if name == self.names.o_proj && n == linear.d_in => q.1,
            name if name == first && n == linear.d_out => "intermediate_size",
            name if name == second && n == linear.d_in => "intermediate_size",
            "qkv_proj" if n == linear.d_out => "(num_attention_heads + 2 num_key_value_heads) x head_dim",
            "gate_up_proj" if n == linear.d_out => "2 x intermediate_size",
            "gate_proj" | "up_proj" if n == linear.d_out => "intermediate_size",
            "down_proj" if n == linear.d_in => "intermediate_size",
            _ => "hidden_size",
        };
        (n, field)
    }

    /// Parameters of the decoder, the embedding counted once.
    pub fn parameters(&self) -> u64 {
        // Sizes that a file only claims have products beyond 64 bits.
        let layers = |experts: bool| self.layers.iter().filter(|l| l.experts == experts).count() as u128;
        let size = |all: &[Expected]| {
            all.iter().map(|e| e.axes.iter().map(|a| a.0 as u128).product::<u128>()).sum::<u128>()
        };
        let first = |experts: bool| self.layers.iter().position(|l| l.experts == experts);
        let layer = |experts: bool| first(experts).map_or(0, |i| size(&self.layer_tensors(i)));
        let all = size(&self.outer_tensors()) + layers(false) * layer(false) + layers(true) * layer(true);
        u64::try_from(all).unwrap_or(u64::MAX)
    }
}
