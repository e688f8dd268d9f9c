//! The built-in decoder: H.264 in MP4, 8 bits, 4:2:0, progressive, in pure Rust. Decodes from the keyframe before a
//! wanted frame to that frame, and leaves out frames that nothing refers to.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use super::mp4::{Sample, Track};
use super::sps::Sps;
use super::yuv::{Colour, YuvFrame};

/// Name of this decoder in [`VideoInfo`](crate::clip::VideoInfo).
pub(super) const NAME: &str = "built-in h264";

const NAL_SLICE: u8 = 1;
const NAL_IDR_SLICE: u8 = 5;
const NAL_SPS: u8 = 7;

/// A track that the built-in decoder takes.
#[derive(Clone)]
pub(super) struct H264Track {
    track: Track,
    /// Sample of each frame shown, in presentation order.
    order: Vec<u32>,
    /// Parameter sets with start codes.
    parameter_sets: Vec<u8>,
    /// Bytes of the length before each NAL unit.
    length_bytes: usize,
    pub colour: Colour,
    pub width_px: usize,
    pub height_px: usize,
}

impl H264Track {
    /// `Err`: why this decoder cannot take the track.
    pub fn new(track: Track) -> Result<H264Track, String> {
        let codec = String::from_utf8_lossy(&track.codec).into_owned();
        if !matches!(&track.codec, b"avc1" | b"avc3") {
            return Err(format!("codec `{codec}`"));
        }
        let avcc = track.avcc.as_deref().ok_or("no `avcC` box")?;
        let length_bytes = usize::from(avcc.get(4).ok_or("short `avcC` box")? & 3) + 1;
        let mut parameter_sets = Vec::new();
        let mut sps = None;
        for nal in avcc_parameter_sets(avcc) {
            if nal[0] & 31 == NAL_SPS && sps.is_none() {
                sps = Sps::parse(nal);
            }
            push_nal(&mut parameter_sets, nal);
        }
        let sps = sps.ok_or("no valid sequence parameter set")?;
        if let Some(reason) = sps.unsupported {
            return Err(reason);
        }
        let order = track.presentation_order();
        if order.is_empty() {
            return Err("the file holds none of its frames".into());
        }
        let stated = track.colour.map(|(matrix, full)| Colour::from_codes(matrix, full));
        let colour = sps.colour.or(stated).unwrap_or(Colour::UNSTATED);
        let (width_px, height_px) = (sps.width_px, sps.height_px);
        Ok(H264Track { track, order, parameter_sets, length_bytes, colour, width_px, height_px })
    }

    pub fn num_frames(&self) -> usize {
        self.order.len()
    }

    /// Frames that the file's tables promise.
    pub fn declared_frames(&self) -> usize {
        self.track.declared_samples
    }

    /// Of these, frames that lie beyond its end.
    pub fn cut_off_frames(&self) -> usize {
        self.track.cut_off_samples
    }

    pub fn fps(&self) -> f64 {
        self.track.fps()
    }

    /// Decodes the frames `wanted` (ascending, distinct, in range); `sink` gets the position in `wanted` and the picture,
    /// in decoding order. `Err`: what is wrong with the stream.
    pub fn decode(
        &self,
        path: &Path,
        wanted: &[u32],
        deadline: Instant,
        sink: &mut dyn FnMut(usize, &YuvFrame<'_>),
    ) -> Result<(), String> {
        let mut reader = SampleReader { file: File::open(path).map_err(|e| e.to_string())?, bytes: vec![] };
        let mut positions: HashMap<u32, Vec<usize>> = HashMap::new();
        for (position, &frame) in wanted.iter().enumerate() {
            positions.entry(self.order[frame as usize]).or_default().push(position);
        }
        let needed = self.needed_samples(&mut reader, positions.keys().copied())?;
        let mut decoder = rusty_h264_decoder::Decoder::new();
        let mut unit = Vec::new();
        let mut feed = |unit: &[u8]| {
            // The decoder is young: should it panic, that is this file's error and not the end of the run.
            catch_unwind(AssertUnwindSafe(|| decoder.decode(unit)))
                .map_err(|_| "the decoder panicked".to_string())?
                .map_err(|e| e.to_string())
        };
        feed(&self.parameter_sets)?;
        for index in needed {
            if Instant::now() > deadline {
                return Err("took too long".into());
            }
            let sample = reader.read(&self.track.samples[index as usize])?;
            let kind = self.annex_b(sample, &mut unit).map_err(|e| format!("frame {index}: {e}"))?;
            let positions = positions.get(&index);
            if positions.is_none() && !kind.is_reference {
                continue;
            }
            let picture = feed(&unit).map_err(|e| format!("frame {index}: {e}"))?;
            let Some(positions) = positions else { continue };
            let picture = picture.ok_or_else(|| format!("frame {index}: no complete picture"))?;
            let frame = YuvFrame {
                width_px: picture.width,
                height_px: picture.height,
                depth: 8,
                chroma_shift: (1, 1),
                y: &picture.y,
                u: &picture.u,
                v: &picture.v,
            };
            if (frame.width_px, frame.height_px) != (self.width_px, self.height_px) {
                return Err(format!(
                    "frame {index}: the size changes from {}x{} to {}x{}",
                    self.width_px, self.height_px, frame.width_px, frame.height_px
                ));
            }
            if !frame.is_consistent() {
                return Err(format!("frame {index}: planes of the wrong size"));
            }
            positions.iter().for_each(|&position| sink(position, &frame));
        }
        Ok(())
    }

    /// All samples that must be decoded to get `wanted`, each wanted one from its keyframe on.
    fn needed_samples(
        &self,
        reader: &mut SampleReader,
        wanted: impl Iterator<Item = u32>,
    ) -> Result<BTreeSet<u32>, String> {
        let samples = &self.track.samples;
        let mut needed = BTreeSet::new();
        let mut is_idr: HashMap<u32, bool> = HashMap::new();
        let mut wanted: Vec<u32> = wanted.collect();
        wanted.sort_unstable();
        for index in wanted {
            // Frames that follow a keyframe in the file but are shown before it may refer to what precedes it.
            let time = samples[index as usize].time;
            let mut start = index;
            while start > 0 {
                let sample = &samples[start as usize];
                if sample.sync && sample.time <= time {
                    let idr = match is_idr.get(&start) {
                        Some(&idr) => idr,
                        None => self.annex_b(reader.read(sample)?, &mut vec![]).is_ok_and(|kind| kind.is_idr),
                    };
                    is_idr.insert(start, idr);
                    if idr {
                        break;
                    }
                }
                if needed.contains(&start) {
                    // An earlier wanted frame of the same group of pictures: everything before is there already.
                    break;
                }
                start -= 1;
            }
            needed.extend(start..=index);
        }
        Ok(needed)
    }

    /// Rewrites a sample from lengths to start codes.
    fn annex_b(&self, sample: &[u8], out: &mut Vec<u8>) -> Result<UnitKind, String> {
        out.clear();
        let mut kind = UnitKind { is_idr: false, is_reference: false };
        let mut rest = sample;
        while !rest.is_empty() {
            let length = rest.get(..self.length_bytes).map(|b| b.iter().fold(0usize, |n, &b| n << 8 | usize::from(b)));
            let nal = length.and_then(|n| rest.get(self.length_bytes..self.length_bytes + n));
            let Some(nal) = nal else { return Err("a NAL unit is longer than its sample".into()) };
            rest = &rest[self.length_bytes + nal.len()..];
            let Some(&header) = nal.first() else { continue };
            if matches!(header & 31, NAL_SLICE | NAL_IDR_SLICE) {
                kind.is_idr |= header & 31 == NAL_IDR_SLICE;
                kind.is_reference |= header & 0x60 != 0;
            }
            push_nal(out, nal);
        }
        Ok(kind)
    }
}

/// What the slices of a sample are.
struct UnitKind {
    is_idr: bool,
    /// Others may refer to it.
    is_reference: bool,
}

struct SampleReader {
    file: File,
    bytes: Vec<u8>,
}

impl SampleReader {
    fn read(&mut self, sample: &Sample) -> Result<&[u8], String> {
        self.bytes.resize(sample.size as usize, 0);
        let result = self.file.seek(SeekFrom::Start(sample.offset)).and_then(|_| self.file.read_exact(&mut self.bytes));
        result.map(|()| self.bytes.as_slice()).map_err(|e| e.to_string())
    }
}

fn push_nal(out: &mut Vec<u8>, nal: &[u8]) {
    out.extend_from_slice(&[0, 0, 0, 1]);
    out.extend_from_slice(nal);
}

/// The non-empty parameter sets of an `avcC` body: first those of the sequence, then those of pictures.
fn avcc_parameter_sets(avcc: &[u8]) -> Vec<&[u8]> {
    let mut sets = Vec::new();
    let mut at = 5;
    for mask in [31, 255] {
        let count = avcc.get(at).map_or(0, |&n| n & mask);
        at += 1;
        for _ in 0..count {
            let Some(length) = avcc.get(at..at + 2) else { return sets };
            let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
            let Some(set) = avcc.get(at + 2..at + 2 + length) else { return sets };
            if !set.is_empty() {
                sets.push(set);
            }
            at += 2 + length;
        }
    }
    sets
}
