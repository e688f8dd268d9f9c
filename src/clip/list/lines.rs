//! Lists line by line: some are larger than memory should hold at once.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use super::{Fault, FaultKind, Listing};
use crate::error::{Error, Result};

/// The error of a list that cannot be opened: says which key names its folder.
pub(super) fn unreadable(path: &Path, error: impl std::fmt::Display) -> Error {
    let what = "DATA.PATH_TO_DATA_DIR must name the folder of the data set's lists";
    Error::Data(format!("{}: {error}; {what}", path.display()))
}

/// What is wrong with a line.
pub(super) type Refusal = (FaultKind, String);

/// Calls `parse` with the number (from 1) and the text of every line that is not blank; what it refuses becomes a fault.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn read(
    path: &Path,
    listing: &mut Listing,
    parse: &mut dyn FnMut(&mut Listing, usize, &str) -> Result<(), Refusal>,
) -> Result<()> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(|e| unreadable(path, e))?);
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        if file.read_until(b'\n', &mut bytes).map_err(|e| unreadable(path, e))? == 0 {
            break;
        }
        // Some editors begin a file with a mark of its encoding.
        let line = if number == 1 { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes) } else { &bytes };
        let parsed = match std::str::from_utf8(line) {
            Ok(line) if line.trim().is_empty() => Ok(()),
            Ok(line) => parse(listing, number, line.trim_end_matches(['\n', '\r'])),
            Err(_) => Err((FaultKind::BadLine, "not UTF-8".into())),
        };
        if let Err((kind, message)) = parsed {
            listing.faults.push(Fault::new(kind, format!("{}:{number}", path.display()), message));
        }
    }
    Ok(())
}

/// A label in 0..`num_classes`.
pub(super) fn label(text: &str, num_classes: usize) -> Result<u32, Refusal> {
    let bad = |_| (FaultKind::BadLine, format!("`{text}` is no label (an integer from 0 on)"));
    let label: u32 = text.trim().parse().map_err(bad)?;
    if label as usize >= num_classes {
        let message = format!("label {label} is out of range: MODEL.NUM_CLASSES is {num_classes}");
        return Err((FaultKind::LabelOutOfRange, message));
    }
    Ok(label)
}
