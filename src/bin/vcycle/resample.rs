//! `vcycle resample`: the road of one clip, decoded, resampled and made visible.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use vcycle::clip::decode::{DecodeOptions, Video};
use vcycle::clip::{Frames, VideoInfo};
use vcycle::device::{Buffer, DType, Device, Tensor};
use vcycle::ops::resample::{self, Axis, ClipGrid, Filter, Pathway, Resample, SourceClip};
use vcycle::shape::ActivationShape;
use vcycle::{Error, Result};

use super::out;

/// Pixels between the pictures of a sheet.
const GAP_PX: usize = 2;
/// Most pixels of a sheet.
const MAX_SHEET_PIXELS: usize = 64 << 20;

/// Arguments of `vcycle resample`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Video file.
    file: PathBuf,
    /// Frames and side of the output, such as `8,112`. The largest centred square of the picture is shown.
    #[arg(long, value_name = "T,S", allow_hyphen_values = true)]
    grid: String,
    /// Where in the video the clip starts; past the end, the last frame stands for what is missing.
    #[arg(long, value_name = "SECONDS", default_value = "0", allow_hyphen_values = true)]
    start: String,
    /// Source frames for each frame of the output.
    #[arg(long, value_name = "FRAMES", default_value = "2", allow_hyphen_values = true)]
    rate: String,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// PNG file to write.
    #[arg(long, value_name = "SHEET.PNG")]
    out: PathBuf,
    /// Put what was found on stdout as one JSON object.
    #[arg(long)]
    json: bool,
}

/// The numbers of the command line, checked.
struct Request {
    frames: usize,
    side_px: usize,
    start_s: f64,
    rate: usize,
}

/// Runs it.
pub fn run(arguments: Arguments) -> Result<()> {
    let request = Request::parse(&arguments)?;
    let (device, chosen) = Device::select(&arguments.device)?;
    let mut video = Video::open(&arguments.file, &DecodeOptions::default())?;
    let frames = video.frames(&request.source_frames(video.info()))?;
    let pictures = on_device(&device, frames, &request)?;
    write_sheet(&arguments.out, &pictures, &request)?;
    report(&arguments, video.info(), &request, &chosen)
}

impl Request {
    fn parse(arguments: &Arguments) -> Result<Request> {
        let refuse = |what: &str, got: &str| Error::Config(format!("{what}, got `{got}`"));
        let positive = |text: &str| text.trim().parse::<usize>().ok().filter(|&n| n > 0);
        let grid = arguments.grid.split_once(',').and_then(|(t, s)| Some((positive(t)?, positive(s)?)));
        let (frames, side_px) =
            grid.ok_or_else(|| refuse("--grid: expected T,S, two positive integers", &arguments.grid))?;
        let cells = frames.next_multiple_of(columns(frames));
        let pixels = side_px.saturating_add(GAP_PX).saturating_pow(2).saturating_mul(cells);
        if pixels > MAX_SHEET_PIXELS {
            return Err(refuse("--grid: the sheet would be too large", &arguments.grid));
        }
        let start_s = arguments.start.trim().parse::<f64>().ok().filter(|s| s.is_finite() && *s >= 0.0);
        let start_s = start_s.ok_or_else(|| refuse("--start: expected seconds, 0 or more", &arguments.start))?;
        let rate = positive(&arguments.rate).filter(|&rate| rate <= 1 << 20);
        let rate = rate.ok_or_else(|| refuse("--rate: expected a number of frames, 1 or more", &arguments.rate))?;
        Ok(Request { frames, side_px, start_s, rate })
    }

    /// T x rate frames from the start, as far as the video goes.
    fn source_frames(&self, info: &VideoInfo) -> Vec<u32> {
        let last = info.num_frames.saturating_sub(1);
        // Times a little off a frame (a decimal fraction) mean that frame.
        let first = ((self.start_s * info.fps + 1e-3) as usize).min(last);
        let end = first.saturating_add(self.frames.saturating_mul(self.rate)).min(info.num_frames);
        (first as u32..end as u32).collect()
    }

    /// Cells of `rate` frames from the first one on; the largest centred square of the picture.
    fn grid(&self, source: &Frames) -> ClipGrid {
        let held = source.indices.len();
        let t = Axis {
            hi: held.saturating_sub(1) as u32,
            ..Axis::crop_then_resize(0, self.frames * self.rate, self.frames)
        };
        let square = source.height_px.min(source.width_px);
        let axis = |size: usize| {
            let begin = (size - square) / 2;
            Axis::crop_then_resize(begin, begin + square, self.side_px)
        };
        ClipGrid { t, y: axis(source.height_px), x: axis(source.width_px), flip: false }
    }
}

/// The clip on the request's grid, values in 0..=1, `[t][s][s][3]`.
fn on_device(device: &Device, source: Frames, request: &Request) -> Result<Vec<f32>> {
    let grid = request.grid(&source);
    let stream = device.stream()?;
    let clip = SourceClip {
        memory: Buffer::from_host(device, &source.bytes)?,
        frames: source.indices.len(),
        height_px: source.height_px,
        width_px: source.width_px,
        origin_px: (0, 0),
        grid,
    };
    let shape = ActivationShape::new(1, request.frames, request.side_px, request.side_px, 4);
    let output = Tensor::zeroed(device, DType::F32, shape)?;
    let frame_indices: Vec<u32> = (0..request.frames as u32).collect();
    let workspace_bytes = resample::workspace_bytes(1, request.frames);
    let workspace = Buffer::zeroed(device, workspace_bytes)?.slice::<u8>(0, workspace_bytes)?;
    let op = Resample { filter: Filter::Trilinear, mean: [0.0; 3], std: [1.0; 3] };
    let pathway = Pathway { output: &output, frame_indices: &frame_indices };
    resample::forward(&stream, &op, &[clip], &[pathway], &workspace)?;
    stream.synchronize()?;
    let values = output.read::<f32>()?;
    Ok(values.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect())
}

/// Pictures beside each other: as many as there are rows, or one more.
fn columns(frames: usize) -> usize {
    frames.isqrt() + usize::from(frames.isqrt().pow(2) < frames)
}

fn write_sheet(path: &Path, pictures: &[f32], request: &Request) -> Result<()> {
    let (side, columns) = (request.side_px, columns(request.frames));
    let cell = side + GAP_PX;
    let width = columns * cell - GAP_PX;
    let height = request.frames.div_ceil(columns) * cell - GAP_PX;
    let mut sheet = vec![0u8; width * height * 3];
    for (frame, picture) in pictures.chunks_exact(side * side * 3).enumerate() {
        let (top, left) = (frame / columns * cell, frame % columns * cell);
        for (row, line) in picture.chunks_exact(side * 3).enumerate() {
            let at = ((top + row) * width + left) * 3;
            for (byte, value) in sheet[at..].iter_mut().zip(line) {
                *byte = (value * 255.0).round().clamp(0.0, 255.0) as u8;
            }
        }
    }
    let file = File::create(path).map_err(|e| Error::io(path, &e))?;
    let mut encoder = png::Encoder::new(BufWriter::new(file), width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    let write = |encoder: png::Encoder<'_, _>| {
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&sheet)?;
        writer.finish()
    };
    write(encoder).map_err(|e| Error::Io { path: path.display().to_string(), message: e.to_string() })
}

fn report(arguments: &Arguments, info: &VideoInfo, request: &Request, chosen: &str) -> Result<()> {
    if arguments.json {
        out::stderr(chosen);
        let object = serde_json::json!({
            "codec": info.codec,
            "width": info.width_px,
            "height": info.height_px,
            "frames": info.num_frames,
            "fps": info.fps,
            "decoder": info.decoder,
            "grid": [request.frames, request.side_px],
        });
        return out::stdout(&format!("{object}\n"));
    }
    let (video, sheet) = (arguments.file.display(), arguments.out.display());
    out::stdout(&format!(
        "{chosen}\n\
         {video}: {} {}x{}, {} frames, {:.3} fps, decoded by {}\n\
         {sheet}: {} frames of {side}x{side}\n",
        info.codec,
        info.width_px,
        info.height_px,
        info.num_frames,
        info.fps,
        info.decoder,
        request.frames,
        side = request.side_px
    ))
}
