//! Reverse-mode automatic differentiation.
//!
//! A differentiable function computes its output and records one [`Node`]: the tensors it came from and a
//! closure that turns the output's gradient into theirs. What the closure captures is what is saved, and it is
//! freed when the backward pass has used it. Only tensors that lead to a leaf are recorded. A function that costs
//! little next to the memory of its output says how to compute it again: see [`Saved`].

use crate::device::lock;
use crate::tensor::fresh_id;
use crate::{Device, Error, Result, Tensor};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

type BackFn = Box<dyn FnOnce(&mut Gradients, Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> + Send>;

/// Where a tensor came from.
#[derive(Clone)]
pub(crate) enum Edge {
    /// A parameter or an input that asked for its gradient.
    Leaf(u64),
    /// Output `.1` of a node.
    Node(Arc<Node>, usize),
}

/// One recorded function.
pub(crate) struct Node {
    id: u64,
    name: &'static str,
    outputs: usize,
    state: Mutex<Option<State>>,
    /// Computes the only output again, of what the closure keeps anyway.
    again: Option<Again>,
}

type Again = Box<dyn Fn() -> Result<Tensor> + Send + Sync>;

/// A tensor that a backward pass needs: kept, or computed again where its node can.
pub(crate) enum Saved {
    Kept(Tensor),
    Again(Arc<Node>),
}

impl Saved {
    /// The tensor, without history.
    pub fn get(&self) -> Result<Tensor> {
        match self {
            Saved::Kept(t) => Ok(t.clone()),
            Saved::Again(node) => match &node.again {
                Some(again) => no_grad(again),
                None => Err(Error::Tape(format!("'{}' cannot be computed again", node.name))),
            },
        }
    }
}

/// Where a node's gradients go, and the closure that makes them. Gone once it has run.
type State = (Vec<Option<Edge>>, BackFn);

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(true) };
    /// While a node is dropped: the states of the nodes that went with it.
    static DROPPED: RefCell<Option<Vec<State>>> = const { RefCell::new(None) };
}

struct Restore(bool);
impl Drop for Restore {
    fn drop(&mut self) {
        RECORDING.set(self.0);
    }
}

/// Runs `f` without recording anything on this thread.
///
/// ```
/// use mixlora::{Device, Tensor, no_grad};
/// let x = Tensor::full(&Device::cpu(), &[2], 3.0)?.leaf();
/// assert!(!no_grad(|| x.scale(2.0))?.requires_grad());
/// # Ok::<(), mixlora::Error>(())
/// ```
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    let _restore = Restore(RECORDING.replace(false));
    f()
}

/// Runs `f` on the threads that compute for a device, recording or not as here: many small computations in a row are
/// then not handed over one by one.
pub(crate) fn inside<R: Send>(device: &Device, f: impl FnOnce() -> R + Send) -> R {
    let Device::Cpu(cpu) = device else { return f() };
    let recording = RECORDING.get();
    cpu.inside(move || {
        // A thread that waits inside of another computation may be the one that runs this.
        let _restore = Restore(RECORDING.replace(recording));
        f()
    })
}

fn with_grad<R>(f: impl FnOnce() -> R) -> R {
    let _restore = Restore(RECORDING.replace(true));
    f()
}

/// True when a function of these inputs will be recorded: what its closure needs must then be kept.
pub(crate) fn recording(inputs: &[&Tensor]) -> bool {
    RECORDING.get() && inputs.iter().any(|t| t.requires_grad())
}

impl Node {
    /// Records a function with one output. `back` gets dL/d(output) and returns dL/d(input) in input order;
    /// `None` stands for zero. It is never called when the output got no gradient.
    pub(crate) fn record(
        name: &'static str,
        inputs: &[&Tensor],
        output: Tensor,
        back: impl FnOnce(Tensor) -> Result<Vec<Option<Tensor>>> + Send + 'static,
    ) -> Tensor {
        let back = move |mut dy: Vec<Option<Tensor>>| back(dy.pop().flatten().expect("one gradient"));
        Node::record_many(name, inputs, vec![output], back).pop().expect("one output")
    }

    /// Records a function with several outputs; outputs without a gradient come as `None`.
    pub(crate) fn record_many(
        name: &'static str,
        inputs: &[&Tensor],
        outputs: Vec<Tensor>,
        back: impl FnOnce(Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> + Send + 'static,
    ) -> Vec<Tensor> {
        Node::record_raw(name, inputs, outputs, Box::new(move |_, dy| back(dy)), None)
    }

    /// [`record`](Node::record), where `again` computes the output again: the same bits.
    pub(crate) fn record_again(
        name: &'static str,
        inputs: &[&Tensor],
        output: Tensor,
        again: impl Fn() -> Result<Tensor> + Send + Sync + 'static,
        back: impl FnOnce(Tensor) -> Result<Vec<Option<Tensor>>> + Send + 'static,
    ) -> Tensor {
        if !recording(inputs) {
            return output;
        }
        let back: BackFn = Box::new(move |_, mut dy| back(dy.pop().flatten().expect("one gradient")));
        Node::record_raw(name, inputs, vec![output], back, Some(Box::new(again))).pop().expect("one output")
    }

    fn record_raw(
        name: &'static str,
        inputs: &[&Tensor],
        outputs: Vec<Tensor>,
        back: BackFn,
        again: Option<Again>,
    ) -> Vec<Tensor> {
        if !recording(inputs) {
            return outputs;
        }
        let edges = inputs.iter().map(|t| t.edge.clone()).collect();
        let node = Arc::new(Node {
            id: fresh_id(),
            name,
            outputs: outputs.len(),
            state: Mutex::new(Some((edges, back))),
            again,
        });
        outputs
            .into_iter()
            .enumerate()
            .map(|(i, t)| Tensor { edge: Some(Edge::Node(node.clone(), i)), ..t })
            .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Long chains are dropped in a loop, whether edges or closures hold them together: a node that goes
        // while another one is dropped leaves its state to that one.
        let mut state = match self.state.get_mut() {
            Ok(state) => state.take(),
            Err(_) => return,
        };
        let queued = |f: &mut dyn FnMut(&mut Option<Vec<State>>)| {
            DROPPED.try_with(|queue| f(&mut queue.borrow_mut())).is_ok()
        };
        let mut outermost = false;
        queued(&mut |queue| match queue {
            Some(queue) => queue.extend(state.take()),
            None => {
                outermost = state.is_some();
                *queue = outermost.then(Vec::new);
            }
        });
        while let Some(now) = state.take() {
            drop(now);
            if outermost {
                queued(&mut |queue| state = queue.as_mut().and_then(Vec::pop));
            }
        }
        if outermost {
            queued(&mut |queue| *queue = None);
        }
    }
}

/// Gradients by leaf.
#[derive(Default)]
pub struct Gradients {
    leaves: HashMap<u64, Tensor>,
}

impl Gradients {
    /// The gradient of a leaf; none when the loss does not depend on it.
    pub fn get(&self, leaf: &Tensor) -> Option<&Tensor> {
        match leaf.edge {
            Some(Edge::Leaf(id)) => self.leaves.get(&id),
            _ => None,
        }
    }
    pub(crate) fn by_id(&self, id: u64) -> Option<&Tensor> {
        self.leaves.get(&id)
    }
    /// Takes the gradient of a leaf out.
    pub fn remove(&mut self, leaf: &Tensor) -> Option<Tensor> {
        match leaf.edge {
            Some(Edge::Leaf(id)) => self.leaves.remove(&id),
            _ => None,
        }
    }
    /// Adds the gradients of another backward pass: `self + other`, in this order.
    pub fn accumulate(&mut self, other: Gradients) -> Result<()> {
        other.leaves.into_iter().try_for_each(|(id, g)| self.add(id, g))
    }
    fn add(&mut self, id: u64, g: Tensor) -> Result<()> {
        let sum = match self.leaves.remove(&id) {
            Some(old) => accumulate(old, g)?,
            None => g,
        };
        self.leaves.insert(id, sum);
        Ok(())
    }
    /// All gradients, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.leaves.values()
    }
}

fn accumulate(mut old: Tensor, new: Tensor) -> Result<Tensor> {
    old.add_assign(&new)?;
    Ok(old)
}

impl Tensor {
    /// This, for a backward pass: the values are kept only if they cannot be computed again.
    pub(crate) fn saved(&self) -> Saved {
        match &self.edge {
            Some(Edge::Node(node, _)) if node.again.is_some() => Saved::Again(node.clone()),
            _ => Saved::Kept(self.detach()),
        }
    }

    /// Gradients of this scalar with respect to every leaf it depends on. The tape is consumed.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let x = Tensor::from_f32(&Device::cpu(), &[2], &[1.0, 3.0])?.leaf();
    /// let loss = x.mul(&x)?.sum()?;
    /// assert_eq!(loss.backward()?.get(&x).unwrap().to_f32()?, [2.0, 6.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The tensor has more than one element, or no history, or its tape was used before.
    pub fn backward(&self) -> Result<Gradients> {
        if self.len() != 1 {
            return Err(Error::Tape(format!("backward needs a scalar, this has shape {}", self.shape())));
        }
        if !self.requires_grad() {
            return Err(Error::Tape("backward: the tensor depends on no leaf".into()));
        }
        backward(&[(self, Tensor::full(self.device(), self.dims(), 1.0)?)])
    }
}

/// Gradients of `sum_i <root_i, seed_i>`. The tape is consumed. A root that leads to no leaf adds nothing.
///
/// # Errors
/// A seed differs from its root in shape, type or device, or the tape was used before.
pub fn backward(roots: &[(&Tensor, Tensor)]) -> Result<Gradients> {
    match roots {
        [] => Ok(Gradients::default()),
        [(root, _), ..] => inside(root.device(), || walk(roots)),
    }
}

fn walk(roots: &[(&Tensor, Tensor)]) -> Result<Gradients> {
    let mut grads = Gradients::default();
    // Highest id first: a node comes after everything that uses it.
    let mut open: BTreeMap<u64, (Arc<Node>, Vec<Option<Tensor>>)> = BTreeMap::new();
    no_grad(|| {
        for (root, seed) in roots {
            if root.shape() != seed.shape() {
                return Err(Error::Tape(format!(
                    "seed of shape {} for an output of shape {}",
                    seed.shape(),
                    root.shape()
                )));
            }
            if seed.dtype() != root.dtype() || !seed.device().same(root.device()) {
                return Err(Error::Tape(format!("seed {seed:?} for the output {root:?}")));
            }
            if let Some(edge) = root.edge.clone() {
                deliver(&mut grads, &mut open, edge, seed.clone())?;
            }
        }
        while let Some((_, (node, dy))) = open.pop_last() {
            let Some((edges, back)) = lock(&node.state).take() else {
                return Err(Error::Tape(format!(
                    "the tape of '{}' was already consumed by an earlier backward pass",
                    node.name
                )));
            };
            let dx = back(&mut grads, dy)?;
            debug_assert_eq!(dx.len(), edges.len(), "{}: one gradient slot per input", node.name);
            for (edge, g) in edges.into_iter().zip(dx) {
                if let (Some(edge), Some(g)) = (edge, g) {
                    deliver(&mut grads, &mut open, edge, g)?;
                }
            }
        }
        Ok(())
    })?;
    Ok(grads)
}

fn deliver(
    grads: &mut Gradients,
    open: &mut BTreeMap<u64, (Arc<Node>, Vec<Option<Tensor>>)>,
    edge: Edge,
    g: Tensor,
) -> Result<()> {
    match edge {
        Edge::Leaf(id) => grads.add(id, g),
        Edge::Node(node, i) => {
            let n = node.outputs;
            let slot = &mut open.entry(node.id).or_insert_with(|| (node, vec![None; n])).1[i];
            *slot = Some(match slot.take() {
                Some(old) => accumulate(old, g)?,
                None => g,
            });
            Ok(())
        }
    }
}

/// Runs `f` without keeping what its backward pass needs, and runs it again when that pass arrives.
///
/// Memory is traded for a second forward computation. `f` must compute the same thing both times: use
/// counter-based randomness and replay routing choices.
/// Parameters used inside get their gradients too.
pub fn checkpoint(
    inputs: &[&Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + 'static,
) -> Result<Tensor> {
    Ok(checkpoint_many(inputs, move |x| Ok(vec![f(x)?]))?.pop().expect("one output"))
}

/// [`checkpoint`] for a computation with several outputs, such as a block's state and its auxiliary losses: what
/// `f` does not return has no gradient outside.
pub fn checkpoint_many(
    inputs: &[&Tensor],
    f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + 'static,
) -> Result<Vec<Tensor>> {
    let kept: Vec<Tensor> = inputs.iter().map(|t| t.detach()).collect();
    let wanted: Vec<bool> = inputs.iter().map(|t| t.requires_grad()).collect();
    let out = no_grad(|| f(&kept))?;
    // The parameters inside are unknown out here, so the node is recorded even when no input needs it.
    if !RECORDING.get() || out.is_empty() {
        return Ok(out);
    }
    let back: BackFn = Box::new(move |grads, dy| {
        let fresh: Vec<Tensor> =
            kept.iter().zip(&wanted).map(|(t, &w)| if w { t.leaf() } else { t.clone() }).collect();
        let y = with_grad(|| f(&fresh))?;
        let roots: Vec<(&Tensor, Tensor)> =
            y.iter().zip(dy).filter_map(|(y, dy)| dy.map(|dy| (y, dy))).collect();
        let mut inner = backward(&roots)?;
        let mut dx: Vec<Option<Tensor>> = fresh.iter().map(|t| inner.remove(t)).collect();
        grads.accumulate(inner)?;
        dx.push(None);
        Ok(dx)
    });
    let anchor = out[0].leaf();
    let mut all: Vec<&Tensor> = inputs.to_vec();
    all.push(&anchor);
    Ok(Node::record_raw("checkpoint", &all, out, back, None))
}
