//! The one error type of the crate.

/// What can go wrong, with the operation, what was expected and what came.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Tensors or parameters whose sizes do not fit together. Check the shapes named in the message.
    #[error("{op}: {message}")]
    Shape {
        /// The operation that refused, such as `conv3d forward`.
        op: &'static str,
        /// What was expected and what came.
        message: String,
    },
    /// Something that is well-formed but not available on this executor, device or build.
    #[error("{what} is not supported: {message}")]
    Unsupported {
        /// The thing asked for.
        what: String,
        /// Why not, and what to do instead.
        message: String,
    },
    /// No usable device: no driver library, a driver too old, or no GPU. Use `--device cpu`, or install a driver.
    #[error("no usable device: {0}")]
    NoDevice(String),
    /// The driver or the emulator reported a failure while `op` ran.
    #[error("{op}: {message}")]
    Driver {
        /// The operation that failed.
        op: String,
        /// The driver's own words.
        message: String,
    },
    /// A configuration key, value or command line that cannot be used.
    #[error("config: {0}")]
    Config(String),
    /// A file of the user that cannot be read or written; `path` is as the user gave it.
    #[error("{path}: {message}")]
    Io {
        /// The file.
        path: String,
        /// What went wrong with it.
        message: String,
    },
    /// A video that cannot be decoded.
    #[error("{path}: cannot decode: {message}")]
    Decode {
        /// The file.
        path: String,
        /// Which decoder refused it, and why.
        message: String,
    },
    /// A data set that cannot be used: bad list files, labels out of range, no clip left.
    #[error("data: {0}")]
    Data(String),
    /// A loss that stays non-finite.
    #[error("training: {0}")]
    Diverged(String),
    /// A checkpoint that does not fit the model or cannot be read.
    #[error("checkpoint: {0}")]
    Checkpoint(String),
}

/// `std::result::Result` with [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A [`Error::Shape`].
    pub fn shape(op: &'static str, message: impl Into<String>) -> Self {
        Error::Shape { op, message: message.into() }
    }

    /// A [`Error::Unsupported`].
    pub fn unsupported(what: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Unsupported { what: what.into(), message: message.into() }
    }

    /// A [`Error::Io`] from an [`std::io::Error`].
    pub fn io(path: impl AsRef<std::path::Path>, error: &std::io::Error) -> Self {
        Error::Io { path: path.as_ref().display().to_string(), message: error.to_string() }
    }
}
