//! Python literals, as PySlowFast's `KEY VALUE` overrides and its quoted YAML text use them.

use super::value::Value;

/// The literal that the whole of `text` spells: a number, `True`, `None`, `'text'`, `[1, 2]`, `(0.5, 0.7)`, nested.
/// `None` when it is none: then it is plain text.
pub(super) fn parse(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text.trim(), depth: 0 };
    let value = reader.value()?;
    reader.skip_space();
    reader.rest.is_empty().then_some(value)
}

/// Words that YAML 1.1 (PyYAML) reads as something else than text, beyond those of Python.
pub(super) fn yaml_word(text: &str) -> Option<Value> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" => Some(Value::Bool(true)),
        "false" | "no" | "off" | "n" => Some(Value::Bool(false)),
        "null" | "none" | "~" | "" => Some(Value::None),
        _ => None,
    }
}

/// Lists in lists that are read; deeper ones are no literal of any key.
const MAX_DEPTH: usize = 16;

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
}

impl Reader<'_> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, c: char) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self) -> Option<Value> {
        self.skip_space();
        match self.rest.chars().next()? {
            '[' => self.sequence('[', ']').map(|(items, _)| Value::List(items)),
            '(' => {
                let (mut items, comma) = self.sequence('(', ')')?;
                // Parentheses around one value without a comma only group.
                if items.len() == 1 && !comma { items.pop() } else { Some(Value::List(items)) }
            }
            quote @ ('\'' | '"') => self.text(quote),
            _ => self.word(),
        }
    }

    /// The items, and whether any comma was seen.
    fn sequence(&mut self, open: char, close: char) -> Option<(Vec<Value>, bool)> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        self.take(open);
        let (mut items, mut comma) = (vec![], false);
        while !self.take(close) {
            items.push(self.value()?);
            if self.take(',') {
                comma = true;
            } else if !self.rest.starts_with(close) {
                return None;
            }
        }
        self.depth -= 1;
        Some((items, comma))
    }

    fn text(&mut self, quote: char) -> Option<Value> {
        let body = &self.rest[1..];
        let end = body.find(quote)?;
        if body[..end].contains('\\') {
            return None;
        }
        self.rest = &body[end + 1..];
        Some(Value::Text(body[..end].to_string()))
    }

    fn word(&mut self) -> Option<Value> {
        let end = self.rest.find(|c: char| c.is_whitespace() || ",[]()".contains(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        let value = match word {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::None,
            _ => number(word)?,
        };
        self.rest = rest;
        Some(value)
    }
}

/// A Python number: `3`, `-2`, `1_000`, `.5`, `1e-4`.
fn number(word: &str) -> Option<Value> {
    let digits: String = word.chars().filter(|&c| c != '_').collect();
    let unsigned = digits.trim_start_matches(['+', '-']);
    let starts_well = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    if !starts_well || !unsigned.contains(|c: char| c.is_ascii_digit()) || word.starts_with('_') {
        return None;
    }
    if let Ok(integer) = digits.parse::<i64>() {
        return Some(Value::Int(integer));
    }
    digits.parse::<f64>().ok().map(Value::Float)
}
