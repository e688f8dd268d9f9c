//! The part of a JPEG picture that a box needs, as a smaller JPEG picture: any decoder then does the work of the box alone.
//!
//! Packed frames have a restart marker behind every MCU (16 x 16 pixels): each is coded by itself, from DC prediction 0 and
//! a whole byte on (ITU-T T.81, F.1.1.5). The MCUs of the box under a header with the smaller size, their markers numbered
//! anew, are such a picture again. Nothing is decoded for that: markers are looked for, bytes are copied.
//!
//! A decoder colours a pixel by the chroma samples next to its own, too. Pixels at the rim of the smaller picture lack some of
//! them, so the box gets a margin: what is inside of it is the same to the bit as in the whole picture.

use std::borrow::Cow;
use std::ops::Range;

use crate::clip::Area;

/// Rows and columns of an MCU.
const MCU_PX: usize = 16;

/// Pixels around a box that decide its pixels: half of the distance of two chroma samples, rounded up.
const MARGIN_PX: usize = 2;

const FIRST_RESTART: u8 = 0xD0;
const END_OF_IMAGE: u8 = 0xD9;
const START_OF_SCAN: u8 = 0xDA;
const RESTART_INTERVAL: u8 = 0xDD;
const BASELINE_FRAME: u8 = 0xC0;

/// A picture that shows a part of another one.
pub(super) struct Cut<'a> {
    /// (row, column) of its first pixel in the other one.
    pub origin_px: (usize, usize),
    /// (rows, columns).
    pub size: (usize, usize),
    pub bytes: Cow<'a, [u8]>,
}

/// Cuts the MCUs that `area` needs out of a packed frame of `size` (rows, columns).
///
/// # Errors
/// A picture that was not made by [`FrameEncoder`](super::picture::FrameEncoder), or is cut off.
pub(super) fn cut_out<'a>(jpeg: &'a [u8], size: (usize, usize), area: &Area) -> Result<Cut<'a>, String> {
    let (rows, columns) = (mcus(&area.rows, size.0), mcus(&area.columns, size.1));
    let a_row = size.1.div_ceil(MCU_PX);
    if rows == (0..size.0.div_ceil(MCU_PX)) && columns == (0..a_row) {
        return Ok(Cut { origin_px: (0, 0), size, bytes: Cow::Borrowed(jpeg) });
    }
    let header = Header::read(jpeg)?;
    if header.size != size {
        return Err(format!("a picture of {}x{} pixels, expected {}x{}", header.size.1, header.size.0, size.1, size.0));
    }
    let length = |mcus: &Range<usize>, size: usize| (mcus.end * MCU_PX).min(size) - mcus.start * MCU_PX;
    let small = (length(&rows, size.0), length(&columns, size.1));
    let mut bytes = Vec::with_capacity(jpeg.len());
    bytes.extend_from_slice(&jpeg[..header.end]);
    // Both were u16 before, and are smaller now.
    bytes[header.size_at..header.size_at + 2].copy_from_slice(&(small.0 as u16).to_be_bytes());
    bytes[header.size_at + 2..header.size_at + 4].copy_from_slice(&(small.1 as u16).to_be_bytes());
    let (mut from, mut copied) = (header.end, 0usize);
    for k in 0..rows.end * a_row {
        let end = mcu_end(jpeg, from)?;
        if rows.contains(&(k / a_row)) && columns.contains(&(k % a_row)) {
            if copied > 0 {
                bytes.extend([0xFF, FIRST_RESTART + ((copied - 1) % 8) as u8]);
            }
            copied += 1;
            bytes.extend_from_slice(&jpeg[from..end]);
        }
        from = end + 2;
    }
    bytes.extend([0xFF, END_OF_IMAGE]);
    let origin_px = (rows.start * MCU_PX, columns.start * MCU_PX);
    Ok(Cut { origin_px, size: small, bytes: Cow::Owned(bytes) })
}

/// MCUs that the pixels `of` need, along an axis of `size` pixels.
fn mcus(of: &Range<usize>, size: usize) -> Range<usize> {
    of.start.saturating_sub(MARGIN_PX) / MCU_PX..(of.end + MARGIN_PX).min(size).div_ceil(MCU_PX)
}

/// Where the marker behind the MCU at `from` is. In coded data 0xFF is followed by 0 (T.81, B.1.1.5).
fn mcu_end(jpeg: &[u8], from: usize) -> Result<usize, String> {
    let mut at = from;
    while let Some(k) = jpeg.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == 0xFF)) {
        match jpeg.get(at + k + 1) {
            Some(0) => at += k + 2,
            Some(FIRST_RESTART..=END_OF_IMAGE) => return Ok(at + k),
            _ => break,
        }
    }
    Err("jpeg: ends before its last MCU".into())
}

/// What stands before the coded data.
struct Header {
    /// First byte of the coded data.
    end: usize,
    /// Where the height stands; the width follows.
    size_at: usize,
    size: (usize, usize),
}

impl Header {
    fn read(jpeg: &[u8]) -> Result<Header, String> {
        let bad = || "jpeg: no header of a packed frame".to_string();
        let byte = |at: usize| jpeg.get(at).copied().ok_or_else(bad);
        let word = |at: usize| Ok::<usize, String>(usize::from(byte(at)?) << 8 | usize::from(byte(at + 1)?));
        let (mut at, mut frame, mut interval) = (2, None, 0);
        loop {
            let (marker, length) = (byte(at + 1)?, word(at + 2)?);
            if byte(at)? != 0xFF || length < 2 {
                return Err(bad());
            }
            match marker {
                BASELINE_FRAME => {
                    // Three components, the first of them with 2 x 2 blocks in an MCU.
                    if (byte(at + 9)?, byte(at + 11)?) != (3, 0x22) {
                        return Err(bad());
                    }
                    frame = Some((at + 5, (word(at + 5)?, word(at + 7)?)));
                }
                RESTART_INTERVAL => interval = word(at + 4)?,
                _ => {}
            }
            at += 2 + length;
            if marker == START_OF_SCAN {
                break;
            }
        }
        match frame {
            Some((size_at, size)) if interval == 1 && at <= jpeg.len() => Ok(Header { end: at, size_at, size }),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::pack::picture::FrameEncoder;
    use crate::clip::pack::{Codec, Encoding};

    /// A picture of gradients, edges and noise in all channels.
    fn picture(height: usize, width: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut noise = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 27) as usize
        };
        let pixel = |i: usize| {
            let (y, x) = (i / width, i % width);
            [3 * x + noise(), 255 - 2 * y + 60 * (x / 7 % 2), 5 * (x + y) + noise()].map(|v| v as u8)
        };
        (0..height * width).flat_map(pixel).collect()
    }

    /// Every box of some pictures, of whole MCUs and of parts of them.
    #[test]
    fn a_box_is_decoded_to_the_bytes_of_the_whole() {
        for (height, width, step) in [(48, 64, 5), (50, 70, 7), (17, 33, 1), (120, 161, 23), (16, 16, 3), (9, 200, 11)]
        {
            let size = (height, width);
            let codec = Codec::Jpeg { quality: 90 };
            let mut encoder = FrameEncoder::new(&Encoding { codec, short_side_px: None }, size);
            let jpeg = encoder.encode(&picture(height, width)).unwrap();
            let decode = |area: &Area| {
                let mut out = vec![];
                codec.decode(&jpeg, size, area, &mut out).unwrap();
                out
            };
            let whole = decode(&Area { rows: 0..height, columns: 0..width });
            let spans = |size: usize| {
                let begins = (0..size).step_by(step);
                let ends = move |from: usize| (from + 1..size).step_by(step).chain([size]).map(move |to| from..to);
                begins.flat_map(ends).collect::<Vec<_>>()
            };
            for rows in spans(height) {
                for columns in spans(width) {
                    let row = |y: usize| &whole[(y * width + columns.start) * 3..(y * width + columns.end) * 3];
                    let expected: Vec<u8> = rows.clone().flat_map(row).copied().collect();
                    let area = Area { rows: rows.clone(), columns: columns.clone() };
                    assert!(decode(&area) == expected, "{area:?} of {height}x{width}");
                }
            }
        }
    }

    #[test]
    fn other_pictures_are_refused() {
        let area = Area { rows: 0..8, columns: 0..8 };
        let mut encoder =
            FrameEncoder::new(&Encoding { codec: Codec::Jpeg { quality: 90 }, short_side_px: None }, (40, 40));
        let jpeg = encoder.encode(&picture(40, 40)).unwrap();
        assert!(cut_out(&jpeg, (40, 40), &area).is_ok());
        assert!(cut_out(&jpeg, (40, 41), &area).is_err());
        for len in 0..jpeg.len() {
            // The box needs the first four of nine MCUs.
            let cut = cut_out(&jpeg[..len], (40, 40), &area);
            assert!(cut.is_err() || len > 600, "{len}");
        }
    }
}
