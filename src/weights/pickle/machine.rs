//! The stack machine: instructions of protocols 0 to 5 that make data; those that run code are not there.

use std::collections::HashMap;

use super::classes::{self, Class};
use super::source::Source;
use super::text::{raw_unicode, shortened, unquoted};
use super::value::{Object, Pickle, Value, short_text};
use super::{MAX_STEPS, Outcome};

/// Reads one pickle from `source`, which then stands behind it.
pub fn load(source: &mut Source) -> Outcome<Pickle> {
    let mut machine = Machine {
        source,
        stack: vec![],
        marks: vec![],
        memo: HashMap::new(),
        objects: vec![],
        steps: 0,
        copied_bytes: 0,
    };
    let root = machine.run()?;
    Ok(Pickle { objects: machine.objects, root })
}

pub(super) struct Machine<'a, 'b> {
    source: &'a mut Source<'b>,
    stack: Vec<Value>,
    /// Heights of the stack at the marks that are still open.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    pub(super) objects: Vec<Object>,
    steps: usize,
    copied_bytes: u64,
}

impl Machine<'_, '_> {
    fn run(&mut self) -> Outcome<Value> {
        loop {
            let at = self.source.position();
            let instruction = self.source.byte()?;
            self.charge(1)?;
            if instruction == b'.' {
                return self.pop();
            }
            let known = self.number(instruction)?
                || self.text(instruction)?
                || self.container(instruction)?
                || self.stack_or_memo(instruction)?
                || self.class(instruction)?;
            if !known {
                return Err(format!("byte {at}: no pickle of weights has the instruction 0x{instruction:02x}"));
            }
        }
    }

    /// Counts work that one instruction makes, so that the whole of it stays within [`MAX_STEPS`].
    pub(super) fn charge(&mut self, steps: usize) -> Outcome<()> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > MAX_STEPS {
            return Err(format!("byte {}: a pickle of more than {MAX_STEPS} instructions", self.source.position()));
        }
        Ok(())
    }

    /// Counts bytes that are made from others: no more than the file has.
    pub(super) fn charge_bytes(&mut self, bytes: usize) -> Outcome<()> {
        self.copied_bytes += bytes as u64;
        if self.copied_bytes > self.source.end() {
            return Err(format!("byte {}: more bytes are made than the file has", self.source.position()));
        }
        Ok(())
    }

    pub(super) fn add(&mut self, object: Object) -> Value {
        self.objects.push(object);
        Value::Object(self.objects.len() - 1)
    }

    fn push(&mut self, value: Value) {
        self.stack.push(value);
    }

    fn push_object(&mut self, object: Object) {
        let value = self.add(object);
        self.push(value);
    }

    fn pop(&mut self) -> Outcome<Value> {
        self.stack.pop().ok_or_else(|| format!("byte {}: nothing is left on the stack", self.source.position()))
    }

    fn top(&self) -> Outcome<Value> {
        self.stack.last().copied().ok_or_else(|| format!("byte {}: nothing is on the stack", self.source.position()))
    }

    fn pop_to_mark(&mut self) -> Outcome<Vec<Value>> {
        let start = self.marks.pop().filter(|&start| start <= self.stack.len());
        let start = start.ok_or_else(|| format!("byte {}: no mark is on the stack", self.source.position()))?;
        Ok(self.stack.split_off(start))
    }

    fn object_mut(&mut self, value: Value) -> Option<&mut Object> {
        match value {
            Value::Object(place) => self.objects.get_mut(place),
            _ => None,
        }
    }

    fn number(&mut self, instruction: u8) -> Outcome<bool> {
        let value = match instruction {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'K' => Value::Int(i64::from(self.source.byte()?)),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.source.array()?))),
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.source.array()?))),
            b'G' => Value::Float(f64::from_be_bytes(self.source.array()?)),
            b'F' => {
                let line = self.source.text_line()?;
                Value::Float(line.trim().parse().map_err(|_| format!("{line:?} is no number"))?)
            }
            b'I' | b'L' => self.decimal()?,
            0x8a => {
                let len = u64::from(self.source.byte()?);
                self.long(len)?
            }
            0x8b => {
                let len = u64::from(u32::from_le_bytes(self.source.array()?));
                self.long(len)?
            }
            _ => return Ok(false),
        };
        self.push(value);
        Ok(true)
    }

    /// Digits on a line; `00` and `01` are the booleans of protocol 0.
    fn decimal(&mut self) -> Outcome<Value> {
        let line = self.source.text_line()?;
        let digits = line.trim().trim_end_matches('L');
        match digits {
            "00" => Ok(Value::Bool(false)),
            "01" => Ok(Value::Bool(true)),
            _ if digits.len() > 19 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(self.add(Object::BigInt)),
            _ => digits.parse().map(Value::Int).map_err(|_| format!("{:?} is no integer", shortened(digits))),
        }
    }

    /// A little-endian integer of any length.
    fn long(&mut self, len: u64) -> Outcome<Value> {
        let bytes = self.source.bytes(len)?;
        if bytes.len() > 8 {
            return Ok(self.add(Object::BigInt));
        }
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..bytes.len()].copy_from_slice(&bytes);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    fn text(&mut self, instruction: u8) -> Outcome<bool> {
        let object = match instruction {
            0x8c => Object::Text(self.counted_text::<1>()?),
            b'X' => Object::Text(self.counted_text::<4>()?),
            0x8d => Object::Text(self.counted_text::<8>()?),
            b'U' | b'C' => Object::Bytes(self.counted::<1>()?),
            b'T' | b'B' => Object::Bytes(self.counted::<4>()?),
            0x8e | 0x96 => Object::Bytes(self.counted::<8>()?),
            b'S' => Object::Bytes(unquoted(&self.source.line()?)?),
            b'V' => Object::Text(raw_unicode(&self.source.line()?)),
            _ => return Ok(false),
        };
        self.push_object(object);
        Ok(true)
    }

    /// A length of `N` little-endian bytes.
    fn length<const N: usize>(&mut self) -> Outcome<u64> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.source.array::<N>()?);
        Ok(u64::from_le_bytes(wide))
    }

    fn counted<const N: usize>(&mut self) -> Outcome<Vec<u8>> {
        let len = self.length::<N>()?;
        self.source.bytes(len)
    }

    fn counted_text<const N: usize>(&mut self) -> Outcome<String> {
        let len = self.length::<N>()?;
        self.source.text(len)
    }

    fn container(&mut self, instruction: u8) -> Outcome<bool> {
        match instruction {
            // Sets are harmless and only listed.
            b']' | b')' | 0x8f => self.push_object(Object::List(vec![])),
            b'}' => self.push_object(Object::Dict(vec![])),
            b'l' | b't' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push_object(Object::List(items));
            }
            0x85..=0x87 => {
                let len = usize::from(instruction - 0x84);
                let start = self.stack.len().checked_sub(len).ok_or("a tuple of more items than there are")?;
                let items = self.stack.split_off(start);
                self.push_object(Object::List(items));
            }
            b'd' => {
                let pairs = pairs(self.pop_to_mark()?)?;
                self.push_object(Object::Dict(pairs));
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.extend_list(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(vec![(key, value)])?;
            }
            b'u' => {
                let pairs = pairs(self.pop_to_mark()?)?;
                self.extend_dict(pairs)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn extend_list(&mut self, items: Vec<Value>) -> Outcome<()> {
        let list = self.top()?;
        match self.object_mut(list) {
            Some(Object::List(list)) => list.extend(items),
            _ => return Err("items are added to something that is no list".into()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, pairs: Vec<(Value, Value)>) -> Outcome<()> {
        let dict = self.top()?;
        match self.object_mut(dict) {
            Some(Object::Dict(dict)) => dict.extend(pairs),
            _ => return Err("entries are added to something that is no dict".into()),
        }
        Ok(())
    }

    fn stack_or_memo(&mut self, instruction: u8) -> Outcome<bool> {
        match instruction {
            // PROTO and FRAME say nothing that is needed.
            0x80 => drop(self.source.byte()?),
            0x95 => drop(self.source.array::<8>()?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => self.push(self.top()?),
            b'p' | b'q' | b'r' | 0x94 => {
                let key = if instruction == 0x94 { self.memo.len() as u64 } else { self.memo_key(instruction)? };
                let top = self.top()?;
                self.memo.insert(key, top);
            }
            b'g' | b'h' | b'j' => {
                let key = self.memo_key(instruction)?;
                let value = self.memo.get(&key).copied();
                self.push(value.ok_or_else(|| format!("nothing was remembered under {key}"))?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn memo_key(&mut self, instruction: u8) -> Outcome<u64> {
        match instruction {
            b'p' | b'g' => {
                let line = self.source.text_line()?;
                line.trim().parse().map_err(|_| format!("{:?} is no key of the memo", shortened(&line)))
            }
            b'q' | b'h' => self.length::<1>(),
            _ => self.length::<4>(),
        }
    }

    /// Instructions that name a class, call it, or fill what it made.
    fn class(&mut self, instruction: u8) -> Outcome<bool> {
        match instruction {
            b'c' | b'i' => {
                let (module, name) = (self.source.text_line()?, self.source.text_line()?);
                let class = Class::find(&module, &name)?;
                if instruction == b'i' {
                    let arguments = self.pop_to_mark()?;
                    let made = classes::call(self, class, &arguments)?;
                    self.push(made);
                } else {
                    self.push_object(Object::Class(class));
                }
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text =
                    |value| short_text(&self.objects, value).ok_or("a class is named by something else than text");
                let class = Class::find(&text(module)?, &text(name)?)?;
                self.push_object(Object::Class(class));
            }
            // REDUCE and NEWOBJ.
            b'R' | 0x81 => {
                let (arguments, class) = (self.pop()?, self.pop()?);
                let class = self.class_of(class)?;
                let arguments = self.take_list(arguments)?;
                let made = classes::call(self, class, &arguments)?;
                self.push(made);
            }
            b'b' => {
                let (state, object) = (self.pop()?, self.top()?);
                classes::build(self, object, state)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let id = self.take_list(id)?;
                let storage = classes::storage(&self.objects, &id)?;
                self.push_object(Object::Storage(storage));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn class_of(&self, value: Value) -> Outcome<Class> {
        match value {
            Value::Object(place) => match self.objects.get(place) {
                Some(Object::Class(class)) => Ok(*class),
                _ => Err("something is called that is no class".into()),
            },
            _ => Err("something is called that is no class".into()),
        }
    }

    /// A copy of a list of arguments.
    pub(super) fn take_list(&mut self, value: Value) -> Outcome<Vec<Value>> {
        let Value::Object(place) = value else { return Err("expected a tuple of arguments".into()) };
        match self.objects.get(place) {
            Some(Object::List(items)) => {
                let items = items.clone();
                self.charge(items.len())?;
                Ok(items)
            }
            _ => Err("expected a tuple of arguments".into()),
        }
    }
}

fn pairs(items: Vec<Value>) -> Outcome<Vec<(Value, Value)>> {
    match items.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err("a dict with a key that has no value".into()),
    }
}
