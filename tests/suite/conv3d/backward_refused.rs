//! What the kernel for both gradients of a convolution does not take.

use vcycle::device::Slice;
use vcycle::ops::conv3d::{self, Conv3d, GradEpilogue, GradFilterSources, GradTable, Mask, Prologue};
use vcycle::shape::ActivationShape;

use super::typed::{floats, garbage, held, slice, workspace};
use crate::executors;

/// What one reading does not serve is refused by name, and other convolutions too.
#[test]
fn what_has_no_kernel_is_refused() {
    for device in executors::with_kernels() {
        let (stream, splits) = (device.stream().expect("stream"), 2);
        let op = Conv3d {
            input: ActivationShape::new(5, 1, 7, 9, 8),
            c_out: 32,
            filter: [1; 3],
            stride: [1; 3],
            padding: [0; 3],
            dilation: [1; 3],
            groups: 1,
            part: None,
        };
        let [x, other] = [0, 1].map(|_| garbage::<half::bf16>(&device, op.input, 0).tensor);
        let [g, y] = [0, 1].map(|_| garbage::<half::bf16>(&device, op.output(), 0).tensor);
        let zeros = |n: usize| floats(&device, &vec![0.0; n]);
        let (scale_shift, table) = (zeros(splits * 2 * op.input.c), zeros(splits * 3 * op.c_out));
        let (w, dw) = (slice::<half::bf16>(&device, &vec![0.0; op.filter_len()]), zeros(op.filter_len()));
        let good = GradFilterSources {
            input: &x,
            prologue: Some(Prologue { scale_shift: &scale_shift, splits, join: None }),
            grad_output: &g,
            grad_table: Some(GradTable { table: &table, y: &y, splits, store_dy: None }),
            pool: None,
        };
        let scratch = workspace(&device, conv3d::backward_workspace_bytes(&stream, &op, splits));
        let run = |op: &Conv3d, from: &GradFilterSources<'_>, mask: Mask<'_>, scratch: &Slice| {
            let epilogue = GradEpilogue { add: None, mask, splits, norms: &[] };
            conv3d::backward_fused(&stream, op, from, &w, &epilogue, &other, &dw, scratch)
        };
        let own = Mask::Recomputed { scale_shift: &scale_shift, y: &x };
        run(&op, &good, own, &scratch).expect("good operands");
        let refused = |result: vcycle::Result<()>, words: &[&str]| {
            let message = result.expect_err(words[0]).to_string();
            words.iter().for_each(|word| assert!(message.contains(word), "{word}: {message}"));
        };
        refused(
            run(&op, &good, Mask::Output(&x), &scratch),
            &["conv3d backward", "a mask that is not the input's own"],
        );
        let of_other = Mask::Recomputed { scale_shift: &scale_shift, y: &other };
        refused(run(&op, &good, of_other, &scratch), &["a mask that is not the input's own"]);
        let stored = good.grad_table.map(|t| GradTable { store_dy: Some(&y), ..t });
        let from = GradFilterSources { grad_table: stored, ..good };
        refused(run(&op, &from, own, &scratch), &["a gradient that is to be stored", "one gradient after the other"]);
        refused(run(&op, &good, own, &dw), &["workspace must have"]);
        let taps = Conv3d { filter: [3, 1, 1], padding: [1, 0, 0], ..op };
        assert!(conv3d::backward_fits(&stream, &op, splits) && !conv3d::backward_fits(&stream, &taps, splits));
        let from = GradFilterSources { input: &y, ..good };
        refused(run(&op, &from, own, &scratch), &["input must be [5,1,7,9,8]"]);
        let narrow = held::<half::bf16>(&device, op.input, &vec![0.0; op.input.num_elements()], 3).tensor;
        let from = GradFilterSources { input: &narrow, ..good };
        let mask = Mask::Recomputed { scale_shift: &scale_shift, y: &narrow };
        refused(run(&op, &from, mask, &scratch), &["pitches of 8 channels"]);
    }
}
