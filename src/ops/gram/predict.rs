//! Whether a layer is faster in this form: by counted bytes and multiply-adds. Pure, and the same for every GPU: the choice decides bits.

use super::Gram;

/// Of an H100: what a large copy moves, reading and writing; what the tensor cores and the other units multiply and add at about half of
/// their peak; what a kernel costs that does nothing.
const BYTES_PER_S: f64 = 3.0e12;
const TENSOR_MACS_PER_S: f64 = 2.0e14;
const F32_MACS_PER_S: f64 = 1.5e13;
const LAUNCH_S: f64 = 1.5e-6;

/// Kernels more than in the standard form: moments and their merge, statistics, the two of `gradient`.
const MORE_LAUNCHES: f64 = 5.0;

/// Seconds that a training step saves with this form of a layer that joins a shortcut, against the standard form with all that is fused
/// there; negative where it takes longer. `op` is that of the whole batch. `at_once`: that form has one kernel for both gradients.
///
/// The output is written and read once less forward, and read three times less backward; the input is read twice more. Where the standard
/// form reads everything once for both gradients, that is an output and its gradient read twice less, and an input once more. On top
/// come the products of the moments, of `[g x]` with `c_in` more columns, and of the tables: see docs/gram_batch_norm.md.
pub fn predicted_saving_s(op: &Gram, at_once: bool) -> f64 {
    let (rows, c_in, c_out) = (op.input().num_positions() as f64, op.c_in as f64, op.norm.shape.c as f64);
    let splits = op.norm.splits as f64;
    let (outputs, inputs) = if at_once { (3.0, 3.0) } else { (5.0, 2.0) };
    let bytes_saved = 2.0 * rows * (outputs * c_out - inputs * c_in);
    // A bf16 filter times a covariance of three parts, and half of the moments' square.
    let tensor_macs = 1.5 * rows * c_in * c_in + 3.0 * splits * c_out * c_in * c_in;
    let f32_macs = 2.0 * splits * c_out * c_in * c_in;
    let table_bytes = splits * (4.0 * 4.0 * c_out * c_in + 3.0 * 4.0 * c_in * c_in);
    (bytes_saved - table_bytes) / BYTES_PER_S
        - tensor_macs / TENSOR_MACS_PER_S
        - f32_macs / F32_MACS_PER_S
        - MORE_LAUNCHES * LAUNCH_S
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::batch_norm::BatchNorm;
    use crate::shape::ActivationShape;

    #[test]
    fn wide_maps_of_few_channels_are_worth_it() {
        // Layers of SlowFast-8x8-R50 at 8 clips of 32x224, slow then fast: c_in, positions, splits -> whether, also where the standard form has
        // one kernel for both gradients.
        for (c_in, [t, side], splits, wanted) in [
            (64, [8, 56], 1, [true, true]),
            (128, [8, 28], 1, [true, true]),
            (256, [8, 14], 1, [true, false]),
            (512, [8, 7], 1, [false, false]),
            (8, [32, 56], 1, [true, true]),
            (16, [32, 28], 1, [true, true]),
            (32, [32, 14], 1, [true, true]),
            (64, [32, 7], 1, [true, false]),
            (64, [32, 7], 8, [false, false]),
            (256, [8, 14], 8, [false, false]),
            (512, [8, 7], 8, [false, false]),
        ] {
            let shape = ActivationShape::new(8, t, side, side, 4 * c_in);
            let norm = BatchNorm { shape, splits, eps: 1e-5, relu: false, part: None };
            let saving = [false, true].map(|at_once| predicted_saving_s(&Gram { norm, c_in }, at_once));
            let found = saving.map(|s| s > 0.0);
            assert_eq!(found, wanted, "{c_in} channels, {t}x{side}x{side}, {splits} splits: {saving:?} s");
        }
    }
}
