//! Files from outside, bent in every way: no panic, no hang, no memory beyond 1 GiB. A few hundred inputs each in
//! `cargo test`; `VCYCLE_FUZZ_SECONDS=600` (`make test-long`, one test at a time) goes on for so long with each and watches
//! the memory. Inputs that once failed are kept in `tests/fuzz_seeds/NAME/` and run every time.

mod checkpoints;
mod configs;
mod packs;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use vcycle::clip::decode::{Backend, DecodeOptions, Video};
use vcycle::clip::{ClipSource, ListConfig, ListFormat, Split, VideoList};

use crate::datasets::{jpeg, made};
use crate::decoder::made::Mp4;

/// Inputs without a time budget.
const QUICK_INPUTS: usize = 300;
/// One input must not take longer.
const MAX_TIME: Duration = Duration::from_secs(20);
/// What all inputs together may add to the memory of the process.
const MAX_BYTES: u64 = 1 << 30;

/// Random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In 0..n; 0 where n is 0.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// What parsers stumble over.
const WORDS: [&[u8]; 16] = [
    b"\0\0\0\0",
    b"\0\0\0\x01",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x80\0\0\0",
    b"99999999999999999999",
    b"-1",
    b"\"",
    b"[",
    b"{",
    b"\n",
    b" ",
    b",",
    b"1e999",
    b"\xc3\x28",
    b"\xff\xd9",
];

/// A few changes to `input`: bits, bytes, words, pieces taken out, doubled, or brought from `other`.
fn bend(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..1 + random.below(6) {
        let (at, len) = (random.below(input.len() + 1), random.below(input.len().min(64)) + 1);
        let end = (at + len).min(input.len());
        match random.below(8) {
            0 | 1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            2 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = random.next() as u8;
                }
            }
            3 => {
                let word = WORDS[random.below(WORDS.len())];
                let end = (at + word.len()).min(input.len());
                input.splice(at..end, word.iter().copied());
            }
            4 => {
                input.drain(at..end);
            }
            5 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            6 => {
                let from = random.below(other.len() + 1);
                let piece = other[from..(from + len).min(other.len())].to_vec();
                input.splice(at..at, piece);
            }
            _ => input.truncate(at),
        }
    }
}

/// Runs `case` on every seed and kept input as they are, then on bent ones.
///
/// # Panics
/// At the first input on which `case` panics or takes too long; it is left in the folder for temporary files, named in the
/// message.
pub fn run(name: &str, seeds: &[Vec<u8>], case: &mut dyn FnMut(&[u8])) {
    let budget = std::env::var("VCYCLE_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).map(Duration::from_secs);
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz_seeds").join(name);
    let kept = fs::read_dir(kept).into_iter().flatten().flatten().map(|file| fs::read(file.path()).expect("readable"));
    let seeds: Vec<Vec<u8>> = seeds.iter().cloned().chain(kept).collect();
    let mut one = |input: &[u8]| {
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| case(input)));
        if result.is_err() || start.elapsed() > MAX_TIME {
            let path = std::env::temp_dir().join(format!("vcycle_fuzz_{name}.bin"));
            fs::write(&path, input).expect("writable");
            panic!("{name}: panicked or took {:?} (limit {MAX_TIME:?}) on {}", start.elapsed(), path.display());
        }
    };
    seeds.iter().for_each(|seed| one(seed));
    let (begin, memory_before) = (Instant::now(), memory_bytes("VmRSS:"));
    let mut random = Random(name.bytes().fold(1, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))));
    let mut inputs = 0;
    while budget.map_or(inputs < QUICK_INPUTS, |budget| begin.elapsed() < budget) {
        let mut input = seeds[random.below(seeds.len())].clone();
        bend(&mut input, &seeds[random.below(seeds.len())], &mut random);
        one(&input);
        inputs += 1;
    }
    if budget.is_some() {
        let (peak, before) = (memory_bytes("VmHWM:"), memory_before);
        let added = peak.saturating_sub(before);
        eprintln!(
            "fuzz {name}: {inputs} inputs in {:?}, peak of memory {added} bytes above the start",
            begin.elapsed()
        );
        assert!(added <= MAX_BYTES, "{name}: {added} bytes of memory");
    }
}

/// A line of /proc/self/status; 0 where there is none.
fn memory_bytes(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Reads lists that `write` has put into `folder`; whatever can be read of them is asked for everything.
fn read_lists(config: &ListConfig) {
    if let Ok(list) = VideoList::read(config, Split::Train) {
        for idx in 0..list.len() {
            assert!(list.label_set(idx, None).iter().all(|&label| (label as usize) < list.num_classes()));
            let (name, files) = (list.name(idx), list.files(idx).count());
            assert!(!name.is_empty() && files > 0);
            list.label_set(idx, Some((0, files as u32)));
        }
    }
    let _ = VideoList::open(config, Split::Train);
}

/// One list is bent, the others of the data set stay as they are.
fn list(name: &str, file: &str, format: ListFormat, make: fn(&Path, usize), more: &[&str]) {
    let folder = tempfile::tempdir().expect("folder");
    make(folder.path(), 3);
    let config = ListConfig { format, path_prefix: "frames".into(), ..ListConfig::kinetics(folder.path(), 3) };
    let path = folder.path().join(file);
    let mut seeds = vec![fs::read(&path).expect("read")];
    seeds.extend(more.iter().map(|text| text.as_bytes().to_vec()));
    run(name, &seeds, &mut |input| {
        fs::write(&path, input).expect("write");
        read_lists(&config);
    });
}

#[test]
fn kinetics_lists() {
    list("kinetics_csv", "train.csv", ListFormat::Kinetics, made::kinetics, &["a b.mp4 1\r\n\u{feff}c 2", "x 0\nx 1"]);
}

#[test]
fn frame_lists() {
    let odd = "original_vido_id video_id frame_id path labels\nA 0 0 99/img_99999999999999999999.jpg \"\"\nA 0 1 x.jpg 0,1,2\n";
    list("charades_csv", "train.csv", ListFormat::Charades, made::charades, &[odd]);
    list("ssv2_csv", "train.csv", ListFormat::Ssv2, made::ssv2, &[odd]);
}

#[test]
fn json_lists() {
    let deep = "[".repeat(5000);
    list("ssv2_json", "something-something-v2-train.json", ListFormat::Ssv2, made::ssv2, &[&deep, "[{\"id\": 1}]"]);
    list("ssv2_labels", "something-something-v2-labels.json", ListFormat::Ssv2, made::ssv2, &["{\"a\": {}}"]);
}

#[test]
fn pictures() {
    let folder = tempfile::tempdir().expect("folder");
    fs::write(folder.path().join("train.csv"), "original_vido_id\nA 0 0 a.jpg 0\n").expect("write");
    let config = ListConfig { format: ListFormat::Charades, ..ListConfig::kinetics(folder.path(), 1) };
    let colours = jpeg::jpeg(40, 24, |column, row| [(40 * column + row) as u8, 90, (30 * row) as u8]);
    run("jpeg", &[colours, jpeg::grey(8, 8, 255), jpeg::grey(1, 1, 0)], &mut |input| {
        fs::write(folder.path().join("a.jpg"), input).expect("write");
        let list = VideoList::read(&config, Split::Train).expect("list");
        if let Ok(frames) = list.frames(0, &mut |_| vec![0]) {
            assert_eq!(frames.bytes.len(), frames.height_px * frames.width_px * 3);
        }
    });
}

#[test]
fn mp4_files() {
    let made = |mp4: Mp4| mp4.bytes();
    let seeds = [
        made(Mp4 { frames: 4, ..Default::default() }),
        made(Mp4 { frames: 5, fragmented: true, ..Default::default() }),
        made(Mp4 {
            frames: 3,
            rotation: 90,
            shifts: vec![512, 0, 1024],
            small_track: Some(true),
            ..Default::default()
        }),
        made(Mp4 {
            frames: 3,
            edits: vec![(80, 512), (0, -1)],
            vui: Some((1, true)),
            colr: Some((5, false)),
            ..Default::default()
        }),
    ];
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("a.mp4");
    let time_limit = Duration::from_secs(5);
    let options = DecodeOptions { backend: Backend::BuiltIn, time_limit, max_bytes: 256 << 20 };
    run("mp4", &seeds, &mut |input| {
        fs::write(&path, input).expect("write");
        let Ok(mut video) = Video::open(&path, &options) else { return };
        let last = video.info().num_frames as u32 - 1;
        let mut wanted = vec![0, last / 2, last];
        wanted.dedup();
        if let Ok(frames) = video.frames(&wanted) {
            assert_eq!(frames.bytes.len(), wanted.len() * frames.height_px * frames.width_px * 3);
        }
        video.check(false);
    });
}
