//! Packed data sets: what is packed, kill and resume, damage, and runs on them.

mod boxes;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

use vcycle::Result;
use vcycle::clip::pack::{Codec, Encoding, PackOptions, PackReport, PackedClips, pack};
use vcycle::clip::verify::verify_pack;
use vcycle::clip::{ClipSource, FaultKind, ListConfig, ListFormat, Split, VideoList};
use vcycle::device::Device;
use vcycle::train::{Start, Trainer, setup};

use crate::datasets::{self, made};

const RAW: Encoding = Encoding { codec: Codec::Raw, short_side_px: None };
const JPEG: Encoding = Encoding { codec: Codec::Jpeg { quality: 90 }, short_side_px: None };

/// Lists of a made data set.
pub fn lists(folder: &Path, format: ListFormat) -> ListConfig {
    let prefix = if format == ListFormat::Kinetics { "." } else { "frames" };
    ListConfig { format, path_prefix: folder.join(prefix), ..ListConfig::kinetics(folder, 3) }
}

/// Packs training and validation; a shard holds about two clips.
pub fn packed(
    lists: &ListConfig,
    to: &Path,
    encoding: Encoding,
    progress: &mut dyn FnMut(usize, usize, usize),
) -> Result<PackReport> {
    let open = |split| Ok((split, VideoList::open(lists, split)?));
    let some = [Split::Train, Split::Val].map(open).into_iter().collect::<Result<Vec<_>>>()?;
    pack(&some, lists.format, to, &PackOptions { encoding, shard_bytes: 50_000 }, progress)
}

fn quietly(lists: &ListConfig, to: &Path, encoding: Encoding) -> PackReport {
    packed(lists, to, encoding, &mut |_, _, _| {}).expect("packed")
}

fn open(folder: &Path, format: ListFormat, split: Split) -> PackedClips {
    PackedClips::open(folder, format, split, 3).expect("pack")
}

/// Name and bytes of every file.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("folder").flatten();
    let read = |e: fs::DirEntry| (e.file_name().to_string_lossy().into_owned(), fs::read(e.path()).expect("file"));
    entries.map(read).collect()
}

fn all_frames(source: &dyn ClipSource, idx: usize) -> Result<Vec<u8>> {
    Ok(source.frames(idx, &mut |info| (0..info.num_frames as u32).collect())?.bytes)
}

/// Labels, order and names are those of the lists; raw frames at the source's size are those of the files.
#[test]
fn a_pack_is_its_data_set_in_every_format() {
    for (format, make) in [
        (ListFormat::Kinetics, made::kinetics as fn(&Path, usize)),
        (ListFormat::Ssv2, made::ssv2),
        (ListFormat::Charades, made::charades),
    ] {
        let folder = tempfile::tempdir().expect("folder");
        make(folder.path(), 5);
        let (lists, to) = (lists(folder.path(), format), folder.path().join("pack"));
        let report = quietly(&lists, &to, RAW);
        assert_eq!(
            (report.clips, report.kept, report.left_out.len(), report.was_whole),
            (9, 0, 0, false),
            "{format:?}"
        );
        for split in [Split::Train, Split::Val] {
            let (list, pack) = (VideoList::open(&lists, split).expect("list"), open(&to, format, split));
            assert_eq!((pack.len(), pack.is_multi_label()), (list.len(), list.is_multi_label()), "{format:?}");
            assert_eq!(pack.fingerprint(), list.fingerprint(), "{format:?}");
            for idx in 0..list.len() {
                for span in [None, Some((0, 3)), Some((5, 9)), Some((12, 19))] {
                    assert_eq!(pack.label_set(idx, span), list.label_set(idx, span), "{format:?} {idx} {span:?}");
                }
                assert_eq!(pack.label(idx), list.label(idx));
                assert!(pack.name(idx).starts_with(list.id(idx)), "{}", pack.name(idx));
                assert!(all_frames(&pack, idx).expect("packed") == all_frames(&list, idx).expect("list"), "{format:?}");
                let some = |source: &dyn ClipSource| source.frames(idx, &mut |_| vec![0, 7, 7, 19]).expect("frames");
                assert_eq!(some(&pack), some(&list));
            }
        }
        assert_eq!(PackedClips::open(&to, format, Split::Test, 3).is_ok(), format != ListFormat::Kinetics);
    }
}

#[test]
fn frames_are_shrunk_and_coded_as_asked() {
    let folder = tempfile::tempdir().expect("folder");
    made::kinetics(folder.path(), 2);
    let lists = lists(folder.path(), ListFormat::Kinetics);
    let list = VideoList::open(&lists, Split::Train).expect("list");
    let original = all_frames(&list, 0).expect("list");
    let mut fingerprints = vec![list.fingerprint()];
    for (codec, short_side_px, size, most) in [
        (Codec::Jpeg { quality: 90 }, None, (16, 32), 4),
        (Codec::Jpeg { quality: 80 }, Some(16), (16, 32), 6),
        (Codec::Jpeg { quality: 90 }, Some(100), (16, 32), 4),
        (Codec::Raw, Some(8), (8, 16), 3),
        (Codec::Jpeg { quality: 90 }, Some(11), (11, 22), 6),
    ] {
        let encoding = Encoding { codec, short_side_px };
        let to = folder.path().join(encoding.to_string());
        quietly(&lists, &to, encoding);
        let pack = open(&to, ListFormat::Kinetics, Split::Train);
        assert!(!fingerprints.contains(&pack.fingerprint()), "{encoding}");
        fingerprints.push(pack.fingerprint());
        let frames = pack.frames(0, &mut |info| {
            assert_eq!((info.num_frames, info.fps, info.height_px, info.width_px), (20, 25.0, size.0, size.1));
            vec![0, 19]
        });
        let frames = frames.expect("frames");
        // Left and right half differ in light: look away from the middle and its filter.
        for (k, frame) in [0, 19].into_iter().zip(frames.bytes.chunks_exact(size.0 * size.1 * 3)) {
            for (x, source_x) in [(0, 0), (size.1 / 4, 8), (size.1 - 1, 31)] {
                let (got, want) = (frame[(size.1 + x) * 3], original[((k * 16 + 1) * 32 + source_x) * 3]);
                assert!(got.abs_diff(want) <= most, "{encoding}: frame {k}, column {x}: {got}, expected {want}");
            }
        }
    }
    for encoding in
        [Encoding { codec: Codec::Jpeg { quality: 0 }, ..JPEG }, Encoding { short_side_px: Some(0), ..JPEG }]
    {
        assert!(packed(&lists, &folder.path().join("no"), encoding, &mut |_, _, _| {}).is_err());
    }
}

/// Wherever packing is cut off, the next call finishes it: the same bytes as in one go.
#[test]
fn a_kill_anywhere_is_repaired() {
    let folder = tempfile::tempdir().expect("folder");
    made::kinetics(folder.path(), 5);
    let lists = lists(folder.path(), ListFormat::Kinetics);
    let (whole, to) = (folder.path().join("whole"), folder.path().join("killed"));
    let mut calls = 0;
    packed(&lists, &whole, RAW, &mut |_, _, _| calls += 1).expect("packed");
    let expected = files(&whole);
    assert!(expected.len() >= 5 && calls >= 4, "{:?}", expected.keys());
    for kill_at in 0..calls {
        let _ = fs::remove_dir_all(&to);
        let mut call = 0;
        let killed = catch_unwind(AssertUnwindSafe(|| {
            packed(&lists, &to, RAW, &mut |_, _, _| {
                call += 1;
                assert!(call <= kill_at, "killed");
            })
        }));
        assert!(killed.is_err());
        assert!(PackedClips::open(&to, ListFormat::Kinetics, Split::Train, 3).is_err(), "no index yet");
        // What a kill while a file is written leaves.
        fs::write(to.join("shard-00001.unfinished"), &expected["shard-00001.safetensors"][..999]).expect("write");
        let report = quietly(&lists, &to, RAW);
        assert!(report.kept < report.clips && !report.was_whole);
        assert!(kill_at < 2 || report.kept > 0, "{kill_at}: {report:?}");
        assert!(files(&to).into_iter().filter(|(name, _)| name != "shard-00001.unfinished").eq(expected.clone()));
    }
    // A shard that is cut off, one that is gone, one of something else; an index that is damaged or gone.
    let shard = |k: usize| to.join(format!("shard-{k:05}.safetensors"));
    let cut = &expected["shard-00001.safetensors"];
    fs::write(shard(1), &cut[..cut.len() - 1]).expect("write");
    fs::remove_file(shard(2)).expect("remove");
    fs::write(shard(3), "no shard").expect("write");
    fs::write(to.join("index.json"), &expected["index.json"][..1000]).expect("write");
    let report = quietly(&lists, &to, RAW);
    assert!(report.kept > 0 && report.kept < report.clips);
    fs::remove_file(to.join("index.json")).expect("remove");
    let report = quietly(&lists, &to, RAW);
    assert!(report.kept == report.clips && !report.was_whole);
    let _ = fs::remove_file(to.join("shard-00001.unfinished"));
    assert!(files(&to) == expected);
    let report = quietly(&lists, &to, RAW);
    assert!(report.was_whole && report.kept == report.clips && files(&to) == expected);
}

#[test]
fn another_pack_is_not_written_over() {
    let folder = tempfile::tempdir().expect("folder");
    made::kinetics(folder.path(), 3);
    let (lists, to) = (lists(folder.path(), ListFormat::Kinetics), folder.path().join("pack"));
    quietly(&lists, &to, RAW);
    let before = files(&to);
    let refused = |encoding, part: &str| {
        let error = packed(&lists, &to, encoding, &mut |_, _, _| {}).expect_err("refused").to_string();
        assert!(error.contains(part) && error.contains("another"), "{error}");
    };
    refused(JPEG, "frames as raw, source size, not as jpeg quality 90, source size");
    fs::copy(folder.path().join("v1.mp4"), folder.path().join("w.mp4")).expect("copy");
    fs::write(folder.path().join("train.csv"), "v0.mp4 0\nv1.mp4 1\nw.mp4 2\n").expect("write");
    refused(RAW, "other lists or other files");
    fs::remove_file(to.join("index.json")).expect("remove");
    refused(JPEG, "shard-00000.safetensors was packed as raw");
    fs::write(to.join("index.json"), &before["index.json"]).expect("write");
    assert!(files(&to) == before);
}

#[test]
fn clips_that_cannot_be_decoded_are_left_out() {
    let folder = tempfile::tempdir().expect("folder");
    made::kinetics(folder.path(), 6);
    fs::write(folder.path().join("v2.mp4"), "no video").expect("write");
    fs::remove_file(folder.path().join("v4.mp4")).expect("remove");
    let (lists, to) = (lists(folder.path(), ListFormat::Kinetics), folder.path().join("pack"));
    let report = quietly(&lists, &to, JPEG);
    let names: Vec<&str> = report.left_out.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((report.clips, names.as_slice()), (10, &["v2.mp4", "v4.mp4"][..]));
    let pack = open(&to, ListFormat::Kinetics, Split::Train);
    assert_eq!(pack.len(), 6);
    let error = all_frames(&pack, 2).expect_err("left out").to_string();
    assert!(error.contains("v2.mp4") && error.contains("left out of the pack"), "{error}");
    assert!(all_frames(&pack, 3).is_ok());
    let report = verify_pack(&[(Split::Train, pack)], false, &|_, _| {});
    assert_eq!(report.fault_counts(), BTreeMap::from([(FaultKind::Undecodable, 2)]));
    // Repaired files are packed when the pack is made again; the others stay.
    made::kinetics(folder.path(), 6);
    fs::remove_file(to.join("index.json")).expect("remove");
    let report = quietly(&lists, &to, JPEG);
    assert!(report.left_out.is_empty() && report.clips == 10, "{report:?}");
    // None at all is an error.
    (0..10).for_each(|k| fs::write(folder.path().join(format!("v{k}.mp4")), "no video").expect("write"));
    let error = packed(&lists, &folder.path().join("none"), JPEG, &mut |_, _, _| {}).expect_err("none").to_string();
    assert!(error.contains("none of the 10 clips") && error.contains("v0.mp4"), "{error}");
}

/// Damage is an error of the clips that it hits, named; the others go on.
#[test]
fn damage_is_found_before_a_pixel_is_used() {
    let folder = tempfile::tempdir().expect("folder");
    made::kinetics(folder.path(), 6);
    let lists = lists(folder.path(), ListFormat::Kinetics);
    for encoding in [JPEG, RAW] {
        let to = folder.path().join(encoding.to_string());
        quietly(&lists, &to, encoding);
        let pack = open(&to, ListFormat::Kinetics, Split::Train);
        let good: Vec<Vec<u8>> = (0..6).map(|idx| all_frames(&pack, idx).expect("good")).collect();
        let mut faulty_clips = 0;
        for shard in files(&to).into_iter().filter(|(name, _)| name.starts_with("shard")) {
            let (path, bytes) = (to.join(&shard.0), &shard.1);
            for at in (0..bytes.len()).step_by(bytes.len() / 23) {
                let mut bent = bytes.clone();
                bent[at] ^= 0x10;
                fs::write(&path, &bent).expect("write");
                for (idx, good) in good.iter().enumerate() {
                    match all_frames(&pack, idx) {
                        Ok(frames) => assert!(frames == *good, "{encoding}: byte {at} of {}", shard.0),
                        Err(error) => {
                            let error = error.to_string();
                            assert!(error.contains(&shard.0) && error.contains(&format!("v{idx}.mp4")), "{error}");
                            faulty_clips += 1;
                        }
                    }
                }
            }
            fs::write(&path, bytes).expect("write");
        }
        assert!(faulty_clips > 20, "{faulty_clips}");
        // Cut off in its last clip: the clips of the other shards go on, and `vcycle verify` names those that do not.
        let path = to.join("shard-00000.safetensors");
        let bytes = fs::read(&path).expect("read");
        fs::write(&path, &bytes[..bytes.len() - 1]).expect("write");
        let bad: Vec<usize> = (0..6).filter(|idx| all_frames(&pack, *idx).is_err()).collect();
        assert_eq!(bad.len(), 1, "{bad:?}");
        let report = verify_pack(&[(Split::Train, pack)], true, &|_, _| {});
        assert_eq!(report.fault_counts(), BTreeMap::from([(FaultKind::Undecodable, 1)]), "{report}");
        assert!(report.to_string().contains("shard-00000.safetensors"), "{report}");
        let pack = open(&to, ListFormat::Kinetics, Split::Train);
        fs::remove_file(&path).expect("remove");
        assert!(all_frames(&pack, 0).is_err() && all_frames(&pack, 5).is_ok());
    }
}

#[test]
fn an_index_is_whole_or_refused() {
    let folder = tempfile::tempdir().expect("folder");
    made::kinetics(folder.path(), 3);
    let (lists, to) = (lists(folder.path(), ListFormat::Kinetics), folder.path().join("pack"));
    let open = |format| PackedClips::open(&to, format, Split::Train, 3).map(|pack| pack.len());
    let error = open(ListFormat::Kinetics).expect_err("no pack").to_string();
    assert!(error.contains("index.json") && error.contains("vcycle pack"), "{error}");
    quietly(&lists, &to, JPEG);
    let error = open(ListFormat::Charades).expect_err("kinetics").to_string();
    assert!(error.contains("Kinetics") && error.contains("Charades"), "{error}");
    let path = to.join("index.json");
    let whole = fs::read(&path).expect("read");
    for at in 0..whole.len() - 1 {
        let mut bent = whole.clone();
        bent[at] = if bent[at].is_ascii_digit() { b'0' + (bent[at] - b'0' + 1) % 10 } else { bent[at] ^ 2 };
        fs::write(&path, &bent).expect("write");
        assert!(open(ListFormat::Kinetics).is_err(), "byte {at}");
    }
    let text = String::from_utf8(whole).expect("text");
    fs::write(&path, text.replace("\"format\":1", "\"format\":2")).expect("write");
    let error = open(ListFormat::Kinetics).expect_err("version").to_string();
    assert!(error.contains("expected format version 1, got 2"), "{error}");
    // An index that this version cannot read is no ground to pack anew.
    assert!(packed(&lists, &to, JPEG, &mut |_, _, _| {}).is_err());
}

/// Weights and losses of a run on a raw pack are those of the run on the files, and either goes on where the other stopped.
#[test]
fn a_run_on_a_raw_pack_is_the_run_on_the_files() {
    let folder = tempfile::tempdir().expect("folder");
    made::kinetics(folder.path(), 12);
    let lists = lists(folder.path(), ListFormat::Kinetics);
    let (raw, jpeg) = (folder.path().join("raw"), folder.path().join("jpeg"));
    quietly(&lists, &raw, RAW);
    quietly(&lists, &jpeg, JPEG);
    let packed = ["DATA.DECODING_BACKEND", "packed", "VCYCLE.CACHE_GIB", "0"];
    let files = datasets::run_config(folder.path(), &[]);
    let (raw, jpeg) = (datasets::run_config(&raw, &packed), datasets::run_config(&jpeg, &packed));
    let output = |name: &str| folder.path().join(name);
    let run = |config, name: &str, start, stop| {
        datasets::run(datasets::trainer(config, &output(name), start).expect(name), stop)
    };
    run(&files, "files", Start::New, u64::MAX);
    run(&raw, "run raw", Start::New, u64::MAX);
    run(&raw, "mixed", Start::New, 5);
    run(&files, "mixed", Start::Resume, u64::MAX);
    assert_eq!(datasets::losses(&output("run raw")), datasets::losses(&output("files")));
    assert_eq!(datasets::losses(&output("mixed")), datasets::losses(&output("files")));
    assert!(run(&jpeg, "run jpeg", Start::New, u64::MAX).finished);
    let (train, val) = setup::sources(&jpeg).expect("sources");
    let error = Trainer::new(&jpeg, &Device::Cpu, train, val, &output("files"), Start::Resume).err().expect("refused");
    let error = error.to_string();
    assert!(error.contains("fingerprint of the training clips") && error.contains("jpeg quality 90"), "{error}");
}

/// `vcycle pack`, train, verify and test on the pack, from the command line.
#[test]
fn the_program_packs_and_reads_packs() {
    let folder = tempfile::tempdir().expect("folder");
    made::kinetics(folder.path(), 6);
    let config = datasets::run_config(folder.path(), &["SOLVER.MAX_EPOCH", "1", "MODEL.NUM_CLASSES", "3"]);
    fs::write(folder.path().join("c.yaml"), config.to_yaml()).expect("write");
    let vcycle = |words: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vcycle"));
        let output = command.current_dir(folder.path()).args(words.split_whitespace()).output().expect("runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (status, stdout, stderr) = vcycle("pack --cfg c.yaml --out p");
    assert!(
        status == Some(0) && stdout.contains("p: 10 clips") && stderr.contains("short side at most 20 px"),
        "{stdout}{stderr}"
    );
    let (status, stdout, _) = vcycle("pack --cfg c.yaml --out p");
    assert!(status == Some(0) && stdout.contains("whole already"), "{stdout}");
    let on_pack = "--cfg c.yaml DATA.PATH_TO_DATA_DIR p DATA.DECODING_BACKEND packed";
    let (status, stdout, stderr) = vcycle(&format!("verify {on_pack}"));
    assert!(
        status == Some(0) && stdout.contains("6 packed jpeg") && stderr.contains("packed in p"),
        "{stdout}{stderr}"
    );
    let (status, _, stderr) = vcycle(&format!("train {on_pack} OUTPUT_DIR run"));
    assert_eq!(status, Some(0), "{stderr}");
    let (status, stdout, stderr) = vcycle(&format!("test {on_pack} OUTPUT_DIR run"));
    assert_eq!(status, Some(0), "{stdout}{stderr}");
    for (words, part) in [
        ("pack --cfg c.yaml --out q --raw --quality 80", "--quality"),
        ("pack --cfg c.yaml --out q --quality 101", "quality from 1 to 100"),
        ("pack --cfg c.yaml --out q --short-side big", "`source`, got `big`"),
        ("pack --cfg c.yaml --out p --raw", "holds a whole pack"),
        ("pack --cfg c.yaml --out q DATA.DECODING_BACKEND packed", "DATA.DECODING_BACKEND"),
    ] {
        let (status, _, stderr) = vcycle(words);
        assert!(status == Some(1) && stderr.contains(part), "{words}: {stderr}");
    }
}
