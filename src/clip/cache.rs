//! Decoded clips kept in memory, for data sets that fit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{ClipSource, Crops, Frames, VideoInfo, Wanted};
use crate::error::Result;

/// Keeps the decoded frames of another source's clips up to a number of bytes. A clip is decoded whole the first time,
/// as long as there is room; what is kept stays, the rest is decoded each time. (Every epoch takes every clip
/// once, so throwing out the oldest would throw out each clip just before its turn.) The frames returned are the same
/// as without the cache.
pub struct Cached {
    source: Arc<dyn ClipSource>,
    max_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes kept or about to be.
    used_bytes: usize,
    /// `None`: does not fit or cannot be decoded whole, do not try again.
    clips: HashMap<usize, Option<Arc<Whole>>>,
}

struct Whole {
    info: VideoInfo,
    frames: Frames,
}

impl Cached {
    /// Keeps at most `max_bytes` of frames.
    pub fn new(source: Arc<dyn ClipSource>, max_bytes: usize) -> Cached {
        Cached { source, max_bytes, state: Mutex::default() }
    }

    /// (clips, bytes) kept.
    pub fn kept(&self) -> (usize, usize) {
        let state = self.lock();
        (state.clips.values().flatten().count(), state.used_bytes)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clip `idx`, if it is kept or can be.
    fn whole(&self, idx: usize) -> Option<Arc<Whole>> {
        let known = self.lock().clips.get(&idx).cloned();
        known.unwrap_or_else(|| self.decode_whole(idx))
    }

    /// Decodes all of clip `idx` if there is room for it and that works.
    fn decode_whole(&self, idx: usize) -> Option<Arc<Whole>> {
        if self.lock().used_bytes >= self.max_bytes {
            return None;
        }
        let mut reserved = 0;
        let mut known = None;
        let result = self.source.frames(idx, &mut |info| {
            let bytes = info.num_frames * info.height_px * info.width_px * 3;
            let mut state = self.lock();
            known = Some(info.clone());
            if state.used_bytes + bytes > self.max_bytes {
                return vec![];
            }
            state.used_bytes += bytes;
            reserved = bytes;
            (0..info.num_frames as u32).collect()
        });
        let mut state = self.lock();
        match (result, known) {
            (Ok(frames), Some(info)) if reserved > 0 => {
                let whole = Arc::new(Whole { info, frames });
                if state.clips.insert(idx, Some(whole.clone())).is_some() {
                    // Another thread was faster.
                    state.used_bytes -= reserved;
                }
                Some(whole)
            }
            (_, known) => {
                // No room (which never grows), or not all of it can be decoded; a file that cannot even be opened is not
                // noted, its error is the caller's.
                state.used_bytes -= reserved;
                if known.is_some() {
                    state.clips.insert(idx, None);
                }
                None
            }
        }
    }
}

impl ClipSource for Cached {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn num_classes(&self) -> usize {
        self.source.num_classes()
    }

    fn label(&self, idx: usize) -> u32 {
        self.source.label(idx)
    }

    fn is_multi_label(&self) -> bool {
        self.source.is_multi_label()
    }

    fn label_set(&self, idx: usize, frames: Option<(u32, u32)>) -> Vec<u32> {
        self.source.label_set(idx, frames)
    }

    fn fingerprint(&self) -> Option<String> {
        self.source.fingerprint()
    }

    fn name(&self, idx: usize) -> String {
        self.source.name(idx)
    }

    fn mirror_changes_label(&self) -> bool {
        self.source.mirror_changes_label()
    }

    fn frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> Result<Frames> {
        match self.whole(idx) {
            Some(whole) => whole.frames(choose(&whole.info)),
            None => self.source.frames(idx, choose),
        }
    }

    fn crops(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Wanted) -> Result<Crops> {
        match self.whole(idx) {
            Some(whole) => Ok(Crops { frames: whole.frames(choose(&whole.info).indices)?, origin_px: (0, 0) }),
            None => self.source.crops(idx, choose),
        }
    }
}

impl Whole {
    /// Copies of some frames.
    fn frames(&self, indices: Vec<u32>) -> Result<Frames> {
        let Frames { height_px, width_px, .. } = self.frames;
        let frame_bytes = height_px * width_px * 3;
        let mut bytes = Vec::with_capacity(indices.len() * frame_bytes);
        for &index in &indices {
            let at = index as usize * frame_bytes;
            let frame = self.frames.bytes.get(at..at + frame_bytes).ok_or_else(|| {
                let message = format!("frame {index} of {} was asked for", self.info.num_frames);
                crate::error::Error::shape("decode", message)
            })?;
            bytes.extend_from_slice(frame);
        }
        Ok(Frames { bytes, indices, height_px, width_px })
    }
}
