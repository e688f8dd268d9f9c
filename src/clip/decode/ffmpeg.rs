//! Everything that the built-in decoder does not take, through an `ffmpeg` (5.1 or newer) on PATH: one run to learn what
//! the file is, one that pipes raw frames. Frames come untouched (no rotation, no frame dropped or doubled), planar YUV
//! in its own format; other pixel formats ffmpeg converts to RGB. A run is killed at its deadline; never more than one
//! frame of the pipe is held.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::check;
use super::yuv::{Colour, YuvFrame};

/// Name of this decoder in [`VideoInfo`](crate::clip::VideoInfo).
pub(super) const NAME: &str = "ffmpeg";

/// How much of ffmpeg's messages is kept.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// `ffmpeg` in the folders of PATH.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("ffmpeg")).find(|file| file.is_file())
}

/// A stream that ffmpeg decodes.
#[derive(Clone, Debug)]
pub(super) struct FfmpegStream {
    program: PathBuf,
    /// Position among the file's video streams, cover pictures not counted.
    position: usize,
    pub codec: String,
    pixels: PixelFormat,
    pub colour: Colour,
    pub width_px: usize,
    pub height_px: usize,
    pub rotation: u32,
    /// Packets; a damaged file may hold fewer frames.
    pub num_frames: usize,
    pub fps: f64,
    /// Seconds that the container promises, if it does.
    pub container_s: Option<f64>,
    /// Whether ffmpeg met the end of the file before that of its container.
    pub ended_early: bool,
}

/// How ffmpeg is to write a frame.
#[derive(Clone, Debug, PartialEq)]
enum PixelFormat {
    /// As it is: name, bits of a sample, chroma shift; `None`: no chroma.
    Planar { name: String, depth: u32, chroma_shift: Option<(u32, u32)> },
    /// Converted by ffmpeg.
    Rgb,
}

/// A decoded picture of either kind.
pub(super) enum Picture<'a> {
    Yuv(YuvFrame<'a>),
    /// `[row][column][3]`.
    Rgb(&'a [u8]),
}

impl FfmpegStream {
    /// Asks ffmpeg what the file holds and takes the video stream with most pixels.
    pub fn probe(program: &Path, path: &Path, deadline: Instant) -> Result<FfmpegStream, String> {
        let mut command = Command::new(program);
        command.args(["-hide_banner", "-nostdin", "-nostats", "-v", "info", "-protocol_whitelist", "file,pipe"]);
        command.arg("-i").arg(as_url(path)).args(["-map", "0:V", "-c", "copy", "-f", "framecrc", "-"]);
        let mut text = Vec::new();
        let run = Run::start(command, deadline)?;
        let messages = run.read_all(&mut |stdout| {
            stdout.take(1 << 30).read_to_end(&mut text).map(|_| true).map_err(|e| e.to_string())
        })?;
        let streams = parse_streams(&messages.text);
        let packets = parse_packets(&String::from_utf8_lossy(&text));
        let best = streams.into_iter().enumerate().max_by_key(|(k, s)| (s.width_px * s.height_px, usize::MAX - k));
        let Some((position, stream)) = best else { return Err(messages.reason("no video stream")) };
        let (num_frames, fps) = packets.get(position).copied().unwrap_or((0, None));
        if num_frames == 0 || stream.width_px * stream.height_px == 0 {
            return Err(messages.reason("no video frame"));
        }
        // ffmpeg's average (two decimals) is what PySlowFast uses; it leaves it out where the container has none.
        let fps = if stream.fps > 0.0 { stream.fps } else { fps.unwrap_or(30.0) };
        let (container_s, ended_early) = check::promised(&messages.text);
        Ok(FfmpegStream { program: program.into(), position, num_frames, fps, container_s, ended_early, ..stream })
    }

    /// Decodes from the start to the last of `wanted` (ascending, distinct); `sink` gets the position in `wanted` and the
    /// picture. Returns how many of `wanted` came: fewer when the file ends early.
    pub fn decode(
        &self,
        path: &Path,
        wanted: &[u32],
        deadline: Instant,
        sink: &mut dyn FnMut(usize, Picture<'_>),
    ) -> Result<usize, String> {
        let mut command = Command::new(&self.program);
        command.args(["-hide_banner", "-nostdin", "-v", "error", "-noautorotate", "-threads", "1"]);
        command.args(["-protocol_whitelist", "file,pipe", "-i"]).arg(as_url(path));
        command.args(["-map", &format!("0:V:{}", self.position), "-fps_mode", "passthrough", "-f", "rawvideo"]);
        command.args(["-pix_fmt", self.pixels.name(), "-"]);
        let mut bytes = vec![0; self.pixels.frame_bytes(self.width_px, self.height_px)];
        let mut came = 0;
        let run = Run::start(command, deadline)?;
        let messages = run.read_all(&mut |stdout| {
            let mut frame = 0;
            while came < wanted.len() && read_frame(stdout, &mut bytes)? {
                if wanted[came] == frame {
                    sink(came, self.pixels.picture(&bytes, self.width_px, self.height_px));
                    came += 1;
                }
                frame += 1;
            }
            Ok(came < wanted.len())
        })?;
        if came == 0 { Err(messages.reason("no frame")) } else { Ok(came) }
    }
}

/// Keeps ffmpeg from taking a file's name for an option, a protocol or a pattern.
fn as_url(path: &Path) -> std::ffi::OsString {
    let mut url = std::ffi::OsString::from("file:");
    url.push(path);
    url
}

/// Fills `bytes`; `false` at the end of the pipe, where a started frame is dropped.
fn read_frame(pipe: &mut impl Read, bytes: &mut [u8]) -> Result<bool, String> {
    match pipe.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e.to_string()),
    }
}

impl PixelFormat {
    fn parse(name: &str) -> PixelFormat {
        let base = name.strip_suffix("le").unwrap_or(name);
        let digits = base.trim_end_matches(|c: char| c.is_ascii_digit());
        let (base, depth) = match (base[digits.len()..].parse::<u32>(), digits.ends_with(['p', 'y'])) {
            (Ok(depth @ 9..=16), true) if name.ends_with("le") => (digits, depth),
            _ => (name, 8),
        };
        let chroma_shift = match base {
            "yuv420p" | "yuvj420p" => Some((1, 1)),
            "yuv422p" | "yuvj422p" => Some((1, 0)),
            "yuv444p" | "yuvj444p" => Some((0, 0)),
            "yuv440p" | "yuvj440p" => Some((0, 1)),
            "yuv411p" | "yuvj411p" => Some((2, 0)),
            "yuv410p" => Some((2, 2)),
            "gray" => None,
            _ => return PixelFormat::Rgb,
        };
        PixelFormat::Planar { name: name.into(), depth, chroma_shift }
    }

    fn name(&self) -> &str {
        match self {
            PixelFormat::Planar { name, .. } => name,
            PixelFormat::Rgb => "rgb24",
        }
    }

    fn plane_bytes(&self, width: usize, height: usize) -> [usize; 3] {
        match self {
            PixelFormat::Rgb => [width * height * 3, 0, 0],
            PixelFormat::Planar { depth, chroma_shift, .. } => {
                let bytes = if *depth > 8 { 2 } else { 1 };
                let chroma = chroma_shift.map_or(0, |(x, y)| width.div_ceil(1 << x) * height.div_ceil(1 << y));
                [width * height * bytes, chroma * bytes, chroma * bytes]
            }
        }
    }

    fn frame_bytes(&self, width: usize, height: usize) -> usize {
        self.plane_bytes(width, height).iter().sum()
    }

    fn picture<'a>(&self, bytes: &'a [u8], width_px: usize, height_px: usize) -> Picture<'a> {
        match self {
            PixelFormat::Rgb => Picture::Rgb(bytes),
            PixelFormat::Planar { depth, chroma_shift, .. } => {
                let planes = self.plane_bytes(width_px, height_px);
                let (y, chroma) = bytes.split_at(planes[0]);
                let (u, v) = chroma.split_at(planes[1]);
                let chroma_shift = chroma_shift.unwrap_or((0, 0));
                Picture::Yuv(YuvFrame { width_px, height_px, depth: *depth, chroma_shift, y, u, v })
            }
        }
    }
}

/// The video streams of ffmpeg's description of its input, cover pictures left out.
fn parse_streams(messages: &str) -> Vec<FfmpegStream> {
    let mut streams: Vec<FfmpegStream> = Vec::new();
    let mut in_video = false;
    for line in messages.lines().take_while(|l| !l.starts_with("Output #") && !l.starts_with("Stream mapping")) {
        let line = line.trim();
        if line.starts_with("Stream #") {
            let video = line.split_once(": Video: ").filter(|_| !line.contains("(attached pic)"));
            in_video = video.is_some();
            streams.extend(video.map(|(_, description)| parse_description(description)));
        } else if let Some((_, angle)) = line.split_once("displaymatrix: rotation of ").filter(|_| in_video) {
            let counter_clockwise: f64 = angle.split(' ').next().and_then(|a| a.parse().ok()).unwrap_or(0.0);
            if let Some(stream) = streams.last_mut() {
                stream.rotation = (-counter_clockwise).round().rem_euclid(360.0) as u32 / 90 * 90;
            }
        }
    }
    streams
}

/// `h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709, progressive), 340x256 [SAR …], 28 fps, …`
fn parse_description(description: &str) -> FfmpegStream {
    let mut depth = 0;
    let parts: Vec<&str> = description
        .split(|c| {
            depth += i32::from(matches!(c, '(' | '[')) - i32::from(matches!(c, ')' | ']'));
            c == ',' && depth == 0
        })
        .map(str::trim)
        .collect();
    let (pixels, details) = parts.get(1).map_or(("", ""), |p| p.split_once('(').unwrap_or((p, "")));
    let size = |part: &&str| {
        let (width, height) = part.split(' ').next()?.split_once('x')?;
        Some((width.parse::<usize>().ok()?, height.parse::<usize>().ok()?))
    };
    let (width_px, height_px) = parts.iter().skip(2).find_map(size).unwrap_or((0, 0));
    let fps = parts.iter().find_map(|p| p.strip_suffix(" fps")?.parse().ok()).filter(|f: &f64| *f > 0.0);
    FfmpegStream {
        program: PathBuf::new(),
        position: 0,
        codec: description.split([' ', ',']).next().unwrap_or("unknown").into(),
        pixels: PixelFormat::parse(pixels),
        colour: parse_colour(pixels, details.trim_end_matches(')')),
        width_px,
        height_px,
        rotation: 0,
        num_frames: 0,
        fps: fps.unwrap_or(0.0),
        container_s: None,
        ended_early: false,
    }
}

/// Range and matrix from `tv, bt709/bt470bg/unknown, progressive` (the matrix is the first of three names, or the only one).
fn parse_colour(pixels: &str, details: &str) -> Colour {
    let full_range = pixels.starts_with("yuvj") || details.split(',').any(|d| d.trim() == "pc");
    let code = |detail: &str| match detail.trim().split('/').next() {
        Some("bt709") => Some(1),
        Some("fcc") => Some(4),
        Some("bt470bg" | "smpte170m") => Some(6),
        Some("smpte240m") => Some(7),
        Some("bt2020nc" | "bt2020c") => Some(9),
        _ => None,
    };
    Colour::from_codes(details.split(',').find_map(code).unwrap_or(2), full_range)
}

/// Packets of a stream, their time base and their first and last presentation time.
#[derive(Clone, Default)]
struct Packets {
    count: usize,
    time_base: f64,
    times: Option<(i64, i64)>,
}

/// (packets, frames a second) of each stream in the output of ffmpeg's `framecrc`: lines `#tb 0: 1/15360` and
/// `0, dts, pts, duration, size, checksum`. (Durations are rounded to milliseconds in some containers, times less so.)
fn parse_packets(text: &str) -> Vec<(usize, Option<f64>)> {
    let mut streams: Vec<Packets> = Vec::new();
    let mut stream = |number: &str| -> Option<usize> {
        let number = number.trim().parse().ok().filter(|&n| n < 64)?;
        if streams.len() <= number {
            streams.resize(number + 1, Packets::default());
        }
        Some(number)
    };
    let mut rows = Vec::new();
    for line in text.lines() {
        if let Some((number, base)) = line.strip_prefix("#tb ").and_then(|l| l.split_once(": ")) {
            rows.extend(stream(number).map(|n| (n, Err(base))));
        } else if let Some((number, rest)) = line.split_once(',').filter(|_| !line.starts_with('#')) {
            let time = rest.split(',').nth(1).and_then(|pts| pts.trim().parse::<i64>().ok());
            rows.extend(stream(number).zip(time).map(|(n, time)| (n, Ok(time))));
        }
    }
    for (number, row) in rows {
        let packets = &mut streams[number];
        match row {
            Ok(time) => {
                packets.count += 1;
                let (first, last) = packets.times.unwrap_or((time, time));
                packets.times = Some((first.min(time), last.max(time)));
            }
            Err(base) => {
                let parts =
                    base.split_once('/').and_then(|(n, d)| Some((n.parse::<f64>().ok()?, d.parse::<f64>().ok()?)));
                packets.time_base = parts.map_or(0.0, |(n, d)| n / d);
            }
        }
    }
    let fps = |packets: &Packets| {
        let (first, last) = packets.times?;
        let fps = (packets.count - 1) as f64 / (last.saturating_sub(first) as f64 * packets.time_base);
        Some(fps).filter(|f| f.is_finite() && *f > 0.0)
    };
    streams.iter().map(|packets| (packets.count, fps(packets))).collect()
}

/// A running ffmpeg, with threads that collect its messages and kill it at the deadline.
struct Run {
    child: Arc<Mutex<Child>>,
    messages: JoinHandle<Vec<u8>>,
    watch: JoinHandle<bool>,
    finished: mpsc::Sender<()>,
}

/// What ffmpeg wrote to its standard error.
struct Messages {
    text: String,
}

impl Messages {
    /// The last message, or `otherwise`.
    fn reason(&self, otherwise: &str) -> String {
        let last = self.text.lines().map(str::trim).rfind(|l| !l.is_empty() && !l.starts_with("To ignore this"));
        format!("{otherwise} ({})", last.unwrap_or("ffmpeg gave no reason"))
    }
}

impl Run {
    fn start(mut command: Command, deadline: Instant) -> Result<Run, String> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("cannot start ffmpeg: {e}"))?;
        let mut stderr = child.stderr.take();
        let messages = std::thread::spawn(move || {
            let mut kept = Vec::new();
            if let Some(stderr) = stderr.as_mut() {
                let _ = stderr.take(MAX_MESSAGE_BYTES as u64).read_to_end(&mut kept);
                // The rest is thrown away, so that ffmpeg never waits for us.
                let _ = std::io::copy(stderr, &mut std::io::sink());
            }
            kept
        });
        let child = Arc::new(Mutex::new(child));
        let (finished, end) = mpsc::channel();
        let watched = child.clone();
        let watch = std::thread::spawn(move || {
            let left = deadline.saturating_duration_since(Instant::now());
            let timed_out = end.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout);
            if timed_out {
                kill(&watched);
            }
            timed_out
        });
        Ok(Run { child, messages, watch, finished })
    }

    /// Lets `read` take what it wants of the output (it returns whether it saw the end), then ends ffmpeg.
    fn read_all(
        self,
        read: &mut dyn FnMut(&mut std::process::ChildStdout) -> Result<bool, String>,
    ) -> Result<Messages, String> {
        let stdout = lock(&self.child).stdout.take();
        let result = stdout.map_or(Ok(true), |mut stdout| read(&mut stdout));
        if result == Ok(true) {
            // It is ending by itself: let it say its last words.
            for _ in 0..1000 {
                if !matches!(lock(&self.child).try_wait(), Ok(None)) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let _ = self.finished.send(());
        let timed_out = self.watch.join().unwrap_or(false);
        kill(&self.child);
        let text = String::from_utf8_lossy(&self.messages.join().unwrap_or_default()).into_owned();
        if timed_out {
            return Err("ffmpeg took too long and was stopped".into());
        }
        result.map(|_| Messages { text })
    }
}

fn kill(child: &Mutex<Child>) {
    let mut child = lock(child);
    // Fails only when it has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

fn lock(child: &Mutex<Child>) -> std::sync::MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}
