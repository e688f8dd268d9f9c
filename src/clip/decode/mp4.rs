//! Reader of MP4 and QuickTime files (ISO/IEC 14496-12): the sample table of a video track, edit lists and fragments
//! applied. Every number of the file is taken as a claim: tables are bounded by the bytes that hold them, samples by the
//! file's end, and nothing here can panic or ask for more memory than a few times the file's size.

mod boxes;

use std::fs::File;

use boxes::{boxes, find, read_body, read_header, table, u16_at, u32_at, u64_at};

/// Most samples of a track: a day of video at 120 frames a second.
const MAX_SAMPLES: usize = 10_368_000;

/// A coded frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub offset: u64,
    pub size: u32,
    /// Presentation time in the track's time scale.
    pub time: i64,
    pub sync: bool,
}

/// A video track.
#[derive(Clone, Debug, Default)]
pub(super) struct Track {
    id: u32,
    is_video: bool,
    /// Four characters, such as `avc1`.
    pub codec: [u8; 4],
    pub width_px: usize,
    pub height_px: usize,
    /// Degrees clockwise that a player turns the picture: 0, 90, 180 or 270.
    pub rotation: u32,
    /// Body of the `avcC` box.
    pub avcc: Option<Vec<u8>>,
    /// (matrix coefficients, full range) of an `nclx` colour box.
    pub colour: Option<(u32, bool)>,
    pub timescale: u32,
    /// In decoding order; those that the file really holds.
    pub samples: Vec<Sample>,
    /// Samples that the tables promise.
    pub declared_samples: usize,
    /// Of these, samples that reach beyond the end of the file.
    pub cut_off_samples: usize,
    /// Sum of the durations of all samples.
    pub duration: u64,
    edits: Vec<Edit>,
    fragment_defaults: FragmentDefaults,
}

#[derive(Clone, Copy, Debug)]
struct Edit {
    /// In the movie's time scale; 0: to the end.
    duration: u64,
    /// In the track's time scale; -1: nothing is shown.
    media_time: i64,
}

#[derive(Clone, Copy, Debug, Default)]
struct FragmentDefaults {
    duration: u32,
    size: u32,
    flags: u32,
}

/// Reads the tracks of a file. `Err`: why it is no MP4 file that can be read.
pub(super) fn read_video_tracks(file: &mut File) -> Result<Vec<Track>, String> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let mut movie: Option<Movie> = None;
    let mut position = 0;
    while let Some((kind, header, size)) = read_header(file, position, length)? {
        match &kind {
            b"moov" => movie = Some(Movie::parse(&read_body(file, position + header, size - header)?, length)?),
            b"moof" => {
                let Some(movie) = movie.as_mut() else { return Err("a fragment stands before the `moov` box".into()) };
                movie.add_fragment(&read_body(file, position + header, size - header)?, position);
            }
            _ => {}
        }
        position += size;
    }
    let mut movie = movie.ok_or("no `moov` box")?;
    movie.tracks.retain(|t| t.is_video);
    for track in &mut movie.tracks {
        track.declared_samples = track.samples.len();
        let fits = |s: &Sample| s.offset.checked_add(u64::from(s.size)).is_some_and(|end| end <= length);
        track.cut_off_samples = track.samples.iter().filter(|s| !fits(s)).count();
        track.samples.retain(|s| s.size > 0 && fits(s));
    }
    Ok(movie.tracks)
}

struct Movie {
    timescale: u32,
    file_bytes: u64,
    tracks: Vec<Track>,
}

impl Movie {
    fn parse(moov: &[u8], file_bytes: u64) -> Result<Movie, String> {
        let header = find(moov, b"mvhd").ok_or("no `mvhd` box")?;
        let timescale = u32_at(header, if header.first() == Some(&1) { 20 } else { 12 }).unwrap_or(0).max(1);
        let mut tracks: Vec<Track> = boxes(moov)
            .filter(|(kind, _)| kind == b"trak")
            .filter_map(|(_, trak)| parse_track(trak, file_bytes))
            .collect();
        if let Some(mvex) = find(moov, b"mvex") {
            for (_, trex) in boxes(mvex).filter(|(kind, _)| kind == b"trex") {
                let field = |at| u32_at(trex, at).unwrap_or(0);
                if let Some(track) = tracks.iter_mut().find(|t| t.id == field(4)) {
                    track.fragment_defaults =
                        FragmentDefaults { duration: field(12), size: field(16), flags: field(20) };
                }
            }
        }
        Ok(Movie { timescale, file_bytes, tracks }.with_edit_times())
    }

    /// Edit durations in the time scale of their tracks.
    fn with_edit_times(mut self) -> Movie {
        for track in &mut self.tracks {
            for edit in &mut track.edits {
                let scale = u128::from(self.timescale);
                let scaled = (u128::from(edit.duration) * u128::from(track.timescale) + scale / 2) / scale;
                edit.duration = u64::try_from(scaled).unwrap_or(0);
            }
        }
        self
    }

    /// Appends the samples of a `moof` box that stands at byte `position` of the file.
    fn add_fragment(&mut self, moof: &[u8], position: u64) {
        for (_, traf) in boxes(moof).filter(|(kind, _)| kind == b"traf") {
            let Some(tfhd) = find(traf, b"tfhd") else { continue };
            let id = u32_at(tfhd, 4).unwrap_or(0);
            if let Some(track) = self.tracks.iter_mut().find(|t| t.id == id) {
                add_track_fragment(track, traf, tfhd, position, self.file_bytes);
            }
        }
    }
}

fn add_track_fragment(track: &mut Track, traf: &[u8], tfhd: &[u8], position: u64, file_bytes: u64) {
    let flags = u32_at(tfhd, 0).unwrap_or(0) & 0xFF_FFFF;
    let mut at = 8;
    let mut optional = |bit: u32, bytes: usize| {
        let here = at;
        at += if flags & bit != 0 { bytes } else { 0 };
        (flags & bit != 0).then_some(here)
    };
    let base = optional(1, 8).and_then(|at| u64_at(tfhd, at)).unwrap_or(position);
    optional(2, 4);
    let mut defaults = track.fragment_defaults;
    for (bit, field) in [(8, &mut defaults.duration), (16, &mut defaults.size), (32, &mut defaults.flags)] {
        *field = optional(bit, 4).and_then(|at| u32_at(tfhd, at)).unwrap_or(*field);
    }
    let start = find(traf, b"tfdt")
        .and_then(|tfdt| if tfdt.first() == Some(&1) { u64_at(tfdt, 4) } else { u32_at(tfdt, 4).map(u64::from) });
    let mut decode_time = start.unwrap_or(track.duration);
    let mut offset = base;
    for (_, trun) in boxes(traf).filter(|(kind, _)| kind == b"trun") {
        let flags = u32_at(trun, 0).unwrap_or(0) & 0xFF_FFFF;
        let mut at = 8;
        let mut word = |present: bool| {
            let value = present.then(|| u32_at(trun, at)).flatten();
            at += if present { 4 } else { 0 };
            value
        };
        if let Some(shift) = word(flags & 1 != 0) {
            offset = base.saturating_add_signed(i64::from(shift as i32));
        }
        let mut first_flags = word(flags & 4 != 0);
        let per_sample = 4 * (flags >> 8 & 0xF).count_ones() as usize;
        let most = trun.len().checked_div(per_sample).unwrap_or(MAX_SAMPLES);
        for _ in 0..(u32_at(trun, 4).unwrap_or(0) as usize).min(most) {
            let duration = word(flags & 0x100 != 0).unwrap_or(defaults.duration);
            let size = word(flags & 0x200 != 0).unwrap_or(defaults.size);
            let own_flags = word(flags & 0x400 != 0).or(first_flags.take()).unwrap_or(defaults.flags);
            let shift = word(flags & 0x800 != 0).unwrap_or(0) as i32;
            if track.samples.len() >= MAX_SAMPLES || size == 0 || offset >= file_bytes {
                return;
            }
            let time = (decode_time as i64).saturating_add(i64::from(shift));
            track.samples.push(Sample { offset, size, time, sync: own_flags & 0x1_0000 == 0 });
            offset = offset.saturating_add(u64::from(size));
            decode_time = decode_time.saturating_add(u64::from(duration));
            track.duration = track.duration.saturating_add(u64::from(duration));
        }
    }
}

fn parse_track(trak: &[u8], file_bytes: u64) -> Option<Track> {
    let mut track = Track::default();
    let tkhd = find(trak, b"tkhd")?;
    let long = tkhd.first() == Some(&1);
    track.id = u32_at(tkhd, if long { 20 } else { 12 })?;
    let matrix = if long { 52 } else { 40 };
    let entry = |k: usize| u32_at(tkhd, matrix + 4 * k).map(|v| (v as i32).signum());
    track.rotation = match (entry(0)?, entry(1)?, entry(3)?, entry(4)?) {
        (0, 1, -1, 0) => 90,
        (-1, 0, 0, -1) => 180,
        (0, -1, 1, 0) => 270,
        _ => 0,
    };
    if let Some(elst) = find(trak, b"edts").and_then(|edts| find(edts, b"elst")) {
        track.edits = parse_edits(elst);
    }
    let mdia = find(trak, b"mdia")?;
    let mdhd = find(mdia, b"mdhd")?;
    track.timescale = u32_at(mdhd, if mdhd.first() == Some(&1) { 20 } else { 12 })?.max(1);
    track.is_video = find(mdia, b"hdlr")?.get(8..12)? == b"vide";
    let stbl = find(find(mdia, b"minf")?, b"stbl")?;
    if track.is_video {
        parse_sample_entry(&mut track, find(stbl, b"stsd")?);
        parse_samples(&mut track, stbl, file_bytes);
    }
    Some(track)
}

fn parse_edits(elst: &[u8]) -> Vec<Edit> {
    let long = elst.first() == Some(&1);
    let row = |row: &[u8]| {
        Some(if long {
            Edit { duration: u64_at(row, 0)?, media_time: u64_at(row, 8)? as i64 }
        } else {
            Edit { duration: u64::from(u32_at(row, 0)?), media_time: i64::from(u32_at(row, 4)? as i32) }
        })
    };
    // A file with more segments is no clip; and every segment walks through all samples.
    table(elst, 4, if long { 20 } else { 12 }).filter_map(row).take(64).collect()
}

/// The first entry of `stsd`: codec, size, and the boxes behind its 78 fixed bytes.
fn parse_sample_entry(track: &mut Track, stsd: &[u8]) {
    let Some((codec, entry)) = stsd.get(8..).and_then(|entries| boxes(entries).next()) else { return };
    track.codec = codec;
    track.width_px = usize::from(u16_at(entry, 24).unwrap_or(0));
    track.height_px = usize::from(u16_at(entry, 26).unwrap_or(0));
    for (kind, body) in boxes(entry.get(78..).unwrap_or(&[])) {
        match &kind {
            b"avcC" => track.avcc = Some(body.to_vec()),
            b"colr" if body.get(..4) == Some(b"nclx") => {
                let full = body.get(10).is_some_and(|b| b & 0x80 != 0);
                track.colour = u16_at(body, 8).map(|matrix| (u32::from(matrix), full));
            }
            _ => {}
        }
    }
}

/// Joins the tables of `stbl`. A table that ends early ends the track there.
fn parse_samples(track: &mut Track, stbl: &[u8], file_bytes: u64) {
    let empty: &[u8] = &[];
    let body = |kind| find(stbl, kind).unwrap_or(empty);
    let words = |row: &[u8]| (u32_at(row, 0).unwrap_or(0), u32_at(row, 4).unwrap_or(0));
    let (stsz, stsc, ctts) = (body(b"stsz"), body(b"stsc"), find(stbl, b"ctts"));
    let sizes = sample_sizes(stsz, file_bytes);
    let chunk_offsets: Vec<u64> = match find(stbl, b"stco") {
        Some(stco) => table(stco, 4, 4).filter_map(|row| u32_at(row, 0).map(u64::from)).collect(),
        None => table(body(b"co64"), 4, 8).filter_map(|row| u64_at(row, 0)).collect(),
    };
    let durations = table(body(b"stts"), 4, 8).map(words).flat_map(|(n, delta)| std::iter::repeat_n(delta, n as usize));
    let mut shifts = ctts
        .into_iter()
        .flat_map(|ctts| table(ctts, 4, 8).map(words))
        .flat_map(|(n, shift)| std::iter::repeat_n(shift as i32, n as usize));
    let mut syncs = find(stbl, b"stss").map(|stss| table(stss, 4, 4).filter_map(|row| u32_at(row, 0)).peekable());

    let runs: Vec<(u32, u32)> = table(stsc, 4, 12).map(words).collect();
    let mut next_run = 0;
    let mut samples_per_chunk = 0;
    let (mut sizes, mut durations) = (sizes.into_iter(), durations);
    let mut decode_time = 0u64;
    for (chunk, &chunk_offset) in chunk_offsets.iter().enumerate() {
        while runs.get(next_run).is_some_and(|&(first, _)| first as usize <= chunk + 1) {
            samples_per_chunk = runs[next_run].1;
            next_run += 1;
        }
        let mut offset = chunk_offset;
        for _ in 0..samples_per_chunk {
            let Some(size) = sizes.next() else { return };
            let number = track.samples.len() as u32 + 1;
            let sync = syncs.as_mut().is_none_or(|syncs| {
                while syncs.next_if(|&s| s < number).is_some() {}
                syncs.next_if_eq(&number).is_some()
            });
            let shift = i64::from(shifts.next().unwrap_or(0));
            track.samples.push(Sample { offset, size, time: (decode_time as i64).saturating_add(shift), sync });
            let duration = u64::from(durations.next().unwrap_or(0));
            decode_time = decode_time.saturating_add(duration);
            track.duration = decode_time;
            offset = offset.saturating_add(u64::from(size));
        }
    }
}

/// A size for each sample: no more of them than the file can hold, at most [`MAX_SAMPLES`].
fn sample_sizes(stsz: &[u8], file_bytes: u64) -> Vec<u32> {
    let (common, count) = (u32_at(stsz, 4).unwrap_or(0), u32_at(stsz, 8).unwrap_or(0) as usize);
    if common != 0 {
        let most = usize::try_from(file_bytes / u64::from(common)).unwrap_or(MAX_SAMPLES);
        return vec![common; count.min(most).min(MAX_SAMPLES)];
    }
    table(stsz, 8, 4).take(MAX_SAMPLES).filter_map(|row| u32_at(row, 0)).collect()
}

impl Track {
    /// Positions in `samples` of the frames that are shown, in presentation order. As ffmpeg: with an edit list, frames
    /// whose time lies in none of its segments are decoded but not shown.
    pub fn presentation_order(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.samples.len() as u32).collect();
        order.sort_by_key(|&i| self.samples[i as usize].time);
        let shows = |edit: &Edit, time: i64| {
            edit.media_time >= 0
                && time >= edit.media_time
                && (edit.duration == 0 || time < edit.media_time.saturating_add_unsigned(edit.duration))
        };
        if self.edits.iter().all(|e| e.media_time < 0) {
            return order;
        }
        let in_edit = |edit| order.iter().copied().filter(move |&i| shows(edit, self.samples[i as usize].time));
        self.edits.iter().flat_map(in_edit).take(MAX_SAMPLES).collect()
    }

    /// Average frames a second.
    pub fn fps(&self) -> f64 {
        self.declared_samples as f64 * f64::from(self.timescale) / self.duration.max(1) as f64
    }
}
