//! Times every `[[layer]]` of tests/cases/conv3d.toml on the CPU and prints CSV: `name,direction,count,gmacs,ms`, the
//! best of the repeats (others may use the machine). `benches/peer/conv_layers.py` puts PyTorch's times beside them.
//!
//! Arguments: a part of the names to time; `--repeats N` (default 9); `--cpu-time` for processor time instead of
//! wall time (Linux); `--test` runs nothing.

use std::time::Instant;

use serde::Deserialize;
use vcycle::device::cpu::Isa;
use vcycle::device::{Buffer, Device, Tensor};
use vcycle::ops::conv3d::{self, Conv3d, Direction};
use vcycle::shape::ActivationShape;

#[derive(Deserialize)]
struct Layers {
    layer: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    name: String,
    input: [usize; 5],
    c_out: usize,
    filter: [usize; 3],
    #[serde(default = "one")]
    stride: [usize; 3],
    #[serde(default)]
    padding: [usize; 3],
    #[serde(default = "once")]
    count: usize,
    #[serde(default)]
    is_first: bool,
}

fn one() -> [usize; 3] {
    [1; 3]
}

fn once() -> usize {
    1
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Seconds of wall time, or of processor time of all threads, since some moment. The latter hardly sees other programs.
fn now_s(is_cpu_time: bool, start: Instant) -> f64 {
    let wall_s = start.elapsed().as_secs_f64();
    let Some(tasks) = is_cpu_time.then(|| std::fs::read_dir("/proc/self/task").ok()).flatten() else { return wall_s };
    let ns = |task: std::io::Result<std::fs::DirEntry>| -> Option<u64> {
        std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    tasks.filter_map(ns).sum::<u64>() as f64 / 1e9
}

/// Best of the repeats; each runs for about 3 ms or once, whichever is longer.
fn best_ms(options: &Options, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    run();
    let runs = (3e-3 / start.elapsed().as_secs_f64()).ceil() as u32;
    let time = |_| {
        let before = now_s(options.is_cpu_time, start);
        (0..runs).for_each(|_| run());
        (now_s(options.is_cpu_time, start) - before) / f64::from(runs) * 1e3
    };
    (0..options.repeats).map(time).fold(f64::INFINITY, f64::min)
}

struct Options {
    repeats: usize,
    is_cpu_time: bool,
}

fn time(layer: &Layer, options: &Options) -> vcycle::Result<()> {
    let [n, t, h, w, c] = layer.input;
    let op = Conv3d {
        input: ActivationShape::new(n, t, h, w, c),
        c_out: layer.c_out,
        filter: layer.filter,
        stride: layer.stride,
        padding: layer.padding,
        dilation: [1; 3],
        groups: 1,
        part: None,
    };
    let device = Device::Cpu;
    let stream = device.stream()?;
    let tensor = |shape: ActivationShape| Tensor::from_host(&device, shape, &values(shape.num_elements()));
    let (x, y, dx, dy) = (tensor(op.input)?, tensor(op.output())?, tensor(op.input)?, tensor(op.output())?);
    let (w, dw) = (Buffer::from_host(&device, &values(op.filter_len()))?, values(op.filter_len()));
    let dw = Buffer::from_host(&device, &dw)?;
    for direction in [Direction::Forward, Direction::GradInput, Direction::GradFilter] {
        if direction == Direction::GradInput && layer.is_first {
            continue;
        }
        let bytes = conv3d::workspace_bytes(&stream, &op, direction);
        let scratch = Buffer::zeroed(&device, bytes)?.slice::<f32>(0, bytes / 4)?;
        let ms = best_ms(options, || {
            match direction {
                Direction::Forward => conv3d::forward(&stream, &op, &x, &w, None, &y, &scratch),
                Direction::GradInput => conv3d::grad_input(&stream, &op, &dy, &w, &dx, false, &scratch),
                Direction::GradFilter => conv3d::grad_filter(&stream, &op, &x, &dy, &dw, None, &scratch),
            }
            .expect("the layer runs");
        });
        let name = ["forward", "grad_input", "grad_filter"][direction as usize];
        println!("{},{name},{},{:.6},{ms:.4}", layer.name, layer.count, op.macs() as f64 / 1e9);
    }
    Ok(())
}

fn main() -> vcycle::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if args.iter().any(|a| a == "--test") {
        return Ok(());
    }
    let repeats_at = args.iter().position(|a| a == "--repeats");
    let repeats = repeats_at.and_then(|i| args.get(i + 1)?.parse().ok()).unwrap_or(9);
    let options = Options { repeats, is_cpu_time: args.iter().any(|a| a == "--cpu-time") };
    let wanted = args.first().filter(|a| !a.starts_with("--")).map_or("", String::as_str);
    eprintln!("isa {}, {} threads", Isa::chosen()?.name(), rayon::current_num_threads());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/conv3d.toml");
    let text = std::fs::read_to_string(path).map_err(|e| vcycle::Error::io(path, &e))?;
    let layers: Layers = toml::from_str(&text).map_err(|e| vcycle::Error::Config(e.to_string()))?;
    layers.layer.iter().filter(|layer| layer.name.contains(wanted)).try_for_each(|layer| time(layer, &options))
}
