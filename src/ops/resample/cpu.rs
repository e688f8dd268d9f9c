//! The native form. A frame is filtered row by row: source rows are blended in t and y first (long contiguous sums of
//! bytes), then the blended row is sampled in x.

use rayon::prelude::*;

use super::{ClipGrid, Filter, Pathway, Resample, SourceClip, Taps, taps};
use crate::device::{DType, Element, with_host_lists};
use crate::error::Result;

/// Output types, and how an f32 becomes one.
trait Stored: Element {
    const ZERO: Self;
    fn round(value: f32) -> Self;
}

impl Stored for f32 {
    const ZERO: f32 = 0.0;
    fn round(value: f32) -> f32 {
        value
    }
}

impl Stored for half::bf16 {
    const ZERO: half::bf16 = half::bf16::ZERO;
    fn round(value: f32) -> half::bf16 {
        half::bf16::from_f32(value)
    }
}

impl Stored for half::f16 {
    const ZERO: half::f16 = half::f16::ZERO;
    fn round(value: f32) -> half::f16 {
        half::f16::from_f32(value)
    }
}

pub(super) fn forward(op: &Resample, clips: &[SourceClip], pathways: &[Pathway<'_>]) -> Result<()> {
    pathways.iter().try_for_each(|pathway| match pathway.output.dtype() {
        DType::Bf16 => pathway_forward::<half::bf16>(op, clips, pathway),
        DType::F16 => pathway_forward::<half::f16>(op, clips, pathway),
        _ => pathway_forward::<f32>(op, clips, pathway),
    })
}

fn pathway_forward<T: Stored>(op: &Resample, clips: &[SourceClip], pathway: &Pathway<'_>) -> Result<()> {
    let (shape, pitch_c) = (pathway.output.shape(), pathway.output.pitch_c());
    let frame_len = shape.h * shape.w * pitch_c;
    if shape.num_positions() == 0 {
        return Ok(());
    }
    let sources: Vec<_> = clips.iter().map(|clip| &clip.memory).collect();
    with_host_lists(&sources, &[pathway.output.memory()], |sources, mut outputs| {
        let sources = sources.into_iter().map(|s| s.get::<u8>()).collect::<Result<Vec<_>>>()?;
        let output = outputs.remove(0).into_mut::<T>()?;
        let filtered: Vec<Filtered> = clips.iter().map(|clip| Filtered::new(op, clip, shape.h, shape.w)).collect();
        // The last frame may end early: memory stops at the last channel of the last position.
        output.par_chunks_mut(frame_len).enumerate().for_each(|(i, frame)| {
            let (n, t) = (i / shape.t, i % shape.t);
            let t_taps = taps(op.filter, &clips[n].grid.t, pathway.frame_indices[t], true);
            pulp::Arch::new().dispatch(|| filtered[n].frame(sources[n], &t_taps, frame, shape.c, pitch_c));
        });
        Ok(())
    })
}

/// Two columns that a sample reads, as byte offsets in the blended row, and the weight of the second.
struct Column {
    offsets: [usize; 2],
    fraction: f32,
}

/// Taps of a sample in x: two columns, or more when the support is widened.
enum Columns {
    Two(Vec<Column>),
    Many(Vec<Taps>),
}

/// What all frames of a clip share.
struct Filtered {
    rows: Vec<Taps>,
    columns: Columns,
    height_px: usize,
    width_px: usize,
    /// In pixels before the first one of the memory: where pixel (0, 0) of the first frame would be.
    origin: usize,
    /// Columns of the source that are read at all.
    span: std::ops::Range<usize>,
    multiply: [f32; 3],
    add: [f32; 3],
}

impl Filtered {
    fn new(op: &Resample, clip: &SourceClip, height: usize, width: usize) -> Filtered {
        let ClipGrid { y, x, flip, .. } = &clip.grid;
        let rows = (0..height).map(|i| taps(op.filter, y, i as u32, false)).collect();
        let source_index = |i: usize| if *flip { width - 1 - i } else { i };
        let columns: Vec<Taps> = (0..width).map(|i| taps(op.filter, x, source_index(i) as u32, false)).collect();
        let begin = columns.iter().map(|t| t.first).min().unwrap_or(0);
        let end = columns.iter().map(|t| t.first + t.weights.len()).max().unwrap_or(0);
        let (multiply, add) = op.multiply_add();
        let columns = match op.filter {
            Filter::TrilinearAntialias => Columns::Many(columns),
            _ => Columns::Two(columns.iter().map(|t| Column::new(t, begin)).collect()),
        };
        let (height_px, width_px, (top, left)) = (clip.height_px, clip.width_px, clip.origin_px);
        let origin = top * width_px + left;
        Filtered { rows, columns, height_px, width_px, origin, span: begin..end, multiply, add }
    }

    #[inline(always)]
    fn frame<T: Stored>(&self, source: &[u8], t_taps: &Taps, frame: &mut [T], c: usize, pitch_c: usize) {
        let width = self.num_columns();
        let mut blended = vec![0f32; self.span.len() * 3];
        for (y, row) in frame.chunks_mut(width * pitch_c).enumerate() {
            self.blend(source, t_taps, &self.rows[y], &mut blended);
            match &self.columns {
                Columns::Two(columns) => {
                    for (out, column) in row.chunks_mut(pitch_c).zip(columns) {
                        let [a, b] = column.offsets.map(|o| &blended[o..o + 3]);
                        self.store(out, c, |ch| a[ch] + (b[ch] - a[ch]) * column.fraction);
                    }
                }
                Columns::Many(columns) => {
                    for (out, taps) in row.chunks_mut(pitch_c).zip(columns) {
                        let from = &blended[(taps.first - self.span.start) * 3..];
                        self.store(out, c, |ch| {
                            taps.weights.iter().zip(from.chunks(3)).map(|(w, pixel)| w * pixel[ch]).sum()
                        });
                    }
                }
            }
        }
    }

    /// `blended[x][c] = sum over t and y taps of weight * source`, over the columns of the span.
    #[inline(always)]
    fn blend(&self, source: &[u8], t_taps: &Taps, y_taps: &Taps, blended: &mut [f32]) {
        let mut is_first = true;
        for (t, wt) in t_taps.weights.iter().enumerate() {
            for (y, wy) in y_taps.weights.iter().enumerate() {
                let row = ((t_taps.first + t) * self.height_px + y_taps.first + y) * self.width_px;
                let (begin, end) = (row + self.span.start - self.origin, row + self.span.end - self.origin);
                let bytes = &source[begin * 3..end * 3];
                let weight = wt * wy;
                if is_first {
                    blended.iter_mut().zip(bytes).for_each(|(sum, byte)| *sum = f32::from(*byte) * weight);
                } else {
                    blended.iter_mut().zip(bytes).for_each(|(sum, byte)| *sum += f32::from(*byte) * weight);
                }
                is_first = false;
            }
        }
    }

    #[inline(always)]
    fn store<T: Stored>(&self, out: &mut [T], c: usize, value: impl Fn(usize) -> f32) {
        for (ch, out) in out[..3].iter_mut().enumerate() {
            *out = T::round(value(ch) * self.multiply[ch] + self.add[ch]);
        }
        out[3..c].fill(T::ZERO);
    }

    fn num_columns(&self) -> usize {
        match &self.columns {
            Columns::Two(columns) => columns.len(),
            Columns::Many(columns) => columns.len(),
        }
    }
}

impl Column {
    /// `begin` is the source column that the blended row starts with.
    fn new(taps: &Taps, begin: usize) -> Column {
        let fraction = taps.weights.get(1).copied().unwrap_or(0.0);
        let first = taps.first - begin;
        let second = if taps.weights.len() > 1 { first + 1 } else { first };
        Column { offsets: [first * 3, second * 3], fraction }
    }
}
