//! Packing: decodes every clip of some lists once, shard after shard.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::index::{Clip, Content, Index, ListedVideo, SplitIndex, Stored};
use super::picture::FrameEncoder;
use super::shard::{self, Packed, line};
use super::{Encoding, FORMAT_VERSION};
use crate::clip::loader::panic_message;
use crate::clip::{ClipSource, ListFormat, Split, VideoInfo, VideoList};
use crate::error::{Error, Result};

/// How to pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackOptions {
    /// What decides the bytes of a frame.
    pub encoding: Encoding,
    /// A shard ends with the clip that makes it as large as this. What is not yet in a shard is in memory, and lost by a kill.
    pub shard_bytes: usize,
}

/// What [`pack`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackReport {
    /// Clips of all lists; one that several name counts once.
    pub clips: usize,
    /// Of these, those that lay in finished shards already.
    pub kept: usize,
    /// Clips that could not be decoded: name and reason.
    pub left_out: Vec<(String, String)>,
    /// Size of all shards.
    pub bytes: u64,
    /// Whether the pack was whole before.
    pub was_whole: bool,
}

/// A clip that is to be packed.
struct Job {
    /// Positions of a list and of a video in it.
    list: usize,
    idx: usize,
    name: String,
    files: String,
}

/// Packs the clips of `lists` into `folder`. Finished shards of an interrupted call are kept; what is missing or damaged is
/// packed again. `progress` is told (clips done, clips in all, clips kept).
///
/// # Errors
/// Files that cannot be written, a folder that holds another pack, and lists of which no clip can be decoded.
pub fn pack(
    lists: &[(Split, VideoList)],
    format: ListFormat,
    folder: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(usize, usize, usize),
) -> Result<PackReport> {
    options.encoding.check()?;
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
    let (jobs, splits) = plan(lists);
    let before = index_before(folder)?;
    if let Some(before) = &before {
        refuse_another(folder, before, format, options, &splits, &jobs)?;
    }
    let (mut clips, mut shards, mut kept): (Vec<Clip>, Vec<u64>, usize) = (vec![], vec![], 0);
    while clips.len() < jobs.len() {
        let (k, rest) = (shards.len(), &jobs[clips.len()..]);
        if let Some(described) = finished(folder, k, &options.encoding, rest)? {
            kept += described.clips.len();
            shards.push(described.bytes);
            clips.extend(described.clips);
            progress(clips.len(), jobs.len(), kept);
            continue;
        }
        let done = clips.len();
        let packed = pack_shard(lists, rest, options, &mut |more| progress(done + more, jobs.len(), kept));
        shard::write(folder, k, &options.encoding, &packed)?;
        let described = shard::describe(folder, k)?;
        shards.push(described.bytes);
        clips.extend(described.clips);
    }
    let left_out: Vec<(String, String)> = clips.iter().filter_map(left_out).collect();
    if left_out.len() == clips.len() {
        let first = left_out.first().map_or(String::new(), |(name, why)| format!(" ({name}: {why})"));
        return Err(Error::Data(format!("none of the {} clips can be decoded{first}", clips.len())));
    }
    let (bytes, version) = (shards.iter().sum(), env!("CARGO_PKG_VERSION").into());
    let (num_clips, encoding) = (clips.len(), options.encoding);
    let index =
        Index { format: FORMAT_VERSION, checksum: 0, version, dataset: format, encoding, shards, splits, clips };
    let was_whole = kept == num_clips && before.is_some_and(|before| Index { checksum: 0, ..before } == index);
    if !was_whole {
        index.write(folder)?;
    }
    Ok(PackReport { clips: num_clips, kept, left_out, bytes, was_whole })
}

fn left_out(clip: &Clip) -> Option<(String, String)> {
    match &clip.content {
        Content::LeftOut(why) => Some((clip.name.clone(), why.clone())),
        Content::Stored(_) => None,
    }
}

/// The clips of all lists, each once, and the lists in terms of them.
fn plan(lists: &[(Split, VideoList)]) -> (Vec<Job>, BTreeMap<String, SplitIndex>) {
    let (mut jobs, mut splits) = (vec![], BTreeMap::new());
    let mut known: HashMap<(String, PathBuf), usize> = HashMap::new();
    for (k, (split, list)) in lists.iter().enumerate() {
        let files: Vec<u64> = (0..list.len()).into_par_iter().map(|idx| list.fingerprint_of_files(idx)).collect();
        let mut videos = Vec::with_capacity(list.len());
        for (idx, files) in files.into_iter().enumerate() {
            let name = list.id(idx).to_string();
            let first_file = list.files(idx).next().unwrap_or_default();
            let clip = *known.entry((name.clone(), first_file)).or_insert_with(|| {
                jobs.push(Job { list: k, idx, name: name.clone(), files: format!("{files:016x}") });
                jobs.len() - 1
            });
            videos.push(ListedVideo { name, classes: list.class_runs(idx).clone(), clip });
        }
        let fingerprint = list.fingerprint().unwrap_or_default();
        splits.insert(split.name().to_string(), SplitIndex { fingerprint, videos });
    }
    (jobs, splits)
}

/// The index of an earlier call. A damaged one is no loss: the shards say all that it said.
fn index_before(folder: &Path) -> Result<Option<Index>> {
    match Index::read(folder) {
        Ok(index) => Ok(Some(index)),
        Err(Error::Io { .. }) if !Index::path(folder).exists() => Ok(None),
        Err(Error::Data(message)) if message.contains("damaged") => {
            tracing::warn!("{message}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A whole pack is never written over by another one.
fn refuse_another(
    folder: &Path,
    before: &Index,
    format: ListFormat,
    options: &PackOptions,
    splits: &BTreeMap<String, SplitIndex>,
    jobs: &[Job],
) -> Result<()> {
    let same_files = before.clips.len() == jobs.len()
        && before.clips.iter().zip(jobs).all(|(clip, job)| clip.name == job.name && clip.files == job.files);
    let what = if before.encoding != options.encoding {
        format!("frames as {}, not as {}", before.encoding, options.encoding)
    } else if before.dataset != format || &before.splits != splits || !same_files {
        "other lists or other files".into()
    } else {
        return Ok(());
    };
    let folder = folder.display();
    Err(Error::Data(format!("{folder} holds a whole pack of {what}; remove it, or pack into another folder")))
}

/// Shard `k`, if it is there and holds the first of these clips.
fn finished(folder: &Path, k: usize, encoding: &Encoding, rest: &[Job]) -> Result<Option<shard::Described>> {
    let path = shard::path(folder, k);
    if !path.exists() {
        return Ok(None);
    }
    let described = match shard::describe(folder, k) {
        Ok(described) => described,
        Err(error) => {
            tracing::warn!("{error}; packed again");
            return Ok(None);
        }
    };
    if described.encoding != *encoding {
        return Err(Error::Data(format!(
            "{} was packed as {}, not as {encoding}; remove the folder, or pack into another one",
            path.display(),
            described.encoding
        )));
    }
    let same = !described.clips.is_empty()
        && described.clips.len() <= rest.len()
        && described.clips.iter().zip(rest).all(|(clip, job)| clip.name == job.name && clip.files == job.files);
    if !same {
        tracing::warn!("{}: holds other clips; packed again", path.display());
    }
    Ok(same.then_some(described))
}

/// Packs clips from the first of `jobs` on until a shard is full; some at once, in their order.
fn pack_shard(
    lists: &[(Split, VideoList)],
    jobs: &[Job],
    options: &PackOptions,
    progress: &mut dyn FnMut(usize),
) -> Vec<Packed> {
    let (mut shard, mut bytes) = (vec![], 0);
    let at_once = 2 * rayon::current_num_threads();
    for some in jobs.chunks(at_once) {
        let packed: Vec<Packed> =
            some.par_iter().map(|job| pack_clip(&lists[job.list].1, job, &options.encoding)).collect();
        for one in packed {
            bytes += one.frames.len() + one.cells.len();
            shard.push(one);
            if bytes >= options.shard_bytes {
                // The others of `some` are packed again for the next shard: where a shard ends must not depend on threads.
                progress(shard.len());
                return shard;
            }
        }
        progress(shard.len());
    }
    shard
}

/// Packs a clip; one that cannot be decoded is left out.
fn pack_clip(list: &VideoList, job: &Job, encoding: &Encoding) -> Packed {
    let clip = |content| Clip { name: job.name.clone(), files: job.files.clone(), content };
    let attempt = catch_unwind(AssertUnwindSafe(|| encode_clip(list, job.idx, encoding)));
    match attempt.unwrap_or_else(|panic| Err(format!("panicked: {}", panic_message(&panic)))) {
        Ok((stored, frames, cells)) => Packed { clip: clip(Content::Stored(stored)), frames, cells },
        Err(message) => {
            tracing::warn!("left out: {}: {message}", job.name);
            Packed { clip: clip(Content::LeftOut(message)), frames: vec![], cells: vec![] }
        }
    }
}

type Encoded = (Stored, Vec<u8>, Vec<u8>);

fn encode_clip(list: &VideoList, idx: usize, encoding: &Encoding) -> Result<Encoded, String> {
    let mut begun: Option<(VideoInfo, FrameEncoder)> = None;
    let (mut encoded, mut failure): (Vec<Vec<u8>>, _) = (vec![], None);
    let came = list.each_frame(idx, &mut |info, k, rgb| {
        let begin = || (info.clone(), FrameEncoder::new(encoding, (info.height_px, info.width_px)));
        let (_, encoder) = begun.get_or_insert_with(begin);
        encoded.resize(info.num_frames, vec![]);
        match (encoder.encode(rgb), encoded.get_mut(k)) {
            (Ok(bytes), Some(frame)) => *frame = bytes,
            (Ok(_), None) => {}
            (Err(message), _) => failure = Some(message),
        }
    });
    let came = came.map_err(|e| e.to_string())?;
    let (Some((info, encoder)), None) = (begun, &failure) else {
        return Err(failure.unwrap_or_else(|| "gave no frame".into()));
    };
    let ((height_px, width_px), num_frames) = (encoder.size, info.num_frames);
    encoded.truncate(came);
    let (frames, cells) = lay_out(&encoded, num_frames, encoding, width_px).ok_or("gave no frame")?;
    let stored = Stored {
        shard: 0,
        frames: (0, frames.len() as u64),
        cells: (0, cells.len() as u64),
        cells_crc32: crc32fast::hash(&cells),
        num_frames,
        fps: info.fps,
        height_px,
        width_px,
    };
    Ok((stored, frames, cells))
}

/// Frames one behind the other, and their table. Where a file ended early its last frame stands for the rest: in the table
/// alone. `None` without a frame.
fn lay_out(encoded: &[Vec<u8>], num_frames: usize, encoding: &Encoding, width_px: usize) -> Option<(Vec<u8>, Vec<u8>)> {
    let (mut frames, mut table) = (Vec::with_capacity(encoded.iter().map(Vec::len).sum()), vec![]);
    for frame in encoded {
        let mut lines = vec![];
        for cell in encoding.codec.cut(frame, width_px) {
            lines.extend(line(cell, frames.len() as u64));
            frames.extend_from_slice(cell);
        }
        table.push(lines);
    }
    let last = table.last().filter(|lines| !lines.is_empty())?.clone();
    table.resize(num_frames, last);
    Some((frames, table.concat()))
}
