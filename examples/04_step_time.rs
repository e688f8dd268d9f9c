//! Time of a training step by kind of op: `cargo run --release --example 04_step_time -- [slowfast|i3d] [B,T,S] [steps]`.
//!
//! Prints the plan, the median time of a whole step (forward, backward, optimizer), where the time goes, and the peak
//! memory. `benches/peer/step_time.py` measures the same step in PyTorch.

use std::time::{Duration, Instant};

use vcycle::device::Device;
use vcycle::model::{Arch, Mode, Model, ModelConfig, Network};
use vcycle::optimizer::SgdConfig;
use vcycle::shape::StepShape;
use vcycle::{Error, Result};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arch = Arch::from_name(args.first().map_or("slowfast", String::as_str))?;
    let shape = parse_shape(args.get(1).map_or("1,32,112", String::as_str))?;
    let num_steps = args.get(2).and_then(|n| n.parse().ok()).unwrap_or(7).max(1);

    let mut network = Network::new(&Device::Cpu, Model::new(&ModelConfig::new(arch, 50, 400))?, 0)?;
    network.prepare(&[shape], &[])?;
    println!("{}", network.plan(Mode::Train, shape)?.summary());
    for input in network.inputs(Mode::Train, shape)? {
        let len = input.tensor.shape().num_elements();
        let values: Vec<f32> = (0..len).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
        input.tensor.memory().write(&values)?;
    }
    step(&mut network, shape)?; // touches all memory once
    let cpu_before = cpu_seconds();
    let mut times: Vec<Duration> = (0..num_steps).map(|_| step(&mut network, shape)).collect::<Result<_>>()?;
    let cpu_s = cpu_seconds().zip(cpu_before).map_or(f64::NAN, |(now, before)| (now - before) / num_steps as f64);
    times.sort();
    let (median, best) = (times[num_steps / 2].as_secs_f64(), times[0].as_secs_f64());
    println!(
        "{arch:?} {shape}: median {median:.3} s, best {best:.3} s, CPU time {cpu_s:.3} s a step ({num_steps} steps)"
    );

    network.start_profile();
    step(&mut network, shape)?;
    if let Some(profile) = network.take_profile() {
        print!("{profile}");
    }
    if let Some(peak) = peak_memory() {
        println!("peak memory {peak}");
    }
    Ok(())
}

/// One training step, timed.
fn step(network: &mut Network, shape: StepShape) -> Result<Duration> {
    let labels: Vec<u32> = (0..shape.clips as u32).collect();
    let start = Instant::now();
    network.forward_backward(shape, &labels, 0)?;
    network.update_running_statistics(shape)?;
    network.sgd_step(1e-3, &SgdConfig::default())?;
    Ok(start.elapsed())
}

fn parse_shape(text: &str) -> Result<StepShape> {
    let numbers: Vec<usize> = text.split(',').filter_map(|n| n.parse().ok()).collect();
    match numbers[..] {
        [clips, frames, crop_px] => Ok(StepShape::square(clips, frames, crop_px, 1)),
        _ => Err(Error::Config(format!("shape: expected B,T,S such as 1,32,112; got {text}"))),
    }
}

/// User and system time of all threads, as Linux counts it in hundredths of a second.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / 100.0)
}

/// The highest memory use so far, as Linux counts it.
fn peak_memory() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.trim_start_matches("VmHWM:").trim().to_string())
}
