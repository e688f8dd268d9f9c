//! From a strided view of stored elements to a tensor without gaps, with every size checked against the file.

use super::pickle::Outcome;

/// Copies of the file's bytes that its tensors may be: a few where tensors share a storage.
const MAX_COPIES: u64 = 4;

/// What the tensors of one file may still hold together.
pub struct Budget {
    left: u64,
    file_bytes: u64,
}

impl Budget {
    /// For a file of `file_bytes`.
    pub fn new(file_bytes: u64) -> Budget {
        Budget { left: file_bytes.saturating_mul(MAX_COPIES), file_bytes }
    }

    /// Takes `bytes` off, or refuses.
    pub fn take(&mut self, bytes: u64) -> Outcome<()> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| {
            format!("its tensors hold more than {MAX_COPIES} times the {} bytes of the file", self.file_bytes)
        })?;
        Ok(())
    }
}

/// A view of elements of `element_bytes`.
pub struct View<'a> {
    /// Sizes.
    pub shape: &'a [u64],
    /// Elements from one index to the next, for each axis.
    pub strides: &'a [u64],
    /// Elements before the first one.
    pub offset: u64,
    /// Bytes of an element.
    pub element_bytes: usize,
}

/// Number of elements of `shape`, at most `stored`: a view that repeats elements is refused.
pub fn num_elements(shape: &[u64], stored: u64) -> Outcome<u64> {
    let count = shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size));
    match count {
        Some(n) if n <= stored => Ok(n),
        _ => Err(format!("shape {shape:?} is larger than its storage of {stored} elements")),
    }
}

impl View<'_> {
    /// The elements in row-major order.
    ///
    /// # Errors
    /// A view that reaches beyond `stored` or repeats elements.
    pub fn gather(&self, stored: &[u8]) -> Outcome<Vec<u8>> {
        let (shape, strides, size) = (self.shape, self.strides, self.element_bytes);
        let num_stored = (stored.len() / size) as u64;
        let count = num_elements(shape, num_stored)?;
        if count == 0 {
            return Ok(vec![]);
        }
        if shape.len() != strides.len() {
            return Err(format!("shape {shape:?} has other axes than strides {strides:?}"));
        }
        let reach = shape.iter().zip(strides).try_fold(self.offset, |last, (&n, &stride)| {
            (n - 1).checked_mul(stride).and_then(|step| last.checked_add(step))
        });
        if reach.is_none_or(|last| last >= num_stored) {
            let offset = self.offset;
            return Err(format!(
                "shape {shape:?} with strides {strides:?} from element {offset} reaches beyond its storage of {num_stored}"
            ));
        }
        let first = self.offset as usize * size;
        if is_contiguous(shape, strides) {
            return Ok(stored[first..first + count as usize * size].to_vec());
        }
        Ok(self.gather_strided(&stored[first..], count as usize))
    }

    /// Counts through all indices like an odometer.
    fn gather_strided(&self, stored: &[u8], count: usize) -> Vec<u8> {
        let size = self.element_bytes;
        let mut out = Vec::with_capacity(count * size);
        let (mut index, mut at) = (vec![0u64; self.shape.len()], 0u64);
        for _ in 0..count {
            let from = at as usize * size;
            out.extend_from_slice(&stored[from..from + size]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.shape[axis] * self.strides[axis];
                index[axis] = 0;
            }
        }
        out
    }
}

fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&n, &stride)| {
        let fits = n == 1 || stride == expected;
        expected *= n;
        fits
    })
}

/// Strides of an array without gaps; with `is_fortran` the first axis is the innermost.
pub fn strides(shape: &[u64], is_fortran: bool) -> Vec<u64> {
    let mut strides = vec![0; shape.len()];
    let mut next = 1u64;
    for i in 0..shape.len() {
        let axis = if is_fortran { i } else { shape.len() - 1 - i };
        strides[axis] = next;
        next = next.saturating_mul(shape[axis]);
    }
    strides
}
