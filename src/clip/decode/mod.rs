//! Video files to frames. H.264 in MP4 is decoded by the program itself; anything else goes through an `ffmpeg` on
//! PATH. Both give planes, and one conversion of our own ([`YuvFrame`] to RGB) follows, so that a file looks the same
//! whoever decoded it. Must not know of sampling grids or training.

mod check;
mod ffmpeg;
mod h264;
pub(super) mod jpeg;
mod mp4;
mod sps;
mod yuv;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use check::Damage;
pub use ffmpeg::find as find_ffmpeg;
pub use yuv::{Colour, YuvFrame};

use super::{Frames, VideoInfo};
use crate::error::{Error, Result};
use ffmpeg::{FfmpegStream, Picture};
use h264::H264Track;

/// Largest picture that is accepted.
pub(super) const MAX_PIXELS: usize = 64 << 20;

/// Who decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The built-in decoder where it can, else `ffmpeg`.
    Auto,
    /// The built-in decoder or an error.
    BuiltIn,
    /// `ffmpeg` or an error.
    Ffmpeg,
}

/// How to decode, and bounds on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Who decodes.
    pub backend: Backend,
    /// A file that takes longer, in opening or in one call for frames, is an error.
    pub time_limit: Duration,
    /// Most bytes of RGB that one call may return.
    pub max_bytes: usize,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        DecodeOptions { backend: Backend::Auto, time_limit: Duration::from_secs(60), max_bytes: 4 << 30 }
    }
}

/// An opened video file: what it is is known, no frame is decoded yet. Of several video tracks, the one with most
/// pixels.
#[derive(Clone)]
pub struct Video {
    path: PathBuf,
    options: DecodeOptions,
    info: VideoInfo,
    /// Degrees clockwise, to be applied after decoding.
    rotation: u32,
    stream: Stream,
}

#[derive(Clone)]
enum Stream {
    BuiltIn(Box<H264Track>),
    Ffmpeg(Box<FfmpegStream>),
}

impl Video {
    /// Opens a file. Errors name the file and say what is wrong with it, or which decoder is missing.
    pub fn open(path: impl AsRef<Path>, options: &DecodeOptions) -> Result<Video> {
        let path = path.as_ref();
        let refuse = |message: String| Error::Decode { path: path.display().to_string(), message };
        // Asked before opening: to open a named pipe is to wait for whoever writes it.
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, &e))?;
        if !metadata.is_file() {
            return Err(refuse("not a regular file".into()));
        }
        if metadata.len() == 0 {
            return Err(refuse("the file is empty (0 bytes)".into()));
        }
        let mut file = File::open(path).map_err(|e| Error::io(path, &e))?;
        let built_in = match options.backend {
            Backend::Ffmpeg => Err(String::new()),
            Backend::Auto | Backend::BuiltIn => match mp4::read_video_tracks(&mut file) {
                Ok(tracks) if tracks.is_empty() => {
                    return Err(refuse("the file holds no video, only other tracks".into()));
                }
                Ok(tracks) => open_built_in(tracks),
                Err(reason) => Err(reason),
            },
        };
        let video = |info, rotation, stream| {
            let (path, options) = (path.to_path_buf(), *options);
            Video { path, options, info, rotation, stream }.checked()
        };
        match built_in {
            Ok((track, rotation)) => {
                let info =
                    describe("h264", h264::NAME, track.num_frames(), track.fps(), (track.width_px, track.height_px));
                video(info, rotation, Stream::BuiltIn(Box::new(track)))
            }
            Err(reason) if options.backend == Backend::BuiltIn => Err(refuse(format!("{}: {reason}", h264::NAME))),
            Err(reason) => {
                let stream = probe(path, options).map_err(|e| match reason.as_str() {
                    "" => refuse(e),
                    _ => refuse(format!("{}: {reason}; {e}", h264::NAME)),
                })?;
                let size = (stream.width_px, stream.height_px);
                let info = describe(&stream.codec, ffmpeg::NAME, stream.num_frames, stream.fps, size);
                video(info, stream.rotation, Stream::Ffmpeg(Box::new(stream)))
            }
        }
    }

    fn checked(mut self) -> Result<Video> {
        let (width, height) = (self.info.width_px, self.info.height_px);
        if width.saturating_mul(height) > MAX_PIXELS {
            return Err(self.refuse(format!("a picture of {width}x{height} is larger than {MAX_PIXELS} pixels")));
        }
        if matches!(self.rotation, 90 | 270) {
            (self.info.width_px, self.info.height_px) = (height, width);
        }
        Ok(self)
    }

    /// What the file is. After a call for frames `decoder` names who really decoded them.
    pub fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// Whether the built-in decoder is at work (so far).
    pub fn is_built_in(&self) -> bool {
        matches!(self.stream, Stream::BuiltIn(_))
    }

    fn refuse(&self, message: String) -> Error {
        Error::Decode { path: self.path.display().to_string(), message }
    }

    /// Decodes frames to RGB, turned as the file asks: exactly `indices`, which must ascend (an index may repeat) and lie
    /// below `num_frames`. Where the file ends before its header says, its last frame stands for the missing ones.
    pub fn frames(&mut self, indices: &[u32]) -> Result<Frames> {
        let (height_px, width_px) = (self.info.height_px, self.info.width_px);
        if indices.is_empty() {
            return Ok(Frames { bytes: vec![], indices: vec![], height_px, width_px });
        }
        let frame_bytes = height_px * width_px * 3;
        let total = indices.len().saturating_mul(frame_bytes);
        if total > self.options.max_bytes {
            let message = format!(
                "{} frames of {width_px}x{height_px} are {total} bytes, more than the {} allowed",
                indices.len(),
                self.options.max_bytes
            );
            return Err(self.refuse(message));
        }
        let mut wanted = indices.to_vec();
        wanted.dedup();
        let mut decoded = vec![0; wanted.len() * frame_bytes];
        let mut to_rgb = ToRgb::new(self);
        let came = self.decode(&wanted, &mut |position, picture| {
            to_rgb.convert(picture, &mut decoded[position * frame_bytes..][..frame_bytes]);
        })?;
        if came < wanted.len() {
            let last = decoded[(came - 1) * frame_bytes..came * frame_bytes].to_vec();
            decoded[came * frame_bytes..].chunks_exact_mut(frame_bytes).for_each(|frame| frame.copy_from_slice(&last));
        }
        Ok(Frames {
            bytes: spread(decoded, &wanted, indices, frame_bytes),
            indices: indices.into(),
            height_px,
            width_px,
        })
    }

    /// Decodes all frames to RGB, turned as the file asks, one after the other in little memory: `sink` gets the index and
    /// `[row][column][3]` of each, maybe not in order; some again, with other bytes, where `ffmpeg` had to take over. Returns
    /// how many came, at least one: where the file ends before its header says, those at the end are missing.
    pub fn each_frame(&mut self, sink: &mut dyn FnMut(usize, &[u8])) -> Result<usize> {
        let all: Vec<u32> = (0..self.info.num_frames as u32).collect();
        let mut frame = vec![0; self.info.height_px * self.info.width_px * 3];
        let mut to_rgb = ToRgb::new(self);
        self.decode(&all, &mut |position, picture| {
            to_rgb.convert(picture, &mut frame);
            sink(position, &frame);
        })
    }

    /// Decodes frames (ascending, distinct) without converting them: `sink` gets each index and its planes, in any order,
    /// not turned. Streams that are not planar YUV are refused.
    pub fn yuv_frames(&mut self, indices: &[u32], sink: &mut dyn FnMut(u32, &YuvFrame<'_>)) -> Result<()> {
        let mut is_rgb = false;
        self.decode(indices, &mut |position, picture| match picture {
            Picture::Yuv(frame) => sink(indices[position], &frame),
            Picture::Rgb(_) => is_rgb = true,
        })?;
        if is_rgb { Err(self.refuse("the stream is no planar YUV".into())) } else { Ok(()) }
    }

    /// The colours of the stream, stated or assumed.
    pub fn colour(&self) -> Colour {
        match &self.stream {
            Stream::BuiltIn(track) => track.colour,
            Stream::Ffmpeg(stream) => stream.colour,
        }
    }

    /// Returns how many of `wanted` came, at least one.
    fn decode(&mut self, wanted: &[u32], sink: &mut dyn FnMut(usize, Picture<'_>)) -> Result<usize> {
        let ascending = wanted.windows(2).all(|w| w[0] < w[1]);
        let Some(&last) = wanted.last().filter(|&&last| ascending && (last as usize) < self.info.num_frames) else {
            let message = format!("frames must ascend and lie in 0..{}, got {wanted:?}", self.info.num_frames);
            return Err(Error::shape("decode", message));
        };
        let deadline = Instant::now() + self.options.time_limit;
        if let Stream::BuiltIn(track) = &self.stream {
            let result = track.decode(&self.path, wanted, deadline, &mut |k, frame| sink(k, Picture::Yuv(*frame)));
            let Err(reason) = result else { return Ok(wanted.len()) };
            let reason = format!("{}: {reason}", h264::NAME);
            if self.options.backend == Backend::BuiltIn {
                return Err(self.refuse(reason));
            }
            let stream = probe(&self.path, &self.options).map_err(|e| self.refuse(format!("{reason}; {e}")))?;
            if (stream.width_px, stream.height_px) != (track.width_px, track.height_px) {
                return Err(self.refuse(format!("{reason}; ffmpeg sees another size")));
            }
            tracing::debug!("{}: {reason}; decoding with ffmpeg", self.path.display());
            self.info.decoder = ffmpeg::NAME.into();
            self.stream = Stream::Ffmpeg(Box::new(stream));
        }
        let Stream::Ffmpeg(stream) = &self.stream else { return Ok(0) };
        let came =
            stream.decode(&self.path, wanted, deadline, sink).map_err(|e| self.refuse(format!("ffmpeg: {e}")))?;
        if came < wanted.len() {
            tracing::info!("{}: ends before frame {last}; its last frame stands for the rest", self.path.display());
        }
        Ok(came)
    }
}

/// Brings decoded pictures of one video to RGB, turned as the file asks.
struct ToRgb {
    colour: Colour,
    /// Degrees clockwise.
    rotation: u32,
    /// (rows, columns) before the turn.
    decode_size: (usize, usize),
    /// A picture before the turn, where there is one.
    unturned: Vec<u8>,
}

impl ToRgb {
    fn new(video: &Video) -> ToRgb {
        let (height_px, width_px, rotation) = (video.info.height_px, video.info.width_px, video.rotation);
        let decode_size = if matches!(rotation, 90 | 270) { (width_px, height_px) } else { (height_px, width_px) };
        let unturned = vec![0; if rotation == 0 { 0 } else { height_px * width_px * 3 }];
        ToRgb { colour: video.colour(), rotation, decode_size, unturned }
    }

    fn convert(&mut self, picture: Picture<'_>, out: &mut [u8]) {
        let target = if self.rotation == 0 { &mut *out } else { &mut self.unturned };
        match picture {
            Picture::Yuv(frame) => yuv::to_rgb(&frame, &self.colour, target),
            Picture::Rgb(bytes) => target.copy_from_slice(bytes),
        }
        if self.rotation != 0 {
            yuv::rotate(&self.unturned, self.decode_size, self.rotation, out);
        }
    }
}

fn describe(
    codec: &str,
    decoder: &str,
    num_frames: usize,
    fps: f64,
    (width_px, height_px): (usize, usize),
) -> VideoInfo {
    VideoInfo { codec: codec.into(), decoder: decoder.into(), num_frames, fps, width_px, height_px }
}

fn open_built_in(tracks: Vec<mp4::Track>) -> std::result::Result<(H264Track, u32), String> {
    let largest = tracks.into_iter().rev().max_by_key(|t| t.width_px * t.height_px).ok_or("no video track")?;
    let rotation = largest.rotation;
    H264Track::new(largest).map(|track| (track, rotation))
}

fn probe(path: &Path, options: &DecodeOptions) -> std::result::Result<FfmpegStream, String> {
    let program = find_ffmpeg().ok_or("other codecs and containers need `ffmpeg` on PATH, and there is none")?;
    let deadline = Instant::now() + options.time_limit;
    FfmpegStream::probe(&program, path, deadline).map_err(|e| format!("ffmpeg: {e}"))
}

/// One frame for each of `indices` from one for each distinct index.
fn spread(decoded: Vec<u8>, wanted: &[u32], indices: &[u32], frame_bytes: usize) -> Vec<u8> {
    if wanted.len() == indices.len() {
        return decoded;
    }
    let mut bytes = Vec::with_capacity(indices.len() * frame_bytes);
    for index in indices {
        let position = wanted.partition_point(|w| w < index);
        bytes.extend_from_slice(&decoded[position * frame_bytes..][..frame_bytes]);
    }
    bytes
}
