//! The one conversion of decoded pictures to RGB, whoever decoded them.
//!
//! Integer arithmetic, the same on every machine: with the sample's bit depth folded into coefficients of 20 fractional
//! bits, `r = (cy * (Y - y0) + crv * (V - c0) + 2^19) >> 20`, likewise g and b, then clamped to 0..=255. The result is within 1 of
//! the rounded real value. Chroma is not interpolated: a chroma sample colours all pixels that it covers, as
//! swscale's default does.

/// Weights of red and blue in the luma, and whether samples use the full range of their bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Colour {
    /// Weight of red in luma.
    pub kr: f64,
    /// Weight of blue in luma.
    pub kb: f64,
    /// 0..=255 rather than 16..=235 (luma) and 16..=240 (chroma).
    pub full_range: bool,
}

impl Colour {
    /// What is assumed where a stream says nothing: BT.601, limited range.
    pub const UNSTATED: Colour = Colour { kr: 0.299, kb: 0.114, full_range: false };

    /// From `matrix_coefficients` of ITU-T H.273. Unknown and unstated ones, and those that are no weighted sum (RGB,
    /// YCgCo), become BT.601.
    pub fn from_codes(matrix: u32, full_range: bool) -> Colour {
        let (kr, kb) = match matrix {
            1 => (0.2126, 0.0722),
            4 => (0.30, 0.11),
            7 => (0.212, 0.087),
            9 | 10 => (0.2627, 0.0593),
            _ => (0.299, 0.114),
        };
        Colour { kr, kb, full_range }
    }
}

/// A decoded picture in planes of its own, before conversion.
#[derive(Clone, Copy, Debug)]
pub struct YuvFrame<'a> {
    /// Columns of the luma plane.
    pub width_px: usize,
    /// Rows of the luma plane.
    pub height_px: usize,
    /// Bits of a sample: 8, one byte each, or 9..=16, two bytes each, little-endian.
    pub depth: u32,
    /// log2 of the pixels that share a chroma sample, (columns, rows): (1, 1) for 4:2:0.
    pub chroma_shift: (u32, u32),
    /// Luma, rows without padding.
    pub y: &'a [u8],
    /// Cb, `ceil(width / 2^shift) x ceil(height / 2^shift)` samples; empty for grey pictures.
    pub u: &'a [u8],
    /// Cr, like `u`.
    pub v: &'a [u8],
}

impl YuvFrame<'_> {
    /// Whether the planes have the lengths that the other fields say.
    pub(super) fn is_consistent(&self) -> bool {
        let bytes = if self.depth > 8 { 2 } else { 1 };
        let luma = self.width_px * self.height_px * bytes;
        let chroma = self.chroma_width() * self.height_px.div_ceil(1 << self.chroma_shift.1) * bytes;
        self.width_px > 0
            && self.height_px > 0
            && self.y.len() == luma
            && self.u.len() == self.v.len()
            && (self.u.len() == chroma || self.u.is_empty())
    }

    fn chroma_width(&self) -> usize {
        self.width_px.div_ceil(1 << self.chroma_shift.0)
    }
}

/// Of the fixed-point coefficients. Sums stay below 2^30.
const FRACTION_BITS: u32 = 20;

/// Fixed-point coefficients for one matrix, range and bit depth.
struct Coefficients {
    luma: i32,
    luma_zero: i32,
    chroma_zero: i32,
    red_v: i32,
    green_u: i32,
    green_v: i32,
    blue_u: i32,
}

impl Coefficients {
    fn new(colour: &Colour, depth: u32) -> Coefficients {
        let unit = f64::from(1u32 << (depth - 8));
        let (luma_span, chroma_span) =
            if colour.full_range { (256.0 * unit - 1.0, 256.0 * unit - 1.0) } else { (219.0 * unit, 224.0 * unit) };
        let fixed = |value: f64| (value * f64::from(1 << FRACTION_BITS)).round() as i32;
        let chroma = 255.0 / chroma_span;
        let (kr, kb) = (colour.kr, colour.kb);
        let kg = 1.0 - kr - kb;
        Coefficients {
            luma: fixed(255.0 / luma_span),
            luma_zero: if colour.full_range { 0 } else { 16 << (depth - 8) },
            chroma_zero: 1 << (depth - 1),
            red_v: fixed(2.0 * (1.0 - kr) * chroma),
            green_u: fixed(-2.0 * (1.0 - kb) * kb / kg * chroma),
            green_v: fixed(-2.0 * (1.0 - kr) * kr / kg * chroma),
            blue_u: fixed(2.0 * (1.0 - kb) * chroma),
        }
    }
}

/// Converts a picture to RGB, `[row][column][3]`, overwriting `rgb`.
pub(super) fn to_rgb(frame: &YuvFrame<'_>, colour: &Colour, rgb: &mut [u8]) {
    let k = Coefficients::new(colour, frame.depth);
    let (width, luma_bytes) = (frame.width_px, if frame.depth > 8 { 2 } else { 1 });
    // What luma and chroma give each byte of a row, `[column][3]`: flat, so that the sum runs in vectors.
    let (mut from_luma, mut from_chroma) = (vec![0i32; width * 3], vec![0i32; width * 3]);
    let mut chroma_row = None;
    let lines = frame.y.chunks_exact(width * luma_bytes);
    for ((row, line), out) in lines.enumerate().zip(rgb.chunks_exact_mut(width * 3)) {
        if chroma_row != Some(row >> frame.chroma_shift.1) && !frame.u.is_empty() {
            chroma_row = Some(row >> frame.chroma_shift.1);
            let length = frame.chroma_width() * luma_bytes;
            let begin = (row >> frame.chroma_shift.1) * length;
            let (u, v) = (&frame.u[begin..][..length], &frame.v[begin..][..length]);
            k.add_chroma(u, v, frame, &mut from_chroma);
        }
        let luma = |y: i32| [(y - k.luma_zero) * k.luma + (1 << (FRACTION_BITS - 1)); 3];
        let (pixels, _) = from_luma.as_chunks_mut::<3>();
        if frame.depth > 8 {
            let samples = line.as_chunks::<2>().0;
            pixels.iter_mut().zip(samples).for_each(|(p, y)| *p = luma(i32::from(u16::from_le_bytes(*y))));
        } else {
            pixels.iter_mut().zip(line).for_each(|(p, &y)| *p = luma(i32::from(y)));
        }
        for ((out, luma), chroma) in out.iter_mut().zip(&from_luma).zip(&from_chroma) {
            *out = ((luma + chroma) >> FRACTION_BITS).clamp(0, 255) as u8;
        }
    }
}

impl Coefficients {
    /// What a row of chroma samples adds to each byte of a row of pixels.
    fn add_chroma(&self, u: &[u8], v: &[u8], frame: &YuvFrame<'_>, from_chroma: &mut [i32]) {
        let sample = |plane: &[u8], i: usize| {
            let value = match frame.depth {
                8 => i32::from(plane[i]),
                _ => i32::from(u16::from_le_bytes([plane[2 * i], plane[2 * i + 1]])),
            };
            value - self.chroma_zero
        };
        for (column, pixels) in from_chroma.chunks_mut(3 << frame.chroma_shift.0).enumerate() {
            let (u, v) = (sample(u, column), sample(v, column));
            let added = [self.red_v * v, self.green_u * u + self.green_v * v, self.blue_u * u];
            pixels.as_chunks_mut::<3>().0.fill(added);
        }
    }
}

/// Turns a picture of `size` (rows, columns) clockwise by 90, 180 or 270 degrees.
pub(super) fn rotate(rgb: &[u8], (height, width): (usize, usize), degrees: u32, out: &mut [u8]) {
    let (pixels, _) = rgb.as_chunks::<3>();
    let (out, _) = out.as_chunks_mut::<3>();
    for (row, line) in pixels.chunks_exact(width).enumerate() {
        for (column, pixel) in line.iter().enumerate() {
            let at = match degrees {
                90 => column * height + height - 1 - row,
                180 => (height - 1 - row) * width + width - 1 - column,
                _ => (width - 1 - column) * height + row,
            };
            out[at] = *pixel;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The real value of one pixel, rounded.
    fn exact(colour: &Colour, depth: u32, yuv: [u32; 3]) -> [f64; 3] {
        let unit = f64::from(1 << (depth - 8));
        let (y, c) =
            if colour.full_range { (256.0 * unit - 1.0, 256.0 * unit - 1.0) } else { (219.0 * unit, 224.0 * unit) };
        let luma = (f64::from(yuv[0]) - if colour.full_range { 0.0 } else { 16.0 * unit }) / y;
        let [cb, cr] = [yuv[1], yuv[2]].map(|s| (f64::from(s) - 128.0 * unit) / c);
        let r = luma + 2.0 * (1.0 - colour.kr) * cr;
        let b = luma + 2.0 * (1.0 - colour.kb) * cb;
        let g = (luma - colour.kr * r - colour.kb * b) / (1.0 - colour.kr - colour.kb);
        [r, g, b].map(|v| (v * 255.0).clamp(0.0, 255.0))
    }

    #[test]
    fn conversion_is_within_rounding_of_the_real_value() {
        for (matrix, full_range, depth) in [(1, false, 8), (6, false, 8), (6, true, 8), (9, false, 10), (2, true, 16)] {
            let colour = Colour::from_codes(matrix, full_range);
            let step = 1u32 << (depth - 8);
            for i in 0..17 * 17 * 17 {
                let yuv = [i % 17, i / 17 % 17, i / 289].map(|k| (k * 16 * step).min(256 * step - 1));
                let planes = yuv.map(|s| if depth == 8 { vec![s as u8] } else { (s as u16).to_le_bytes().to_vec() });
                let frame = YuvFrame {
                    width_px: 1,
                    height_px: 1,
                    depth,
                    chroma_shift: (1, 1),
                    y: &planes[0],
                    u: &planes[1],
                    v: &planes[2],
                };
                let mut rgb = [0; 3];
                to_rgb(&frame, &colour, &mut rgb);
                for (got, want) in rgb.iter().zip(exact(&colour, depth, yuv)) {
                    assert!((f64::from(*got) - want).abs() <= 0.51, "{colour:?} {depth} bits {yuv:?}: {rgb:?}, {want}");
                }
            }
        }
    }

    #[test]
    fn chroma_of_an_odd_picture_covers_its_last_column_and_row() {
        // 3x3 with 2x2 chroma samples: the corner pixel has a chroma sample of its own.
        let frame = YuvFrame {
            width_px: 3,
            height_px: 3,
            depth: 8,
            chroma_shift: (1, 1),
            y: &[128; 9],
            u: &[128; 4],
            v: &[128, 128, 128, 255],
        };
        assert!(frame.is_consistent());
        let mut rgb = [0; 27];
        to_rgb(&frame, &Colour::UNSTATED, &mut rgb);
        assert_eq!(&rgb[..3], [130; 3]);
        assert!(rgb[..24].chunks(3).all(|p| p == [130; 3]) && rgb[24] == 255);
    }

    #[test]
    fn rotation_is_clockwise() {
        let image: Vec<u8> = [1, 2, 3, 4, 5, 6].iter().flat_map(|&p| [p; 3]).collect();
        let turned = |degrees| {
            let mut out = [0; 18];
            rotate(&image, (2, 3), degrees, &mut out);
            out.iter().step_by(3).copied().collect::<Vec<u8>>()
        };
        assert_eq!(turned(90), [4, 1, 5, 2, 6, 3]);
        assert_eq!(turned(180), [6, 5, 4, 3, 2, 1]);
        assert_eq!(turned(270), [3, 6, 2, 5, 1, 4]);
    }
}
