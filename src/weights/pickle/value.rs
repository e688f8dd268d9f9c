//! What a pickle can hold.

use super::Outcome;
use crate::weights::tensor::ElementType;

/// A value: small ones as they are, others by their place in [`Pickle::objects`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Object(usize),
}

/// What lies in the list of objects.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Text(String),
    /// Bytes, and the 8-bit strings of Python 2.
    Bytes(Vec<u8>),
    /// An integer beyond 64 bits: nothing reads its value.
    BigInt,
    /// A list, a tuple or a set.
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Class(super::classes::Class),
    /// What `numpy.dtype` makes; the byte order comes by `BUILD`.
    DType(ElementType),
    Storage(StorageRef),
    Tensor(TensorRef),
    Array(Array),
}

/// A PyTorch storage: its bytes lie elsewhere in the file under `key`.
#[derive(Clone, Debug, PartialEq)]
pub struct StorageRef {
    pub key: String,
    pub element: ElementType,
    /// Elements.
    pub len: u64,
}

/// A PyTorch tensor: a view of a storage.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorRef {
    pub storage: StorageRef,
    /// Elements before the first one.
    pub offset: u64,
    pub shape: Vec<u64>,
    /// Elements from one index to the next, for each axis.
    pub strides: Vec<u64>,
}

/// A NumPy array with its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub element: ElementType,
    pub shape: Vec<u64>,
    /// The first axis is the innermost one.
    pub is_fortran: bool,
    /// The object that holds the bytes; `None` before `BUILD`.
    pub bytes: Option<usize>,
}

/// A whole pickle: its objects and the value that it ends with.
#[derive(Clone, Debug)]
pub struct Pickle {
    pub objects: Vec<Object>,
    pub root: Value,
}

impl Pickle {
    /// The object behind `value`.
    pub fn object(&self, value: Value) -> Option<&Object> {
        match value {
            Value::Object(place) => self.objects.get(place),
            _ => None,
        }
    }

    /// Entries of a dict.
    pub fn dict(&self, value: Value) -> Option<&[(Value, Value)]> {
        match self.object(value)? {
            Object::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    /// The entry `key` of a dict; as in Python the last one counts.
    pub fn get(&self, dict: Value, key: &str) -> Option<Value> {
        self.dict(dict)?.iter().rev().find(|(k, _)| self.text(*k).as_deref() == Some(key)).map(|(_, value)| *value)
    }

    /// Items of a list, tuple or set.
    pub fn list(&self, value: Value) -> Option<&[Value]> {
        match self.object(value)? {
            Object::List(items) => Some(items),
            _ => None,
        }
    }

    /// A short text, such as a name; see [`short_text`].
    pub fn text(&self, value: Value) -> Option<String> {
        short_text(&self.objects, value)
    }
}

/// Longest text that is looked at, in bytes: no name of a tensor, class or type is longer. A long one that many objects
/// share would be copied for each.
const MAX_TEXT_BYTES: usize = 1024;

/// Text of a bounded length, with the 8-bit strings of Python 2 read as Latin-1; `None` for anything else.
pub(super) fn short_text(objects: &[Object], value: Value) -> Option<String> {
    let Value::Object(place) = value else { return None };
    match objects.get(place)? {
        Object::Text(text) if text.len() <= MAX_TEXT_BYTES => Some(text.clone()),
        Object::Bytes(bytes) if bytes.len() <= MAX_TEXT_BYTES => Some(bytes.iter().map(|&b| char::from(b)).collect()),
        _ => None,
    }
}

/// A list of sizes.
pub(super) fn sizes_of(objects: &[Object], value: Value, what: &str) -> Outcome<Vec<u64>> {
    let wrong = || format!("expected sizes >= 0 as the {what} of a tensor");
    let Value::Object(place) = value else { return Err(wrong()) };
    let Some(Object::List(items)) = objects.get(place) else { return Err(wrong()) };
    let size = |item: &Value| match item {
        Value::Int(i) => u64::try_from(*i).map_err(|_| wrong()),
        _ => Err(wrong()),
    };
    items.iter().map(size).collect()
}
