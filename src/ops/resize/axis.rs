//! One axis of a resize: where output samples lie in the input, and the other way round. The kernel does the same
//! arithmetic (`kernels/resize/axis.cuh`).

use crate::shape::ActivationShape;

/// Output sample `i` lies at `start + i * step` input elements, clamped to `0 ..= size - 1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    /// Position of sample 0.
    pub start: f32,
    /// Distance of two samples; not negative.
    pub step: f32,
    /// Input elements.
    pub size: usize,
    /// Output elements.
    pub resized: usize,
}

/// The two input elements that an output sample reads, and the weight of the second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pair {
    pub first: usize,
    pub second: usize,
    pub fraction: f32,
}

impl Axis {
    /// The axis from `size` to `resized` elements.
    pub fn new(align_corners: bool, size: usize, resized: usize) -> Axis {
        let step = match (align_corners, resized) {
            (true, 0 | 1) => 0.0,
            (true, _) => (size - 1) as f64 / (resized - 1) as f64,
            (false, _) => size as f64 / resized as f64,
        };
        let start = if align_corners { 0.0 } else { 0.5 * step - 0.5 };
        Axis { start: start as f32, step: step as f32, size, resized }
    }

    /// The t, h and w axes between two shapes.
    pub(super) fn of(align_corners: bool, input: ActivationShape, output: ActivationShape) -> [Axis; 3] {
        [(input.t, output.t), (input.h, output.h), (input.w, output.w)]
            .map(|(size, resized)| Axis::new(align_corners, size, resized))
    }

    /// What output sample `i` reads.
    pub(super) fn pair(&self, i: usize) -> Pair {
        let position = (i as f32).mul_add(self.step, self.start).clamp(0.0, (self.size - 1) as f32);
        let first = position as usize;
        Pair { first, second: (first + 1).min(self.size - 1), fraction: position - first as f32 }
    }

    /// For every input element the output samples that read it, in ascending order, with their weights.
    pub(super) fn readers(&self) -> Vec<Vec<(usize, f32)>> {
        let mut readers = vec![Vec::new(); self.size];
        for i in 0..self.resized {
            let Pair { first, second, fraction } = self.pair(i);
            readers[first].push((i, if first == second { 1.0 } else { 1.0 - fraction }));
            if second != first {
                readers[second].push((i, fraction));
            }
        }
        readers
    }
}
