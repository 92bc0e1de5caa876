//! What the instructions make: plain values.

use std::rc::Rc;

/// Axes of a tensor.
const MOST_AXES: usize = 8;

/// A value on the stack.
#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    None,
    Flag(bool),
    Number(i64),
    Text(&'a str),
    Tuple(Rc<Vec<Value<'a>>>),
    Global(Global),
    /// A dictionary whose entries are not kept.
    Facts,
    /// An OrderedDict, by its number.
    Ordered(usize),
    /// A list of texts, by its number.
    Keys(usize),
    /// A storage, by its key.
    Storage(Kind, &'a str, usize),
    Tensor(Rc<Stored<'a>>),
}

/// The names that are known. They stand for what is made, and are not looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    Storage(Kind),
}

/// Values of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// f32
    Floats,
    /// i64
    Integers,
}

/// A tensor of as many values as its storage has.
#[derive(Debug, Clone)]
pub(super) struct Stored<'a> {
    pub kind: Kind,
    pub key: &'a str,
    pub dims: Vec<usize>,
    /// How far the next value of each axis is in the storage; never beyond it.
    pub steps: Vec<usize>,
}

impl Kind {
    pub fn bytes(self) -> usize {
        match self {
            Kind::Floats => 4,
            Kind::Integers => 8,
        }
    }
}

impl Global {
    pub fn of(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor),
            ("torch", "FloatStorage") => Some(Global::Storage(Kind::Floats)),
            ("torch", "LongStorage") => Some(Global::Storage(Kind::Integers)),
            _ => None,
        }
    }
}

impl<'a> Value<'a> {
    /// The storage that a persistent id names: `("storage", class, key, place, count, None)`.
    pub fn storage(&self) -> Option<(Kind, &'a str, usize)> {
        let Value::Tuple(items) = self else { return None };
        match items.as_slice() {
            [
                Value::Text("storage"),
                Value::Global(Global::Storage(kind)),
                Value::Text(key),
                Value::Text(_),
                Value::Number(count),
                Value::None,
            ] => Some((*kind, *key, usize::try_from(*count).ok()?)),
            _ => None,
        }
    }

    /// The tensor of `_rebuild_tensor_v2`: `(storage, first value, sizes, steps, whether it is trained, hooks)`.
    pub fn tensor(&self) -> Result<Stored<'a>, String> {
        let Value::Tuple(items) = self else { return Err("makes a tensor of no tuple".into()) };
        let [Value::Storage(kind, key, count), Value::Number(first), sizes, steps, ..] = items.as_slice()
        else {
            return Err("makes a tensor of other things than a storage, sizes and steps".into());
        };
        let sizes_of = |value: &Value<'a>| {
            let what = || format!("makes a tensor whose sizes or steps are not up to {MOST_AXES} numbers");
            value.sizes().ok_or_else(what)
        };
        let dims = sizes_of(sizes)?;
        let steps = sizes_of(steps)?;
        let values = dims.iter().try_fold(1usize, |all, &size| all.checked_mul(size));
        if *first != 0 || values != Some(*count) {
            let what = "parts are not read";
            return Err(format!(
                "makes a tensor of shape {dims:?} from value {first} of a storage of {count}: {what}"
            ));
        }
        let furthest = dims
            .iter()
            .zip(&steps)
            .try_fold(0usize, |at, (&size, &step)| at.checked_add(size.saturating_sub(1).checked_mul(step)?));
        if steps.len() != dims.len() || (*count > 0 && furthest.is_none_or(|at| at >= *count)) {
            return Err(format!(
                "makes a tensor of shape {dims:?} with steps {steps:?}, which leave its storage of {count}"
            ));
        }
        Ok(Stored { kind: *kind, key, dims, steps })
    }

    /// A tuple of sizes.
    fn sizes(&self) -> Option<Vec<usize>> {
        let Value::Tuple(items) = self else { return None };
        let number = |value: &Value<'_>| match value {
            Value::Number(n) => usize::try_from(*n).ok(),
            _ => None,
        };
        if items.len() > MOST_AXES { None } else { items.iter().map(number).collect() }
    }

    /// Whether tuples lie in it.
    pub fn is_tuple_of_tuples(&self) -> bool {
        matches!(self, Value::Tuple(items) if items.iter().any(|item| matches!(item, Value::Tuple(_))))
    }
}
