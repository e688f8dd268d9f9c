//! A confusion matrix as a picture: row = true class, column = recognised class, the darker the larger the share of the row.

use crate::error::{Error, Result};
use crate::metrics::ConfusionMatrix;

/// Rows and columns of the picture, about, px.
const SIDE_PX: usize = 800;

/// The picture as PNG bytes.
pub(super) fn draw(matrix: &ConfusionMatrix) -> Result<Vec<u8>> {
    let classes = matrix.classes.max(1);
    let cell_px = (SIDE_PX / classes).max(1);
    let side_px = classes * cell_px;
    let mut pixels = Vec::with_capacity(side_px * side_px * 3);
    for row in &matrix.counts {
        let videos = row.iter().sum::<u64>().max(1) as f64;
        let colours: Vec<[u8; 3]> = row.iter().map(|&count| colour(count as f64 / videos)).collect();
        let line: Vec<u8> = colours.iter().flat_map(|c| c.repeat(cell_px)).collect();
        (0..cell_px).for_each(|_| pixels.extend_from_slice(&line));
    }
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, side_px as u32, side_px as u32);
    encoder.set_color(png::ColorType::Rgb);
    let write = || {
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        writer.finish()
    };
    write()
        .map_err(|e| Error::unsupported("confusion matrix", format!("no picture of {side_px} x {side_px} px: {e}")))?;
    Ok(bytes)
}

/// White to dark blue.
fn colour(share: f64) -> [u8; 3] {
    let between = |white: f64, dark: f64| (white + share * (dark - white)).round() as u8;
    [between(255.0, 8.0), between(255.0, 48.0), between(255.0, 107.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_shades() {
        let matrix = ConfusionMatrix { classes: 2, counts: vec![vec![3, 1], vec![0, 0]], none: vec![0, 0] };
        let bytes = draw(&matrix).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (800, 800));
        let at = |y: usize, x: usize| &pixels[(y * 800 + x) * 3..][..3];
        assert_eq!((at(0, 0), at(399, 399), at(0, 400)), (&colour(0.75)[..], &colour(0.75)[..], &colour(0.25)[..]));
        assert_eq!((at(400, 0), at(799, 799)), (&[255; 3][..], &[255; 3][..]));
    }
}
