//! Bytes of a pickle, in order. No length field makes this allocate more than the file still has.

use std::io::{BufRead, ErrorKind, Read};

use super::Outcome;

/// Longest line of the instructions that have text as argument (strings of protocol 0 hold whole arrays).
const MAX_LINE_BYTES: u64 = 1 << 30;

/// A reader that knows where it is and how far the file goes.
pub struct Source<'a> {
    reader: &'a mut dyn BufRead,
    position: u64,
    end: u64,
}

impl<'a> Source<'a> {
    /// `reader` stands at `position` of a file of `end` bytes.
    pub fn new(reader: &'a mut dyn BufRead, position: u64, end: u64) -> Source<'a> {
        Source { reader, position, end }
    }

    /// Bytes before the next one.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes of the whole file.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The next byte.
    pub fn byte(&mut self) -> Outcome<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|e| self.cut_off(N as u64, &e))?;
        self.position += N as u64;
        Ok(bytes)
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: u64) -> Outcome<Vec<u8>> {
        let left = self.end.saturating_sub(self.position);
        if len > left {
            return Err(format!("byte {}: {len} bytes are announced, {left} are left", self.position));
        }
        let mut bytes = Vec::with_capacity(len as usize);
        (&mut *self.reader).take(len).read_to_end(&mut bytes).map_err(|e| self.cut_off(len, &e))?;
        if bytes.len() as u64 != len {
            return Err(self.cut_off(len, &ErrorKind::UnexpectedEof.into()));
        }
        self.position += len;
        Ok(bytes)
    }

    /// The bytes up to the next line feed, which is dropped.
    pub fn line(&mut self) -> Outcome<Vec<u8>> {
        let mut line = vec![];
        let mut limited = (&mut *self.reader).take(MAX_LINE_BYTES);
        limited.read_until(b'\n', &mut line).map_err(|e| format!("byte {}: {e}", self.position))?;
        self.position += line.len() as u64;
        if line.pop() != Some(b'\n') {
            return Err(format!("byte {}: a line does not end", self.position));
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(line)
    }

    /// A line of ASCII.
    pub fn text_line(&mut self) -> Outcome<String> {
        let at = self.position;
        String::from_utf8(self.line()?).map_err(|_| format!("byte {at}: expected a line of text"))
    }

    /// `len` bytes of UTF-8. Lone surrogates, which Python lets through, become U+FFFD.
    pub fn text(&mut self, len: u64) -> Outcome<String> {
        let bytes = self.bytes(len)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    fn cut_off(&self, wanted: u64, error: &std::io::Error) -> String {
        match error.kind() {
            ErrorKind::UnexpectedEof => format!("byte {}: it ends where {wanted} bytes should follow", self.position),
            _ => format!("byte {}: {error}", self.position),
        }
    }
}
