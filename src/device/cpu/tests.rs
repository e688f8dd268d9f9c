//! The kernels on raw pointers stay inside what they were given: operands end (or begin) at pages that fault when touched,
//! for random shapes and every instruction set; and arguments that do not fit are refused before a kernel runs.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

/// Memory whose last (or first) float touches memory that faults; ordinary memory without the feature `simt`.
#[cfg(feature = "simt")]
mod guarded {
    use std::ops::{Deref, DerefMut};
    use std::ptr::NonNull;

    use crate::device::simt::{Guard, SimtOptions, allocate, free, with_options};

    pub struct Floats {
        start: NonNull<u8>,
        skipped_bytes: usize,
        len: usize,
    }

    impl Floats {
        pub fn new(values: &[f32], at_end: bool) -> Floats {
            let len_bytes = size_of_val(values);
            // Guarded ends are multiples of 16 bytes: what is missing to one is left out at the start.
            let padded = len_bytes.next_multiple_of(16);
            let guard = if at_end { Guard::End } else { Guard::Start };
            let start = with_options(SimtOptions { guard, ..Default::default() }, || allocate(padded)).expect("memory");
            let skipped_bytes = if at_end { padded - len_bytes } else { 0 };
            let mut floats = Floats { start, skipped_bytes, len: values.len() };
            floats.copy_from_slice(values);
            floats
        }

        fn first(&self) -> *mut f32 {
            self.start.as_ptr().wrapping_add(self.skipped_bytes).cast()
        }
    }

    impl Deref for Floats {
        type Target = [f32];
        fn deref(&self) -> &[f32] {
            // SAFETY: `len` floats from there on lie in the allocation, which is zeroed and lives as long as `self`.
            unsafe { std::slice::from_raw_parts(self.first(), self.len) }
        }
    }

    impl DerefMut for Floats {
        fn deref_mut(&mut self) -> &mut [f32] {
            // SAFETY: as above, and `self` is borrowed exclusively.
            unsafe { std::slice::from_raw_parts_mut(self.first(), self.len) }
        }
    }

    impl Drop for Floats {
        fn drop(&mut self) {
            // SAFETY: it came from `allocate` and goes with `self`.
            unsafe { free(self.start) }
        }
    }
}

#[cfg(feature = "simt")]
fn guarded(values: &[f32], at_end: bool) -> guarded::Floats {
    guarded::Floats::new(values, at_end)
}

#[cfg(not(feature = "simt"))]
fn guarded(values: &[f32], _at_end: bool) -> Vec<f32> {
    values.to_vec()
}

/// Random numbers of a fixed seed.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }

    fn one_of(&mut self, values: &[usize]) -> usize {
        values[self.below(values.len())]
    }

    /// Small whole numbers, whose sums are exact.
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.below(9) as f32 - 4.0).collect()
    }
}

/// A plain matrix.
struct Matrix {
    values: Vec<f32>,
    n: usize,
}

impl Columns for Matrix {
    fn pack(&self, rows: Range<usize>, first: usize, width: usize, to: &mut [f32]) {
        for (row, to) in rows.zip(to.chunks_mut(width)) {
            let columns = width.min(self.n - first);
            to[..columns].copy_from_slice(&self.values[row * self.n + first..][..columns]);
            to[columns..].fill(0.0);
        }
    }
}

/// A grid of random sizes, taps and gaps, with the lengths of `a` and `c` that it just needs.
fn random_grid(random: &mut Random, k: usize, n: usize) -> (Grid, usize, usize) {
    let (mut a_end, mut row_end) = (k, n);
    let mut axes: Vec<AxisMap> = (0..3)
        .map(|_| {
            let (count, taps, from_step) = (1 + random.below(5), 1 + random.below(3), random.below(8));
            let (to_first, to_step) = (random.below(3), row_end + random.below(3));
            let mut reach = 0;
            let mut tap = || {
                let (start, first) = (random.below(count + 1), random.below(20));
                let end = start + random.below(count - start + 1);
                if start < end {
                    reach = reach.max(first + (end - start - 1) * from_step);
                }
                TapMap { inside: start..end, first }
            };
            let taps = (0..taps).map(|_| tap()).collect();
            a_end += reach;
            row_end += to_first + (count - 1) * to_step;
            AxisMap { count, to_first, to_step, from_step, taps }
        })
        .collect();
    axes.reverse();
    let batch = 1 + random.below(3);
    let (from_pitch, to_pitch) = (random.below(30), row_end + random.below(3));
    let grid = Grid { batch, from_pitch, to_pitch, axes: axes.try_into().ok().expect("three axes") };
    (grid, a_end + (batch - 1) * from_pitch, row_end + (batch - 1) * to_pitch)
}

/// Where each row goes, and where its taps come from.
fn rows(grid: &Grid) -> Vec<(usize, Vec<Option<usize>>)> {
    let [t, h, w] = &grid.axes;
    let to = |axis: &AxisMap, j: usize| axis.to_first + j * axis.to_step;
    let from = |axis: &AxisMap, tap: &TapMap, j: usize| {
        (tap.inside.start..tap.inside.end).position(|at| at == j).map(|i| tap.first + i * axis.from_step)
    };
    let mut rows = vec![];
    for i in 0..grid.batch {
        for (jt, jh) in (0..t.count).flat_map(|jt| (0..h.count).map(move |jh| (jt, jh))) {
            for jw in 0..w.count {
                let mut sources = vec![];
                for kt in &t.taps {
                    for kh in &h.taps {
                        let row =
                            |kw| Some(i * grid.from_pitch + from(t, kt, jt)? + from(h, kh, jh)? + from(w, kw, jw)?);
                        sources.extend(w.taps.iter().map(row));
                    }
                }
                rows.push((i * grid.to_pitch + to(t, jt) + to(h, jh) + to(w, jw), sources));
            }
        }
    }
    rows
}

#[test]
fn sums_over_taps_stay_inside_their_operands() {
    for isa in Isa::available() {
        let mut random = Random(7);
        for round in 0..300 {
            let k = random.one_of(&[1, 2, 3, 5, 8, 17, 31]);
            let n = random.one_of(&[1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 130]);
            let (grid, a_len, c_len) = random_grid(&mut random, k, n);
            let (panels, taps, at_end) = (Panels::new(isa, n), grid.num_taps(), round % 3 != 0);
            let a = guarded(&random.floats(a_len), at_end);
            let matrix = Matrix { values: random.floats(taps * k * n), n };
            let mut packed = guarded(&vec![f32::NAN; panels.packed_len(taps, k)], at_end);
            let (before, columns) = (random.floats(c_len), guarded(&random.floats(n), at_end));
            let mut c = guarded(&before, at_end);
            let init = [Init::Zero, Init::Columns(&columns), Init::Add][round % 3];
            let mut want = before.clone();
            for (to, from) in rows(&grid) {
                for j in 0..n {
                    let first = match init {
                        Init::Zero => 0.0,
                        Init::Columns(values) => values[j],
                        Init::Add => before[to + j],
                    };
                    let value = |tap: usize, at: usize| {
                        (0..k).map(|i| a[at + i] * matrix.values[(tap * k + i) * n + j]).sum::<f32>()
                    };
                    let taps = from.iter().enumerate().filter_map(|(tap, at)| at.map(|at| value(tap, at)));
                    want[to + j] = first + taps.sum::<f32>();
                }
            }
            add_taps(&grid, &panels, &a, k, &matrix, &mut packed, &mut c, init);
            assert!(c[..] == want[..], "{isa:?}, round {round}: k {k}, n {n}, {taps} taps");
        }
    }
}

#[test]
fn outer_sums_stay_inside_their_operands() {
    for isa in Isa::available() {
        let mut random = Random(9);
        for round in 0..300 {
            let (rows, taps) = (1 + random.below(31), 1 + random.below(3));
            let columns = random.one_of(&[1, 3, 8, 15, 16, 17, 31, 32, 33, 40, 64, 65]);
            let (lines, line) = (1 + random.below(6), 1 + random.below(5));
            let (x_step, dy_step) = (random.below(columns + 3), rows + random.below(3));
            let at_end = round % 3 != 0;
            let x_len = columns + line * x_step + 13;
            let x = guarded(&random.floats(x_len), at_end);
            let dy = guarded(&random.floats((lines * line - 1) * dy_step + rows), at_end);
            // A run a line and tap, of as many positions as fit; none now and then.
            let count = |line_idx: usize, tap: usize| (line_idx * 5 + tap * 3) % (line + 1);
            let run = |line_idx: usize, tap: usize| {
                let count = count(line_idx, tap);
                let last = x_len - columns - count.saturating_sub(1) * x_step;
                Run { x: if tap == 0 { last } else { line_idx % (last + 1) }, position: line_idx * line, count }
            };
            let num_splits = 1 + round % 2;
            let split = |i: usize| lines * i / num_splits..lines * (i + 1) / num_splits;
            let sum = OuterSum {
                isa,
                x: &x,
                x_step,
                dy: &dy,
                dy_step,
                rows,
                columns,
                taps,
                line,
                num_splits,
                lines: &split,
                chunk_positions: 1 + random.below(2 * line),
                goes_on: false,
                column_tasks: 1 + random.below(4),
                runs: &|lines, tap, runs| {
                    runs.clear();
                    runs.extend(lines.map(|i| run(i, tap)));
                },
            };
            let split_len = rows * taps * columns;
            let mut want = vec![0f32; num_splits * split_len];
            for i in 0..num_splits {
                for (line_idx, tap) in split(i).flat_map(|line_idx| (0..taps).map(move |tap| (line_idx, tap))) {
                    let run = run(line_idx, tap);
                    for p in 0..run.count {
                        for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
                            want[i * split_len + (row * taps + tap) * columns + column] +=
                                dy[(run.position + p) * dy_step + row] * x[run.x + p * x_step + column];
                        }
                    }
                }
            }
            let mut acc = guarded(&vec![f32::NAN; want.len()], at_end);
            sum.run(&mut acc);
            assert!(acc[..] == want[..], "{isa:?}, round {round}: {rows} x {columns}, {taps} taps, {lines} x {line}");
        }
    }
}

#[test]
fn transposed_blocks_stay_inside_their_operands() {
    for isa in Isa::available() {
        for (pitch, at_end) in [(16, true), (19, true), (16, false)] {
            let len = (BLOCK - 1) * pitch + BLOCK;
            let from = guarded(&(0..len).map(|i| i as f32).collect::<Vec<_>>(), at_end);
            let mut to = guarded(&vec![0.0; len], at_end);
            transpose_block(isa, [BLOCK, BLOCK], &from, pitch, &mut to, pitch);
            assert_eq!(to[len - 1], from[len - 1]);
        }
    }
}

/// Whether `call` panics, as it must before a kernel runs.
fn is_refused(call: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(call)).is_err()
}

#[test]
fn sums_over_taps_refuse_what_lies_outside() {
    const K: usize = 5;
    const N: usize = 9;
    // All coordinates read `a`.
    let axis = |count: usize, to_step: usize, from_step: usize| {
        let taps = std::iter::once(TapMap { inside: 0..count, first: 0 }).collect();
        AxisMap { count, to_first: 0, to_step, from_step, taps }
    };
    let grid = |batch, from_pitch, to_pitch, w: AxisMap| Grid {
        batch,
        from_pitch,
        to_pitch,
        axes: [axis(1, 0, 0), axis(1, 0, 0), w],
    };
    let good = || grid(2, 10, 18, axis(2, 9, 5));
    for isa in Isa::available() {
        let matrix = Matrix { values: vec![1.0; K * N], n: N };
        let try_with = |grid: &Grid, a_len: usize, k: usize, c_len: usize, missing: usize, columns: usize| {
            let panels = Panels::new(isa, N);
            let (a, mut c, first) = (vec![1.0; a_len], vec![0.0; c_len], vec![0.0; columns]);
            let mut packed = vec![0.0; panels.packed_len(1, K) - missing];
            is_refused(|| add_taps(grid, &panels, &a, k, &matrix, &mut packed, &mut c, Init::Columns(&first)))
        };
        let refused = |grid: Grid| try_with(&grid, 20, K, 36, 0, N);
        assert!(!refused(good()), "the sizes just fit");
        assert!(try_with(&good(), 19, K, 36, 0, N), "a is too short");
        assert!(try_with(&good(), 20, K, 35, 0, N), "c is too short");
        assert!(try_with(&good(), 20, K, 36, 0, N - 1), "first values for all columns");
        assert!(try_with(&good(), 20, 0, 36, 0, N), "no k");
        assert!(refused(grid(2, 10, 18, axis(2, 8, 5))), "rows overlap");
        assert!(refused(grid(2, 10, 17, axis(2, 9, 5))), "grids overlap");
        let mut outside = axis(2, 9, 5);
        outside.taps[0].inside.end = 3;
        assert!(refused(grid(2, 10, 18, outside)), "a tap of a coordinate that the axis has not");
        // Offsets whose sums do not fit a number: wrapped around, they would look fine.
        assert!(refused(grid(2, 10, 18, axis(2, 9, usize::MAX - 2))), "far outside a");
        assert!(refused(grid(2, usize::MAX - 4, 18, axis(2, 9, 5))), "far outside a");
        assert!(refused(grid(3, 1 << 63, 18, axis(2, 9, 5))), "far outside a");
        assert!(refused(grid(2, 10, 18, axis(2, usize::MAX - 8, 5))), "far outside c");
        assert!(refused(grid(3, 0, 1 << 63, axis(2, 9, 5))), "far outside c");
        let nothing = Panels::new(isa, 0);
        assert!(is_refused(|| add_taps(&good(), &nothing, &[1.0; 20], K, &matrix, &mut [], &mut [0.0; 36], Init::Add)));
    }
}

#[test]
fn outer_sums_refuse_what_lies_outside() {
    for isa in Isa::available() {
        let refused = |x_len: usize, dy_len: usize, acc_len: usize, [rows, taps]: [usize; 2], line: usize, run: Run| {
            let (x, dy, mut acc) = (vec![1.0; x_len], vec![1.0; dy_len], vec![0.0; acc_len]);
            let sum = OuterSum {
                isa,
                x: &x,
                x_step: 4,
                dy: &dy,
                dy_step: 3,
                rows,
                columns: 4,
                taps,
                line,
                num_splits: 1,
                lines: &|_| 0..2,
                chunk_positions: 2,
                goes_on: false,
                column_tasks: 1,
                runs: &|lines, _, runs| {
                    let position = lines.start * 2 + run.position;
                    runs.clear();
                    runs.push(Run { position, ..run });
                },
            };
            is_refused(|| sum.run(&mut acc))
        };
        let run = |x, position, count| Run { x, position, count };
        assert!(!refused(8, 12, 12, [3, 1], 2, run(0, 0, 2)), "the sizes just fit");
        assert!(!refused(8, 12, 12, [3, 1], 2, run(usize::MAX, usize::MAX / 2, 0)), "an empty run reads nothing");
        assert!(refused(7, 12, 12, [3, 1], 2, run(0, 0, 2)), "x is too short");
        assert!(refused(8, 11, 12, [3, 1], 2, run(0, 0, 2)), "dy is too short");
        assert!(refused(8, 12, 11, [3, 1], 2, run(0, 0, 2)), "acc is too short");
        assert!(refused(8, 12, 12, [3, 1], 2, run(0, 1, 2)), "a run beyond its chunk");
        assert!(refused(8, 12, 12, [3, 1], 2, run(usize::MAX - 3, 0, 1)), "far outside x");
        assert!(refused(8, 12, 12, [3, 1], 2, run(0, 0, usize::MAX / 2)), "too many positions");
        assert!(refused(8, 12, 0, [3, 1 << 62], 2, run(0, 0, 2)), "more sums than a number can count");
        assert!(refused(8, 12, 12, [3, 1], 1 << 63, run(0, 0, 2)), "more positions than a number can count");
    }
}

#[test]
fn transposing_refuses_what_lies_outside() {
    for isa in Isa::available() {
        let refused = |from_len: usize, from_pitch, to_len: usize, to_pitch| {
            let (from, mut to) = (vec![1.0; from_len], vec![0.0; to_len]);
            is_refused(|| transpose_block(isa, [BLOCK, BLOCK], &from, from_pitch, &mut to, to_pitch))
        };
        assert!(!refused(256, 16, 256, 16));
        assert!(refused(255, 16, 256, 16));
        assert!(refused(256, usize::MAX / 15 + 2, 256, 16));
        assert!(refused(256, 16, 255, 16));
        assert!(refused(256, 16, 256, usize::MAX / 15 + 2));
    }
}
