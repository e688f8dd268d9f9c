//! Boxes: how MP4 files nest, and numbers in them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// Largest `moov` or `moof` box that is read into memory.
const MAX_INDEX_BYTES: u64 = 256 << 20;

/// (type, bytes of the header, bytes of the box, cut at the file's end), or `None` at the end.
pub(super) fn read_header(file: &mut File, position: u64, length: u64) -> Result<Option<([u8; 4], u64, u64)>, String> {
    let rest = length.saturating_sub(position);
    if rest < 8 {
        return Ok(None);
    }
    let mut bytes = [0u8; 16];
    let available = rest.min(16) as usize;
    file.seek(SeekFrom::Start(position))
        .and_then(|_| file.read_exact(&mut bytes[..available]))
        .map_err(|e| e.to_string())?;
    let kind = [bytes[4], bytes[5], bytes[6], bytes[7]];
    if position == 0 && !kind.iter().all(|c| c.is_ascii_alphanumeric() || *c == b' ') {
        return Err("not an MP4 file".into());
    }
    let (header, size) = match u32_at(&bytes, 0).unwrap_or(0) {
        0 => (8, rest),
        1 if available == 16 => (16, u64_at(&bytes, 8).unwrap_or(0)),
        size => (8, u64::from(size)),
    };
    if size < header {
        return Err(format!("a box at byte {position} is smaller than its header"));
    }
    Ok(Some((kind, header, size.min(rest))))
}

pub(super) fn read_body(file: &mut File, position: u64, size: u64) -> Result<Vec<u8>, String> {
    if size > MAX_INDEX_BYTES {
        return Err(format!("an index of {size} bytes is too large"));
    }
    let mut body = vec![0; size as usize];
    file.seek(SeekFrom::Start(position)).and_then(|_| file.read_exact(&mut body)).map_err(|e| e.to_string())?;
    Ok(body)
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The boxes inside `bytes`: (type, body). Ends quietly at the first one that does not fit.
pub(super) fn boxes(bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let size = u32_at(rest, 0)? as usize;
        let kind = rest.get(4..8)?.try_into().ok()?;
        let (header, size) = match size {
            0 => (8, rest.len()),
            1 => (16, usize::try_from(u64_at(rest, 8)?).ok()?),
            size => (8, size),
        };
        let body = rest.get(header..size)?;
        rest = &rest[size..];
        Some((kind, body))
    })
}

pub(super) fn find<'a>(bytes: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    boxes(bytes).find(|(k, _)| k == kind).map(|(_, body)| body)
}

/// Rows of `width` bytes of a table whose count stands at `at`, followed by the rows; never more than there are bytes for.
pub(super) fn table(bytes: &[u8], at: usize, width: usize) -> impl Iterator<Item = &[u8]> {
    let count = u32_at(bytes, at).unwrap_or(0) as usize;
    bytes.get(at + 4..).unwrap_or(&[]).chunks_exact(width).take(count)
}
