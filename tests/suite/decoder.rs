//! Tests of `clip::decode`. Real files come from `$VCYCLE_TEST_DATA`; without it those tests say SKIPPED.

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
