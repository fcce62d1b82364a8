//! Python pickles, read without executing them.
//!
//! A pickle is a program for a machine with a stack. The opcodes that would call a function or make an object leave a
//! description of the call here ([`Value::Call`]): nothing is imported, looked up or run, whatever the file says. What
//! the calls mean is decided by whoever reads the values. All opcodes of protocols 2 to 5 that dictionaries of arrays
//! are written with are known; others are refused.

use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;

/// Index into [`Pickle::values`]. Containers hold indices, so that shared and cyclic values need no counting.
pub(crate) type Id = usize;

/// Of a class, with its module, in bytes.
const LONGEST_NAME: usize = 4096;

/// A value as the file describes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of up to eight bytes.
    Int(i64),
    /// A float.
    Float(f64),
    /// Bytes; also a text of Python 2, and an integer of more than eight bytes, little-endian.
    Bytes(&'a [u8]),
    /// A text.
    Text(&'a str),
    /// A list, tuple or set.
    List(Vec<Id>),
    /// A dictionary.
    Dict(Vec<(Id, Id)>),
    /// A class or function by its full name.
    Name(String),
    /// Something that lies outside of the pickle, by the description in its place.
    Persistent(Id),
    /// What a function would have made, never called.
    Call {
        /// A [`Value::Name`] as a rule.
        function: Id,
        /// A [`Value::List`].
        args: Id,
        /// What the result's `__setstate__` would have been given.
        state: Option<Id>,
        /// Entries set afterwards, as in an `OrderedDict`.
        entries: Vec<(Id, Id)>,
    },
}

/// A pickle that was read.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    /// Every value.
    pub(crate) values: Vec<Value<'a>>,
    /// The one that the pickle stands for.
    pub(crate) root: Id,
    /// Bytes that it took.
    pub(crate) len: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle at the beginning of `bytes`.
    ///
    /// # Errors
    /// What is cut off, damaged, or uses an opcode that no dictionary of arrays needs; with the place in the file.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut machine =
            Machine { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), values: Vec::new() };
        loop {
            let at = machine.at;
            match machine.step().with_context(|| format!("the pickle is damaged or unusual at byte {at}"))? {
                None => {}
                Some(root) => return Ok(Self { values: machine.values, root, len: machine.at }),
            }
        }
    }

    /// The value `id`.
    pub(crate) fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id]
    }

    /// Items of a list or tuple; none for anything else.
    pub(crate) fn items(&self, id: Id) -> &[Id] {
        if let Value::List(items) = self.get(id) { items } else { &[] }
    }

    /// Entries of a dictionary, or of an object that entries were set in, such as an `OrderedDict`.
    pub(crate) fn entries(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Value::Dict(entries) => Some(entries),
            Value::Call { function, entries, .. } if self.name(*function) == Some("collections.OrderedDict") => Some(entries),
            _ => None,
        }
    }

    /// The text `id`; a text of Python 2 as well.
    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match *self.get(id) {
            Value::Text(text) => Some(text),
            Value::Bytes(bytes) => str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Full name of the class or function `id`.
    pub(crate) fn name(&self, id: Id) -> Option<&str> {
        if let Value::Name(name) = self.get(id) { Some(name) } else { None }
    }

    /// The count `id`.
    pub(crate) fn size(&self, id: Id) -> Option<usize> {
        if let Value::Int(value) = self.get(id) { usize::try_from(*value).ok() } else { None }
    }

    /// The counts of the tuple `id`.
    pub(crate) fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        if let Value::List(items) = self.get(id) { items.iter().map(|&item| self.size(item)).collect() } else { None }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
    values: Vec<Value<'a>>,
}

impl<'a> Machine<'a> {
    /// One opcode; the value of the pickle if it was the last.
    fn step(&mut self) -> Result<Option<Id>> {
        let [opcode] = self.array::<1>()?;
        match opcode {
            // PROTO, FRAME.
            0x80 => self.take(1).map(drop)?,
            0x95 => self.take(8).map(drop)?,
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => self.pop().map(drop)?,
            b'1' => self.popped_to_mark().map(drop)?,
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => self.integer::<1>()?,
            b'M' => self.integer::<2>()?,
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()));
            }
            // LONG1, LONG4.
            0x8a => self.long::<1>()?,
            0x8b => self.long::<4>()?,
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(value));
            }
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8; SHORT_BINSTRING, BINSTRING of Python 2.
            b'C' | b'U' => self.blob::<1>()?,
            b'B' | b'T' => self.blob::<4>()?,
            0x8e | 0x96 => self.blob::<8>()?,
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8.
            0x8c => self.text::<1>()?,
            b'X' => self.text::<4>()?,
            0x8d => self.text::<8>()?,
            // EMPTY_LIST, EMPTY_TUPLE, EMPTY_SET.
            b']' | b')' | 0x8f => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            // LIST, TUPLE, FROZENSET.
            b'l' | b't' | 0x91 => {
                let items = self.popped_to_mark()?;
                self.push(Value::List(items));
            }
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b'd' => {
                let items = self.popped_to_mark()?;
                self.push(Value::Dict(pairs(&items)?));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            // APPENDS, ADDITEMS.
            b'e' | 0x90 => {
                let items = self.popped_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![(key, value)])?;
            }
            b'u' => {
                let items = self.popped_to_mark()?;
                self.set(pairs(&items)?)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Name(format!("{module}.{name}")));
            }
            // STACK_GLOBAL.
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.values[module], &self.values[name]) {
                    // Names are copies: a short file could ask for many long ones.
                    (Value::Text(module), Value::Text(name)) if module.len() + name.len() <= LONGEST_NAME => {
                        self.push(Value::Name(format!("{module}.{name}")));
                    }
                    _ => bail!("a class without a name"),
                }
            }
            // REDUCE, NEWOBJ.
            b'R' | 0x81 => {
                let (args, function) = (self.pop()?, self.pop()?);
                self.push(Value::Call { function, args, state: None, entries: Vec::new() });
            }
            // NEWOBJ_EX, with arguments by name.
            0x92 => {
                let (_, args, function) = (self.pop()?, self.pop()?, self.pop()?);
                self.push(Value::Call { function, args, state: None, entries: Vec::new() });
            }
            b'b' => {
                let given = self.pop()?;
                let top = self.top()?;
                if let Value::Call { state, .. } = &mut self.values[top] {
                    *state = Some(given);
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            // BINPUT, LONG_BINPUT, MEMOIZE; BINGET, LONG_BINGET.
            b'q' => self.remember::<1>()?,
            b'r' => self.remember::<4>()?,
            0x94 => {
                let (place, top) = (self.memo.len(), self.top()?);
                self.memo.insert(place, top);
            }
            b'h' => self.recall::<1>()?,
            b'j' => self.recall::<4>()?,
            other => bail!("opcode {other:#04x} is not one that a dictionary of arrays is written with"),
        }
        Ok(None)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let taken = self.at.checked_add(len).and_then(|end| self.bytes.get(self.at..end)).context("it is cut off")?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    /// A count of `N` bytes.
    fn count<const N: usize>(&mut self) -> Result<usize> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(self.take(N)?);
        Ok(usize::try_from(u64::from_le_bytes(wide))?)
    }

    fn line(&mut self) -> Result<&'a str> {
        let len =
            self.bytes.get(self.at..).unwrap_or_default().iter().position(|&byte| byte == b'\n').context("it is cut off")?;
        let line = self.take(len)?;
        self.at += 1;
        Ok(str::from_utf8(line)?)
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id> {
        ensure!(self.stack.len() > self.marks.last().copied().unwrap_or(0), "its stack is empty");
        self.stack.pop().context("its stack is empty")
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().context("its stack is empty")
    }

    fn popped_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().context("it has no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn integer<const N: usize>(&mut self) -> Result<()> {
        let value = i64::try_from(self.count::<N>()?)?;
        self.push(Value::Int(value));
        Ok(())
    }

    fn long<const N: usize>(&mut self) -> Result<()> {
        let len = self.count::<N>()?;
        let bytes = self.take(len)?;
        let is_negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if is_negative { 0xff } else { 0 }; 8];
        if len > wide.len() {
            self.push(Value::Bytes(bytes));
        } else {
            wide[..len].copy_from_slice(bytes);
            self.push(Value::Int(i64::from_le_bytes(wide)));
        }
        Ok(())
    }

    fn blob<const N: usize>(&mut self) -> Result<()> {
        let len = self.count::<N>()?;
        let bytes = self.take(len)?;
        self.push(Value::Bytes(bytes));
        Ok(())
    }

    fn text<const N: usize>(&mut self) -> Result<()> {
        let len = self.count::<N>()?;
        let bytes = self.take(len)?;
        // Lone surrogates are legal in Python; a name with one is not a name that anybody looks for.
        self.push(str::from_utf8(bytes).map_or(Value::Bytes(bytes), Value::Text));
        Ok(())
    }

    fn tuple(&mut self, len: usize) -> Result<()> {
        let mut items = (0..len).map(|_| self.pop()).collect::<Result<Vec<Id>>>()?;
        items.reverse();
        self.push(Value::List(items));
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        match &mut self.values[top] {
            Value::List(list) => list.extend(items),
            // A list of some class: nobody looks into it.
            Value::Call { .. } => {}
            _ => bail!("it appends to what is no list"),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<(Id, Id)>) -> Result<()> {
        let top = self.top()?;
        match &mut self.values[top] {
            Value::Dict(entries) | Value::Call { entries, .. } => entries.extend(items),
            _ => bail!("it sets entries of what is no dictionary"),
        }
        Ok(())
    }

    fn remember<const N: usize>(&mut self) -> Result<()> {
        let (place, top) = (self.count::<N>()?, self.top()?);
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall<const N: usize>(&mut self) -> Result<()> {
        let place = self.count::<N>()?;
        self.stack.push(*self.memo.get(&place).context("it recalls what it has not remembered")?);
        Ok(())
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    ensure!(rest.is_empty(), "a key without a value");
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_described_and_not_made() {
        // pickle.dumps of an object whose __reduce__ is (os.system, ("true",)), protocol 2.
        let bytes = b"\x80\x02cposix\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03.";
        let pickle = Pickle::read(bytes).unwrap();
        assert_eq!(pickle.len, bytes.len());
        let Value::Call { function, args, .. } = pickle.get(pickle.root) else { panic!("{:?}", pickle.get(pickle.root)) };
        assert_eq!(pickle.name(*function), Some("posix.system"));
        assert_eq!(pickle.text(pickle.items(*args)[0]), Some("true"));
    }

    /// Names are copies; a text that is remembered could be copied again and again.
    #[test]
    fn long_names_are_refused() {
        let text = |len: u32| [b"X".as_slice(), &len.to_le_bytes(), &vec![b'a'; len as usize]].concat();
        let named = |len: u32| [b"\x80\x04".as_slice(), &text(len), b"\x94", &text(1), b"\x93."].concat();
        assert!(Pickle::read(&named(100)).is_ok());
        assert!(Pickle::read(&named(1 << 20)).is_err());
    }

    #[test]
    fn damage_is_refused() {
        let whole = b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x01s.";
        assert!(Pickle::read(whole).is_ok());
        for len in 0..whole.len() {
            assert!(Pickle::read(&whole[..len]).is_err(), "{len} bytes");
        }
        for (bytes, part) in [
            (&b"."[..], "empty"),
            (b"(K\x01K\x02K\x03u.", "key without"),
            (b"]h\x07.", "not remembered"),
            (b"K\x01K\x02a.", "no list"),
            (b"t.", "no mark"),
            (b"]X\xff\xff\xff\xff.", "cut off"),
            (b"I1\n.", "0x49"),
            (b"](0.", "empty"),
        ] {
            let error = format!("{:#}", Pickle::read(bytes).unwrap_err());
            assert!(error.contains(part) && error.contains("at byte"), "{bytes:?}: {error}");
        }
    }
}
