//! Tests of `clip::decode` and of `vcycle resample`. Files made by `made` hold pictures that are known to the byte. Real
//! files come from `$VCYCLE_TEST_DATA`; without it those tests say SKIPPED.

pub mod made;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use vcycle::Error;
use vcycle::clip::decode::{Backend, DecodeOptions, Video, find_ffmpeg};

/// The folder of real files, or a loud skip.
pub fn test_data() -> Option<PathBuf> {
    let folder = std::env::var_os("VCYCLE_TEST_DATA").map(PathBuf::from).filter(|p| p.is_dir());
    if folder.is_none() {
        eprintln!("SKIPPED: tests with real clips, because VCYCLE_TEST_DATA names no folder");
    }
    folder
}

fn ffmpeg() -> Option<PathBuf> {
    let program = find_ffmpeg();
    if program.is_none() {
        eprintln!("SKIPPED: comparison with ffmpeg, because there is none on PATH");
    }
    program
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            files.extend(files_in(&path));
        } else if !matches!(path.extension().and_then(|e| e.to_str()), Some("csv" | "md" | "txt")) {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn options(backend: Backend) -> DecodeOptions {
    DecodeOptions { backend, time_limit: Duration::from_secs(10), ..Default::default() }
}

fn all_frames(video: &Video) -> Vec<u32> {
    (0..video.info().num_frames as u32).collect()
}

/// All planes of all frames, one after the other.
fn planes(video: &mut Video, indices: &[u32]) -> vcycle::Result<Vec<Vec<u8>>> {
    let mut frames = vec![vec![]; indices.len()];
    video.yuv_frames(indices, &mut |index, frame| {
        let position = indices.binary_search(&index).expect("asked for");
        frames[position] = [frame.y, frame.u, frame.v].concat();
    })?;
    Ok(frames)
}

fn ffmpeg_planes(program: &Path, file: &Path) -> Vec<u8> {
    let output = Command::new(program)
        .args(["-v", "quiet", "-nostdin", "-noautorotate", "-i"])
        .arg(file)
        .args(["-map", "0:v:0", "-fps_mode", "passthrough", "-f", "rawvideo", "-"])
        .output()
        .expect("ffmpeg runs");
    output.stdout
}

#[test]
fn built_in_planes_equal_ffmpeg() {
    let (Some(data), Some(program)) = (test_data(), ffmpeg()) else { return };
    let mut taken = vec![];
    for file in files_in(&data) {
        let name = file.file_name().expect("name").to_string_lossy().into_owned();
        let Ok(mut video) = Video::open(&file, &options(Backend::BuiltIn)) else { continue };
        let indices = all_frames(&video);
        let ours = match planes(&mut video, &indices) {
            Ok(ours) => ours,
            Err(error) => {
                assert_eq!(name, "corrupted.mp4", "{error}");
                continue;
            }
        };
        let theirs = ffmpeg_planes(&program, &file);
        let frame_bytes = ours[0].len();
        let whole = theirs.chunks(frame_bytes).collect::<Vec<_>>();
        if name.starts_with("truncated") {
            // ffmpeg makes a picture up from the part of a frame at the cut.
            assert!(ours.len() <= whole.len(), "{name}");
        } else {
            assert_eq!(ours.len(), whole.len(), "{name}: number of frames");
        }
        for (k, (ours, theirs)) in ours.iter().zip(&whole).enumerate() {
            assert!(ours == theirs, "{name}: frame {k} differs");
        }
        taken.push(name);
    }
    println!("{} files frame-exact", taken.len());
    for must in
        ["k400_arm_wrestling_demo.mp4", "rotated_90.mov", "unordered.mov", "long_180s_gop900.mp4", "one_frame.mp4"]
    {
        assert!(taken.iter().any(|t| t == must), "{must} was not taken by the built-in decoder");
    }
    assert!(taken.len() >= 120, "{taken:?}");
}

#[test]
fn some_frames_are_the_same_as_in_a_whole_decode() {
    let Some(data) = test_data() else { return };
    for file in files_in(&data.join("decoder_clips")) {
        let Ok(mut video) = Video::open(&file, &options(Backend::BuiltIn)) else { continue };
        let all = all_frames(&video);
        let Ok(whole) = planes(&mut video, &all) else { continue };
        for (first, step) in [(0, 7), (3, 5), (all.len() / 2, 1), (all.len() - 1, 1), (all.len() * 2 / 3, 90)] {
            let some: Vec<u32> = all.iter().copied().skip(first).step_by(step).take(12).collect();
            if some.is_empty() {
                continue;
            }
            let got = planes(&mut video, &some).expect("decodes");
            for (frame, index) in got.iter().zip(&some) {
                assert!(*frame == whole[*index as usize], "{}: frame {index} of {some:?}", file.display());
            }
        }
    }
}

#[test]
fn both_roads_give_the_same_pixels() {
    let (Some(data), Some(_)) = (test_data(), ffmpeg()) else { return };
    let names = ["rotated_0.mov", "rotated_90.mov", "rotated_180.mov", "mmaction_part_0.mp4", "unordered.mov"];
    for name in names {
        let file = data.join("decoder_clips").join(name);
        let [ours, theirs] = [Backend::BuiltIn, Backend::Ffmpeg].map(|backend| {
            let mut video = Video::open(&file, &options(backend)).expect("opens");
            let frames = video.frames(&all_frames(&video)).expect("decodes");
            (frames, video.colour(), video.info().clone())
        });
        assert_eq!((ours.1, ours.2.num_frames), (theirs.1, theirs.2.num_frames), "{name}");
        assert!((ours.2.fps - theirs.2.fps).abs() < 0.006, "{name}: {} {}", ours.2.fps, theirs.2.fps);
        assert!(ours.0 == theirs.0, "{name}: pixels differ");
    }
}

#[test]
fn ffmpeg_is_stopped_at_the_time_limit() {
    let (Some(data), Some(_)) = (test_data(), ffmpeg()) else { return };
    let file = data.join("decoder_clips/av1_video.mkv");
    let begin = Instant::now();
    let hasty = DecodeOptions { time_limit: Duration::ZERO, ..options(Backend::Ffmpeg) };
    let error = Video::open(&file, &hasty).err().expect("no time").to_string();
    assert!(error.contains("took too long"), "{error}");
    let mut video = Video::open(&file, &options(Backend::Ffmpeg)).expect("opens");
    let too_much = DecodeOptions { max_bytes: 1 << 20, ..options(Backend::Ffmpeg) };
    let error = Video::open(&file, &too_much).expect("opens").frames(&[0, 1]).expect_err("too large").to_string();
    assert!(error.contains("1048576"), "{error}");
    assert_eq!(video.frames(&[124]).expect("decodes").bytes.len(), 640 * 360 * 3);
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn every_odd_file_gives_frames_or_one_error_in_time() {
    let Some(data) = test_data() else { return };
    for file in files_in(&data.join("decoder_clips")) {
        let name = file.file_name().expect("name").to_string_lossy().into_owned();
        let begin = Instant::now();
        let result = Video::open(&file, &options(Backend::Auto)).and_then(|mut video| {
            let count = video.info().num_frames as u32;
            let frames = video.frames(&[0, count / 2, count - 1])?;
            Ok((frames, video.info().clone()))
        });
        let seconds = begin.elapsed().as_secs_f64();
        assert!(seconds < 20.0, "{name}: {seconds} s");
        match result {
            Ok((frames, info)) => {
                println!("{name}: {info:?} {seconds:.3} s");
                assert_eq!(frames.bytes.len(), 3 * info.height_px * info.width_px * 3);
                let uniform = frames.bytes.iter().all(|&b| b == frames.bytes[0]);
                assert!(!uniform || name == "unordered.mov", "{name}: a uniform picture");
            }
            Err(error) => {
                println!("{name}: {error}");
                let hopeless = ["audio_only.mp3", "audio_only.mp4", "empty.mp4", "text.mp4"].contains(&name.as_str());
                assert!(hopeless || find_ffmpeg().is_none(), "{error}");
                assert!(matches!(error, Error::Decode { .. }) && !error.to_string().contains('\n'), "{error}");
            }
        }
    }
}

fn open_made(file: &made::Mp4) -> (tempfile::TempDir, vcycle::Result<Video>) {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("made.mp4");
    std::fs::write(&path, file.bytes()).expect("write");
    (folder, Video::open(&path, &options(Backend::BuiltIn)))
}

/// Luma of the first pixel of each frame, as [`made`] numbers them: 50, 60, 70, …
fn luma_of(video: &mut Video, indices: &[u32]) -> Vec<u8> {
    planes(video, indices).expect("decodes").iter().map(|frame| frame[0]).collect()
}

#[test]
fn made_pictures_come_back_to_the_byte() {
    let (_folder, video) = open_made(&made::Mp4 { frames: 5, ..Default::default() });
    let mut video = video.expect("opens");
    let info = video.info().clone();
    assert_eq!((info.width_px, info.height_px, info.num_frames, info.fps), (32, 16, 5, 25.0));
    assert_eq!((info.codec.as_str(), info.decoder.as_str()), ("h264", "built-in h264"));
    let frames = planes(&mut video, &[0, 1, 2, 3, 4]).expect("decodes");
    for (k, frame) in frames.iter().enumerate() {
        assert_eq!(*frame, made::planes(k), "frame {k}");
    }
    // Grey chroma: BT.601 limited maps luma 50 to (50 - 16) * 255 / 219 = 39.6.
    let rgb = video.frames(&[0, 0, 4]).expect("decodes");
    assert_eq!((rgb.indices.as_slice(), rgb.bytes.len()), ([0, 0, 4].as_slice(), 3 * 32 * 16 * 3));
    assert_eq!(&rgb.bytes[..3], [40, 40, 40]);
    assert_eq!(rgb.bytes[..1536], rgb.bytes[1536..3072]);
    assert!(video.frames(&[5]).is_err() && video.frames(&[3, 1]).is_err());
    assert!(video.frames(&[]).expect("nothing").bytes.is_empty());
}

#[test]
fn stated_colours_are_obeyed() {
    for (vui, colr, full_range, kr) in [
        (Some((1, false)), None, false, 0.2126),
        (Some((9, true)), None, true, 0.2627),
        (None, Some((1, true)), true, 0.2126),
        (Some((6, false)), Some((1, true)), false, 0.299),
        (None, None, false, 0.299),
    ] {
        let (_folder, video) = open_made(&made::Mp4 { frames: 1, vui, colr, ..Default::default() });
        let mut video = video.expect("opens");
        assert_eq!((video.colour().kr, video.colour().full_range), (kr, full_range), "{vui:?} {colr:?}");
        let grey = video.frames(&[0]).expect("decodes").bytes[0];
        assert_eq!(grey, if full_range { 50 } else { 40 });
    }
}

#[test]
fn rotation_is_applied_after_decoding() {
    // The left half of a made picture is darker than its right half.
    for (rotation, size, dark, bright) in [
        (0, (32, 16), (0, 0), (31, 0)),
        (90, (16, 32), (0, 0), (0, 31)),
        (180, (32, 16), (31, 0), (0, 0)),
        (270, (16, 32), (0, 31), (0, 0)),
    ] {
        let (_folder, video) = open_made(&made::Mp4 { frames: 2, rotation, ..Default::default() });
        let mut video = video.expect("opens");
        assert_eq!((video.info().width_px, video.info().height_px), size, "{rotation}");
        let frames = video.frames(&[1]).expect("decodes");
        let pixel = |(x, y): (usize, usize)| frames.bytes[(y * size.0 + x) * 3];
        assert!(pixel(dark) < pixel(bright), "{rotation}: {} {}", pixel(dark), pixel(bright));
    }
}

#[test]
fn times_and_edit_lists_decide_which_frames_come_when() {
    // Decoded 0 1 2 3, shown 0 2 1 3 (a frame lasts 512 units).
    let shifts = vec![0, 512, -512, 0];
    let (_folder, video) = open_made(&made::Mp4 { frames: 4, shifts, ..Default::default() });
    assert_eq!(luma_of(&mut video.expect("opens"), &[0, 1, 2, 3]), [50, 70, 60, 80]);
    // Two frames from the second on; a delay before them changes nothing.
    for edits in [vec![(2 * 40, 512)], vec![(1000, -1), (2 * 40, 512)]] {
        let (_folder, video) = open_made(&made::Mp4 { frames: 5, edits, ..Default::default() });
        let mut video = video.expect("opens");
        assert_eq!(video.info().num_frames, 2);
        assert_eq!(luma_of(&mut video, &[0, 1]), [60, 70]);
    }
}

#[test]
fn the_track_with_most_pixels_is_taken() {
    for small_first in [false, true] {
        let made = made::Mp4 { frames: 3, small_track: Some(small_first), ..Default::default() };
        let (_folder, video) = open_made(&made);
        let video = video.expect("opens");
        assert_eq!((video.info().width_px, video.info().num_frames), (32, 3), "small track first: {small_first}");
    }
}

#[test]
fn fragments_are_read_like_tables() {
    let (_folder, video) = open_made(&made::Mp4 { frames: 6, fragmented: true, ..Default::default() });
    let mut video = video.expect("opens");
    assert_eq!((video.info().num_frames, video.info().fps), (6, 25.0));
    assert_eq!(luma_of(&mut video, &[1, 4, 5]), [60, 90, 100]);
}

/// The first and the last frame of a file with these bytes. An error must be one of decoding.
fn try_bytes(path: &Path, bytes: &[u8]) -> bool {
    std::fs::write(path, bytes).expect("write");
    let begin = Instant::now();
    let result = Video::open(path, &options(Backend::BuiltIn)).and_then(|mut video| {
        let last = video.info().num_frames as u32 - 1;
        video.frames(&[0, last])
    });
    if let Err(error) = &result {
        assert!(matches!(error, Error::Decode { .. } | Error::Shape { .. }), "{error}");
    }
    let seconds = begin.elapsed().as_secs_f64();
    assert!(seconds < 20.0, "{seconds} s");
    result.is_ok()
}

#[test]
fn damaged_files_give_frames_or_one_error() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("damaged.mp4");
    for fragmented in [false, true] {
        let whole = made::Mp4 { frames: 3, fragmented, ..Default::default() }.bytes();
        assert!(try_bytes(&path, &whole));
        // Cut off after every byte of the index and here and there in the pictures.
        let cuts = (0..whole.len()).filter(|&n| n < 900 || n % 97 == 0);
        let opened = cuts.filter(|&n| try_bytes(&path, &whole[..n])).count();
        println!("{opened} cut files gave frames");
        // A byte changed.
        for at in 0..whole.len().min(1000) {
            for value in [0, 1, 0x7F, 0xFF] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                try_bytes(&path, &bytes);
            }
        }
    }
    assert!(!try_bytes(&path, b""));
}

#[test]
fn damaged_real_files_give_frames_or_one_error() {
    let Some(data) = test_data() else { return };
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("damaged.mp4");
    for clip in ["decoder_clips/mmaction_part_0.mp4", "decoder_clips/unordered.mov", "ut_interaction/punch/0_1_4.mp4"] {
        let whole = std::fs::read(data.join(clip)).expect("clip");
        let mut good = 0;
        for k in 0..60usize {
            let mut bytes = whole.clone();
            if k % 3 == 0 {
                bytes.truncate(whole.len() * k / 60);
            } else {
                // Bursts of changed bits at places that differ from round to round.
                for burst in 0..k {
                    let at = crate::golden::fill::hash(clip, k * 64 + burst) as usize % whole.len();
                    bytes[at] ^= 1 << (burst % 8);
                }
            }
            good += usize::from(try_bytes(&path, &bytes));
        }
        println!("{clip}: {good} of 60 damaged files gave frames");
    }
}

fn resample_command(file: &Path, arguments: &[&str], out: &Path) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vcycle"));
    command.arg("resample").arg(file).args(["--device", "cpu"]).args(arguments).arg("--out").arg(out);
    command.output().expect("vcycle runs")
}

#[test]
fn the_resample_command_writes_a_contact_sheet() {
    let folder = tempfile::tempdir().expect("folder");
    let (path, sheet) = (folder.path().join("made.mp4"), folder.path().join("sheet.png"));
    std::fs::write(&path, made::Mp4 { frames: 7, ..Default::default() }.bytes()).expect("write");
    let output = resample_command(&path, &["--grid", "3,16", "--json", "--start", "0.04"], &sheet);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!(
        json,
        serde_json::json!({"codec": "h264", "width": 32, "height": 16, "frames": 7, "fps": 25.0,
            "decoder": "built-in h264", "grid": [3, 16]})
    );
    // Frames 1+2, 3+4 and 5+6 averaged: luma 65, 85, 105 on the left, beside each other with a gap.
    let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&sheet).expect("sheet")));
    let mut reader = decoder.read_info().expect("png");
    let mut pixels = vec![0; reader.output_buffer_size().expect("size")];
    let info = reader.next_frame(&mut pixels).expect("png");
    assert_eq!((info.width, info.height), (34, 34));
    let at = |x: usize, y: usize| pixels[(y * 34 + x) * 3];
    assert_eq!([at(0, 0), at(18, 0), at(0, 18), at(16, 0)], [57, 81, 104, 0]);
}

#[test]
fn the_resample_command_fails_with_one_line() {
    let folder = tempfile::tempdir().expect("folder");
    let (good, empty, sheet) = (folder.path().join("a.mp4"), folder.path().join("b.mp4"), folder.path().join("c.png"));
    std::fs::write(&good, made::Mp4 { frames: 2, ..Default::default() }.bytes()).expect("write");
    std::fs::write(&empty, "").expect("write");
    for (file, grid, start, out, what) in [
        (&empty, "2,16", "0", &sheet, "empty (0 bytes)"),
        (&good, "2", "0", &sheet, "--grid"),
        (&good, "0,16", "0", &sheet, "--grid"),
        (&good, "99999,9999", "0", &sheet, "too large"),
        (&good, "2,16", "-1", &sheet, "--start"),
        (&folder.path().join("none.mp4"), "2,16", "0", &sheet, "none.mp4"),
        (&good, "2,16", "0", &folder.path().join("none/c.png"), "c.png"),
    ] {
        let output = resample_command(file, &["--grid", grid, "--start", start, "--json"], out);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: {stderr}");
        assert!(output.stdout.is_empty() && stderr.lines().count() == 1 && stderr.contains(what), "{what}: {stderr}");
    }
}

/// Seconds that this thread has spent on a core (on Linux; elsewhere 0, and rates come out infinite).
pub fn core_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

/// Not a test of anything: prints how fast real clips are decoded. `cargo test --test suite -- --ignored measure`
#[test]
#[ignore = "measures"]
fn measure_decoding() {
    let Some(data) = test_data() else { return };
    for folder in ["decoder_clips", "ut_interaction"] {
        for whole in [true, false] {
            let (mut frames, mut pixels, mut seconds, mut files) = (0usize, 0usize, 0.0, 0);
            for file in files_in(&data.join(folder)) {
                let Ok(mut video) = Video::open(&file, &options(Backend::BuiltIn)) else { continue };
                let indices: Vec<u32> = all_frames(&video).into_iter().step_by(if whole { 1 } else { 8 }).collect();
                let begin = core_seconds();
                let Ok(got) = video.frames(&indices) else { continue };
                seconds += core_seconds() - begin;
                (files, frames, pixels) = (files + 1, frames + indices.len(), pixels + got.bytes.len() / 3);
            }
            println!(
                "{folder}: {} of {files} files: {frames} frames, {:.1} Mpx, {seconds:.2} core seconds: {:.0} frames/s, {:.0} Mpx/s",
                if whole { "all frames" } else { "every 8th frame" },
                pixels as f64 / 1e6,
                frames as f64 / seconds,
                pixels as f64 / 1e6 / seconds
            );
        }
    }
}
