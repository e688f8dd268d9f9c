//! Untyped configuration values: what a YAML file or a `KEY VALUE` override says, before a key's type is known.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::literal;

/// Any value that YAML or a Python literal can spell.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// `null`, `~`, `None` or nothing.
    None,
    /// `True`, `yes`, `on`, …
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A number with a point or an exponent.
    Float(f64),
    /// Text.
    Text(String),
    /// A list or a tuple.
    List(Vec<Value>),
    /// A section: keys in the order of the file, with their lines.
    Section(Vec<(String, Line, Value)>),
}

/// A line number; no part of a value's identity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line(pub u64);

impl PartialEq for Line {
    fn eq(&self, _: &Line) -> bool {
        true
    }
}

impl Value {
    /// The kind of value, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::None => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Section(_) => "a section",
        }
    }

    /// Text that spells a Python literal becomes that literal, as PySlowFast (yacs) does it: `1e-4`, `(0.5, 0.7)`, `None`.
    pub fn decoded(self) -> Value {
        match self {
            Value::Text(text) => literal::parse(&text).unwrap_or(Value::Text(text)),
            Value::List(items) => Value::List(items.into_iter().map(Value::decoded).collect()),
            other => other,
        }
    }
}

impl fmt::Display for Value {
    /// One line of flow YAML that reads back as the same value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::None => f.write_str("null"),
            Value::Bool(b) => f.write_str(if *b { "True" } else { "False" }),
            Value::Int(i) => write!(f, "{i}"),
            Value::Float(x) => write_float(f, *x),
            Value::Text(text) => write!(f, "{}", quoted(text)),
            Value::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Value::Section(_) => f.write_str("{…}"),
        }
    }
}

/// Shortest text that reads back as the same bits, always recognisable as a number with a fraction.
fn write_float(f: &mut fmt::Formatter<'_>, x: f64) -> fmt::Result {
    if x.is_nan() {
        f.write_str(".nan")
    } else if x.is_infinite() {
        f.write_str(if x > 0.0 { ".inf" } else { "-.inf" })
    } else {
        write!(f, "{x:?}")
    }
}

/// Plain where YAML reads plain text back unchanged, else double-quoted.
fn quoted(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
        && literal::parse(text).is_none()
        && literal::yaml_word(text).is_none();
    if plain {
        return text.to_string();
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Reads YAML; the error is `line N: what is wrong`.
pub(super) fn read_yaml(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options::<Value>(text, options).map_err(|error| {
        let line = error.location().map_or(String::new(), |l| format!("line {}, column {}: ", l.line(), l.column()));
        let message = error.without_snippet().to_string();
        // The parser repeats the place at the end, and names settings of its own; neither helps here.
        let message = [" at line ", ", set DuplicateKeyPolicy", "; use from_str_multiple"]
            .iter()
            .fold(message.as_str(), |m, end| m.split(end).next().unwrap_or(m));
        format!("{line}not valid YAML: {message}")
    })
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a configuration value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::None)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = vec![];
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = vec![];
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            entries.push((key.value, Line(key.referenced.line()), map.next_value()?));
        }
        Ok(Value::Section(entries))
    }
}
