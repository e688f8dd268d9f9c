//! The file of choices: JSON, one entry a machine, in it one a problem.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What the file begins with; changes where older files would be misread.
const FORMAT: &str = "vcycle autotune 1";

/// What a time holds for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Machine {
    /// Name of the GPU.
    pub device: String,
    /// CUDA version of the driver, such as 13000.
    pub driver: i32,
    /// Hash of all compiled kernels.
    pub kernels: String,
}

/// The fastest kernel, and the times of all that were compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Choice {
    pub kernel: String,
    pub microseconds: BTreeMap<String, f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    machine: Machine,
    choices: BTreeMap<String, Choice>,
}

/// A whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Choices {
    format: String,
    machines: Vec<Entry>,
}

fn refused(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::Config(format!(
        "VCYCLE_AUTOTUNE={}: {what}; name another file, or remove this one to time all kernels again",
        path.display()
    ))
}

impl Choices {
    /// The choices in a file; none where it does not exist.
    ///
    /// # Errors
    /// A file that cannot be read, or was not written by [`Choices::write`].
    pub fn read(path: &Path) -> Result<Choices> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Ok(Choices { format: FORMAT.into(), machines: vec![] });
            }
            Err(e) => return Err(refused(path, e)),
        };
        let choices: Choices = serde_json::from_str(&text).map_err(|e| refused(path, e))?;
        if choices.format != FORMAT {
            return Err(refused(path, format!("expected the format \"{FORMAT}\", got \"{}\"", choices.format)));
        }
        Ok(choices)
    }

    /// What was chosen for a problem.
    pub fn find(&self, machine: &Machine, problem: &str) -> Option<&Choice> {
        self.machines.iter().find(|entry| entry.machine == *machine)?.choices.get(problem)
    }

    /// Adds a choice, in the place of an older one.
    pub fn insert(&mut self, machine: &Machine, problem: &str, choice: Choice) {
        let at = self.machines.iter().position(|entry| entry.machine == *machine).unwrap_or_else(|| {
            self.machines.push(Entry { machine: machine.clone(), choices: BTreeMap::new() });
            self.machines.len() - 1
        });
        self.machines[at].choices.insert(problem.into(), choice);
    }

    /// Replaces the file as a whole: who reads meanwhile sees the old one or the new one.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| refused(path, e))?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".{}", std::process::id()));
        std::fs::write(&partial, text + "\n")
            .and_then(|()| std::fs::rename(&partial, path))
            .map_err(|e| refused(path, e))
    }
}
