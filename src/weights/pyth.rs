//! Writes `.pyth` as PyTorch does: `torch.load(…, weights_only=True)` reads it, and PySlowFast takes it as a checkpoint.
//!
//! The pickle is `{"model_state": OrderedDict(name -> tensor), "vcycle_epoch": n}`. PySlowFast's own key `epoch` is not
//! written: where it stands, PySlowFast's training asks for the momenta of the same file as well.

use std::io::{Cursor, Write};

use zip::write::{SimpleFileOptions, ZipWriter};
use zip::{CompressionMethod, DateTime};

use super::pickle::Outcome;
use super::tensor::StoredTensor;

/// PyTorch begins storages at multiples of this, so that a file can be mapped into memory.
const ALIGNMENT: u16 = 64;

/// The file of `tensors`.
pub fn write(tensors: &[StoredTensor], epoch: Option<u64>) -> Outcome<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(vec![]));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .with_alignment(ALIGNMENT);
    let mut entry = |name: &str, bytes: &[u8]| {
        let written = zip.start_file(format!("archive/{name}"), options).map_err(|e| e.to_string());
        written.and_then(|()| zip.write_all(bytes).map_err(|e| e.to_string()))
    };
    entry("data.pkl", &pickle(tensors, epoch))?;
    entry("byteorder", b"little")?;
    for (key, tensor) in tensors.iter().enumerate() {
        entry(&format!("data/{key}"), &tensor.bytes)?;
    }
    entry("version", b"3\n")?;
    Ok(zip.finish().map_err(|e| e.to_string())?.into_inner())
}

/// The pickle, protocol 2 as PyTorch's own.
fn pickle(tensors: &[StoredTensor], epoch: Option<u64>) -> Vec<u8> {
    let mut out = Pickler(vec![0x80, 2]);
    out.code(b"}(");
    out.text("model_state");
    out.code(b"ccollections\nOrderedDict\n)R(");
    for (key, tensor) in tensors.iter().enumerate() {
        out.text(&tensor.name);
        out.tensor(key, tensor);
    }
    out.code(b"u");
    if let Some(epoch) = epoch {
        out.text("vcycle_epoch");
        out.integer(epoch);
    }
    out.code(b"u.");
    out.0
}

struct Pickler(Vec<u8>);

impl Pickler {
    fn code(&mut self, instructions: &[u8]) {
        self.0.extend_from_slice(instructions);
    }

    fn text(&mut self, text: &str) {
        self.code(b"X");
        self.code(&(text.len() as u32).to_le_bytes());
        self.code(text.as_bytes());
    }

    fn integer(&mut self, value: u64) {
        match i32::try_from(value) {
            Ok(small) => {
                self.code(b"J");
                self.code(&small.to_le_bytes());
            }
            // LONG1 of 8 bytes; no size has the 64th bit, which would make it negative.
            Err(_) => {
                self.code(&[0x8a, 8]);
                self.code(&value.to_le_bytes());
            }
        }
    }

    fn integers(&mut self, values: impl Iterator<Item = u64>) {
        self.code(b"(");
        values.for_each(|value| self.integer(value));
        self.code(b"t");
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, backward_hooks)`.
    fn tensor(&mut self, key: usize, tensor: &StoredTensor) {
        self.code(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.code(format!("ctorch\n{}\n", tensor.element.storage_class()).as_bytes());
        self.text(&key.to_string());
        self.text("cpu");
        self.integer(tensor.num_elements() as u64);
        self.code(b"tQ");
        self.integer(0);
        let shape: Vec<u64> = tensor.shape.iter().map(|&n| n as u64).collect();
        self.integers(shape.iter().copied());
        self.integers(super::view::strides(&shape, false).into_iter());
        self.code(b"\x89ccollections\nOrderedDict\n)RtR");
    }
}
