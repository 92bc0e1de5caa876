//! The template engine, configured as in transformers, with limits on stack, memory and work.

mod checked;
mod clock;
mod json;
mod methods;
mod scan;
mod source;

use crate::{Error, Result};
use checked::{checked, held, refused};
use clock::strftime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, ErrorKind, State, functions};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

const NAME: &str = "chat template";
/// Work units for an empty conversation: one unit is an instruction or 64 bytes of text.
const FUEL: u64 = 150_000;
/// Further work units per message; templates use up to a hundred.
const FUEL_OF_MESSAGE: u64 = 500;
/// Bytes of the conversation per further work unit; some templates copy a text a dozen times.
const BYTES_OF_FUEL: u64 = 4;
/// Bytes of text in one list or map, in addition to twice the conversation.
const TEXT: usize = 16 << 10;
/// The largest nesting of macros and blocks, which take stack memory.
const MAX_RECURSION: usize = 100;

type Rendered<T> = std::result::Result<T, minijinja::Error>;

/// A compiled template.
pub(super) struct Program {
    env: Environment<'static>,
    /// The template marks the text that the model generates.
    pub generation: bool,
}

/// The size of a conversation, which bounds the work of rendering it.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub messages: usize,
    pub bytes: usize,
}

impl Program {
    /// Compiles a template; `today` fixes the date, in seconds since 1970.
    pub(super) fn compile(source: &str, today: Option<u64>) -> Result<Self> {
        let source = source::prepare(source)?;
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|error| failed(&error))?);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_recursion_limit(MAX_RECURSION);
        env.set_unknown_method_callback(methods::call);
        env.add_function("raise_exception", |text: String| -> Rendered<Value> { Err(refused(text)) });
        env.add_function("strftime_now", move |format: String| {
            let now = today.unwrap_or_else(|| {
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
            });
            strftime(now, &format)
                .map_err(|directive| refused(format!("strftime_now: {directive} is not known")))
        });
        env.add_function("mixlora_checked", |state: &State, value: Value| checked(state, value));
        env.add_function("mixlora_held", |state: &State, value: Value| held(state, value));
        env.add_function("namespace", |state: &State, values: Option<ValueOrKwargs>| -> Rendered<Value> {
            if let Some(values) = &values {
                held(state, values.clone().into_value())?;
            }
            functions::namespace(values)
        });
        env.add_function("dict", |state: &State, value: Option<Value>, more: Kwargs| -> Rendered<Value> {
            checked(state, functions::dict(value, more)?)
        });
        env.add_filter("mixlora_format", methods::percent);
        env.add_filter("format", methods::format_filter);
        env.add_filter("tojson", json::to_json);
        // These are not part of Jinja, or have no limit.
        env.remove_global("debug");
        for name in ["batch", "chain", "lines", "pprint", "slice", "split", "zip"] {
            env.remove_filter(name);
        }
        env.add_template_owned(NAME, source.text).map_err(|error| failed(&error))?;
        Ok(Program { env, generation: source.generation })
    }

    /// Runs the template on variables, with a work limit that depends on the size of the conversation.
    pub(super) fn run(&self, mut scope: BTreeMap<&str, Value>, size: Size) -> Result<String> {
        let fuel = FUEL + FUEL_OF_MESSAGE * size.messages as u64 + size.bytes as u64 / BYTES_OF_FUEL;
        scope.insert(checked::TEXT_LIMIT, Value::from(TEXT + 2 * size.bytes + 64 * size.messages));
        let mut env = self.env.clone();
        env.set_fuel(Some(fuel));
        env.get_template(NAME)
            .and_then(|template| template.render(Value::from(scope)))
            .map_err(|error| failed(&error))
    }
}

fn failed(error: &minijinja::Error) -> Error {
    let place = error.line().map_or_else(|| NAME.to_string(), |line| format!("{NAME}, line {line}"));
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "does not come to an end: the work limit is reached".to_string(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    Error::refused(place, what)
}
