//! Configuration: a PySlowFast YAML file plus `KEY VALUE` overrides, as typed structs.
//!
//! | question | file |
//! |---|---|
//! | which keys are read, their types, defaults and meaning | `table.rs` |
//! | words that keys may have for a value | `choices.rs` |
//! | which other keys of PySlowFast are known | `other_keys.txt` |
//! | how a struct answers to key names | `entry.rs` |
//! | which values make sense together, and which cannot be trained | `check.rs` |
//!
//! ```
//! # fn main() -> vcycle::Result<()> {
//! let overrides = ["SOLVER.BASE_LR", "1e-2", "DATA.TRAIN_JITTER_SCALES", "(128, 160)"].map(String::from);
//! let cfg = vcycle::config::Config::parse("DATA: {TRAIN_CROP_SIZE: 112}", "inline", &overrides)?;
//! assert_eq!((cfg.solver.base_lr, cfg.data.train_crop_size, cfg.data.train_jitter_scales), (0.01, 112, [128, 160]));
//! # Ok(()) }
//! ```

mod check;
mod choices;
mod entry;
mod literal;
mod other_keys;
mod table;
mod value;

use std::path::Path;

use entry::{Entry, Refusal};
use value::{Line, Value};

pub use choices::*;
pub use entry::Key;
pub use other_keys::OtherKey;
pub use table::*;

use crate::{Error, Result};

/// Most characters of a value in a message.
const MAX_SHOWN: usize = 80;

impl Config {
    /// Reads the YAML file at `path`, then applies `overrides`: `KEY`, `VALUE`, `KEY`, `VALUE`, …
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read. [`Error::Config`] names the file and line (or the override), the key, what was
    /// expected and what came: bad YAML, an unknown key (with the nearest known one), a value of another type, a key that asks for
    /// something not built, values that contradict each other.
    pub fn load(path: impl AsRef<Path>, overrides: &[String]) -> Result<Config> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, &e))?;
        Config::parse(&text, &path.display().to_string(), overrides)
    }

    /// As [`Config::load`], from text; `name` stands for the file in messages.
    ///
    /// # Errors
    /// Those of [`Config::load`], except that no file is read.
    pub fn parse(yaml: &str, name: &str, overrides: &[String]) -> Result<Config> {
        let mut config = Config::default();
        let root = value::read_yaml(yaml).map_err(|message| Error::Config(format!("{name}: {message}")))?;
        match root {
            Value::Section(entries) => config.assign_section("", &entries, name)?,
            Value::None => {}
            other => {
                let kind = other.kind();
                return Err(Error::Config(format!("{name}: expected sections of keys, got {kind}: {other}")));
            }
        }
        config.apply(overrides)?;
        config.check().map_err(|message| Error::Config(format!("{name}: {message}")))?;
        Ok(config)
    }

    /// The whole configuration as YAML: every key of the table, in its order. Keys that nothing reads are left out.
    pub fn to_yaml(&self) -> String {
        fn write(out: &mut String, indent: usize, value: &Value) {
            let Value::Section(entries) = value else { return };
            for (key, _, value) in entries {
                let pad = "  ".repeat(indent);
                match value {
                    Value::Section(_) => {
                        out.push_str(&format!("{pad}{key}:\n"));
                        write(out, indent + 1, value);
                    }
                    _ => out.push_str(&format!("{pad}{key}: {value}\n")),
                }
            }
        }
        let mut out = String::new();
        write(&mut out, 0, &Entry::value(self));
        out
    }

    /// Every key of the table with its value as YAML, in the table's order.
    pub fn entries(&self) -> Vec<(String, String)> {
        fn collect(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
            match value {
                Value::Section(entries) => {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    entries.iter().for_each(|(key, _, value)| collect(&format!("{prefix}{dot}{key}"), value, out));
                }
                value => out.push((prefix.to_string(), value.to_string())),
            }
        }
        let mut out = vec![];
        collect("", &Entry::value(self), &mut out);
        out
    }

    /// Every key that is read, with type, default and meaning.
    pub fn keys() -> Vec<Key> {
        let mut keys = vec![];
        Config::default().describe("", "", &mut keys);
        keys
    }

    /// Every key of PySlowFast that is known and not read.
    pub fn other_keys() -> Vec<OtherKey> {
        other_keys::all().collect()
    }

    fn assign_section(&mut self, prefix: &str, entries: &[(String, Line, Value)], file: &str) -> Result<()> {
        for (key, Line(line), value) in entries {
            let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            let place = format!("{file}: line {line}");
            match value {
                Value::Section(entries) if is_section(&name) => self.assign_section(&name, entries, file)?,
                Value::None if is_section(&name) => {}
                Value::Section(_) if !known_names().contains(&name) => {
                    let nearest = nearest(&name, section_names());
                    return Err(Error::Config(format!("{place}: unknown section {name}; the nearest is {nearest}")));
                }
                value => self.assign_key(&name, value, &place)?,
            }
        }
        Ok(())
    }

    fn apply(&mut self, overrides: &[String]) -> Result<()> {
        for pair in overrides.chunks(2) {
            let [key, value] = pair else {
                return Err(Error::Config(format!(
                    "override {}: expected KEY VALUE pairs, got no value for it",
                    pair[0]
                )));
            };
            self.assign_key(key, &Value::Text(value.clone()), "override")?;
        }
        Ok(())
    }

    fn assign_key(&mut self, name: &str, value: &Value, place: &str) -> Result<()> {
        let path: Vec<&str> = name.split('.').collect();
        // Decoded first, as yacs does; text that only looks like a literal stays usable for text keys.
        let outcome = match self.assign(&path, &value.clone().decoded()) {
            Err(Refusal::Expected(_)) if matches!(value, Value::Text(_)) => self.assign(&path, value),
            outcome => outcome,
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(Refusal::Expected(expected)) => {
                let mut got = value.clone().decoded().to_string();
                if got.chars().count() > MAX_SHOWN {
                    got = got.chars().take(MAX_SHOWN).chain(['…']).collect();
                }
                let why = other_keys::out_of_scope(name, value).map_or(String::new(), |why| format!(": {why}"));
                Err(Error::Config(format!("{place}: {name}: expected {expected}, got {got}{why}")))
            }
            Err(Refusal::Unknown) => match other_keys::find(name) {
                Some(other) => other
                    .accept(&value.clone().decoded(), value)
                    .map_err(|m| Error::Config(format!("{place}: {name}: {m}"))),
                None => {
                    let nearest = nearest(name, known_names());
                    Err(Error::Config(format!("{place}: unknown key {name}; the nearest known key is {nearest}")))
                }
            },
        }
    }
}

fn known_names() -> Vec<String> {
    let mut names: Vec<String> = Config::keys().into_iter().map(|k| k.name).collect();
    names.extend(other_keys::all().map(|k| k.name.to_string()));
    names
}

fn section_names() -> Vec<String> {
    let mut sections: Vec<String> = known_names()
        .iter()
        .flat_map(|name| name.match_indices('.').map(|(end, _)| name[..end].to_string()).collect::<Vec<_>>())
        .collect();
    sections.sort();
    sections.dedup();
    sections
}

fn is_section(name: &str) -> bool {
    section_names().iter().any(|section| section == name)
}

/// The known name nearest to `name`: by edit distance over the whole, or over the last part where the section differs.
fn nearest(name: &str, known: Vec<String>) -> String {
    let last = |n: &str| n.rsplit('.').next().unwrap_or(n).to_string();
    let name = name.to_ascii_uppercase();
    let score = |known: &String| edit_distance(&name, known).min(edit_distance(&last(&name), &last(known)) + 2);
    known.into_iter().min_by_key(score).unwrap_or_default()
}

/// Levenshtein's distance in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
