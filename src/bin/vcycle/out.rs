//! What the program says. `println!` and `eprintln!` panic where nobody reads; a run must not end because of that.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use vcycle::{Error, Result};

/// Writes `text` to stdout. A reader that has seen enough (`| head`) is no failure.
///
/// # Errors
/// [`Error::Io`] for any other reason why it cannot be written, such as a full disk.
pub fn stdout(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::io("stdout", &error)),
        _ => Ok(()),
    }
}

/// Writes a line to stderr, if it can be written.
pub fn stderr(line: impl Display) {
    // One write, so that lines of several threads do not mix.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Columns padded to the same width, right-aligned.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().map(|row| row[c].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &w)| format!("{cell:>w$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}
