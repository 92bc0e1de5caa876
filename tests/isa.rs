//! What Mesa's compiler for AMD GPUs makes of the kernels, against floors and ceilings: no GPU is needed. Skipped where
//! that driver is missing. docs/KERNELS.md says what the figures mean; a ceiling that a change lowers is lowered here.
#![cfg(feature = "gpu")]

#[path = "../examples/isa/compile.rs"]
mod compile;
#[path = "../examples/isa/driver.rs"]
mod driver;
#[path = "../examples/isa/listing.rs"]
mod listing;

use compile::Dispatched;
use driver::{Compiled, Driver};
use listing::{Mix, loops};
use std::path::Path;

/// The largest code of a kernel: the instruction cache of RDNA has 32 KiB.
const CODE_BYTES: u64 = 28 << 10;

/// What is counted in the loop that matters.
enum Per {
    /// So many weights of a decoding loop.
    Weight(usize),
    /// So many multiplications with addition in a step of k; what is around the loop that has them runs once in a step.
    Step(usize),
    /// Products of cooperative matrices.
    Wmma,
}

/// A kernel, what is counted, and for each family the most instructions for each and the fewest waves.
type Row = (&'static str, Per, [(f64, u64); 2]);

const FAMILIES: [&str; 2] = ["navi31", "navi21"];
const ROWS: [Row; 13] = [
    ("fused_ba_matmul::stream stream m1 f32 frozen", Per::Weight(16), [(3.1, 16), (3.1, 16)]),
    ("fused_ba_matmul::stream stream m1 f16 frozen", Per::Weight(32), [(2.4, 16), (2.4, 12)]),
    ("fused_ba_matmul::stream stream m1 q8_0 frozen", Per::Weight(128), [(4.5, 9), (3.6, 8)]),
    ("fused_ba_matmul::stream stream m1 q4_0 frozen", Per::Weight(128), [(4.1, 12), (4.1, 8)]),
    ("fused_ba_matmul::stream stream m1 q4_1 frozen", Per::Weight(128), [(4.4, 12), (4.3, 8)]),
    ("fused_ba_matmul::stream stream m1 q4_k frozen", Per::Weight(256), [(4.2, 9), (4.2, 6)]),
    ("fused_ba_matmul::stream stream m1 q5_k frozen", Per::Weight(256), [(5.1, 6), (5.1, 4)]),
    ("fused_ba_matmul::stream stream m1 q6_k frozen", Per::Weight(64), [(8.0, 16), (7.9, 10)]),
    ("matmul::tile tile nt", Per::Step(1024), [(1.4, 4), (1.4, 4)]),
    ("matmul::ahead ahead nt", Per::Step(1024), [(1.21, 4), (1.21, 3)]),
    ("fused_ba_matmul::tile tile q4_k frozen", Per::Step(1024), [(1.65, 4), (1.61, 4)]),
    ("fused_ba_matmul::coop coop 16 f32 coop 16", Per::Wmma, [(18.6, 7), (0.0, 0)]),
    ("fused_ba_matmul::coop coop 16 q4_k coop 16", Per::Wmma, [(36.2, 7), (0.0, 0)]),
];

impl Per {
    /// Instructions for each of what is counted.
    fn of(&self, loops: &[Mix]) -> f64 {
        let most =
            |count: fn(&Mix) -> usize| loops.iter().max_by_key(|mix| count(mix)).cloned().unwrap_or_default();
        let each = |issued: usize, count: usize| issued as f64 / count.max(1) as f64;
        let inner = most(|mix| mix.fma);
        match self {
            Per::Weight(weights) => each(inner.issued, *weights),
            Per::Wmma => {
                let mix = most(|mix| mix.wmma);
                each(mix.issued, mix.wmma)
            }
            Per::Step(fma) => {
                let step = loops.iter().find(|mix| inner.inside(mix)).unwrap_or(&inner);
                let around = loops.iter().filter(|mix| mix.inside(step) && mix.fma < inner.fma);
                let once = around.map(|mix| mix.issued).sum::<usize>();
                let own = if step.fma < inner.fma { step.issued } else { 0 };
                each(own + once + inner.issued * fma / inner.fma.max(1), *fma)
            }
        }
    }
}

/// The manifest of Mesa's driver for AMD GPUs; none where drivers are hidden.
fn manifest() -> Option<String> {
    let hidden = std::env::var("VK_DRIVER_FILES").is_ok_and(|path| !Path::new(&path).exists());
    let folders = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"];
    let names = ["radeon_icd.json", "radeon_icd.x86_64.json"];
    let all = folders.iter().flat_map(|folder| names.iter().map(move |name| format!("{folder}/{name}")));
    all.into_iter().find(|path| !hidden && Path::new(path).exists())
}

/// For each kernel whether the table has it, and what is worse than before.
fn look(driver: &Driver, kernels: &[Dispatched], family: &str, at: usize) -> Vec<(bool, Vec<String>)> {
    let one = |kernel: &Dispatched| {
        let compiled: Compiled = kernel
            .kernel(&|text| text.to_string())
            .and_then(|kernel| driver.compile(&kernel))
            .unwrap_or_else(|error| panic!("{family} {}: {error}", kernel.name));
        let mut worse = Vec::new();
        let mut say = |what: String| worse.push(format!("{family} {}: {what}", kernel.name));
        if compiled.spills() > 0
            || compiled.code_bytes() > CODE_BYTES
            || compiled.workgroup_bytes() > 16 << 10
        {
            say(compiled.to_string());
        }
        let Some((_, per, bounds)) = ROWS.iter().find(|row| row.0 == kernel.name) else {
            return (false, worse);
        };
        let (most, fewest) = bounds[at];
        let each = per.of(&loops(compiled.assembly()));
        println!("{family} {}: {each:.2} of {most}, {} waves", kernel.name, compiled.waves);
        if each > most {
            say(format!("{each:.2} instructions for each, {most} before"));
        }
        if compiled.waves < fewest {
            say(format!("{} waves, {fewest} before", compiled.waves));
        }
        (true, worse)
    };
    kernels.iter().map(one).collect()
}

#[test]
fn kernels_are_as_good_as_they_were() {
    let Some(manifest) = manifest() else {
        return eprintln!("SKIPPED: Mesa's driver for AMD GPUs is not installed");
    };
    let mut worse = Vec::new();
    for (at, family) in FAMILIES.into_iter().enumerate() {
        // SAFETY: the only test of this program; no other thread reads its environment.
        unsafe {
            std::env::set_var("VK_DRIVER_FILES", &manifest);
            std::env::set_var("RADV_FORCE_FAMILY", family);
            std::env::set_var("RADV_DEBUG", "nocache");
        }
        let driver = match Driver::open() {
            Ok(driver) => driver,
            Err(error) => return eprintln!("SKIPPED: {error}"),
        };
        println!("{}", driver.name);
        let mut kernels = compile::dispatched(driver.coop);
        // All of them on the first, to see that none spills.
        kernels.retain(|kernel| at == 0 || ROWS.iter().any(|row| row.0 == kernel.name));
        let share = kernels.len().div_ceil(std::thread::available_parallelism().map_or(1, usize::from));
        let seen = std::thread::scope(|scope| {
            let threads: Vec<_> =
                kernels.chunks(share).map(|some| scope.spawn(|| look(&driver, some, family, at))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let seen = seen.into_iter().filter(|(in_table, what)| {
            worse.extend(what.clone());
            *in_table
        });
        let seen = seen.count();
        let wanted = ROWS.iter().filter(|row| row.2[at].0 > 0.0).count();
        assert_eq!(seen, wanted, "{family}: rows that no kernel has");
    }
    assert!(worse.is_empty(), "{}", worse.join("\n"));
}
