//! Typed errors: what failed, where, and what to do about it.

use std::fmt::Display;
use std::path::PathBuf;

/// Everything in this crate that can fail returns this.
pub type Result<T> = std::result::Result<T, Error>;

/// The error of the crate. Nothing reachable from input panics.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Operands of an operation do not fit together.
    #[error("{op}: expected {expected}, found {found}")]
    Shape { op: &'static str, expected: String, found: String },
    /// An operand has the wrong element type.
    #[error("{op}: expected {expected}, found {found}")]
    DType { op: &'static str, expected: &'static str, found: &'static str },
    /// An option has a value that cannot work, and others would.
    #[error("{field}: is {found}, must be {expected}")]
    Config { field: String, expected: String, found: String },
    /// An option or a thing that it names cannot be used, for a reason that is no matter of its value.
    #[error("{field}: {what}")]
    Refused { field: String, what: String },
    /// A file is not what it should be.
    #[error("{}: {what}", path.display())]
    File { path: PathBuf, what: String },
    /// A data file holds what cannot be used; every place is listed, up to a limit.
    #[error("{}", problems_text(path, problems, *more))]
    Data {
        path: PathBuf,
        problems: Vec<Problem>,
        /// Problems beyond those listed.
        more: usize,
    },
    /// The gradient tape was used in a way it cannot serve.
    #[error("autodiff: {0}")]
    Tape(String),
    /// The loss or a gradient is not finite.
    #[error("training diverged: {0}; lower the learning rate or the gradient norm's bound")]
    Diverged(String),
    /// A conversation does not fit the model.
    #[error(
        "the model's context is full: it has {most} positions, {used} are used and {more} more are needed; shorten the \
         text, or start anew"
    )]
    Context { used: usize, more: usize, most: usize },
    /// No adapter fits the request.
    #[error("no usable GPU adapter: {0}")]
    NoAdapter(String),
    /// The adapter is below the floor this crate needs.
    #[error(
        "adapter '{adapter}' is below the floor: {limit} is {have}, at least {need} is needed; use the CPU device"
    )]
    BelowFloor { adapter: String, limit: &'static str, have: u64, need: u64 },
    /// An allocation would exceed the memory budget, or the driver refused it.
    #[error(
        "out of device memory: {requested} bytes requested, {in_use} in use, {}; use a smaller batch or sequence, or raise the budget",
        budget_text(*budget)
    )]
    OutOfMemory { requested: u64, in_use: u64, budget: u64 },
    /// The device went away (driver reset, sleep, unplugged, destroyed).
    #[error("GPU device lost: {0}; resume from the last checkpoint or use the CPU device")]
    DeviceLost(String),
    /// A shader was refused by the compiler.
    #[error("shader '{shader}' does not compile: {what}")]
    Shader { shader: String, what: String },
    /// The graphics layer reported an error.
    #[error("GPU error: {0}")]
    Gpu(String),
}

/// A place in a data file, and what is wrong there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1; 0 when it concerns the whole file.
    pub line: usize,
    /// In bytes, from 1; 0 when it concerns the whole line.
    pub column: usize,
    pub what: String,
}

/// One line per problem, as `file:line:column: what`.
fn problems_text(path: &std::path::Path, problems: &[Problem], more: usize) -> String {
    let path = path.display();
    let line = |p: &Problem| match (p.line, p.column) {
        (0, _) => format!("{path}: {}", p.what),
        (line, 0) => format!("{path}:{line}: {}", p.what),
        (line, column) => format!("{path}:{line}:{column}: {}", p.what),
    };
    let mut lines: Vec<String> = problems.iter().map(line).collect();
    if more > 0 {
        lines.push(format!("{path}: and {more} more"));
    }
    lines.join("\n")
}

fn budget_text(bytes: u64) -> String {
    if bytes == u64::MAX { "no budget set".into() } else { format!("budget {bytes}") }
}

impl Error {
    /// The option that the error is about, if it is about one.
    pub fn field(&self) -> Option<&str> {
        match self {
            Error::Config { field, .. } | Error::Refused { field, .. } => Some(field),
            _ => None,
        }
    }

    /// The same error with another name for its option, made from the present one; an error about none stays as it is.
    ///
    /// ```
    /// use mixlora::Device;
    /// let error = Device::parse("").unwrap_err().rename(|field| format!("--{field}"));
    /// assert!(error.to_string().starts_with("--device: is empty, must be cpu, gpu, auto"));
    /// ```
    pub fn rename(mut self, name: impl FnOnce(&str) -> String) -> Self {
        if let Error::Config { field, .. } | Error::Refused { field, .. } = &mut self {
            *field = name(field);
        }
        self
    }

    pub(crate) fn shape(op: &'static str, expected: impl Display, found: impl Display) -> Self {
        Error::Shape { op, expected: expected.to_string(), found: found.to_string() }
    }
    pub(crate) fn config(field: impl Into<String>, found: impl Display, expected: impl Display) -> Self {
        Error::Config { field: field.into(), expected: expected.to_string(), found: found.to_string() }
    }
    pub(crate) fn refused(field: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Refused { field: field.into(), what: what.into() }
    }
    pub(crate) fn file(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Error::File { path: path.into(), what: what.into() }
    }
}
