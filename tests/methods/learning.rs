//! What mixtures of LoRA experts learn on toy data that a plain LoRA does not, or what their losses alone lead to.

use crate::rig::{D, GROUPS, SITE, adapted, block, changed, linears, small, values};
use mixlora::check::Subject;
use mixlora::mixture::losses::effective_support;
use mixlora::mixture::{Method, Units, find};
use mixlora::nn::{Choices, Labels, Param, Pass};
use mixlora::train::{Optimizer, leave_one_out};
use mixlora::{Device, Result, Stream, Tensor, backward};
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
        let mut pass =
            Pass::new(Units::tokens(self.rows())).with_labels(Labels { tasks, ..Labels::default() });
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

/// A `remix` of four experts on one linear, of which one linear map makes the loss of a row.
fn drawing(k: usize, draws: usize) -> Subject {
    let options = json!({ "num_experts": 4, "top_k": k, "r": 2, "draws": draws });
    let subject = adapted(&linears(GROUPS[0], cpu()), &method("remix", options)).unwrap();
    let b = param(&subject, "lora_b");
    b.set(Tensor::from_f32(cpu(), b.value().dims(), &values("b", b.value().len(), 0.5)).unwrap()).unwrap();
    subject
}

/// Rows that are samples of one token each, all alike.
fn copies(rows: usize) -> Tensor {
    Tensor::from_f32(cpu(), &[rows, D], &values("token", D, 1.0).repeat(rows)).unwrap()
}

fn drawing_pass(rows: usize, seed: u64) -> Pass {
    let labels = Labels { tasks: vec![None; rows], ..Labels::default() };
    Pass::training(Units::tokens(rows), Stream::new(seed)).with_labels(labels)
}

/// The loss of each row, without a gradient, and how likely its draws were.
fn judged(subject: &Subject, pass: &Pass, rows: usize) -> (Vec<f64>, Tensor) {
    let y = subject.forward(&copies(rows), pass).unwrap().swap_remove(0);
    let out = y.shape().last();
    let weights = values("loss", out, 1.0);
    let loss = |y: &[f64]| y.iter().zip(&weights).map(|(y, w)| y * f64::from(*w)).sum();
    let losses = y.to_f64().unwrap().chunks(out).map(loss).collect();
    (losses, pass.take_log_probability().unwrap().unwrap())
}

fn router_gradient(subject: &Subject, log_q: &Tensor, weights: Tensor) -> Vec<f64> {
    let gradients = backward(&[(log_q, weights.reshape(log_q.dims()).unwrap())]).unwrap();
    param(subject, "router").gradient(&gradients).unwrap().to_f64().unwrap()
}

#[test]
fn the_estimate_of_remix_is_the_enumerated_gradient_in_the_mean() {
    let subject = drawing(2, 2);
    // Every ordered pair of four experts: the gradient of the mean loss is the sum of Q L grad log Q.
    let pairs: Vec<[u32; 2]> =
        (0..16).map(|i| [i / 4, i % 4]).filter(|[first, second]| first != second).collect();
    let forced = Tensor::from_u32(cpu(), &[1, 1, 12, 2], &pairs.concat()).unwrap();
    let pass = drawing_pass(12, 0).with_choices(Choices::force([(SITE.to_string(), forced)]));
    let (losses, log_q) = judged(&subject, &pass, 12);
    let q: Vec<f64> = log_q.to_f64().unwrap().iter().map(|v| v.exp()).collect();
    assert!((q.iter().sum::<f64>() - 1.0).abs() < 1e-5, "all pairs together are certain: {q:?}");
    let weights: Vec<f64> = q.iter().zip(&losses).map(|(q, loss)| q * loss).collect();
    let exact = router_gradient(&subject, &log_q, Tensor::from_f64(cpu(), &[12], &weights).unwrap());

    const ESTIMATES: usize = 3000;
    let mut sums = vec![[0.0f64; 2]; exact.len()];
    for seed in 0..ESTIMATES {
        let (losses, log_q) = judged(&subject, &drawing_pass(2, seed as u64), 2);
        let table = Tensor::from_f64(cpu(), &[2, 1], &losses).unwrap();
        let estimate = router_gradient(&subject, &log_q, leave_one_out(&table).unwrap());
        for (sum, value) in sums.iter_mut().zip(estimate) {
            *sum = [sum[0] + value, sum[1] + value * value];
        }
    }
    let n = ESTIMATES as f64;
    let mut largest = 0f64;
    for ([sum, squares], exact) in sums.iter().zip(&exact) {
        let mean = sum / n;
        let error = ((squares / n - mean * mean) / n).sqrt();
        assert!((mean - exact).abs() < 4.5 * error + 1e-9, "{mean} +- {error}, exact {exact}");
        largest = largest.max(exact.abs() / error);
    }
    assert!(largest > 20.0, "the estimate tells the gradient from 0: {largest}");
}

#[test]
fn remix_learns_to_draw_the_two_experts_that_help() {
    let subject = drawing(2, 8);
    let router = param(&subject, "router");
    let loss_of = |experts: [u32; 2]| {
        let forced = Tensor::from_u32(cpu(), &[1, 1, 1, 2], &experts).unwrap();
        let pass = drawing_pass(1, 0).with_choices(Choices::force([(SITE.to_string(), forced)]));
        judged(&subject, &pass, 1).0[0]
    };
    let pairs = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];
    let best = *pairs.iter().min_by(|&&a, &&b| loss_of(a).total_cmp(&loss_of(b))).unwrap();
    let mut optimizer = Optimizer::new(vec![router.clone()]).unwrap();
    for step in 0..300 {
        let pass = drawing_pass(8, step);
        let (losses, log_q) = judged(&subject, &pass, 8);
        let weights = leave_one_out(&Tensor::from_f64(cpu(), &[8, 1], &losses).unwrap()).unwrap();
        let gradients = backward(&[(&log_q, weights.reshape(&[8]).unwrap())]).unwrap();
        let norm = optimizer.norm(&gradients, 1.0).unwrap();
        optimizer.update(&gradients, 1.0, 2e-2, &norm, None).unwrap();
    }
    let q = copies(1).matmul_nt(&router.value()).unwrap().softmax().unwrap();
    let support = effective_support(&q).unwrap().to_f64().unwrap()[0];
    let q = q.to_f64().unwrap();
    let mass = q[best[0] as usize] + q[best[1] as usize];
    assert!(mass > 0.9 && support > 1.0, "{q:?}, best {best:?}, effective support {support}");
    // Inference takes those two.
    let record = Choices::record();
    let pass = Pass::new(Units::tokens(1)).with_choices(record.clone());
    subject.forward(&copies(1), &pass).unwrap();
    let mut taken = record.get(SITE).unwrap().to_u32().unwrap();
    taken.sort_unstable();
    assert_eq!(taken, best);
}

#[test]
fn gates_of_modulate_vary_on_tokens_of_unknown_domains() {
    let base = linears(GROUPS[0], cpu());
    let options = json!({ "num_experts": 2, "top_k": 2, "router_dropout": 0.2 });
    let subject = adapted(&base, &method("modulate", options)).unwrap();
    let data = Data::new("train", 32, &[1, 2], 0.3).mixed();
    // One domain is larger by a half, the other smaller.
    let y = base.forward(&data.x, &data.pass(false)).unwrap().swap_remove(0);
    let out = y.shape().last();
    let sign = |row: usize| if data.tasks[row / LEN] == 1 { 1.5 } else { 0.5 };
    let factors: Vec<f32> = (0..data.rows()).map(sign).collect();
    let factors = Tensor::from_f32(cpu(), &[data.rows(), 1], &factors).unwrap();
    let target = y.mul(&factors).unwrap();
    let before = squares(&subject, &data, &target, &data.pass(false)).unwrap().item().unwrap();
    train(&subject, &mut optimizer(&subject), &data, Some(&target), 400, 2e-2);
    let after = squares(&subject, &data, &target, &data.pass(false)).unwrap().item().unwrap();
    assert!(after < 0.05 * before, "{before} -> {after}");

    // Each expert writes its gate to an output of its own.
    let scale = param(&subject, "scale");
    scale.set(scale.value().scale(0.0).unwrap()).unwrap();
    let unit: Vec<f32> = (0..2 * out).map(|i| f32::from(u8::from(i % out == i / out))).collect();
    param(&subject, "shift").set(Tensor::from_f32(cpu(), &[2, out], &unit).unwrap()).unwrap();
    let variance = |data: &Data| {
        let plain = base.forward(&data.x, &data.pass(false)).unwrap()[0].to_f64().unwrap();
        let draws = 24;
        let gate = |draw: u64| -> Vec<f64> {
            let mut pass = data.pass(true);
            pass.stream = mixlora::Stream::new(draw);
            let y = subject.forward(&data.x, &pass).unwrap()[0].to_f64().unwrap();
            (0..data.rows()).map(|row| y[row * out] - plain[row * out]).collect()
        };
        let all: Vec<Vec<f64>> = (0..draws).map(gate).collect();
        let of_row = |row: usize| {
            let mean = all.iter().map(|gates| gates[row]).sum::<f64>() / draws as f64;
            all.iter().map(|gates| (gates[row] - mean).powi(2)).sum::<f64>() / draws as f64
        };
        (0..data.rows()).map(of_row).sum::<f64>() / data.rows() as f64
    };
    let known = variance(&Data::new("test", 32, &[1, 2], 0.3));
    let unknown = variance(&Data::new("test", 32, &[3, 4, 5, 6, 7, 8, 9, 10], 0.3));
    assert!(unknown > 3.0 * known, "variance {known} on known domains, {unknown} on others");
}

#[test]
fn personal_learns_a_user_and_leaves_generic_data() {
    let base = linears(&[8], cpu());
    let options = json!({ "r": 2, "generic_tasks": ["t2"], "gate_loss_coef": 1.0 });
    let subject = adapted(&base, &method("personal", options)).unwrap();
    // What the user wants differs from what the base gives; generic answers are the base's own.
    let wanted = |data: &Data| {
        let own = data.target(&base).to_f64().unwrap();
        let mut y = base.forward(&data.x, &data.pass(false)).unwrap()[0].to_f64().unwrap();
        for row in (0..data.rows()).filter(|row| data.tasks[row / LEN] != 2) {
            y[row * 8..][..8].copy_from_slice(&own[row * 8..][..8]);
        }
        Tensor::from_f64(cpu(), &[data.rows(), 8], &y).unwrap()
    };
    // The share of tokens whose largest output is the right one.
    let accuracy = |data: &Data| {
        let best = |y: &Tensor| -> Vec<usize> {
            let y = y.to_f64().unwrap();
            y.chunks(8).map(|y| (0..8).max_by(|&i, &j| y[i].total_cmp(&y[j])).unwrap()).collect()
        };
        let got = best(&subject.forward(&data.x, &data.pass(false)).unwrap()[0]);
        let want = best(&wanted(data));
        got.iter().zip(&want).filter(|(got, want)| got == want).count() as f64 / want.len() as f64
    };
    let user = Data::new("test user", 64, &[1, 3], 0.5);
    let generic = Data::new("test generic", 64, &[2], 0.5);
    let before = accuracy(&user);
    assert_eq!(accuracy(&generic), 1.0);
    let data = Data::new("train", 48, &[1, 2, 3], 0.5);
    train(&subject, &mut optimizer(&subject), &data, Some(&wanted(&data)), 600, 2e-2);
    let after = accuracy(&user);
    assert!(before < 0.92 && after > 0.98, "{before} -> {after}");
    assert!(accuracy(&generic) >= 0.99, "{}", accuracy(&generic));
    let trained: usize = subject.params().iter().map(|p| p.value().len()).sum();
    println!("user {before:.3} -> {after:.3}, generic {:.3}", accuracy(&generic));
    println!("{trained} trained values beside {}", 8 * D);
    assert_eq!(trained, 2 * (D + 8) + D + 1);
    // Samples without a task say nothing of the gate.
    let pass = Data::new("test", 2, &[1], 0.5).mixed().pass(true);
    subject.forward(&Data::new("test", 2, &[1], 0.5).x, &pass).unwrap();
    assert!(pass.take_aux().unwrap().is_empty());
}
