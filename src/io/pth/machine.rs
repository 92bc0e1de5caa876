//! The instructions of a pickle that are read (Python's `pickletools` names them).

use super::value::{Global, Kind, Stored, Value};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Instructions of all pickles together, of which each takes some memory. A file has about 36 for each tensor.
const MOST: usize = 1 << 18;

type Outcome<T> = Result<T, String>;

/// Reads one pickle after the other.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the instruction began, and how many there were.
    instruction: usize,
    count: usize,
    stack: Vec<Value<'a>>,
    /// How long the stack was at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    /// How many ordered dictionaries and lists were made; of those with tensors or texts what is in them.
    made: usize,
    dictionaries: HashMap<usize, Vec<(&'a str, Stored<'a>)>>,
    lists: HashMap<usize, Vec<&'a str>>,
    storages: BTreeMap<&'a str, (Kind, usize)>,
}

impl<'a> Machine<'a> {
    pub fn at(bytes: &'a [u8], at: usize) -> Self {
        Machine {
            bytes,
            at,
            instruction: at,
            count: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            made: 0,
            dictionaries: HashMap::new(),
            lists: HashMap::new(),
            storages: BTreeMap::new(),
        }
    }

    /// Where the next pickle begins.
    pub fn place(&self) -> usize {
        self.at
    }
    /// The tensors of an ordered dictionary by their names, in order.
    pub fn dictionary(&mut self, number: usize) -> Vec<(&'a str, Stored<'a>)> {
        self.dictionaries.remove(&number).unwrap_or_default()
    }
    /// The texts of a list.
    pub fn list(&mut self, number: usize) -> Vec<&'a str> {
        self.lists.remove(&number).unwrap_or_default()
    }
    /// The storages by their keys, with their numbers of values.
    pub fn storages(&self) -> &BTreeMap<&'a str, (Kind, usize)> {
        &self.storages
    }

    /// The value of one pickle.
    pub fn run(&mut self) -> Outcome<Value<'a>> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        loop {
            self.instruction = self.at;
            let code = self.byte()?;
            if code == b'.' {
                return self.pop();
            }
            self.count += 1;
            if self.count > MOST {
                return Err(self.wrong(&format!("has more than {MOST} instructions in its pickles")));
            }
            self.step(code)?;
        }
    }

    fn step(&mut self, code: u8) -> Outcome<()> {
        match code {
            0x80 => {
                let protocol = self.byte()?;
                if protocol != 2 {
                    return Err(self.wrong(&format!("has a pickle of protocol {protocol}, 2 is read")));
                }
            }
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Flag(true)),
            0x89 => self.stack.push(Value::Flag(false)),
            b'K' => self.number::<1>(|n| i64::from(n[0]))?,
            b'M' => self.number(|n| i64::from(u16::from_le_bytes(n)))?,
            b'J' => self.number(|n| i64::from(i32::from_le_bytes(n)))?,
            b'X' => {
                let text = self.text()?;
                self.stack.push(Value::Text(text));
            }
            b'c' => self.global()?,
            b'}' => self.stack.push(Value::Facts),
            b']' => {
                self.made += 1;
                self.stack.push(Value::Keys(self.made));
            }
            b')' => self.tuple(0)?,
            0x85..=0x87 => self.tuple(usize::from(code - 0x84))?,
            b't' => {
                let items = self.stack.len() - self.mark()?;
                self.tuple(items)?;
            }
            b'q' => {
                let number = u32::from(self.byte()?);
                self.remember(number)?;
            }
            b'r' => {
                let number = u32::from_le_bytes(self.take()?);
                self.remember(number)?;
            }
            b'h' => {
                let number = u32::from(self.byte()?);
                self.recall(number)?;
            }
            b'j' => {
                let number = u32::from_le_bytes(self.take()?);
                self.recall(number)?;
            }
            b'R' => self.make()?,
            b'Q' => self.persistent()?,
            b's' => {
                let first = self.stack.len().checked_sub(2);
                self.entries(first.ok_or_else(|| self.wrong("takes more values than there are"))?)?;
            }
            b'u' => {
                let first = self.mark()?;
                self.entries(first)?;
            }
            b'a' => {
                let first = self.stack.len().checked_sub(1);
                self.items(first.ok_or_else(|| self.wrong("takes more values than there are"))?)?;
            }
            b'e' => {
                let first = self.mark()?;
                self.items(first)?;
            }
            b'b' => {
                // What is known of an OrderedDict besides its entries: versions of modules.
                self.pop()?;
                if !matches!(self.stack.last(), Some(Value::Ordered(_))) {
                    return Err(self.wrong("sets attributes of another thing than an OrderedDict"));
                }
            }
            _ => return Err(self.unknown(code)),
        }
        Ok(())
    }

    /// Refuses the instruction where it began.
    fn wrong(&self, what: &str) -> String {
        format!("{what}, at byte {}", self.instruction)
    }

    fn unknown(&self, code: u8) -> String {
        let name = match code {
            b'0' => "POP",
            b'2' => "DUP",
            b'i' => "INST",
            b'o' => "OBJ",
            0x81 => "NEWOBJ",
            0x82..=0x84 => "EXT",
            0x8a => "LONG1",
            b'G' => "BINFLOAT",
            _ => "unknown here",
        };
        let shown = if code.is_ascii_graphic() { format!("'{}', ", code as char) } else { String::new() };
        format!(
            "has the pickle instruction 0x{code:02x} ({shown}{name}) at byte {}, which a dictionary of tensors does not \
             need: nothing of the file is run. Load it where it comes from, and save with safetensors.torch.save_file",
            self.instruction
        )
    }

    fn take<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let (taken, _) = rest.split_first_chunk().ok_or_else(|| self.cut())?;
        self.at += N;
        Ok(*taken)
    }
    fn byte(&mut self) -> Outcome<u8> {
        let [byte] = self.take()?;
        Ok(byte)
    }
    fn cut(&self) -> String {
        format!("is cut off at byte {}, in a pickle", self.bytes.len())
    }
    fn number<const N: usize>(&mut self, number: impl Fn([u8; N]) -> i64) -> Outcome<()> {
        let bytes = self.take()?;
        self.stack.push(Value::Number(number(bytes)));
        Ok(())
    }
    fn utf8(&self, bytes: &'a [u8]) -> Outcome<&'a str> {
        std::str::from_utf8(bytes).map_err(|_| self.wrong("has a text that is not UTF-8"))
    }
    fn text(&mut self) -> Outcome<&'a str> {
        let length = u32::from_le_bytes(self.take()?) as usize;
        let bytes =
            self.bytes.get(self.at..).and_then(|rest| rest.get(..length)).ok_or_else(|| self.cut())?;
        self.at += length;
        self.utf8(bytes)
    }
    /// The text up to the end of the line.
    fn line(&mut self) -> Outcome<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().take(256).position(|&byte| byte == b'\n');
        let length = length.ok_or_else(|| self.wrong("has a name without an end"))?;
        self.at += length + 1;
        self.utf8(&rest[..length])
    }
    fn pop(&mut self) -> Outcome<Value<'a>> {
        // Values before a mark are not what the mark is for.
        let least = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= least {
            return Err(self.wrong("takes more values than there are"));
        }
        self.stack.pop().ok_or_else(|| self.cut())
    }
    /// Takes the last mark: where the values behind it begin.
    fn mark(&mut self) -> Outcome<usize> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len());
        mark.ok_or_else(|| self.wrong("takes a mark that is not there"))
    }

    fn global(&mut self) -> Outcome<()> {
        let module = self.line()?;
        let name = self.line()?;
        let Some(global) = Global::of(module, name) else {
            let what = format!(
                "names {module}.{name}, and files of f32 tensors alone are read: nothing of the file is run. Load it where \
                 it comes from, and save with safetensors.torch.save_file"
            );
            return Err(self.wrong(&what));
        };
        self.stack.push(Value::Global(global));
        Ok(())
    }

    fn tuple(&mut self, items: usize) -> Outcome<()> {
        let first = self.stack.len().checked_sub(items);
        let first = first.ok_or_else(|| self.wrong("takes more values than there are"))?;
        let items = self.stack.split_off(first);
        // Tuples of tuples of tuples without end would be dropped by as many calls.
        if items.iter().any(Value::is_tuple_of_tuples) {
            return Err(self.wrong("has tuples in tuples in tuples"));
        }
        self.stack.push(Value::Tuple(Rc::new(items)));
        Ok(())
    }

    fn remember(&mut self, number: u32) -> Outcome<()> {
        let value = self.stack.last().cloned();
        let value = value.ok_or_else(|| self.wrong("takes more values than there are"))?;
        self.memo.insert(number, value);
        Ok(())
    }
    fn recall(&mut self, number: u32) -> Outcome<()> {
        let value = self.memo.get(&number).cloned();
        let value =
            value.ok_or_else(|| self.wrong(&format!("recalls value {number}, which is not there")))?;
        self.stack.push(value);
        Ok(())
    }

    /// What a name makes of a tuple.
    fn make(&mut self) -> Outcome<()> {
        let given = self.pop()?;
        let value = match self.pop()? {
            Value::Global(Global::OrderedDict) => {
                self.made += 1;
                Value::Ordered(self.made)
            }
            Value::Global(Global::RebuildTensor) => {
                Value::Tensor(Rc::new(given.tensor().map_err(|what| self.wrong(&what))?))
            }
            _ => return Err(self.wrong("calls what is neither an OrderedDict nor a tensor")),
        };
        self.stack.push(value);
        Ok(())
    }

    fn persistent(&mut self) -> Outcome<()> {
        let id = self.pop()?;
        let (kind, key, count) =
            id.storage().ok_or_else(|| self.wrong("has an id that is not that of a storage"))?;
        if *self.storages.entry(key).or_insert((kind, count)) != (kind, count) {
            return Err(self.wrong(&format!("has two storages '{key}'")));
        }
        self.stack.push(Value::Storage(kind, key, count));
        Ok(())
    }

    /// Entries, from there on the stack, into the dictionary below them.
    fn entries(&mut self, first: usize) -> Outcome<()> {
        let entries = self.stack.split_off(first);
        let (pairs, rest) = entries.as_chunks::<2>();
        let holder = self.stack.last().filter(|_| rest.is_empty());
        match holder {
            Some(&Value::Ordered(number)) => {
                let tensors = pairs.iter().filter_map(|[key, value]| match (key, value) {
                    (Value::Text(name), Value::Tensor(stored)) => Some((*name, Stored::clone(stored))),
                    _ => None,
                });
                let mut tensors = tensors.peekable();
                // Every tensor brings an empty one of its hooks.
                if tensors.peek().is_some() {
                    self.dictionaries.entry(number).or_default().extend(tensors);
                }
                Ok(())
            }
            Some(Value::Facts) => {
                let other = |[key, value]: &[Value<'_>; 2]| {
                    matches!((key, value), (Value::Text("little_endian"), Value::Flag(false)))
                };
                if pairs.iter().any(other) {
                    return Err(self.wrong("was written in another byte order"));
                }
                Ok(())
            }
            _ => Err(self.wrong("puts entries into what is no dictionary")),
        }
    }

    /// Texts, from there on the stack, into the list below them.
    fn items(&mut self, first: usize) -> Outcome<()> {
        let items = self.stack.split_off(first);
        let Some(&Value::Keys(number)) = self.stack.last() else {
            return Err(self.wrong("puts items into what is no list"));
        };
        for item in items {
            let Value::Text(text) = item else {
                return Err(self.wrong("has a list of other things than texts"));
            };
            self.lists.entry(number).or_default().push(text);
        }
        Ok(())
    }
}
