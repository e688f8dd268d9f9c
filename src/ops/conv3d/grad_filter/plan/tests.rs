//! Plans as a table, and what every plan must keep.

use super::*;
use crate::shape::ActivationShape;

const H100: Limits = Limits::of(132, 227 << 10);

/// Layers of SlowFast-8x8-R50 at the default grid, eight clips: input, c_out, filter, stride, padding; variant and warps, taps of a
/// block (on the input's + on the gradient's side), its chunks (in x out), tile, blocks x parts.
const LAYERS: &str = "
    slow_stem        8,8,224,224,4   64    1,7,7  1,2,2  0,3,3 Mma64x64 4x1x1 taps 28+1 chunks 1x8 tile 1,8,8 blocks 1x262
    fast_stem        8,32,224,224,4  8     5,7,7  1,2,2  2,3,3 Mma64x64 4x1x1 taps 28+5 chunks 1x1 tile 8,4,6 blocks 1x262
    s1_lateral       8,32,56,56,8    16    7,1,1  4,1,1  3,0,0 Mma144x16 1x1x4 taps 7+1 chunks 1x2 tile 8,1,24 blocks 1x262
    slow_s2_b        8,8,56,56,64    64    1,3,3  1,1,1  0,1,1 Mma144x16 2x2x1 taps 9+1 chunks 4x4 tile 1,8,14 blocks 4x64
    slow_s2_c        8,8,56,56,64    256   1,1,1  1,1,1  0,0,0 Mma64x64 1x4x1 taps 1+1 chunks 8x32 tile 16,1,1 blocks 1x262
    slow_s3_b_first  8,8,56,56,128   128   1,3,3  1,2,2  0,1,1 Mma64x64 3x2x1 taps 3+1 chunks 8x16 tile 4,4,4 blocks 6x22
    slow_s4_a        8,8,14,14,1024  256   3,1,1  1,1,1  1,0,0 Mma64x64 3x2x1 taps 3+1 chunks 8x16 tile 8,1,10 blocks 32x4
    slow_s5_c        8,8,7,7,512     2048  1,1,1  1,1,1  0,0,0 Mma64x64 2x4x1 taps 1+1 chunks 16x32 tile 32,1,1 blocks 32x4
    fast_s2_b        8,32,56,56,8    8     1,3,3  1,1,1  0,1,1 Mma144x16 1x1x4 taps 9+1 chunks 1x1 tile 1,8,56 blocks 1x256
    fast_s2_c        8,32,56,56,8    32    1,1,1  1,1,1  0,0,0 Mma64x32 1x1x4 taps 1+1 chunks 1x4 tile 192,1,1 blocks 1x262
    fast_s3_a        8,32,28,28,64   16    3,1,1  1,1,1  1,0,0 Mma64x64 1x1x4 taps 1+3 chunks 8x2 tile 32,1,4 blocks 1x262
    fast_s5_b        8,32,7,7,64     64    1,3,3  1,1,1  0,1,1 Mma144x16 2x1x2 taps 9+1 chunks 4x2 tile 3,7,7 blocks 8x29
";

fn layers() -> Vec<(&'static str, Conv3d, String)> {
    let layer = |line: &'static str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let sizes = |word: &str| -> Vec<usize> { word.split(',').map(|size| size.parse().expect("a size")).collect() };
        let three = |word: &str| <[usize; 3]>::try_from(sizes(word)).expect("three sizes");
        let [n, t, h, w, c] = <[usize; 5]>::try_from(sizes(words[1])).expect("five sizes");
        let op = Conv3d {
            input: ActivationShape::new(n, t, h, w, c),
            c_out: sizes(words[2])[0],
            filter: three(words[3]),
            stride: three(words[4]),
            padding: three(words[5]),
            dilation: [1; 3],
            groups: 1,
            part: None,
        };
        (words[0], op, words[6..].join(" "))
    };
    LAYERS.trim().lines().map(layer).collect()
}

fn sources(op: &Conv3d, splits: usize) -> Sources {
    let pixel_pairs = Geometry::has_pixel_pairs(op);
    Sources {
        splits,
        num_input: 1,
        num_grad: 2,
        has_input_prologue: !pixel_pairs,
        has_grad_prologue: true,
        pixel_pairs,
        has_bias: false,
        of_splits: false,
        pool: None,
    }
}

#[test]
fn plans_of_layers() {
    let mut wrong = String::new();
    for (name, op, want) in layers() {
        let plan = plan(&op, sources(&op, 1), H100).expect("a plan");
        let (b, [t, h, w]) = (&plan.blocking, plan.tiling.tile);
        let [m, n, k] = b.warps;
        let got = format!(
            "{:?} {m}x{n}x{k} taps {}+{} chunks {}x{} tile {t},{h},{w} blocks {}x{}",
            b.variant, b.taps, b.grad_taps, b.slab_chunks, b.out_chunks, plan.num_blocks, plan.cut.num_parts
        );
        if got != want {
            wrong += &format!("\n{name}: got {got}, want {want}; {plan}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Every tile in one part, every column in one block, nothing beyond what a block may have.
#[test]
fn plans_cover_the_sum() {
    for (_, op, _) in layers() {
        for (splits, max_rows) in [(1, MAX_ROWS), (3, 100), (8, 16)] {
            for variant in [None, Some(0), Some(1), Some(2)] {
                let limits = Limits { max_rows, variant, ..H100 };
                let plan = plan(&op, sources(&op, splits), limits).expect("a plan");
                let (b, t, g) = (&plan.blocking, &plan.tiling, &plan.geometry);
                assert!(t.shared_bytes <= limits.shared_bytes && t.rows <= max_rows.next_multiple_of(16), "{plan}");
                let (cut, tiles) = (plan.cut, t.num_tiles);
                let covers = |parts: usize, tiles: usize| {
                    parts.saturating_sub(1) * cut.tiles_per_part < tiles && tiles <= parts * cut.tiles_per_part
                };
                let last = tiles - (cut.splits() - 1) * cut.tiles_per_split;
                assert!(covers(cut.parts_per_split, cut.tiles_per_split), "{plan}");
                assert!(covers(cut.num_parts - (cut.splits() - 1) * cut.parts_per_split, last), "{plan}");
                assert!(b.taps * b.num_tap_blocks >= g.num_taps(), "{plan}");
                assert!(g.grad_taps == 1 || t.tile.iter().product::<usize>() == t.rows, "{plan}");
                assert!(b.taps * b.slab_chunks <= b.warps[0] * b.variant.units() * 2, "{plan}");
                assert!(b.out_chunks * b.grad_taps <= b.warps[1] * b.variant.octets(), "{plan}");
                assert!(b.out_chunks * b.num_out_blocks * 8 >= op.c_out, "{plan}");
                let bytes = |plan: &Plan| {
                    let sum_bytes = plan.blocking.sum_bytes();
                    if plan.cut.has_partials { plan.cut.num_parts * plan.num_blocks * sum_bytes } else { 0 }
                };
                assert!(bytes(&plan) <= workspace_bytes(&op, splits, false, limits), "{plan}");
                let own = Sources { of_splits: true, ..sources(&op, splits) };
                let own = super::plan(&op, own, limits).expect("a plan");
                assert!(own.cut.has_partials || splits == 1, "{own}");
                assert!(bytes(&own) <= workspace_bytes(&op, splits, true, limits), "{own}");
            }
        }
    }
}
