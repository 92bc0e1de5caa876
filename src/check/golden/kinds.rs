//! Which layers the files of the method family hold: kind by kind, the method with its options, and how the file names its
//! tensors.

use crate::io::Checkpoint;
use crate::mixture::{Method, methods};
use crate::{Error, Result};
use serde_json::{Map, Value, json};

/// Kinds whose files are layers of a method.
pub(super) const LAYERS: &[&str] = &[
    "mole_top1",
    "comol",
    "dynmole",
    "block_moe",
    "mola",
    "mora_cl",
    "meteora",
    "loramoe",
    "loramixer",
    "dynamic",
    "switch",
    "ldmole",
    "hydra",
    "moelora",
    "cond_router",
    "modulate",
    "personal",
    "ept",
    "cond_options",
];

/// The kind of files with given draws.
pub(super) const REMIX: &str = "remix";

/// A configuration by name.
pub(super) struct Config<'a> {
    pub kind: &'a str,
    pub values: &'a Map<String, Value>,
}

impl Config<'_> {
    pub fn number(&self, name: &str) -> usize {
        self.values.get(name).and_then(Value::as_u64).unwrap_or(0) as usize
    }
    pub fn numbers(&self, name: &str) -> Vec<usize> {
        let list = self.values.get(name).and_then(Value::as_array);
        list.into_iter().flatten().map(|value| value.as_u64().unwrap_or(0) as usize).collect()
    }
    pub fn text(&self, name: &str) -> &str {
        self.values.get(name).and_then(Value::as_str).unwrap_or("")
    }
    pub fn flag(&self, name: &str) -> bool {
        self.values.get(name).and_then(Value::as_bool).unwrap_or(false)
    }
    pub fn real(&self, name: &str) -> Option<f64> {
        self.values.get(name).and_then(Value::as_f64)
    }
    fn value(&self, name: &str) -> Value {
        self.values.get(name).cloned().unwrap_or(Value::Null)
    }
    /// Widths of the conditions.
    pub fn conditions(&self) -> Vec<usize> {
        let widths = self.values.get("cond").and_then(Value::as_array);
        widths.into_iter().flatten().filter_map(Value::as_u64).map(|width| width as usize).collect()
    }
    /// Whether the layer is an MLP block.
    pub fn is_block(&self) -> bool {
        matches!(self.kind, "mole_top1" | "block_moe" | "dynamic" | "switch")
    }
    /// Whether the file's layer is one in training, whatever it computes.
    pub fn trains(&self) -> bool {
        self.text("mode") != "infer"
    }
}

/// A loss of a file, alone: its name there, and the options that leave it alone.
pub(super) struct AloneLoss {
    pub name: &'static str,
    pub options: Value,
    pub bound: f64,
}

/// The bound where an entropy divides by a small `q - 1`.
const ENTROPY_BOUND: f64 = 3e-5;

/// The method of a kind with the options of a file, its losses left out.
pub(super) fn method(config: &Config<'_>, file: &Checkpoint) -> Result<Method> {
    let mut options = json!({
        "r": config.number("r"), "lora_alpha": config.value("alpha"), "lora_dropout": 0.0,
        "num_experts": config.number("E"), "top_k": config.number("k").max(1),
    });
    let more = match config.kind {
        "mole_top1" => json!({ "aux_loss_coef": 0.0, "dense": config.text("mode") == "dense" }),
        "dynmole" => json!({
            "aux_loss_coef": 0.0, "entropy_coef": 0.0, "top_p": config.value("top_p"),
            "threshold": config.value("threshold"), "entropy": config.value("entropy"),
            "entropy_index": config.value("q"), "entropy_eps": config.value("eps"),
        }),
        "block_moe" => json!({ "aux_loss_coef": 0.0, "noisy": config.flag("noisy") }),
        "mola" => json!({ "aux_loss_coef": 0.0, "experts_by_layer": [config.number("E")] }),
        "mora_cl" => json!({
            "lora_alpha": config.real("scale").unwrap_or(1.0) * config.number("r") as f64,
            "tau": config.value("tau"), "threshold": config.real("threshold").unwrap_or(0.0),
            "frozen_rows": config.number("frozen_rows"),
        }),
        "meteora" => json!({
            "temperature": config.value("temperature"), "gate_loss_coef": 0.0,
            "tasks": (0..config.number("E")).map(|e| e.to_string()).collect::<Vec<_>>(),
        }),
        "loramoe" => {
            json!({ "localized_coef": 0.0, "delta": config.value("delta"), "tasks_of_type_1": ["1"] })
        }
        "ldmole" => json!({
            "aux_loss_coef": 0.0, "z_loss_coef": 0.0, "sparse_coef": 0.0, "hinge_coef": 0.0,
            "sparsity_width": config.number("mlp").max(1),
        }),
        "loramixer" => json!({
            "rsl_coef": 0.0, "rsl_alpha": config.value("rsl_alpha"), "rsl_lambda": config.value("rsl_lambda"),
            "preserve": config.value("preserve"), "preserve_coef": 0.0,
        }),
        "cond_options" => json!({
            "num_factors": config.number("E"), "cfs_form": config.value("cfs_form"),
            "cfs_weight": config.real("cfs_weight").unwrap_or(1.0),
            "gate_scale": config.value("gate_scale"), "pool": "all",
            "router_input": config.value("router_input"), "independent_rank": config.value("independent_rank"),
            "mix_lora_a": config.value("mix_lora_a"), "mix_start_layer": config.number("mix_start_layer"),
            "add_noise": config.flag("add_noise"), "condition_width": config.conditions().iter().sum::<usize>(),
        }),
        "dynamic" => json!({ "aux_loss_coef": 0.0, "variant": "dynamic", "top_p": config.value("top_p") }),
        "switch" => json!({
            "aux_loss_coef": 0.0, "z_loss_coef": 0.0, "variant": "switch", "jitter": 0.0,
            "expert_capacity": config.number("capacity").max(1),
        }),
        "cond_router" => json!({ "condition_width": config.conditions().iter().sum::<usize>() }),
        "moelora" => json!({
            "tasks": (0..config.number("tasks")).map(|t| t.to_string()).collect::<Vec<_>>(),
            "task_width": config.number("embed"),
        }),
        "modulate" => json!({ "shift": config.flag("shift") }),
        "personal" => json!({ "gate_loss_coef": 0.0, "generic_tasks": ["0"] }),
        "ept" => json!({
            "contrast_coef": 0.0, "contrast_temperature": config.value("contrast_temperature"),
            "temperature": config.value("temperature"), "by_task": config.flag("by_task"),
            "kernels": config.value("kernels"),
            "tasks": (0..config.number("tasks")).map(|t| t.to_string()).collect::<Vec<_>>(),
        }),
        _ => json!({}),
    };
    let spec = match config.kind {
        "mole_top1" => &methods::llava_mole::SPEC,
        "comol" => &methods::comol::SPEC,
        "dynmole" => &methods::dynmole::SPEC,
        "block_moe" => &methods::block_moe::SPEC,
        "mora_cl" => &methods::mora_cl::SPEC,
        "meteora" => &methods::meteora::SPEC,
        "loramoe" => &methods::loramoe::SPEC,
        "ldmole" => &methods::ld_mole::SPEC,
        "hydra" => &methods::hydra::SPEC,
        "moelora" => &methods::moelora::SPEC,
        "cond_router" => &methods::cond_router::SPEC,
        "loramixer" => &methods::lora_mixer::SPEC,
        "modulate" => &methods::modulate::SPEC,
        "personal" => &methods::personal::SPEC,
        "ept" => &methods::ept::SPEC,
        "cond_options" if config.flag("gated") => &methods::mixlora_cond_gated::SPEC,
        "cond_options" => &methods::mixlora_cond::SPEC,
        "dynamic" | "switch" => &methods::mixlora_ffn::SPEC,
        _ => &methods::mola::SPEC,
    };
    let defaults = spec.defaults();
    let own = defaults.spec().option_names();
    if let (Some(all), Some(more)) = (options.as_object_mut(), more.as_object()) {
        all.extend(more.clone());
        all.retain(|name, _| own.contains(&name.as_str()));
        return defaults.set(all).map_err(|error| Error::file(file.path(), error.to_string()));
    }
    Ok(defaults)
}

/// The losses of a kind, each alone.
pub(super) fn losses(config: &Config<'_>) -> Vec<AloneLoss> {
    let alone = |name, options| AloneLoss { name, options, bound: super::BOUND };
    match config.kind {
        "loramixer" => vec![
            alone("rsl_peaked", json!({ "rsl_coef": 1.0 })),
            alone(
                "rsl_printed",
                json!({ "rsl_coef": 1.0, "rsl_lambda": -config.real("rsl_lambda").unwrap_or(0.0) }),
            ),
            alone("preserve", json!({ "preserve_coef": config.value("preserve_beta") })),
        ],
        "switch" => {
            vec![alone("balance", json!({ "aux_loss_coef": 1.0 })), alone("z", json!({ "z_loss_coef": 1.0 }))]
        }
        "mole_top1" | "block_moe" | "mola" | "dynamic" => {
            vec![alone("balance", json!({ "aux_loss_coef": 1.0 }))]
        }
        "dynmole" => {
            let near_one = config.real("q").is_some_and(|q| q != 1.0 && (q - 1.0).abs() < 0.2);
            let bound = if near_one { ENTROPY_BOUND } else { super::BOUND };
            vec![
                AloneLoss { bound, ..alone("entropy", json!({ "entropy_coef": 1.0 })) },
                alone("balance", json!({ "aux_loss_coef": 1.0 })),
            ]
        }
        "meteora" | "personal" => vec![alone("gate_ce", json!({ "gate_loss_coef": 1.0 }))],
        "ept" => vec![alone("contrast", json!({ "contrast_coef": 1.0 }))],
        "loramoe" if config.number("E").is_multiple_of(2) => {
            vec![alone("localized", json!({ "localized_coef": 1.0 }))]
        }
        "ldmole" if config.number("E") > 1 => vec![
            alone("balance", json!({ "aux_loss_coef": 1.0 })),
            alone("z", json!({ "z_loss_coef": 1.0 })),
            alone("sparse", json!({ "sparse_coef": 1.0 })),
            alone("hinge", json!({ "hinge_coef": 1.0 })),
        ],
        _ => Vec::new(),
    }
}

/// How a file stores a part of an adapter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Stored {
    AsIs,
    /// Blocks of r rows of a pool, each as its transpose.
    Transposed,
}

/// The name of a part in a file, and how it is stored there.
pub(super) fn stored_name(part: &str) -> (String, Stored) {
    let fixed = match part {
        "lora_a" => "a",
        "lora_a_start" => "a0",
        "router_noise" => "router_noise",
        "task_vectors" => "embed",
        "sparsity_1" => "mlp_w1",
        "sparsity_1_bias" => "mlp_b1",
        "sparsity_2" => "mlp_w2",
        "sparsity_2_bias" => "mlp_b2",
        "lora_b" => return ("b".into(), Stored::Transposed),
        "lora_b_start" => return ("b0".into(), Stored::Transposed),
        other => match other.split_once("_proj.lora_") {
            Some((what, "b")) => return (format!("b_{what}"), Stored::Transposed),
            Some((what, side)) => return (format!("{side}_{what}"), Stored::AsIs),
            None => other,
        },
    };
    (fixed.into(), Stored::AsIs)
}
