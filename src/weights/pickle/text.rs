//! Texts as protocol 0 writes them.

use super::Outcome;

/// The beginning of a text, for messages.
pub fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

/// The bytes of a string as Python's `repr` writes it.
pub fn unquoted(line: &[u8]) -> Outcome<Vec<u8>> {
    let wrong = || "a string that is not quoted as Python does it".to_string();
    let (&quote, rest) = line.split_first().ok_or_else(wrong)?;
    let (&last, inner) = rest.split_last().ok_or_else(wrong)?;
    if quote != last || !matches!(quote, b'\'' | b'"') {
        return Err(wrong());
    }
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'r') => b'\r',
            Some(plain @ (b'\\' | b'\'' | b'"')) => plain,
            Some(b'x') => {
                let mut digit = || rest.next().and_then(|d| char::from(d).to_digit(16)).ok_or_else(wrong);
                (digit()? * 16 + digit()?) as u8
            }
            _ => return Err(wrong()),
        });
    }
    Ok(bytes)
}

/// Python's raw-unicode-escape: Latin-1 with `\uXXXX`.
pub fn raw_unicode(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    let mut at = 0;
    while at < line.len() {
        let digits = line.get(at + 2..at + 6).filter(|_| line[at..].starts_with(b"\\u"));
        let code = digits.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u32::from_str_radix(d, 16).ok());
        match code {
            Some(code) => {
                text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                at += 6;
            }
            None => {
                text.push(char::from(line[at]));
                at += 1;
            }
        }
    }
    text
}
