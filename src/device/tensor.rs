//! Activations in memory: `[n][t][h][w][c]` with a channel pitch.

use super::buffer::{Buffer, DType, Slice};
use super::{Device, Element};
use crate::error::{Error, Result};
use crate::shape::ActivationShape;

/// Activations `[n][t][h][w][c]` in device memory. Position `p` begins at element `p * pitch_c` of `memory`; `pitch_c >=
/// c`, so a tensor can be a range of the channels of a wider one (SlowFast's concatenation is no copy).
#[derive(Clone, Debug)]
pub struct Tensor {
    memory: Slice,
    shape: ActivationShape,
    pitch_c: usize,
}

impl Tensor {
    /// A new zeroed tensor with memory of its own and no gaps.
    pub fn zeroed(device: &Device, dtype: DType, shape: ActivationShape) -> Result<Tensor> {
        let len = shape.num_elements();
        let memory = Buffer::zeroed(device, len.saturating_mul(dtype.size_bytes()))?.slice_of(dtype, 0, len)?;
        Tensor::new(memory, shape, shape.c)
    }

    /// A new tensor without gaps that holds `values`.
    pub fn from_host<T: Element>(device: &Device, shape: ActivationShape, values: &[T]) -> Result<Tensor> {
        Tensor::new(Buffer::from_host(device, values)?, shape, shape.c)
    }

    /// A view of `memory`, whose first element is channel 0 of position 0. It must hold `(positions - 1) * pitch_c + c`
    /// elements; what follows is cut off.
    pub fn new(memory: Slice, shape: ActivationShape, pitch_c: usize) -> Result<Tensor> {
        let needed = match shape.num_positions() {
            0 => Some(0),
            p => (p - 1).checked_mul(pitch_c).and_then(|last| last.checked_add(shape.c)),
        };
        let needed = needed.filter(|&n| pitch_c >= shape.c && n <= memory.len()).ok_or_else(|| {
            let needs = needed.map_or("too many".into(), |n| n.to_string());
            Error::shape(
                "tensor",
                format!("{shape} with channel pitch {pitch_c} needs {needs} elements, got {}", memory.len()),
            )
        })?;
        Ok(Tensor { memory: memory.part(0, needed)?, shape, pitch_c })
    }

    /// Channels `start .. start + c` of this tensor.
    pub fn channels(&self, start: usize, c: usize) -> Result<Tensor> {
        if start.checked_add(c).is_none_or(|end| end > self.shape.c) {
            return Err(Error::shape("tensor", format!("{c} channels from {start} on of {}", self.shape)));
        }
        let memory = self.from(start)?;
        Tensor::new(memory, self.shape.with_channels(c), self.pitch_c)
    }

    /// Clips `start .. start + n` of this tensor.
    pub fn clips(&self, start: usize, n: usize) -> Result<Tensor> {
        if start.checked_add(n).is_none_or(|end| end > self.shape.n) {
            return Err(Error::shape("tensor", format!("{n} clips from {start} on of {}", self.shape)));
        }
        let first = start * self.shape.t * self.shape.h * self.shape.w * self.pitch_c;
        Tensor::new(self.from(first)?, ActivationShape { n, ..self.shape }, self.pitch_c)
    }

    /// The memory from element `first` on; nothing where that lies behind the end, as it may for a view of nothing.
    fn from(&self, first: usize) -> Result<Slice> {
        let first = first.min(self.memory.len());
        self.memory.part(first, self.memory.len() - first)
    }

    /// The memory, from channel 0 of position 0 to the last channel of the last position.
    pub fn memory(&self) -> &Slice {
        &self.memory
    }

    /// Sizes.
    pub fn shape(&self) -> ActivationShape {
        self.shape
    }

    /// Elements from one position to the next.
    pub fn pitch_c(&self) -> usize {
        self.pitch_c
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.memory.dtype()
    }

    /// A copy on the host without gaps.
    pub fn read<T: Element>(&self) -> Result<Vec<T>> {
        let all = self.memory.read::<T>()?;
        if self.pitch_c == self.shape.c {
            return Ok(all);
        }
        Ok(all.chunks(self.pitch_c).flat_map(|position| &position[..self.shape.c]).copied().collect())
    }

    /// Views `data` (this tensor's memory on the host) with this tensor's shape.
    pub fn view<'a>(&self, data: &'a [f32]) -> ActRef<'a> {
        ActRef { data, shape: self.shape, pitch_c: self.pitch_c }
    }

    /// Views `data` (this tensor's memory on the host) with this tensor's shape.
    pub fn view_mut<'a>(&self, data: &'a mut [f32]) -> ActMut<'a> {
        ActMut { data, shape: self.shape, pitch_c: self.pitch_c }
    }
}

/// Activations on the host, to read: what the CPU form of an op takes. Position `p` is
/// `data[p * pitch_c .. p * pitch_c + shape.c]`.
#[derive(Clone, Copy, Debug)]
pub struct ActRef<'a> {
    /// From channel 0 of position 0 to the last channel of the last position.
    pub data: &'a [f32],
    /// Sizes.
    pub shape: ActivationShape,
    /// Elements from one position to the next.
    pub pitch_c: usize,
}

/// Activations on the host, to write; as [`ActRef`]. Elements between the channels of two positions are left alone.
#[derive(Debug)]
pub struct ActMut<'a> {
    /// From channel 0 of position 0 to the last channel of the last position.
    pub data: &'a mut [f32],
    /// Sizes.
    pub shape: ActivationShape,
    /// Elements from one position to the next.
    pub pitch_c: usize,
}

impl<'a> ActRef<'a> {
    /// Activations without gaps.
    pub fn dense(data: &'a [f32], shape: ActivationShape) -> Self {
        ActRef { data, shape, pitch_c: shape.c }
    }
}

impl<'a> ActMut<'a> {
    /// Activations without gaps.
    pub fn dense(data: &'a mut [f32], shape: ActivationShape) -> Self {
        ActMut { data, shape, pitch_c: shape.c }
    }

    /// The same activations, to read.
    pub fn as_ref(&self) -> ActRef<'_> {
        ActRef { data: self.data, shape: self.shape, pitch_c: self.pitch_c }
    }
}
