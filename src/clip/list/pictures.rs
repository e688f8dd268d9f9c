//! Videos whose frames are pictures.

use super::{VideoList, lock};
use crate::clip::decode::jpeg;
use crate::clip::{ClipSource, Frames, VideoInfo};
use crate::error::{Error, Result};

/// Frame rate that frames without one are given. Nothing but the length in seconds depends on it.
const FRAMES_FPS: f64 = 30.0;

impl VideoList {
    /// Reads the pictures that are wanted and no others, but for the first one of a video when it is first seen: it tells
    /// the size.
    pub(super) fn pictures(
        &self,
        idx: usize,
        num_frames: usize,
        choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>,
    ) -> Result<Frames> {
        let known = lock(&self.picture_sizes).get(&idx).copied();
        let (height_px, width_px) = match known {
            Some(size) => size,
            None => {
                let picture = jpeg::read(&self.file(idx, 0))?;
                let size = (picture.height_px, picture.width_px);
                lock(&self.picture_sizes).insert(idx, size);
                size
            }
        };
        let (codec, decoder) = ("jpeg".into(), "built-in jpeg".into());
        let info = VideoInfo { codec, decoder, num_frames, fps: FRAMES_FPS, width_px, height_px };
        let indices = choose(&info);
        let total = indices.len().saturating_mul(height_px * width_px * 3);
        if total > self.config.decode.max_bytes {
            let (path, most) = (self.name(idx), self.config.decode.max_bytes);
            let message = format!("{} frames are {total} bytes, more than the {most} allowed", indices.len());
            return Err(Error::Decode { path, message });
        }
        let mut bytes: Vec<u8> = Vec::with_capacity(total);
        for (k, &index) in indices.iter().enumerate() {
            if k > 0 && indices[k - 1] == index {
                bytes.extend_from_within(bytes.len() - height_px * width_px * 3..);
                continue;
            }
            let path = self.file(idx, index as usize);
            let picture = jpeg::read(&path)?;
            if (picture.height_px, picture.width_px) != (height_px, width_px) {
                let message = format!(
                    "{}x{} pixels, but the video's first frame has {width_px}x{height_px}",
                    picture.width_px, picture.height_px
                );
                return Err(Error::Decode { path: path.display().to_string(), message });
            }
            bytes.extend_from_slice(&picture.rgb);
        }
        Ok(Frames { bytes, indices, height_px, width_px })
    }
}
