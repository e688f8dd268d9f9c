//! Which kernel makes both gradients of a convolution at once, and how its rows are cut up: pure, without a device.

use std::fmt;

use crate::device::DType;
use crate::ops::TICKET_BYTES;
use crate::ops::conv3d::Conv3d;

/// Tiles of input channels that read the same rows of the output's gradient: each beyond the first takes them from the cache.
const MOST_COLUMNS: usize = 4;

/// A tile: `rows` positions, all output channels, some input channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    pub rows: usize,
    pub c_out: usize,
    pub c_in: usize,
    /// Blocks that the registers of an SM hold.
    blocks: usize,
}

/// As compiled in `kernels/conv3d/conv3d_backward_pointwise.cu`; the first that fits is the one that idles least.
const VARIANTS: [Variant; 5] = [
    Variant { rows: 128, c_out: 64, c_in: 16, blocks: 2 },
    Variant { rows: 64, c_out: 128, c_in: 32, blocks: 2 },
    Variant { rows: 32, c_out: 64, c_in: 128, blocks: 2 },
    Variant { rows: 32, c_out: 128, c_in: 128, blocks: 1 },
    Variant { rows: 32, c_out: 256, c_in: 64, blocks: 1 },
];

impl Variant {
    /// For a convolution whose gradients these kernels can make.
    fn of(op: &Conv3d) -> Option<Variant> {
        let is_pointwise = op.filter == [1; 3] && op.stride == [1; 3] && op.padding == [0; 3] && op.groups == 1;
        let (c_in, c_out) = (op.input.c, op.c_out);
        let has_chunks = c_in.is_multiple_of(8) && c_out.is_multiple_of(8);
        if !is_pointwise || !has_chunks || op.input.num_positions() >= 1 << 31 {
            return None;
        }
        VARIANTS.into_iter().find(|v| {
            // All input channels belong to one block where the output has many, or the tile is narrow.
            let most = if v.c_in < 128 { v.c_in } else { MOST_COLUMNS * v.c_in };
            c_out <= v.c_out && c_in <= most
        })
    }

    pub(super) fn kernel(&self, dtype: DType) -> String {
        let dtype = if dtype == DType::Bf16 { "bf16" } else { "f16" };
        format!("conv3d_backward_pointwise{}x{}_{dtype}", self.c_out, self.c_in)
    }
}

/// What is read beside gradient and input, as far as shared memory depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sources {
    pub splits: usize,
    /// Whether the gradient is formed from two tensors.
    pub has_table: bool,
    /// Whether something is added to the input's gradient.
    pub adds: bool,
    /// Tensors of batch norms that are not the input's own.
    pub other_norms: usize,
}

/// What a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Limits {
    pub num_sms: usize,
    /// Shared memory of a block at most.
    pub shared_bytes: usize,
}

/// Where things lie in shared memory. Those of a stage are counted from its begin, where the gradient lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub tables_at: usize,
    pub stages_at: usize,
    pub stage_bytes: usize,
    pub y_at: usize,
    pub x_at: usize,
    pub norms_at: usize,
    /// Of the whole shared memory; in each stage where it takes the place of what is added.
    pub result_at: usize,
    pub result_step: usize,
    pub shared_bytes: usize,
}

impl Layout {
    fn of(v: &Variant, from: &Sources) -> Layout {
        let (output, input) = (v.rows * v.c_out * 2, v.rows * v.c_in * 2);
        let tables_at = v.c_out * v.c_in * 2;
        let stages_at = (tables_at + (3 * v.c_out + 4 * v.c_in) * 4 + 16).next_multiple_of(128);
        let y_at = output;
        let x_at = y_at + if from.has_table { output } else { 0 };
        let norms_at = x_at + input;
        let result_in_stage = norms_at + from.other_norms * input;
        let stage_bytes = result_in_stage + if from.adds { input } else { 0 };
        let behind = stages_at + 2 * stage_bytes;
        let (result_at, result_step, end) = match from.adds {
            true => (stages_at + result_in_stage, stage_bytes, behind),
            false => (behind, 0, behind + input),
        };
        Layout { tables_at, stages_at, stage_bytes, y_at, x_at, norms_at, result_at, result_step, shared_bytes: end }
    }
}

/// The choice, with where its parts of the workspace begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub variant: Variant,
    /// Tiles of input channels.
    pub columns: usize,
    /// Of the clips at hand.
    pub splits: usize,
    pub rows_per_split: usize,
    pub tiles_per_part: usize,
    pub parts_per_split: usize,
    pub num_parts: usize,
    pub layout: Layout,
    pub partials_at: usize,
    pub workspace_bytes: usize,
}

/// Chooses, where there is a kernel. Bits depend on how rows are cut: that follows from the whole batch.
pub(super) fn plan(op: &Conv3d, from: &Sources, limits: Limits) -> Option<Plan> {
    let variant = Variant::of(op)?;
    let layout = Layout::of(&variant, from);
    if layout.shared_bytes > limits.shared_bytes {
        return None;
    }
    let (i, batch) = (op.input, op.batch(from.splits));
    let per_clip = i.t * i.h * i.w;
    let (columns, rows_per_split) = (i.c.div_ceil(variant.c_in), batch.clips_per_split() * per_clip);
    let tiles_per_split = rows_per_split.div_ceil(variant.rows);
    // A block more takes a kilobyte of the system's.
    let on_an_sm = (limits.shared_bytes + 1024) / (layout.shared_bytes + 1024);
    let places = limits.num_sms * variant.blocks.min(on_an_sm);
    let parts = (places / (columns * batch.splits_of(batch.batch_clips))).clamp(1, tiles_per_split);
    let tiles_per_part = tiles_per_split.div_ceil(parts);
    let parts_of = |rows: usize| rows.div_ceil(variant.rows).div_ceil(tiles_per_part);
    let parts_per_split = parts_of(rows_per_split);
    let splits = batch.splits_of(i.n);
    let num_parts = (splits - 1) * parts_per_split + parts_of(i.n * per_clip - (splits - 1) * rows_per_split);
    let partials_at = TICKET_BYTES + (num_parts * 3 * i.c * 4).next_multiple_of(256);
    let workspace_bytes = partials_at + num_parts * columns * variant.c_out * variant.c_in * 4;
    Some(Plan {
        variant,
        columns,
        splits,
        rows_per_split,
        tiles_per_part,
        parts_per_split,
        num_parts,
        layout,
        partials_at,
        workspace_bytes,
    })
}

/// All that a call with so many splits may read.
pub(super) fn all_sources(splits: usize) -> impl Iterator<Item = Sources> {
    let forms = (0..12).map(|i| (i % 2 == 1, i / 2 % 2 == 1, i / 4));
    forms.map(move |(has_table, adds, other_norms)| Sources { splits, has_table, adds, other_norms })
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v = &self.variant;
        write!(
            f,
            "tiles of {} rows, {} x {} channels, {} columns x {} parts of {} tiles, {} splits, {} shared bytes",
            v.rows,
            v.c_out,
            v.c_in,
            self.columns,
            self.num_parts,
            self.tiles_per_part,
            self.splits,
            self.layout.shared_bytes
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::{ActivationShape, Part};

    const H100: Limits = Limits { num_sms: 132, shared_bytes: 227 << 10 };

    fn pointwise(input: [usize; 5], c_out: usize) -> Conv3d {
        let [n, t, h, w, c] = input;
        let input = ActivationShape::new(n, t, h, w, c);
        Conv3d {
            input,
            c_out,
            filter: [1; 3],
            stride: [1; 3],
            padding: [0; 3],
            dilation: [1; 3],
            groups: 1,
            part: None,
        }
    }

    #[test]
    fn layers_take_the_variant_that_idles_least() {
        let from = |adds, other_norms| Sources { splits: 1, has_table: true, adds, other_norms };
        for (input, c_out, from, variant, columns, parts, kilobytes) in [
            // SlowFast-8x8-R50: the slow pathway's first convolutions of s2 and s3
            ([8, 8, 56, 56, 80], 64, from(false, 0), (32, 64, 128), 1, 262, 58),
            ([8, 8, 56, 56, 256], 64, from(true, 1), (32, 64, 128), 2, 131, 82),
            ([8, 8, 28, 28, 512], 128, from(true, 1), (32, 128, 128), 4, 33, 115),
            // the fast pathway's last convolutions
            ([8, 32, 56, 56, 8], 32, from(false, 0), (128, 64, 16), 1, 262, 79),
            ([8, 32, 28, 28, 16], 64, from(false, 0), (128, 64, 16), 1, 262, 79),
            ([8, 32, 14, 14, 32], 128, from(false, 0), (64, 128, 32), 1, 262, 86),
            ([8, 32, 7, 7, 64], 256, from(false, 0), (32, 256, 64), 1, 131, 112),
        ] {
            let plan = plan(&pointwise(input, c_out), &from, H100).expect("a plan");
            let v = plan.variant;
            let got = ((v.rows, v.c_out, v.c_in), plan.columns, plan.num_parts, plan.layout.shared_bytes / 1024);
            assert_eq!(got, (variant, columns, parts, kilobytes), "{input:?} -> {c_out}: {plan}");
        }
    }

    #[test]
    fn others_have_none() {
        let from = Sources { splits: 1, has_table: true, adds: true, other_norms: 2 };
        let good = pointwise([8, 8, 56, 56, 256], 64);
        assert!(plan(&good, &from, H100).is_some());
        let small = Limits { shared_bytes: 99 << 10, ..H100 };
        assert!(plan(&pointwise([8, 8, 28, 28, 512], 128), &from, small).is_none(), "shared memory");
        for (why, op) in [
            ("taps", Conv3d { filter: [3, 1, 1], padding: [1, 0, 0], ..good }),
            ("stride", Conv3d { stride: [1, 2, 2], ..good }),
            ("padding", Conv3d { padding: [0, 1, 0], ..good }),
            ("groups", Conv3d { groups: 2, ..good }),
            ("odd channels", pointwise([8, 8, 56, 56, 20], 64)),
            ("many input channels", pointwise([8, 8, 14, 14, 1024], 128)),
            ("many output channels", pointwise([8, 8, 28, 28, 128], 512)),
            ("both", pointwise([8, 8, 28, 28, 128], 256)),
        ] {
            assert!(plan(&op, &from, H100).is_none(), "{why}");
        }
    }

    /// Every part of a batch is cut as the batch is, and the parts of its splits add up.
    #[test]
    fn a_part_of_a_batch_is_cut_as_the_batch() {
        let whole = Part::whole(7, 3);
        let batch = Conv3d { part: Some(whole), ..pointwise([7, 2, 9, 9, 256], 64) };
        for from in all_sources(3) {
            let of_batch = plan(&batch, &from, H100).unwrap();
            let mut parts = 0;
            for (first_clip, clips) in [(0, 3), (3, 3), (6, 1)] {
                let part = Some(Part { first_clip, ..whole });
                let op = Conv3d { part, input: ActivationShape { n: clips, ..batch.input }, ..batch };
                let got = plan(&op, &Sources { splits: 1, ..from }, H100).unwrap();
                assert_eq!(got.tiles_per_part, of_batch.tiles_per_part);
                assert_eq!(got.parts_per_split, of_batch.parts_per_split);
                assert!(got.workspace_bytes <= of_batch.workspace_bytes);
                parts += got.num_parts;
            }
            assert_eq!(parts, of_batch.num_parts);
        }
    }
}
