//! What a decoder must know before its first frame: the H.264 sequence parameter set (ITU-T H.264, 7.3.2.1.1 and E.1.1).

use super::yuv::Colour;

/// The facts of a sequence parameter set that matter here.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sps {
    pub width_px: usize,
    pub height_px: usize,
    /// As the stream states them; `None`: it does not.
    pub colour: Option<Colour>,
    /// Why the built-in decoder cannot take the stream.
    pub unsupported: Option<String>,
}

/// Reads bits, most significant first, from a payload without emulation prevention bytes.
struct Bits<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Bits<'_> {
    fn bit(&mut self) -> Option<u32> {
        let byte = *self.bytes.get(self.position / 8)?;
        let bit = byte >> (7 - self.position % 8) & 1;
        self.position += 1;
        Some(u32::from(bit))
    }

    fn flag(&mut self) -> Option<bool> {
        self.bit().map(|b| b == 1)
    }

    fn bits(&mut self, count: u32) -> Option<u32> {
        (0..count).try_fold(0u32, |value, _| Some(value << 1 | self.bit()?))
    }

    /// Exp-Golomb, unsigned: ue(v).
    fn unsigned(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while !self.flag()? {
            zeros += 1;
            if zeros > 31 {
                return None;
            }
        }
        Some((1u32 << zeros) - 1 + self.bits(zeros)?)
    }

    /// Exp-Golomb, signed: se(v).
    fn signed(&mut self) -> Option<i64> {
        let code = i64::from(self.unsigned()?);
        Some(if code % 2 == 1 { (code + 1) / 2 } else { -(code / 2) })
    }
}

/// Removes the 3 of each 00 00 03.
fn without_emulation_prevention(nal: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(nal.len());
    let mut zeros = 0;
    for &byte in nal {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out.push(byte);
    }
    out
}

/// Profiles whose parameter sets state chroma format and bit depth.
const HIGH_PROFILES: [u32; 13] = [100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135];

impl Sps {
    /// Parses a NAL unit, its one-byte header included. `None`: cut off or no valid parameter set.
    pub fn parse(nal: &[u8]) -> Option<Sps> {
        let payload = without_emulation_prevention(nal.get(1..)?);
        let mut b = Bits { bytes: &payload, position: 0 };
        let profile = b.bits(8)?;
        b.bits(16)?; // constraint flags, level
        b.unsigned()?; // id
        let (mut chroma, mut depth) = (1, 8);
        if HIGH_PROFILES.contains(&profile) {
            chroma = b.unsigned()?;
            if chroma == 3 {
                b.flag()?;
            }
            depth = 8 + b.unsigned()?.max(b.unsigned()?);
            b.flag()?;
            if b.flag()? {
                skip_scaling_lists(&mut b, if chroma == 3 { 12 } else { 8 })?;
            }
        }
        skip_order_counts(&mut b)?;
        b.unsigned()?; // reference frames
        b.flag()?;
        let width_mbs = b.unsigned()?.checked_add(1)?;
        let height_units = b.unsigned()?.checked_add(1)?;
        let frames_only = b.flag()?;
        let adaptive_fields = !frames_only && b.flag()?;
        b.flag()?; // direct 8x8 inference
        let crop = if b.flag()? { [b.unsigned()?, b.unsigned()?, b.unsigned()?, b.unsigned()?] } else { [0; 4] };
        let (unit_x, unit_y) = (if matches!(chroma, 1 | 2) { 2 } else { 1 }, if chroma == 1 { 2 } else { 1 });
        let fields = if frames_only { 1 } else { 2 };
        let size = |units: u64, unit: u64, crop: [u32; 2]| {
            (units * 16)
                .checked_sub(unit * (u64::from(crop[0]) + u64::from(crop[1])))
                .filter(|&s| (1..=32_768).contains(&s))
        };
        let width = size(u64::from(width_mbs), unit_x, [crop[0], crop[1]])?;
        let height = size(u64::from(height_units) * fields, unit_y * fields, [crop[2], crop[3]])?;
        let colour = if b.flag()? { parse_colour(&mut b)? } else { None };
        let unsupported = if chroma != 1 {
            Some(format!("chroma format {chroma} (only 4:2:0)"))
        } else if depth != 8 {
            Some(format!("{depth} bits a sample (only 8)"))
        } else if adaptive_fields {
            Some("interlaced macroblocks".to_string())
        } else if crop[0] != 0 || crop[2] != 0 {
            Some("cropping at the left or top".to_string())
        } else {
            None
        };
        Some(Sps { width_px: width as usize, height_px: height as usize, colour, unsupported })
    }
}

fn skip_scaling_lists(b: &mut Bits<'_>, count: usize) -> Option<()> {
    for list in 0..count {
        if !b.flag()? {
            continue;
        }
        let (mut last, mut next) = (8i64, 8i64);
        for _ in 0..if list < 6 { 16 } else { 64 } {
            if next != 0 {
                next = (last + b.signed()?).rem_euclid(256);
            }
            last = if next == 0 { last } else { next };
        }
    }
    Some(())
}

fn skip_order_counts(b: &mut Bits<'_>) -> Option<()> {
    b.unsigned()?; // log2 of the largest frame number
    match b.unsigned()? {
        0 => {
            b.unsigned()?;
        }
        1 => {
            b.flag()?;
            b.signed()?;
            b.signed()?;
            for _ in 0..b.unsigned()?.min(255) {
                b.signed()?;
            }
        }
        _ => {}
    }
    Some(())
}

/// The start of the video usability information, up to the colour description.
fn parse_colour(b: &mut Bits<'_>) -> Option<Option<Colour>> {
    if b.flag()? && b.bits(8)? == 255 {
        b.bits(32)?; // sample aspect ratio
    }
    if b.flag()? {
        b.flag()?; // overscan
    }
    if !b.flag()? {
        return Some(None);
    }
    b.bits(3)?; // video format
    let full_range = b.flag()?;
    let mut matrix = 2;
    if b.flag()? {
        b.bits(16)?; // primaries, transfer
        matrix = b.bits(8)?;
    }
    Some(Some(Colour::from_codes(matrix, full_range)))
}
