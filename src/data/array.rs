//! The elements of a JSON array, one after the other: a file of any size takes the memory of one.

use super::files::MAX_LINE;
use std::io::{self, BufRead, Bytes};

/// An element with the place of its first byte, from 1.
pub(super) struct Element {
    pub line: usize,
    pub column: usize,
    pub bytes: Vec<u8>,
}

/// What stops the reading of an array.
pub(super) enum Broken {
    Io(io::Error),
    /// A line, a column and a sentence.
    Json(usize, usize, String),
}

/// The elements of an array whose first byte, but for white space, is its bracket.
pub(super) struct Elements<R: BufRead> {
    bytes: Bytes<R>,
    line: usize,
    column: usize,
    /// Elements so far.
    count: usize,
    started: bool,
    ended: bool,
}

impl<R: BufRead> Elements<R> {
    pub fn new(reader: R) -> Self {
        Elements { bytes: reader.bytes(), line: 1, column: 0, count: 0, started: false, ended: false }
    }

    fn byte(&mut self) -> Result<Option<u8>, Broken> {
        let byte = self.bytes.next().transpose().map_err(Broken::Io)?;
        self.column += usize::from(byte.is_some());
        Ok(byte)
    }

    /// Counts a line that ended with the byte.
    fn passed(&mut self, byte: u8) {
        if byte == b'\n' {
            self.line += 1;
            self.column = 0;
        }
    }

    /// The next byte that is no white space.
    fn solid(&mut self) -> Result<Option<u8>, Broken> {
        loop {
            match self.byte()? {
                Some(byte) if byte.is_ascii_whitespace() => self.passed(byte),
                other => return Ok(other),
            }
        }
    }

    fn broken<T>(&self, what: &str) -> Result<T, Broken> {
        Err(Broken::Json(self.line, self.column, what.into()))
    }

    /// The next element; none behind the last one.
    pub fn next(&mut self) -> Result<Option<Element>, Broken> {
        if !self.started {
            self.started = true;
            // A byte order mark may stand before the bracket.
            while self.solid()?.is_some_and(|byte| byte != b'[') {}
        }
        let first = self.solid()?;
        if self.ended {
            return if first.is_none() { Ok(None) } else { self.broken("is behind the end of the array") };
        }
        match first {
            Some(b']') if self.count == 0 => {
                self.ended = true;
                self.next()
            }
            Some(b']') => self.broken("an element is missing behind the comma"),
            Some(b',') => self.broken("an element is missing before the comma"),
            None => self.broken("the array is cut off: it has no ']' at its end"),
            Some(first) => self.element(first).map(Some),
        }
    }

    fn element(&mut self, first: u8) -> Result<Element, Broken> {
        let mut element = Element { line: self.line, column: self.column, bytes: Vec::new() };
        let mut depth = 0usize;
        let mut in_text = false;
        let mut escaped = false;
        let mut next = Some(first);
        while let Some(byte) = next {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_text => escaped = true,
                b'"' => in_text = !in_text,
                _ if in_text => {}
                b'{' | b'[' => depth += 1,
                b',' | b']' if depth == 0 => {
                    self.ended = byte == b']';
                    self.count += 1;
                    return Ok(element);
                }
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.passed(byte);
            element.bytes.push(byte);
            if element.bytes.len() as u64 > MAX_LINE {
                let what = format!("the element is longer than {} MiB", MAX_LINE >> 20);
                return Err(Broken::Json(element.line, element.column, what));
            }
            next = self.byte()?;
        }
        let what = "the array is cut off: this element, or the array, has no end";
        Err(Broken::Json(element.line, element.column, what.into()))
    }
}
