//! Stems: pixels of 4 channels read in pairs.

use std::ops::Range;

use super::Conv3d;
use crate::ops::TICKET_BYTES;
use crate::shape::ActivationShape;

/// Pixels of 4 stored channels read in pairs, as pixels of 8: a stem under a stride of 2 in w.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::ops::conv3d) struct Pairs {
    /// The convolution over pairs. Its padding is that on the left.
    pub op: Conv3d,
    /// Tap of the original filter that the first pair begins with; may be negative.
    pub first_tap: i32,
}

impl Pairs {
    /// Where the packed filter lies in a workspace whose first `plan_bytes` are the plan's: behind the tickets also where this
    /// launch has none, since other ops find them zero.
    pub fn packed_filter(&self, plan_bytes: usize) -> Range<usize> {
        let first = plan_bytes.max(TICKET_BYTES).next_multiple_of(256);
        first..first + 2 * self.op.filter_len()
    }
}

/// Pairs are legal where rows are whole pairs and outputs step by pairs.
pub(in crate::ops::conv3d) fn pairs(op: &Conv3d) -> Option<Pairs> {
    let (i, [ft, fh, fw]) = (op.input, op.filter);
    let is_legal = i.c == 4 && i.w.is_multiple_of(2) && op.stride[2] == 2 && op.dilation[2] == 1 && op.groups == 1;
    if !is_legal || !op.c_out.is_multiple_of(8) {
        return None;
    }
    let before = op.padding[2].div_ceil(2);
    let first_tap = op.padding[2] as i32 - 2 * before as i32;
    let num_pairs = (fw as i32 - first_tap).div_euclid(2) as usize + (fw as i32 - first_tap).rem_euclid(2) as usize;
    let paired = Conv3d {
        input: ActivationShape { w: i.w / 2, c: 8, ..i },
        filter: [ft, fh, num_pairs],
        stride: [op.stride[0], op.stride[1], 1],
        padding: [op.padding[0], op.padding[1], before],
        ..*op
    };
    Some(Pairs { op: paired, first_tap })
}
