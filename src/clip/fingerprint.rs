//! A number for what a data set is: lists, labels and the sizes of files. Not for safety against malice, only against mistakes.

/// FNV-1a, 64 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    pub fn new() -> Fingerprint {
        Fingerprint(0xcbf2_9ce4_8422_2325)
    }

    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// A text, told from the one that follows it.
    pub fn add_text(&mut self, text: &str) {
        self.add(text.as_bytes());
        self.add(&[0]);
    }

    pub fn add_number(&mut self, number: u64) {
        self.add(&number.to_le_bytes());
    }

    pub fn value(self) -> u64 {
        self.0
    }
}

/// The fingerprint of one text.
pub(crate) fn of(text: &str) -> u64 {
    let mut fingerprint = Fingerprint::new();
    fingerprint.add(text.as_bytes());
    fingerprint.value()
}
