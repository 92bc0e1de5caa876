//! Preparation of a template for the engine: line ends are normalised, and constructs that the engine lacks or runs
//! without a limit are rewritten. Line numbers are kept.

use super::scan::{Token, scan};
use crate::{Error, Result};

/// The largest template in bytes; real ones have up to 20,000.
const MAX_BYTES: usize = 512 << 10;
/// The largest number of names and operators in a tag: each may add a level of recursion in the engine.
const MAX_PARTS: usize = 250;
/// The largest number of `elif` branches, which add levels as well.
const MAX_BRANCHES: usize = 100;
/// The prefix of internal functions and variables.
const RESERVED: &str = "mixlora_";

/// A prepared template.
pub(super) struct Source {
    pub text: String,
    /// The template marks the text that the model generates.
    pub generation: bool,
}

/// An expression between two brackets, or a whole tag.
#[derive(Default)]
struct Level {
    /// The start of the expression, if it may be a list, map or tuple.
    literal: Option<usize>,
    names: bool,
    comma: bool,
    round: bool,
    sum: Operand,
    product: Operand,
    /// A `%` after a text has opened a filter.
    format: bool,
}

/// An operand of a sum or product.
#[derive(Default)]
struct Operand {
    start: Option<usize>,
    /// The operand must be checked.
    check: bool,
}

/// Prepares a template.
pub(super) fn prepare(source: &str) -> Result<Source> {
    let text = source.replace("\r\n", "\n").replace('\r', "\n");
    if text.len() > MAX_BYTES {
        let what = format!("has {} bytes, at most {MAX_BYTES} are read", text.len());
        return Err(Error::refused("chat template", what));
    }
    let mut rewriter = Rewriter { out: String::with_capacity(text.len() * 2), ..Rewriter::default() };
    rewriter.template(&text)?;
    Ok(Source { text: rewriter.out, generation: rewriter.generation })
}

#[derive(Default)]
struct Rewriter {
    out: String,
    generation: bool,
    line: usize,
    branches: usize,
    /// The number of open macros and call blocks.
    macros: usize,
    levels: Vec<Level>,
}

impl Rewriter {
    fn fail(&self, what: impl Into<String>) -> Error {
        Error::refused(format!("chat template, line {}", self.line + 1), what)
    }

    /// Copies text unchanged.
    fn copy(&mut self, text: &str) {
        self.line += text.matches('\n').count();
        self.out += text;
    }

    fn template(&mut self, text: &str) -> Result<()> {
        let mut rest = text;
        while let Some(start) = rest.find('{') {
            self.copy(&rest[..start]);
            rest = &rest[start..];
            let len = match rest.as_bytes().get(1) {
                Some(b'#') => rest.find("#}").map_or(rest.len(), |at| at + 2),
                Some(b'%') if opens_raw(rest) => end_of_raw(rest),
                Some(b'%' | b'{') => {
                    rest = self.tag(rest)?;
                    continue;
                }
                _ => 1,
            };
            self.copy(&rest[..len]);
            rest = &rest[len..];
        }
        self.copy(rest);
        Ok(())
    }

    /// Rewrites the tag at the start of `text` and returns the text after it.
    fn tag<'t>(&mut self, text: &'t str) -> Result<&'t str> {
        let close = if text.starts_with("{%") { "%}" } else { "}}" };
        let left = &text[2..2 + usize::from(text[2..].starts_with(['-', '+']))];
        let body = &text[2 + left.len()..];
        let word = first_word(body);
        match (close, word) {
            ("%}", "generation" | "endgeneration") => {
                if let Some(rest) = self.mark(word, left, body) {
                    return Ok(rest);
                }
            }
            ("%}", "macro" | "call") => self.macros += 1,
            ("%}", "endmacro" | "endcall") => self.macros = self.macros.saturating_sub(1),
            ("%}", "elif") => self.branches += 1,
            _ => {}
        }
        if self.branches > MAX_BRANCHES {
            return Err(self.fail(format!("more than {MAX_BRANCHES} elif branches: too deeply nested")));
        }
        let owners = if close == "%}" && word == "set" { owners(body) } else { Vec::new() };
        if owners.is_empty() || self.macros == 0 {
            self.out += &text[..2 + left.len()];
        } else {
            // The engine's macros capture only variables that they read; an assignment to an attribute reads none.
            self.out += &format!("{{%{left} if {} %}}{{% endif %}}{{%", owners.join(" and "));
        }
        self.expression(body, close, word, !owners.is_empty())
    }

    /// Replaces `{% generation %}`, an extension that no Jinja engine knows, by a block that is always entered, with a
    /// mark before and after it. Whitespace control is kept.
    fn mark<'t>(&mut self, word: &str, left: &str, body: &'t str) -> Option<&'t str> {
        let tail = body.trim_start().strip_prefix(word)?.trim_start();
        let right = &tail[..usize::from(tail.starts_with(['-', '+']))];
        let rest = tail[right.len()..].strip_prefix("%}")?;
        if word == "generation" {
            self.out += &format!("{{%{left} if true %}}{{{{ mixlora_open }}}}{{% if true {right}%}}");
            self.generation = true;
        } else {
            self.out += &format!("{{%{left} endif %}}{{{{ mixlora_close }}}}{{% endif {right}%}}");
        }
        self.line += body[..body.len() - rest.len()].matches('\n').count();
        Some(rest)
    }

    /// Rewrites the tokens of a tag up to its end and returns the text after it.
    fn expression<'t>(&mut self, body: &'t str, close: &str, word: &str, held: bool) -> Result<&'t str> {
        self.levels = vec![Level::default()];
        let mut rest = body;
        let mut parts = 0;
        let mut before = Token::End;
        // Targets of assignments and loops are not values.
        let mut target = matches!(word, "set" | "for") && close == "%}";
        let mut holding = false;
        loop {
            let space = rest.len() - rest.trim_start().len();
            self.copy(&rest[..space]);
            rest = &rest[space..];
            let end = rest.trim_start_matches(['-', '+']);
            if rest.is_empty()
                || (self.levels.len() == 1 && rest.len() - end.len() < 2 && end.starts_with(close))
            {
                self.end_sum(false);
                self.out += if holding { "))" } else { "" };
                let len = rest.len().min(rest.len() - end.len() + close.len());
                self.copy(&rest[..len]);
                return Ok(&rest[len..]);
            }
            let (token, len) = scan(rest, before);
            let text = &rest[..len];
            let listed = matches!(token, Token::Literal | Token::Number) || matches!(text, "," | ":" | "=");
            parts += usize::from(!listed);
            if parts > MAX_PARTS {
                let what = format!("more than {MAX_PARTS} parts in one expression: too deeply nested");
                return Err(self.fail(what));
            }
            if text.starts_with(RESERVED) {
                return Err(self.fail(format!("'{text}': names that begin with {RESERVED} are taken")));
            }
            self.token(token, text, target);
            if target && self.levels.len() == 1 && matches!(text, "=" | "in") {
                target = false;
                if held {
                    holding = true;
                    self.out += " mixlora_held((";
                }
            }
            before = token;
            rest = &rest[len..];
        }
    }

    fn token(&mut self, token: Token, text: &str, target: bool) {
        match token {
            Token::Open { literal } => {
                self.begin();
                let start = Some(self.out.len()).filter(|_| literal && !target);
                self.copy(text);
                self.levels.push(Level { literal: start, round: text == "(", ..Level::default() });
                return;
            }
            Token::Close => {
                self.end_sum(false);
                self.copy(text);
                if self.levels.len() > 1
                    && let Some(level) = self.levels.pop()
                {
                    let tuple = !level.round || level.comma;
                    if let Some(start) = level.literal.filter(|_| level.names && tuple) {
                        self.wrap(start);
                    }
                    self.level().names |= level.names;
                }
                return;
            }
            Token::Boundary => {
                self.end_sum(false);
                self.level().comma |= text == ",";
            }
            Token::Sum => self.end_sum(text == "+"),
            Token::Concat => self.end_product(),
            Token::Times => {
                self.end_format();
                self.level().product.check |= text == "*";
            }
            Token::Format => {
                self.end_format();
                self.out += "| mixlora_format(";
                self.level().format = true;
                return;
            }
            Token::Literal | Token::Number | Token::Name | Token::Other | Token::End => {
                self.begin();
                self.level().names |= token == Token::Name;
            }
        }
        self.copy(text);
    }

    fn level(&mut self) -> &mut Level {
        if self.levels.is_empty() {
            self.levels.push(Level::default());
        }
        let last = self.levels.len() - 1;
        &mut self.levels[last]
    }

    /// Begins a value, unless one has begun.
    fn begin(&mut self) {
        let at = self.out.len();
        let level = self.level();
        level.sum.start.get_or_insert(at);
        level.product.start.get_or_insert(at);
    }

    fn end_format(&mut self) {
        if std::mem::take(&mut self.level().format) {
            self.out.push(')');
        }
    }

    /// Ends a product; a repeated list is evaluated at once.
    fn end_product(&mut self) {
        self.end_format();
        let product = std::mem::take(&mut self.level().product);
        if let Some(start) = product.start.filter(|_| product.check) {
            self.wrap(start);
        }
    }

    /// Ends a sum; added lists are evaluated before, because the engine joins them without charging work.
    fn end_sum(&mut self, adds: bool) {
        self.end_product();
        let sum = std::mem::take(&mut self.level().sum);
        if let Some(start) = sum.start.filter(|_| sum.check || adds)
            && !is_literal(&self.out[start..])
        {
            self.wrap(start);
        }
        self.level().sum.check = adds;
    }

    fn wrap(&mut self, start: usize) {
        self.out.insert_str(start, "mixlora_checked(");
        self.out.push(')');
    }
}

/// Tests whether an operand is a single text or number.
fn is_literal(operand: &str) -> bool {
    let operand = operand.trim();
    let quoted = |quote: char| {
        let inner = operand.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
        inner.is_some_and(|inner| !inner.contains(quote))
    };
    quoted('\'') || quoted('"') || operand.bytes().all(|byte| byte.is_ascii_digit())
}

fn first_word(body: &str) -> &str {
    let body = body.trim_start();
    &body[..body
        .find(|character: char| !character.is_alphanumeric() && character != '_')
        .unwrap_or(body.len())]
}

/// The namespaces to whose attributes `{% set ns.a = ... %}` assigns.
fn owners(body: &str) -> Vec<&str> {
    let head = body.trim_start().strip_prefix("set").unwrap_or("");
    let end = head.find('=').into_iter().chain(head.find("%}")).min().unwrap_or(0);
    head[..end].split(',').filter_map(owner).collect()
}

fn owner(target: &str) -> Option<&str> {
    let target = target.trim_start_matches(|character: char| character.is_whitespace() || character == '(');
    let name = first_word(target);
    let has_attribute = target[name.len()..].trim_start().starts_with('.');
    Some(name).filter(|name| has_attribute && !name.is_empty())
}

/// Tests whether a tag opens a raw block.
fn opens_raw(text: &str) -> bool {
    let body = text[2..].trim_start_matches(['-', '+']);
    first_word(body) == "raw"
}

/// The number of bytes up to the end of a raw block.
fn end_of_raw(text: &str) -> usize {
    let mut at = 2;
    while let Some(next) = text[at..].find("{%") {
        at += next + 2;
        if first_word(text[at..].trim_start_matches(['-', '+'])) == "endraw" {
            return text[at..].find("%}").map_or(text.len(), |end| at + end + 2);
        }
    }
    text.len()
}
