//! The loops of an assembly listing of an AMD GPU, and what they issue.

use std::collections::HashMap;
use std::fmt;

/// Instructions, and bytes of each lane.
type Memory = [usize; 2];

/// What a loop issues, without the loops inside.
#[derive(Default, Clone)]
pub struct Mix {
    first: usize,
    last: usize,
    header: String,
    depth: usize,
    /// All instructions but hints.
    pub issued: usize,
    /// Multiplications with addition of f32 for each lane.
    pub fma: usize,
    pub wmma: usize,
    dual: usize,
    moves: usize,
    integer: usize,
    other: usize,
    scalar: usize,
    exec: usize,
    branches: usize,
    waits: usize,
    barriers: usize,
    scalar_loads: usize,
    lds_loads: Memory,
    lds_stores: Memory,
    pub loads: Memory,
    stores: Memory,
}

enum Kind {
    Wmma,
    Fma,
    Move,
    Integer,
    Other,
}

const FMA: [&str; 11] = [
    "v_fma_f32",
    "v_fmac_f32",
    "v_dual_fma",
    "v_fmaak_f32",
    "v_fmamk_f32",
    "v_mac_f32",
    "v_mad_f32",
    "v_pk_fma",
    "v_dot2",
    "v_dot4",
    "v_fma_mix",
];
const INTEGER: [&str; 27] = [
    "v_add_nc",
    "v_add_co",
    "v_add_u",
    "v_addc",
    "v_add3",
    "v_lshl",
    "v_lshr",
    "v_ashr",
    "v_and",
    "v_or",
    "v_xor",
    "v_xad",
    "v_not",
    "v_bf",
    "v_mad_u",
    "v_mul_lo",
    "v_mul_hi",
    "v_mul_u",
    "v_min_",
    "v_max_",
    "v_sub",
    "v_cmp",
    "v_cndmask",
    "v_alignb",
    "v_perm",
    "v_dual_add_nc",
    "v_dual_cndmask",
];

fn kind(op: &str) -> Kind {
    let starts = |list: &[&str]| list.iter().any(|prefix| op.starts_with(prefix));
    let of_floats = op.contains("_f32") || op.contains("_f16");
    if starts(&["v_wmma", "v_swmmac"]) {
        Kind::Wmma
    } else if starts(&FMA) {
        Kind::Fma
    } else if starts(&["v_mov", "v_dual_mov", "v_swap"]) {
        Kind::Move
    } else if starts(&INTEGER) && !of_floats {
        Kind::Integer
    } else {
        Kind::Other
    }
}

/// Bytes that an instruction moves for each lane.
fn width(op: &str) -> usize {
    let has = |parts: &[&str]| parts.iter().any(|part| op.contains(part));
    if has(&["2addr_b64", "read2_b64", "write2_b64", "b128", "dwordx4"]) {
        16
    } else if has(&["b96", "dwordx3"]) {
        12
    } else if has(&["2addr_b32", "read2", "write2", "b64", "dwordx2"]) {
        8
    } else if has(&["u16", "b16", "short"]) {
        2
    } else if has(&["u8", "i8", "b8", "byte"]) {
        1
    } else {
        4
    }
}

fn count(memory: &mut Memory, op: &str) {
    memory[0] += 1;
    memory[1] += width(op);
}

impl Mix {
    /// Whether the loop is a part of another one.
    pub fn inside(&self, other: &Mix) -> bool {
        self.first > other.first && self.last <= other.last
    }

    fn tally(&mut self, op: &str) {
        let place = match kind(op) {
            Kind::Wmma => &mut self.wmma,
            Kind::Fma => &mut self.fma,
            Kind::Move => &mut self.moves,
            Kind::Integer => &mut self.integer,
            Kind::Other => &mut self.other,
        };
        *place += 1;
    }

    fn add(&mut self, op: &str, rest: &str) {
        if ["s_delay_alu", "s_nop", "s_clause"].contains(&op) {
            return;
        }
        self.issued += 1;
        let memory = ["buffer_", "global_", "scratch_"].iter().any(|prefix| op.starts_with(prefix));
        if op.starts_with("v_") {
            self.tally(op);
            if let Some((_, second)) = rest.split_once("::") {
                self.tally(second.split_whitespace().next().unwrap_or(""));
                self.dual += 1;
            }
            self.exec += usize::from(op.starts_with("v_cmpx"));
        } else if op.starts_with("ds_") {
            let loads = op.contains("load") || op.contains("read");
            count(if loads { &mut self.lds_loads } else { &mut self.lds_stores }, op);
        } else if memory && op.contains("load") {
            count(&mut self.loads, op);
        } else if memory && op.contains("store") {
            count(&mut self.stores, op);
        } else if memory {
            self.other += 1;
        } else if op.starts_with("s_load") || op.starts_with("s_buffer_load") {
            self.scalar_loads += 1;
        } else if op.starts_with("s_wait") {
            self.waits += 1;
        } else if op == "s_barrier" {
            self.barriers += 1;
        } else if op.starts_with("s_cbranch") || op == "s_branch" {
            self.branches += 1;
        } else {
            self.scalar += 1;
            self.exec += usize::from(op.contains("saveexec") || rest.trim_start().starts_with("exec"));
        }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mix { header, issued, fma, wmma, dual, moves, integer, other, scalar, .. } = self;
        let Mix { exec, branches, waits, barriers, scalar_loads, .. } = self;
        let indent = "  ".repeat(self.depth);
        let memory = |[count, bytes]: Memory| format!("{count} ({bytes} B)");
        let [lds_loads, lds_stores] = [memory(self.lds_loads), memory(self.lds_stores)];
        let [loads, stores] = [memory(self.loads), memory(self.stores)];
        write!(
            f,
            "{indent}{header}: issued {issued}, fma {fma}, wmma {wmma}, dual {dual}, mov {moves}, int {integer}, "
        )?;
        write!(
            f,
            "other {other}, scalar {scalar}, exec {exec}, branches {branches}, waits {waits}, barriers {barriers}, "
        )?;
        write!(
            f,
            "scalar loads {scalar_loads}, LDS loads {lds_loads}, LDS stores {lds_stores}, loads {loads}, stores {stores}"
        )
    }
}

/// Name and operands of the instruction in a line, if it has one.
fn instruction(line: &str) -> Option<(&str, &str)> {
    let line = line.strip_prefix('\t')?.split(';').next()?.trim();
    Some(line.split_once(char::is_whitespace).unwrap_or((line, "")))
}

/// Every loop in the order of its header.
pub fn loops(text: &str) -> Vec<Mix> {
    let lines: Vec<&str> = text.lines().collect();
    let label = |(i, line): (usize, &&'_ str)| -> Option<(String, usize)> {
        let name = line.trim_end().strip_suffix(':').filter(|name| name.starts_with("BB"))?;
        Some((name.to_string(), i))
    };
    let labels: HashMap<String, usize> = lines.iter().enumerate().filter_map(label).collect();
    let mut found: Vec<Mix> = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let Some((op, to)) = instruction(line) else { continue };
        if !op.starts_with("s_branch") && !op.starts_with("s_cbranch") {
            continue;
        }
        let Some(&at) = labels.get(to.trim()).filter(|&&at| at < i) else { continue };
        match found.iter_mut().find(|mix| mix.first == at) {
            Some(mix) => mix.last = mix.last.max(i),
            None => found.push(Mix { first: at, last: i, header: to.trim().into(), ..Mix::default() }),
        }
    }
    found.sort_by_key(|mix| (mix.first, usize::MAX - mix.last));
    let whole = found.clone();
    for mix in &mut found {
        mix.depth = whole.iter().filter(|other| mix.inside(other)).count();
        let inner: Vec<&Mix> = whole.iter().filter(|other| other.inside(mix)).collect();
        for (i, line) in lines.iter().enumerate().take(mix.last + 1).skip(mix.first) {
            let within = inner.iter().any(|other| (other.first..=other.last).contains(&i));
            if let Some((op, rest)) = instruction(line).filter(|_| !within) {
                mix.add(op, rest);
            }
        }
    }
    found
}
