//! What became of the tensors of a file.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use super::names::Renaming;
use super::tensor::Format;

/// A tensor whose shape in the file is another one than in the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// PySlowFast's name.
    pub name: String,
    /// In the file.
    pub from: Vec<usize>,
    /// In the model.
    pub to: Vec<usize>,
}

impl Display for Change {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} -> {:?}", self.name, self.from, self.to)
    }
}

/// What became of the tensors of a file in a model. Displayed as lines with counts and first names.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// What was done to its names.
    pub renaming: Renaming,
    /// Tensors of the model that the file has, changed ones included.
    pub matched: Vec<String>,
    /// Of these, 2D filters that were inflated.
    pub inflated: Vec<Change>,
    /// Of these, arrays that only got axes of size 1.
    pub reshaped: Vec<Change>,
    /// Tensors of the classifier that keep their first values, because the file has other classes.
    pub other_classes: Vec<Change>,
    /// Tensors of the model that are not in the file. They keep their values. (`…num_batches_tracked` do not count.)
    pub missing: Vec<String>,
    /// Tensors of the file that the model does not have.
    pub unexpected: Vec<String>,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Report { path, format, renaming, matched, .. } = self;
        write!(f, "{} ({format}): {} tensors fit the model{renaming}", path.display(), matched.len())?;
        let changes = |list: &[Change]| list.iter().map(Change::to_string).collect::<Vec<_>>();
        let classes = "of the classifier keep their first values, because the file has other classes";
        for (what, names) in [
            ("inflated", changes(&self.inflated)),
            ("reshaped", changes(&self.reshaped)),
            (classes, changes(&self.other_classes)),
            ("of the model are missing in the file and keep their values", self.missing.clone()),
            ("of the file are unexpected and not used", self.unexpected.clone()),
        ] {
            if !names.is_empty() {
                write!(f, "\n  {} {what}: {}", names.len(), first_few(&names))?;
            }
        }
        Ok(())
    }
}

/// The first names of a list.
pub(super) fn first_few(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let more = if names.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", names[..names.len().min(SHOWN)].join(", "))
}
