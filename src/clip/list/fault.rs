//! What can be wrong with a data set.

/// What is wrong with a line of a list or with a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// A line or entry that cannot be read.
    BadLine,
    /// A label that is no class.
    LabelOutOfRange,
    /// The same video, or the same frame, twice.
    Duplicate,
    /// A video that is listed for training and for validation.
    TrainAndVal,
    /// A file that is not there.
    Missing,
    /// A file that does not hold all that its header promises.
    Truncated,
    /// A file that cannot be decoded.
    Undecodable,
}

impl std::fmt::Display for FaultKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FaultKind::BadLine => "bad line",
            FaultKind::LabelOutOfRange => "label out of range",
            FaultKind::Duplicate => "duplicate",
            FaultKind::TrainAndVal => "in train and val",
            FaultKind::Missing => "missing",
            FaultKind::Truncated => "truncated",
            FaultKind::Undecodable => "undecodable",
        })
    }
}

/// Something wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// List and line, or file.
    pub place: String,
    /// In words.
    pub message: String,
}

impl Fault {
    pub(crate) fn new(kind: FaultKind, place: impl std::fmt::Display, message: impl Into<String>) -> Fault {
        Fault { kind, place: place.to_string(), message: message.into() }
    }
}
