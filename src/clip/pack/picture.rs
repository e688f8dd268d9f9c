//! A frame to bytes and back.

use std::ops::Range;

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use super::jpeg_box::{self, Cut};
use super::shrink::Shrink;
use super::{Codec, Encoding};
use crate::clip::Area;
use crate::clip::decode::jpeg;
use crate::clip::sampling::scaled_size_px;

/// Rows of a raw frame that are read and checked at once.
const RAW_ROWS: usize = 16;

/// Encodes the frames of one clip.
pub(super) struct FrameEncoder {
    codec: Codec,
    shrink: Option<Shrink>,
    /// (rows, columns) of a stored frame.
    pub size: (usize, usize),
}

impl FrameEncoder {
    /// For frames of `from` (rows, columns).
    pub fn new(encoding: &Encoding, from: (usize, usize)) -> FrameEncoder {
        let side = encoding.short_side_px.filter(|&side| (side as usize) < from.0.min(from.1));
        let size = side.map_or(from, |side| scaled_size_px(from.0, from.1, side));
        FrameEncoder { codec: encoding.codec, shrink: side.map(|_| Shrink::new(from, size)), size }
    }

    /// A frame's bytes.
    pub fn encode(&mut self, rgb: &[u8]) -> Result<Vec<u8>, String> {
        let shrunk = self.shrink.as_mut().map(|shrink| shrink.frame(rgb));
        let rgb = shrunk.as_deref().unwrap_or(rgb);
        let Codec::Jpeg { quality } = self.codec else { return Ok(rgb.to_vec()) };
        let size = |px: usize| u16::try_from(px).map_err(|_| format!("{px} pixels are too many for a JPEG picture"));
        let (height, width) = (size(self.size.0)?, size(self.size.1)?);
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, quality);
        encoder.set_sampling_factor(SamplingFactor::F_2_2);
        encoder.set_restart_interval(1);
        encoder.encode(rgb, width, height, ColorType::Rgb).map_err(|e| format!("jpeg: {e}"))?;
        Ok(bytes)
    }
}

impl Codec {
    /// Cells that a frame of `height_px` rows is cut into.
    pub(super) fn cells_a_frame(self, height_px: usize) -> usize {
        match self {
            Codec::Jpeg { .. } => 1,
            Codec::Raw => height_px.div_ceil(RAW_ROWS),
        }
    }

    /// The cells of an encoded frame of `width_px` columns.
    pub(super) fn cut(self, frame: &[u8], width_px: usize) -> std::slice::Chunks<'_, u8> {
        match self {
            Codec::Jpeg { .. } => frame.chunks(frame.len().max(1)),
            Codec::Raw => frame.chunks(RAW_ROWS * width_px * 3),
        }
    }

    /// Which cells of a frame hold the pixels of `area`.
    pub(super) fn cells_of(self, area: &Area) -> Range<usize> {
        match self {
            Codec::Jpeg { .. } => 0..1,
            Codec::Raw => area.rows.start / RAW_ROWS..area.rows.end.div_ceil(RAW_ROWS),
        }
    }

    /// Appends the pixels of `area` of a frame of `size` (rows, columns) to `out`; `cells` are the bytes of
    /// [`Codec::cells_of`].
    pub(super) fn decode(
        self,
        cells: &[u8],
        size: (usize, usize),
        area: &Area,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        match self {
            Codec::Jpeg { .. } => {
                let smaller = jpeg_box::cut_out(cells, size, area)?;
                let Cut { origin_px, size, bytes } = smaller;
                let picture = jpeg::decode(&bytes)?;
                if (picture.height_px, picture.width_px) != size {
                    let (got_h, got_w, (height, width)) = (picture.height_px, picture.width_px, size);
                    return Err(format!("a picture of {got_w}x{got_h} pixels, expected {width}x{height}"));
                }
                copy_area(&picture.rgb, size.1, origin_px, area, out);
            }
            Codec::Raw => {
                let first_row = area.rows.start / RAW_ROWS * RAW_ROWS;
                let last_row = area.rows.end.next_multiple_of(RAW_ROWS).min(size.0);
                let expected = (last_row - first_row) * size.1 * 3;
                if cells.len() != expected {
                    return Err(format!("{} bytes of pixels, expected {expected}", cells.len()));
                }
                copy_area(cells, size.1, (first_row, 0), area, out);
            }
        }
        Ok(())
    }
}

/// Appends `area` of a frame, of which a picture of `width_px` columns is the part from (row, column) `origin_px` on.
fn copy_area(rgb: &[u8], width_px: usize, origin_px: (usize, usize), area: &Area, out: &mut Vec<u8>) {
    for row in area.rows.clone() {
        let begin = (row - origin_px.0) * width_px + area.columns.start - origin_px.1;
        out.extend_from_slice(&rgb[begin * 3..(begin + area.columns.len()) * 3]);
    }
}
