//! Reference files: what they say holds on every lane, and whatever is wrong with a file is found.

use common::edit::{Edit, file, golden};
use mixlora::check::golden::{Replay, find_files, replay};
use mixlora::{Device, Error, Result};
use safetensors::Dtype;
use std::path::Path;

mod common;

const LINEAR: &str = "layer/01_";
const GATED: &str = "layer/03_";
const FFN: &str = "token/ffn_b1";
const SMORA: &str = "token/smora_b2";
const FLY: &str = "token/fly_b2";
const COMOL: &str = "mixture/comol_b2_s9";
const DYNMOLE: &str = "mixture/dynmole_b2_s17";
const MODULATE: &str = "mixture/modulate_b2";
const PERSONAL: &str = "mixture/personal_b4";
const EPT: &str = "mixture/ept_b3_s7";
const UNI_MOE: &str = "mixture/uni_moe_b2_s9";
const COND_OPTIONS: &str = "mixture/cond_options_b3_s4_20x16";
const ONE_A: &str = "mixture/cond_options_b2_s6_17x13";
const ROUTER: &str = "mixture/router_losses_b4";

/// Every file holds on the device; returns the worst error.
fn all_hold(device: &Device) {
    let mut worst = 0f64;
    let mut failed = Vec::new();
    let files = find_files(&["layer", "token", "mixture"].map(|kind| golden().join(kind))).unwrap();
    let of = |kind: &str| files.iter().filter(|p| p.parent().is_some_and(|d| d.ends_with(kind))).count();
    assert_eq!(["layer", "token", "mixture"].map(of), [21, 11, 120]);
    for path in files {
        let r = replay(&path, device).unwrap();
        worst = worst.max(r.worst().unwrap().error);
        if !r.holds() {
            failed.push(format!("{r:?}"));
        }
    }
    println!("{}: worst {worst:.1e}", device.name());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn the_reference_holds() {
    all_hold(&Device::reference());
}

#[test]
fn the_cpu_holds() {
    all_hold(&Device::cpu());
}

#[test]
fn the_gpu_holds() {
    if let Some(gpu) = common::gpu() {
        all_hold(&gpu);
    }
}

/// Decoded files, what processors make of them, and resizing; a level that differs is found.
#[cfg(feature = "images")]
#[test]
fn pictures_hold() {
    let files = find_files(&[golden().join("vision")]).unwrap();
    assert_eq!(files.len(), 18);
    for path in files {
        let r = replay(&path, &Device::cpu()).unwrap();
        assert!(r.holds() && r.errors.len() > 2, "{r:?}");
    }
    let off = |part: &str, name: &str| {
        let mut edit = Edit::open(&file(part));
        let byte = edit.tensors.get_mut(name).unwrap().2.last_mut().unwrap();
        *byte ^= 1;
        let folder = tempfile::tempdir().unwrap();
        let r = replay(&edit.write(folder.path(), "changed"), &Device::cpu()).unwrap();
        let found = r.errors.iter().any(|measured| measured.name == name && !measured.holds());
        assert!(found && !r.holds(), "{part} {name}: {r:?}");
    };
    off("vision/resize", "1.lanczos");
    off("vision/png_rgba", "rgb_on_white");
    off("vision/png_rgba", "idefics3_96_32.u8");
    off("vision/png_rgba", "clip_32.pixel_values");
    off("vision/jpeg_cmyk", "siglip_32.u8");
}

/// Replays a changed copy.
fn changed(part: &str, change: impl Fn(Edit) -> Edit) -> Result<Replay> {
    let folder = tempfile::tempdir().unwrap();
    let path = change(Edit::open(&file(part))).write(folder.path(), "changed");
    replay(&path, &Device::cpu())
}

#[test]
fn an_unchanged_copy_holds() {
    for part in [LINEAR, GATED, FFN, SMORA, FLY] {
        assert!(changed(part, |e| e).unwrap().holds(), "{part}");
    }
}

#[test]
fn a_changed_value_is_found() {
    for (part, names) in [
        (LINEAR, &["y", "grad_x", "grad_factors_a", "grad_factors_b", "x", "weight"][..]),
        (GATED, &["y", "grad_x", "grad_factors_a", "grad_factors_b"]),
        (FFN, &["y", "grad_x", "grad_router", "grad_a_down", "grad_b_up", "aux_loss"]),
        (SMORA, &["y", "grad_x", "grad_a", "grad_b", "grad_router", "d_next"]),
        (FLY, &["y", "grad_x", "grad_b", "d_next"]),
    ] {
        for name in names {
            let off = |by: fn(f32) -> f32| {
                changed(part, |e| {
                    let at = e.largest(name);
                    e.value(name, at, by)
                })
                .unwrap()
            };
            let small = off(|v| v * 1.0001);
            assert!(!small.holds(), "{part} {name}: {small:?}");
            for bad in [off(|_| f32::NAN), off(|_| f32::INFINITY)] {
                assert!(!bad.holds(), "{part} {name}: {bad:?}");
            }
        }
    }
}

#[test]
fn swapped_indices_are_found() {
    for (part, name) in [(LINEAR, "idx_a"), (LINEAR, "idx_b"), (FFN, "idx"), (SMORA, "idx"), (FLY, "idx")] {
        let r = changed(part, |e| e.swap(name, 0, 1)).unwrap();
        assert!(!r.choices && !r.holds(), "{part} {name}");
        assert!(r.worst().unwrap().holds(), "the values are as they were");
    }
}

/// The error of a file that is not what it should be: it names the file and says all of the texts.
fn refused(label: &str, done: Result<Replay>, texts: &[&str]) {
    match done {
        Err(e @ Error::File { .. }) => {
            let e = e.to_string();
            assert!(e.contains(".safetensors: "), "{label}: {e}");
            for text in texts {
                assert!(e.contains(text), "{label}: '{text}' is not in: {e}");
            }
        }
        other => panic!("{label}: {other:?}"),
    }
}

#[test]
fn bytes_that_are_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(file(LINEAR)).unwrap();
    let path = folder.path().join("broken.safetensors");
    let with = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        replay(&path, &Device::cpu())
    };
    refused("empty", with(&[]), &["not a safetensors file (0 bytes)"]);
    refused("seven bytes", with(&whole[..7]), &["not a safetensors file (7 bytes)"]);
    for n in [8, 100, whole.len() / 2, whole.len() - 1] {
        refused("truncated", with(&whole[..n]), &["not a valid safetensors file"]);
    }
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    refused("huge header", with(&huge), &["not a valid safetensors file"]);
    let mut longer = whole.clone();
    longer.push(0);
    refused("longer", with(&longer), &["not a valid safetensors file"]);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 61128\n";
    refused("pointer", with(pointer), &["Git-LFS pointer", "git lfs pull"]);
    refused("missing", replay(Path::new("nowhere.safetensors"), &Device::cpu()), &["cannot be read"]);
    assert!(matches!(find_files(&[folder.path().join("nowhere")]), Err(Error::File { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(
        find_files(&[folder.path().to_path_buf()]).unwrap_err().to_string().contains("no reference file")
    );
}

type Change = fn(Edit) -> Edit;

#[test]
fn configurations_that_cannot_be() {
    let cases: [(&str, Change, &[&str]); 18] = [
        (
            LINEAR,
            |mut e| {
                e.metadata.remove("config");
                e
            },
            &["metadata 'config' is missing"],
        ),
        (LINEAR, |e| e.config("{", "{{"), &["metadata 'config'"]),
        (
            LINEAR,
            |mut e| {
                e.metadata.insert("config".into(), "[]".into());
                e
            },
            &["config is neither"],
        ),
        (LINEAR, |e| e.config("param_linear", "param_cubic"), &["param_cubic", "param_sum_product"]),
        (LINEAR, |e| e.config("\"router\": \"input\"", "\"router\": \"task\""), &["task", "instr"]),
        (LINEAR, |e| e.config("\"E\": 4", "\"F\": 4"), &["missing field `E`"]),
        (LINEAR, |e| e.config("\"batch\": 2", "\"batch\": 0"), &["config has a size of 0"]),
        (LINEAR, |e| e.config("\"batch\": 2", "\"batch\": -2"), &["metadata 'config'", "-2"]),
        (LINEAR, |e| e.config("\"r\": 2", "\"r\": 0"), &["config has a size of 0"]),
        (
            LINEAR,
            |e| e.config("\"E\": 4", "\"E\": 4000000000000"),
            &["factors_a", "expected [4000000000000, 64]"],
        ),
        (LINEAR, |e| e.config("\"alpha\": 8", "\"alpha\": -8"), &["lora_alpha", "above 0"]),
        (
            SMORA,
            |e| e.config("\"layer\": \"smora\"", "\"layer\": \"gate\""),
            &["unknown variant `gate`", "smora"],
        ),
        (SMORA, |e| e.config("\"k\": 4", "\"k\": 400"), &["'idx'", "expected [34, 400]"]),
        (SMORA, |e| e.config("\"seq\": 17", "\"seq\": 18446744073709551615"), &["'x'", "expected"]),
        (FFN, |e| e.config("\"hidden\": 64", "\"hidden\": 0"), &["sizes that cannot be"]),
        (FFN, |e| e.config("\"E\": 4", "\"E\": 0"), &["sizes that cannot be"]),
        (FFN, |e| e.config("{", "{\"valid\": [1, 1], "), &["2 valid flags for 1 tokens"]),
        (FFN, |e| e.config("\"layer\": \"ffn\"", "\"layer\": 7"), &["metadata 'config'", "column"]),
    ];
    for (i, (part, change, texts)) in cases.into_iter().enumerate() {
        refused(&format!("case {i}"), changed(part, change), texts);
    }
}

#[test]
fn tensors_that_cannot_be() {
    let cases: [(&str, Change, &[&str]); 25] = [
        (LINEAR, |e| e.without("factors_b"), &["tensor 'factors_b' is missing"]),
        (LINEAR, |e| e.without("y"), &["tensor 'y' is missing"]),
        (LINEAR, |e| e.without("idx_b"), &["tensor 'idx_b' is missing"]),
        (LINEAR, |e| e.without("grad_x"), &["tensor 'grad_x' is missing"]),
        (LINEAR, |e| e.without("weight"), &["tensor 'weight' is missing"]),
        (
            LINEAR,
            |e| e.retype("factors_a", Dtype::F32, &[64, 4]),
            &["'factors_a' has shape [64, 4], expected [4, 64]"],
        ),
        (
            LINEAR,
            |e| e.retype("grad_factors_a", Dtype::F32, &[64, 4]),
            &["'grad_factors_a'", "expected [4, 64]"],
        ),
        (
            LINEAR,
            |e| e.retype("router_a", Dtype::I32, &[4, 64]),
            &["'router_a' has type I32, expected values"],
        ),
        (LINEAR, |e| e.retype("idx_a", Dtype::F32, &[2, 2]), &["'idx_a' has type F32, expected i32"]),
        (
            LINEAR,
            |e| e.retype("x", Dtype::F16, &[2, 17, 128]),
            &["tensor 'x' has shape [2, 17, 128], expected [2, 17, 64]"],
        ),
        (LINEAR, |e| e.index("idx_b", 1, 4), &["tensor 'idx_b' holds 4, expected 0..4"]),
        (LINEAR, |e| e.index("idx_a", 0, -1), &["tensor 'idx_a' holds -1, expected 0..4"]),
        (LINEAR, |e| e.with("grad_router_a", &[4, 64]), &["'grad_router_a' was not computed"]),
        (FFN, |e| e.without("b_down"), &["tensor 'b_down' is missing"]),
        (
            FFN,
            |e| e.retype("a_up", Dtype::F32, &[4, 48, 2]),
            &["'a_up' has shape [4, 48, 2], expected [4, 2, 48]"],
        ),
        (SMORA, |e| e.without("score"), &["tensor 'score' is missing"]),
        (SMORA, |e| e.index("idx", 2, 16), &["tensor 'idx' holds 16, expected 0..16"]),
        (FLY, |e| e.with("grad_a", &[16, 64]), &["'grad_a' was not computed"]),
        (COMOL, |e| e.with("grad_w", &[64, 48]), &["'grad_w' was not computed"]),
        (DYNMOLE, |e| e.with("spread.value", &[1]), &["'spread.value' was not computed"]),
        (ROUTER, |e| e.with("spread.value", &[1]), &["'spread.value' was not computed"]),
        (COMOL, |e| e.config("\"seq\": 9", "\"seq\": 0"), &["a size of 0"]),
        (COMOL, |e| e.config("\"E\": 8", "\"E\": 800000000"), &["values, but the file has"]),
        (COMOL, |e| e.config("\"comol\"", "\"comolo\""), &["kind 'comolo' is not known"]),
        (COMOL, |e| e.without("core"), &["core"]),
    ];
    for (i, (part, change, texts)) in cases.into_iter().enumerate() {
        refused(&format!("case {i}"), changed(part, change), texts);
    }
    // More choices than factors, in every tensor that depends on it.
    let many = |e: Edit| {
        let dims = e.tensors["router_cfs"].1.clone();
        let mut e = e.config("\"r\": 2", "\"r\": 5").without("idx_a").without("idx_b").without("router_cfs");
        for name in ["idx_a", "idx_b"] {
            e = e.with(name, &[2, 5]).retype(name, Dtype::I32, &[2, 5]);
            e = (0..10).fold(e, |e, i| e.index(name, i, (i % 4) as i32));
        }
        e.with("router_cfs", &[dims[0], 5, dims[2]])
    };
    refused("r above E", changed(LINEAR, many), &["num_factors: is 4, must be at least r (5)"]);
}

#[test]
fn files_are_refused_alike_on_every_lane() {
    let folder = tempfile::tempdir().unwrap();
    let path = Edit::open(&file(LINEAR)).index("idx_b", 1, 4).write(folder.path(), "index");
    for device in [Device::reference(), Device::cpu()].into_iter().chain(common::gpu()) {
        refused(device.name(), replay(&path, &device), &["holds 4"]);
    }
}

#[test]
fn no_damage_to_a_header_is_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.safetensors");
    let cpu = Device::cpu();
    for part in [LINEAR, SMORA, EPT, UNI_MOE, COND_OPTIONS] {
        let whole = std::fs::read(file(part)).unwrap();
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let random = mixlora::Stream::new(3).named(part);
        for i in 0..300 {
            let mut bytes = whole.clone();
            bytes[random.bits(2 * i) as usize % header] =
                b"0123456789\"}]-,e"[random.bits(2 * i + 1) as usize % 16];
            std::fs::write(&path, bytes).unwrap();
            let _ = replay(&path, &cpu);
        }
    }
}

/// One value of a gradient or a loss, one choice: each is seen in the files of the method family.
#[test]
fn changed_values_of_the_family_are_found() {
    for (part, name) in [
        (COMOL, "grad_core"),
        (DYNMOLE, "entropy.grad_router"),
        (ROUTER, "renyi.value"),
        (MODULATE, "grad_shift"),
        (PERSONAL, "gate_ce.grad_router_bias"),
        (EPT, "grad_kernel_6"),
        (UNI_MOE, "grad_b_down"),
        (COND_OPTIONS, "grad_cond.0"),
        (ONE_A, "grad_router_b"),
    ] {
        let r = changed(part, |e| e.value(name, 0, |v| 1.5 * v + 1.0)).unwrap();
        let worst = r.worst().unwrap();
        assert!(worst.name == name && !r.holds(), "{part}: {worst:?}");
    }
    let r = changed(DYNMOLE, |e| e.swap("chosen", 0, 1)).unwrap();
    let ordered = changed(ONE_A, |e| e.swap("idx", 6, 7)).unwrap();
    assert!(!ordered.choices, "the order of B's factors");
    let counted = changed(UNI_MOE, |e| e.swap("by_tag", 0, 1)).unwrap();
    assert!(!counted.choices, "how often a tag chose an expert");
    let all_or_none = Edit::open(&file(DYNMOLE)).tensors["chosen"].2[..8].chunks(4).all(|v| v[0] == 1);
    assert_eq!(r.choices, all_or_none, "the first two experts of a token are swapped");
}
