//! JPEG files to RGB: the frames of data sets that come as pictures. Baseline and progressive, grey or colour. Against
//! libjpeg-turbo a byte differs by 0.2 grey levels on average and by 4 at most, where chroma is subsampled.

use std::path::Path;

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::MAX_PIXELS;
use crate::error::{Error, Result};

/// A decoded picture.
pub(crate) struct Picture {
    /// `[row][column][3]`.
    pub rgb: Vec<u8>,
    pub height_px: usize,
    pub width_px: usize,
}

/// Decodes a file whole.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be read, [`Error::Decode`] for one that is no JPEG, or cut off.
pub(crate) fn read(path: &Path) -> Result<Picture> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
    let refuse = |message: String| Error::Decode { path: path.display().to_string(), message };
    if bytes.is_empty() {
        return Err(refuse("the file is empty (0 bytes)".into()));
    }
    decode(&bytes).map_err(refuse)
}

/// Decodes a picture.
pub(crate) fn decode(bytes: &[u8]) -> Result<Picture, String> {
    // Strict: a frame that was cut off is a fault, not a picture with a grey lower half.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(ColorSpace::RGB)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let refuse = |e: zune_jpeg::errors::DecodeErrors| format!("jpeg: {e}");
    decoder.decode_headers().map_err(refuse)?;
    let info = decoder.info().ok_or("jpeg: no header")?;
    let (height_px, width_px) = (usize::from(info.height), usize::from(info.width));
    if height_px * width_px > MAX_PIXELS {
        return Err(format!("a picture of {width_px}x{height_px} is larger than {MAX_PIXELS} pixels"));
    }
    let rgb = decoder.decode().map_err(refuse)?;
    if rgb.len() != height_px * width_px * 3 {
        return Err(format!("jpeg: {} bytes for {width_px}x{height_px} pixels of RGB", rgb.len()));
    }
    Ok(Picture { rgb, height_px, width_px })
}
