//! What mixtures of LoRA experts learn on toy data that a plain LoRA does not, or what their losses alone lead to.

use crate::rig::{D, GROUPS, SITE, adapted, block, changed, linears, small, values};
use mixlora::check::Subject;
use mixlora::mixture::{Method, Units, find};
use mixlora::nn::{Choices, Labels, Param, Pass};
use mixlora::train::Optimizer;
use mixlora::{Device, Result, Tensor, backward};
use serde_json::{Value, json};
use std::sync::{Arc, OnceLock};

/// One device for all of a test's tensors.
fn cpu() -> &'static Device {
    static CPU: OnceLock<Device> = OnceLock::new();
    CPU.get_or_init(Device::cpu)
}

/// Tokens of a sample.
const LEN: usize = 8;

fn method(name: &str, options: Value) -> Method {
    changed(&small(find(name).unwrap()), options)
}

/// Samples of a few tasks, in turns: the tokens of a task lie around a point of its own.
struct Data {
    x: Tensor,
    tasks: Vec<usize>,
    /// Whether the method is told the task of each sample.
    labelled: bool,
}

impl Data {
    /// So many samples; `names` say which tasks, by the seed of their point.
    fn new(seed: &str, samples: usize, tasks: &[usize], spread: f32) -> Self {
        let tasks: Vec<usize> = (0..samples).map(|i| tasks[i % tasks.len()]).collect();
        let mut x = values(seed, samples * LEN * D, spread);
        for (row, x) in x.chunks_mut(D).enumerate() {
            let point = values(&format!("task {}", tasks[row / LEN]), D, 1.0);
            x.iter_mut().zip(point).for_each(|(x, p)| *x += p);
        }
        Data { x: Tensor::from_f32(cpu(), &[samples * LEN, D], &x).unwrap(), tasks, labelled: true }
    }

    /// The same as one sample that mixes its tasks.
    fn mixed(self) -> Self {
        Data { labelled: false, ..self }
    }

    fn rows(&self) -> usize {
        self.tasks.len() * LEN
    }

    fn pass(&self, train: bool) -> Pass {
        let tasks = self
            .tasks
            .iter()
            .filter(|_| self.labelled)
            .map(|t| Some(Arc::from(format!("t{t}").as_str())))
            .collect();
        let mut pass = Pass::new(Units::tokens(self.rows())).with_labels(Labels { tasks, tags: None });
        pass.train = train;
        pass
    }

    /// What is to be learned: `base` and a map of rank 2, of the other sign for every other task.
    fn target(&self, base: &Subject) -> Tensor {
        let y = base.forward(&self.x, &self.pass(false)).unwrap().swap_remove(0);
        let out = y.shape().last();
        let x = self.x.to_f64().unwrap();
        let mut y = y.to_f64().unwrap();
        for row in 0..self.rows() {
            let sign = if self.tasks[row / LEN].is_multiple_of(2) { 1.0 } else { -1.0 };
            for k in 0..2 {
                let a = values(&format!("a {k}"), D, 0.5);
                let b = values(&format!("b {k}"), out, 0.5 * sign);
                let u: f64 = x[row * D..][..D].iter().zip(a).map(|(x, a)| x * f64::from(a)).sum();
                y[row * out..][..out].iter_mut().zip(b).for_each(|(y, b)| *y += u * f64::from(b));
            }
        }
        Tensor::from_f64(cpu(), &[self.rows(), out], &y).unwrap()
    }
}

/// The mean squared error.
fn squares(subject: &Subject, data: &Data, target: &Tensor, pass: &Pass) -> Result<Tensor> {
    let apart = subject.forward(&data.x, pass)?.swap_remove(0).sub(target)?;
    apart.mul(&apart)?.mean()
}

/// Steps on one batch; without a target on the auxiliary losses alone.
fn train(
    subject: &Subject,
    optimizer: &mut Optimizer,
    data: &Data,
    target: Option<&Tensor>,
    steps: usize,
    rate: f64,
) {
    let one = || Tensor::full(cpu(), &[], 1.0).unwrap();
    for _ in 0..steps {
        let pass = data.pass(true);
        let loss = match target {
            Some(target) => Some(squares(subject, data, target, &pass).unwrap()),
            None => {
                subject.forward(&data.x, &pass).unwrap();
                None
            }
        };
        let roots: Vec<Tensor> = loss.into_iter().chain(pass.take_aux().unwrap()).collect();
        let roots: Vec<_> = roots.iter().map(|root| (root, one())).collect();
        let gradients = backward(&roots).unwrap();
        let norm = optimizer.norm(&gradients, 1.0).unwrap();
        optimizer.update(&gradients, 1.0, rate, &norm, None).unwrap();
        subject.after_step().unwrap();
    }
}

fn held_out(subject: &Subject, base: &Subject, data: &Data) -> f64 {
    squares(subject, data, &data.target(base), &data.pass(false)).unwrap().item().unwrap()
}

fn optimizer(subject: &Subject) -> Optimizer {
    Optimizer::new(subject.params()).unwrap()
}

fn param(subject: &Subject, ending: &str) -> Param {
    let mut params = subject.params().into_iter();
    params.find(|p| p.parts().iter().any(|(name, _)| name.ends_with(ending))).unwrap()
}

#[test]
fn llava_mole_learns_two_domains_that_disagree() {
    let base = block(cpu());
    let train_data = Data::new("train", 32, &[1, 2], 0.5).mixed();
    let target = train_data.target(&base);
    let test_data = Data::new("test", 32, &[1, 2], 0.5);
    // The balance is over the tokens of a sample: one sample holds both domains. One expert is a plain LoRA of gate, up and down; the same rank acts on every token.
    let loss = |experts: usize| {
        let options = json!({ "num_experts": experts, "r": 2, "aux_loss_coef": 0.1 });
        let subject = adapted(&base, &method("llava-mole", options)).unwrap();
        train(&subject, &mut optimizer(&subject), &train_data, Some(&target), 300, 2e-2);
        held_out(&subject, &base, &test_data)
    };
    let [plain, mixture] = [loss(1), loss(2)];
    assert!(mixture < 0.7 * plain, "held-out loss {mixture} of the mixture, {plain} of a LoRA");
}

#[test]
fn meteora_gates_find_the_expert_of_a_task() {
    let base = linears(GROUPS[0], cpu());
    let options = json!({
        "num_experts": 4, "top_k": 1, "tasks": ["t1", "t2", "t3", "t4"], "gate_loss_coef": 50.0, "r": 2,
    });
    let subject = adapted(&base, &method("meteora", options)).unwrap();
    let train_data = Data::new("train", 32, &[1, 2, 3, 4], 0.4);
    let target = train_data.target(&base);
    let test_data = Data::new("test", 64, &[1, 2, 3, 4], 0.4);
    let accuracy = || {
        let record = Choices::record();
        subject.forward(&test_data.x, &test_data.pass(false).with_choices(record.clone())).unwrap();
        let best = record.get(SITE).unwrap().to_u32().unwrap();
        let right = best.iter().enumerate().filter(|(t, e)| **e as usize + 1 == test_data.tasks[t / LEN]);
        right.count() as f64 / best.len() as f64
    };
    let before = accuracy();
    train(&subject, &mut optimizer(&subject), &train_data, Some(&target), 100, 2e-2);
    assert!(before < 0.6 && accuracy() > 0.95, "{before} -> {}", accuracy());
    let unknown = Data::new("test", 2, &[5], 0.4);
    let e = subject.forward(&unknown.x, &unknown.pass(true)).unwrap_err().to_string();
    assert!(e.contains("'t5' is unknown") && e.contains("t1, t2, t3, t4"), "{e}");
}

#[test]
fn lora_mixer_learns_by_its_router_alone() {
    let base = linears(GROUPS[0], cpu());
    let train_data = Data::new("train", 32, &[1, 2], 0.5);
    let target = train_data.target(&base);
    let test_data = Data::new("test", 32, &[1, 2], 0.5);
    let method = method("lora-mixer", json!({ "num_experts": 4, "r": 2, "top_k": 2, "rsl_coef": 0.01 }));
    let subject = adapted(&base, &method).unwrap();
    // Experts that know the two tasks: the map of the target, with the sign of either.
    let rows = |name: &str, n: usize, sign: f32| {
        (0..2).flat_map(move |k| values(&format!("{name} {k}"), n, 0.5 * sign)).collect::<Vec<_>>()
    };
    let scale = method.options().scale();
    let put = |param: Param, new: Vec<f32>| {
        let dims = param.value().dims().to_vec();
        param.set(Tensor::from_f32(cpu(), &dims, &new).unwrap()).unwrap();
    };
    let out = GROUPS[0][0];
    put(param(&subject, "lora_a"), rows("a", D, 1.0).repeat(4));
    let both = [rows("b", out, 1.0 / scale), rows("b", out, -1.0 / scale)].concat();
    put(param(&subject, "lora_b"), both.repeat(2));
    let experts = || ["lora_a", "lora_b"].map(|name| param(&subject, name).value().to_f32().unwrap());
    let frozen = experts();
    let before = held_out(&subject, &base, &test_data);
    let mut router = Optimizer::new(vec![param(&subject, "router")]).unwrap();
    train(&subject, &mut router, &train_data, Some(&target), 200, 2e-2);
    let after = held_out(&subject, &base, &test_data);
    assert!(after < 0.5 * before, "held-out loss {before} -> {after}");
    assert_eq!(experts(), frozen);
}

/// `mora-cl` with the rows of an earlier one in front, which stay.
fn grown(base: &Subject, old: &Subject, old_rows: usize, rows: &Method) -> Subject {
    let new = adapted(base, rows).unwrap();
    for (old, new) in old.params().iter().zip(new.params()) {
        let mut value = new.value().to_f64().unwrap();
        let kept = old.value().to_f64().unwrap();
        assert_eq!(kept.len() * new.value().dims()[0], value.len() * old_rows);
        value[..kept.len()].copy_from_slice(&kept);
        new.set(Tensor::from_f64(cpu(), new.value().dims(), &value).unwrap()).unwrap();
    }
    new
}

#[test]
fn mora_cl_leaves_frozen_rows_and_their_moments() {
    let base = linears(GROUPS[0], cpu());
    let data = Data::new("train", 8, &[1, 2], 0.5);
    let target = data.target(&base);
    let rows = |frozen: usize| method("mora-cl", json!({ "r": 6, "top_k": 4, "frozen_rows": frozen }));
    let old = adapted(&base, &rows(0)).unwrap();
    let mut first = optimizer(&old);
    train(&old, &mut first, &data, Some(&target), 5, 1e-2);
    let new = grown(&base, &old, 6, &rows(2));
    let mut second = optimizer(&new);
    second.weight_decay = 0.1;
    let copies = first.moments().iter().map(|(m, v)| (m.copy().unwrap(), v.copy().unwrap())).collect();
    second.restore(copies, first.steps());
    let bits = |t: &Tensor| t.to_f32().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let state = |o: &Optimizer| -> Vec<Vec<u32>> {
        let each = o.params().iter().zip(o.moments());
        each.flat_map(|(p, (m, v))| [bits(&p.value()), bits(m), bits(v)]).collect()
    };
    let before = state(&second);
    train(&new, &mut second, &data, Some(&target), 5, 1e-2);
    for (before, after) in before.iter().zip(state(&second)) {
        let frozen = before.len() / 6 * 2;
        assert!(before[..frozen] == after[..frozen] && before[..frozen].iter().any(|&b| b != 0));
        assert!(before[frozen..].iter().zip(&after[frozen..]).any(|(a, b)| a != b));
    }
}

#[test]
fn mora_cl_acts_with_few_rows_for_each_token() {
    let base = linears(GROUPS[1], cpu());
    let subject =
        adapted(&base, &method("mora-cl", json!({ "r": 6, "top_k": 4, "frozen_rows": 2 }))).unwrap();
    let data = Data::new("train", 8, &[1, 2], 0.5);
    let record = Choices::record();
    subject.forward(&data.x, &data.pass(true).with_choices(record.clone())).unwrap();
    let mask = record.get(SITE).unwrap().to_f32().unwrap();
    assert_eq!(mask.len(), data.rows() * GROUPS[1].len() * 6);
    assert!(mask.chunks(6).all(|rows| rows.iter().filter(|v| **v != 0.0).count() == 4));
}

#[test]
fn mora_cl_forgets_less_than_one_lora() {
    let base = linears(GROUPS[0], cpu());
    let data = [1, 2].map(|task| Data::new("train", 16, &[task], 0.5));
    let tests = [1, 2].map(|task| Data::new("test", 16, &[task], 0.5));
    let losses = |subject: &Subject| [0, 1].map(|task| held_out(subject, &base, &tests[task]));
    let learn = |subject: &Subject, optimizer: &mut Optimizer, task: usize, steps: usize| {
        train(subject, optimizer, &data[task], Some(&data[task].target(&base)), steps, 2e-2);
        losses(subject)
    };
    // The same scale for both sizes; at inference about as many rows act as in training.
    let rows = |r: usize, frozen: usize| {
        let options =
            json!({ "r": r, "top_k": 4, "frozen_rows": frozen, "lora_alpha": 8 * r, "threshold": 0.05 });
        method("mora-cl", options)
    };
    let old = adapted(&base, &rows(4, 0)).unwrap();
    let first = learn(&old, &mut optimizer(&old), 0, 200);
    let new = grown(&base, &old, 4, &rows(8, 4));
    let second = learn(&new, &mut optimizer(&new), 1, 200);
    let fresh = losses(&base);
    assert!(
        first[0] < 0.05 * fresh[0] && second[1] < 0.05 * fresh[1],
        "both are learned: {first:?}, {second:?}"
    );
    // The LoRA stops where it knows the second task as well.
    let lora = adapted(&base, &method("lora", json!({ "r": 8 }))).unwrap();
    let plain = learn(&lora, &mut optimizer(&lora), 0, 200);
    let mut again = optimizer(&lora);
    let mut after = plain;
    while after[1] > second[1] && again.steps() < 400 {
        after = learn(&lora, &mut again, 1, 5);
    }
    assert!(after[1] <= second[1], "{after:?}");
    assert!(
        second[0] - first[0] < 0.7 * (after[0] - plain[0]),
        "{first:?}, {second:?}; of a LoRA {plain:?}, {after:?}"
    );
}

#[test]
fn the_localized_loss_of_loramoe_parts_the_halves() {
    let delta = 0.3;
    let base = linears(GROUPS[0], cpu());
    let options = json!({
        "num_experts": 4, "localized_coef": 1.0, "delta": delta, "tasks_of_type_1": ["t1"],
    });
    let subject = adapted(&base, &method("loramoe", options)).unwrap();
    let data = Data::new("train", 16, &[1, 2], 0.2);
    train(&subject, &mut optimizer(&subject), &data, None, 400, 2e-2);
    let p =
        data.x.matmul_nt(&param(&subject, "router").value()).unwrap().softmax().unwrap().to_f64().unwrap();
    for task in [1, 2] {
        let mut halves = [0.0; 2];
        for (row, p) in p.chunks(4).enumerate().filter(|(row, _)| data.tasks[row / LEN] == task) {
            assert!(row < data.rows());
            halves[0] += p[0] + p[1];
            halves[1] += p[2] + p[3];
        }
        // Type 1 marks the first half, which then gets less.
        let ratio = if task == 1 { halves[1] / halves[0] } else { halves[0] / halves[1] };
        let want = (1.0 + delta) / (1.0 - delta);
        assert!((ratio / want - 1.0).abs() < 0.03, "task {task}: {ratio} of {want}");
    }
}
