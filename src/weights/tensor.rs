//! Tensors as files hold them: named bytes with an element type, before anything is rounded to f32.

use std::path::PathBuf;

use half::{bf16, f16};
use safetensors::tensor::Dtype;

use crate::model::NamedArray;

/// Type of the elements of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// Signed integers.
    I64,
    /// See `I64`.
    I32,
    /// See `I64`.
    I16,
    /// See `I64`.
    I8,
    /// Bytes.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

/// (type, bytes of an element, PyTorch's storage class, NumPy's code, safetensors' type).
const ELEMENT_TYPES: [(ElementType, usize, &str, &str, Dtype); 10] = [
    (ElementType::F64, 8, "DoubleStorage", "f8", Dtype::F64),
    (ElementType::F32, 4, "FloatStorage", "f4", Dtype::F32),
    (ElementType::F16, 2, "HalfStorage", "f2", Dtype::F16),
    (ElementType::Bf16, 2, "BFloat16Storage", "", Dtype::BF16),
    (ElementType::I64, 8, "LongStorage", "i8", Dtype::I64),
    (ElementType::I32, 4, "IntStorage", "i4", Dtype::I32),
    (ElementType::I16, 2, "ShortStorage", "i2", Dtype::I16),
    (ElementType::I8, 1, "CharStorage", "i1", Dtype::I8),
    (ElementType::U8, 1, "ByteStorage", "u1", Dtype::U8),
    (ElementType::Bool, 1, "BoolStorage", "b1", Dtype::BOOL),
];

impl ElementType {
    fn row(self) -> &'static (ElementType, usize, &'static str, &'static str, Dtype) {
        // The table has a row for every type; the first one only stands in for `unwrap`.
        ELEMENT_TYPES.iter().find(|row| row.0 == self).unwrap_or(&ELEMENT_TYPES[0])
    }

    /// Bytes of one element.
    pub fn num_bytes(self) -> usize {
        self.row().1
    }

    /// PyTorch's class of storages, such as `FloatStorage`.
    pub fn storage_class(self) -> &'static str {
        self.row().2
    }

    pub(super) fn safetensors(self) -> Dtype {
        self.row().4
    }

    pub(super) fn from_storage_class(name: &str) -> Option<ElementType> {
        ELEMENT_TYPES.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    pub(super) fn from_numpy(code: &str) -> Option<ElementType> {
        ELEMENT_TYPES.iter().find(|row| !code.is_empty() && row.3 == code).map(|row| row.0)
    }

    pub(super) fn from_safetensors(dtype: Dtype) -> Option<ElementType> {
        ELEMENT_TYPES.iter().find(|row| row.4 == dtype).map(|row| row.0)
    }
}

/// A named tensor: row-major without gaps, little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    /// Name in the file, or after renaming PySlowFast's.
    pub name: String,
    /// Type of its elements.
    pub element: ElementType,
    /// Sizes; empty for a single number.
    pub shape: Vec<usize>,
    /// `num_elements * element.num_bytes()` bytes.
    pub bytes: Vec<u8>,
}

impl StoredTensor {
    /// `values` under a name.
    pub fn from_f32(name: &str, shape: &[usize], values: &[f32]) -> StoredTensor {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        StoredTensor { name: name.into(), element: ElementType::F32, shape: shape.to_vec(), bytes }
    }

    /// One integer, as PyTorch stores `num_batches_tracked`.
    pub fn from_i64(name: &str, value: i64) -> StoredTensor {
        StoredTensor { name: name.into(), element: ElementType::I64, shape: vec![], bytes: value.to_le_bytes().into() }
    }

    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.bytes.len() / self.element.num_bytes()
    }

    /// The elements, rounded to f32.
    pub fn to_f32(&self) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], to_f32: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks().0.iter().map(|element| to_f32(*element)).collect()
        }
        let bytes = self.bytes.as_slice();
        match self.element {
            ElementType::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
            ElementType::F32 => each(bytes, f32::from_le_bytes),
            ElementType::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
            ElementType::Bf16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            ElementType::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
            ElementType::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
            ElementType::I16 => each(bytes, |b| f32::from(i16::from_le_bytes(b))),
            ElementType::I8 => each(bytes, |b| f32::from(i8::from_le_bytes(b))),
            ElementType::U8 | ElementType::Bool => each(bytes, |[b]| f32::from(b)),
        }
    }

    /// As the network takes it.
    pub fn to_array(&self) -> NamedArray {
        NamedArray { name: self.name.clone(), shape: self.shape.clone(), values: self.to_f32() }
    }
}

/// Format of a file of weights, told by its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A zip archive of PyTorch 1.6 or later: `.pyth`, `.pth`, `.pt`.
    PyTorch,
    /// PyTorch's format before 1.6.
    PyTorchLegacy,
    /// A pickle of caffe2's blobs: `.pkl`.
    Caffe2,
    /// safetensors.
    Safetensors,
    /// The folder of a checkpoint of this program.
    RunCheckpoint,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::PyTorch => "PyTorch, zip",
            Format::PyTorchLegacy => "PyTorch before 1.6",
            Format::Caffe2 => "caffe2 blobs",
            Format::Safetensors => "safetensors",
            Format::RunCheckpoint => "a checkpoint of vcycle",
        })
    }
}

/// All tensors of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct StateDict {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// In the order of the file.
    pub tensors: Vec<StoredTensor>,
    /// Epoch that the file says it was saved after, counted from 0 as PySlowFast does.
    pub epoch: Option<u64>,
}
