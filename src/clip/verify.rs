//! Reads a data set before training and tells what is in it and what is wrong with it (`vcycle verify`).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::Serialize;

use super::list::Checked;
use super::pack::PackedClips;
use super::{ClipSource, Fault, FaultKind, Split, VideoList};

/// Classes that the table shows one by one; of more it tells those without clips.
const MAX_CLASSES_SHOWN: usize = 20;
/// Faults that the table shows; the report has all.
const MAX_FAULTS_SHOWN: usize = 100;

/// Smallest, middle and largest of some numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// Half of the numbers are smaller.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    fn of(mut numbers: Vec<f64>) -> Option<Spread> {
        numbers.sort_by(f64::total_cmp);
        let (min, max) = (*numbers.first()?, *numbers.last()?);
        Some(Spread { min, median: numbers[numbers.len() / 2], max })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places =
            usize::from(self.max < 100.0 && [self.min, self.median, self.max].iter().any(|n| n.fract() != 0.0));
        write!(f, "{:.places$}/{:.places$}/{:.places$}", self.min, self.median, self.max)
    }
}

/// One split of a data set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitReport {
    /// `train`, `val` or `test`.
    pub split: &'static str,
    /// Videos of the list that could be read.
    pub clips: usize,
    /// Videos of each class; a video with several labels counts for each of them.
    pub class_counts: Vec<usize>,
    /// Frames of a video, of those that can be opened.
    pub frames: Option<Spread>,
    /// Length of a video; null where frames are pictures.
    pub seconds: Option<Spread>,
    /// Size of all files.
    pub bytes: u64,
    /// Videos by who decodes them.
    pub decoders: BTreeMap<String, usize>,
    /// What the data set is, in 16 hexadecimal digits: names, labels, sizes of files. A run keeps it in its checkpoints.
    pub fingerprint: String,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

/// What [`verify`] found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Each split.
    pub splits: Vec<SplitReport>,
}

/// A list of clips that can be looked at one by one.
trait Checkable: ClipSource {
    fn id(&self, idx: usize) -> &str;
    fn faults(&self) -> &[Fault];
    fn check(&self, idx: usize, all: bool) -> Checked;
}

impl Checkable for VideoList {
    fn id(&self, idx: usize) -> &str {
        self.id(idx)
    }

    fn faults(&self) -> &[Fault] {
        self.faults()
    }

    fn check(&self, idx: usize, all: bool) -> Checked {
        self.check(idx, all)
    }
}

impl Checkable for PackedClips {
    fn id(&self, idx: usize) -> &str {
        self.id(idx)
    }

    fn faults(&self) -> &[Fault] {
        &[]
    }

    fn check(&self, idx: usize, all: bool) -> Checked {
        self.check(idx, all)
    }
}

/// Reads all of `lists`, and the first and the last frame of every video, or with `all` every frame. `progress` is told
/// (videos done, videos in all) from several threads.
pub fn verify(lists: &[(Split, VideoList)], all: bool, progress: &(dyn Fn(usize, usize) + Sync)) -> Report {
    report(lists, all, progress)
}

/// The same for a packed data set: all checksums are compared.
pub fn verify_pack(lists: &[(Split, PackedClips)], all: bool, progress: &(dyn Fn(usize, usize) + Sync)) -> Report {
    report(lists, all, progress)
}

fn report<L: Checkable>(lists: &[(Split, L)], all: bool, progress: &(dyn Fn(usize, usize) + Sync)) -> Report {
    let total = lists.iter().map(|(_, list)| list.len()).sum();
    let done = AtomicUsize::new(0);
    let check = |list: &L, idx| {
        let checked = list.check(idx, all);
        progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
        checked
    };
    let mut splits: Vec<SplitReport> = lists
        .iter()
        .map(|(split, list)| {
            let checked: Vec<Checked> = (0..list.len()).into_par_iter().map(|idx| check(list, idx)).collect();
            split_report(*split, list, checked)
        })
        .collect();
    let of = |wanted| lists.iter().position(|(split, _)| *split == wanted);
    if let (Some(train), Some(val)) = (of(Split::Train), of(Split::Val)) {
        let known: HashSet<&str> = (0..lists[train].1.len()).map(|idx| lists[train].1.id(idx)).collect();
        let both: BTreeSet<&str> = (0..lists[val].1.len()).map(|idx| lists[val].1.id(idx)).collect();
        let both = both.into_iter().filter(|id| known.contains(id));
        let fault = |id: &str| Fault::new(FaultKind::TrainAndVal, id, "is listed for training and for validation");
        splits[val].faults.extend(both.map(fault));
    }
    Report { splits }
}

fn split_report(split: Split, list: &impl Checkable, checked: Vec<Checked>) -> SplitReport {
    let mut class_counts = vec![0; list.num_classes()];
    for idx in 0..list.len() {
        for class in list.label_set(idx, None) {
            if let Some(count) = class_counts.get_mut(class as usize) {
                *count += 1;
            }
        }
    }
    let mut decoders = BTreeMap::new();
    for decoder in checked.iter().filter_map(|c| c.decoder.clone()) {
        *decoders.entry(decoder).or_default() += 1;
    }
    let opened = || checked.iter().filter(|c| c.num_frames > 0);
    SplitReport {
        split: split.name(),
        clips: list.len(),
        class_counts,
        frames: Spread::of(opened().map(|c| c.num_frames as f64).collect()),
        seconds: Spread::of(opened().filter_map(|c| c.seconds).collect()),
        bytes: checked.iter().map(|c| c.bytes).sum(),
        decoders,
        fingerprint: list.fingerprint().unwrap_or_default(),
        faults: list.faults().iter().cloned().chain(checked.iter().flat_map(|c| c.faults.iter().cloned())).collect(),
    }
}

impl Report {
    /// Faults of each kind.
    pub fn fault_counts(&self) -> BTreeMap<FaultKind, usize> {
        let mut counts = BTreeMap::new();
        for fault in self.splits.iter().flat_map(|split| &split.faults) {
            *counts.entry(fault.kind).or_default() += 1;
        }
        counts
    }

    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.splits.iter().all(|split| split.faults.is_empty())
    }

    fn write_classes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let num_classes = self.splits.iter().map(|split| split.class_counts.len()).max().unwrap_or(0);
        if num_classes <= MAX_CLASSES_SHOWN {
            for class in 0..num_classes {
                let count =
                    |s: &SplitReport| format!("{:>6} {}", s.class_counts.get(class).copied().unwrap_or(0), s.split);
                let counts: Vec<String> = self.splits.iter().map(count).collect();
                writeln!(f, "class {class:>2} {}", counts.join(" "))?;
            }
            return Ok(());
        }
        for split in &self.splits {
            let empty = split.class_counts.iter().enumerate().filter(|(_, count)| **count == 0).map(|(class, _)| class);
            let empty: Vec<String> = empty.map(|class| class.to_string()).collect();
            let shown = empty[..empty.len().min(MAX_CLASSES_SHOWN)].join(", ");
            let more = if empty.len() > MAX_CLASSES_SHOWN { ", …" } else { "" };
            if !empty.is_empty() {
                writeln!(f, "{} has no clip of {} classes: {shown}{more}", split.split, empty.len())?;
            }
        }
        Ok(())
    }
}

/// A table, classes, faults, and a last line that says whether there are any.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dash = |spread: Option<Spread>| spread.map_or("-".into(), |spread| spread.to_string());
        writeln!(f, "three numbers are smallest/median/largest")?;
        writeln!(
            f,
            "{:<6} {:>7} {:>16} {:>16} {:>16} {:>9}  {:<16}  decoders",
            "split", "clips", "clips a class", "frames", "seconds", "MB", "fingerprint"
        )?;
        for split in &self.splits {
            let classes = Spread::of(split.class_counts.iter().map(|&count| count as f64).collect());
            let decoders: Vec<String> = split.decoders.iter().map(|(name, count)| format!("{count} {name}")).collect();
            writeln!(
                f,
                "{:<6} {:>7} {:>16} {:>16} {:>16} {:>9.1}  {:<16}  {}",
                split.split,
                split.clips,
                dash(classes),
                dash(split.frames),
                dash(split.seconds),
                split.bytes as f64 / 1e6,
                split.fingerprint,
                decoders.join(", ")
            )?;
        }
        self.write_classes(f)?;
        let faults = || self.splits.iter().flat_map(|split| &split.faults);
        for fault in faults().take(MAX_FAULTS_SHOWN) {
            writeln!(f, "{}: {}: {}", fault.kind, fault.place, fault.message)?;
        }
        let total = faults().count();
        if total > MAX_FAULTS_SHOWN {
            writeln!(f, "and {} more; --json lists all", total - MAX_FAULTS_SHOWN)?;
        }
        let counts: Vec<String> = self.fault_counts().iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        match counts.is_empty() {
            true => writeln!(f, "no fault found"),
            false => writeln!(f, "{total} faults: {}", counts.join(", ")),
        }
    }
}
