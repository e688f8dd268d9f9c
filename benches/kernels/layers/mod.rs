//! `kernels --layers`: times every distinct convolution of the measured networks at the shapes of their schedules and prints one
//! JSON object a line, for benches/peer/conv3d.py: what the work is and what it took, or why it could not run. Rows come in the
//! order of their share of a step, so that a budget cuts off what matters least; `--list` prints them without times.

mod calls;
mod list;

use std::time::Instant;

use serde_json::json;
use vcycle::device::{DType, Device, Stream};
use vcycle::shape::StepShape;
use vcycle::{Error, Result};

use crate::device::Clock;
use calls::{Memory, Work};
use list::{NETWORKS, Row};

const USAGE: &str = "--layers [--list] [--network NAME] [--grid BxTxS] [--direction forward|grad_input|grad_filter] \
                     [--form plain|fused] [--dtype bf16|f16] [--only PART] [--repeats N] [--part I/N] [--budget-s SECONDS] [--from ROW] [--test]";

/// What the arguments ask for.
struct Options {
    is_list: bool,
    /// One round of each.
    is_test: bool,
    network: Option<String>,
    grid: Option<String>,
    direction: Option<String>,
    form: Option<String>,
    only: String,
    is_f16: bool,
    repeats: usize,
    budget_s: f64,
    /// Part i of n, from 0: every n-th row, so that parts take about as long.
    part: (usize, usize),
    /// Rows at the start that are left out, because an earlier run has done them.
    from: usize,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Options> {
        let mut o = Options {
            is_list: false,
            is_test: false,
            network: None,
            grid: None,
            direction: None,
            form: None,
            only: String::new(),
            is_f16: false,
            repeats: 21,
            budget_s: f64::INFINITY,
            part: (0, 1),
            from: 0,
        };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| refused(&argument, "a value"));
            match argument.as_str() {
                "--layers" | "--bench" => {}
                "--list" => o.is_list = true,
                "--test" => o.is_test = true,
                "--network" => o.network = Some(value()?),
                "--grid" => o.grid = Some(value()?),
                "--direction" => o.direction = Some(value()?),
                "--form" => o.form = Some(value()?),
                "--dtype" => {
                    o.is_f16 = match value()?.as_str() {
                        "bf16" => false,
                        "f16" => true,
                        _ => return Err(refused("--dtype", "bf16 or f16")),
                    }
                }
                "--only" => o.only = value()?,
                "--repeats" => {
                    let count = value()?.parse().ok().filter(|n| *n > 0);
                    o.repeats = count.ok_or_else(|| refused("--repeats", "a number of at least 1"))?;
                }
                "--budget-s" => {
                    o.budget_s = value()?.parse().map_err(|_| refused("--budget-s", "a number of seconds"))?;
                }
                "--part" => o.part = part(&value()?)?,
                "--from" => {
                    o.from = value()?.parse().map_err(|_| refused("--from", "a number of rows"))?;
                }
                _ => return Err(refused(&argument, "one of the arguments")),
            }
        }
        if o.is_test {
            o.repeats = 1;
        }
        Ok(o)
    }

    fn dtype(&self, device: &Device) -> DType {
        match (device, self.is_f16) {
            (Device::Cpu, _) => DType::F32,
            (_, false) => DType::Bf16,
            (_, true) => DType::F16,
        }
    }

    fn wants(&self, row: &Row) -> bool {
        let is = |wanted: &Option<String>, got: &str| wanted.as_deref().is_none_or(|w| w == got);
        is(&self.direction, list::direction_name(row.direction))
            && is(&self.form, row.form_name())
            && row.name.contains(&self.only)
    }

    /// The rows asked for, those that a step spends most time on first.
    fn rows(&self) -> Result<Vec<Row>> {
        let networks = match &self.network {
            Some(name) => vec![list::network(name)?],
            None => NETWORKS.to_vec(),
        };
        let mut rows = vec![];
        for network in networks {
            let all = network.grids()?;
            let grids = match &self.grid {
                None => all,
                Some(text) => {
                    let scheduled = all.into_iter().find(|g| g.to_string() == *text);
                    vec![scheduled.map_or_else(|| grid(text), Ok)?]
                }
            };
            for grid in grids {
                rows.extend(network.rows(grid)?.into_iter().filter(|row| self.wants(row)));
            }
        }
        rows.sort_by(|a, b| share(b).total_cmp(&share(a)));
        Ok(rows.into_iter().skip(self.part.0).step_by(self.part.1).collect())
    }
}

fn refused(argument: &str, expected: &str) -> Error {
    Error::Config(format!("{argument}: expected {expected}; usage: {USAGE}"))
}

/// From "2/4", the second of four.
fn part(text: &str) -> Result<(usize, usize)> {
    let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse::<usize>().ok()?, n.parse::<usize>().ok()?)));
    match numbers {
        Some((i, n)) if 1 <= i && i <= n => Ok((i - 1, n)),
        _ => Err(refused("--part", "I/N such as 2/4")),
    }
}

/// A shape that no schedule has, as 1x8x64.
fn grid(text: &str) -> Result<StepShape> {
    let sizes: Vec<usize> = text.split('x').filter_map(|size| size.parse().ok()).collect();
    match sizes[..] {
        [clips, frames, crop_px] => Ok(StepShape::square(clips, frames, crop_px, 1)),
        _ => Err(refused("--grid", &format!("BxTxS such as 8x32x224, got {text}"))),
    }
}

/// Time in a step at the rates of an H100 (ROOFLINE's balance): only its order matters.
fn share(row: &Row) -> f64 {
    row.count as f64 * (row.bytes as f64 / 3.0e12).max(row.flops() as f64 / 7.9e14)
}

/// Runs what the program's arguments ask for.
pub fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let mut rows = options.rows()?;
    rows.drain(..options.from.min(rows.len()));
    if options.is_list {
        rows.iter().for_each(|row| println!("{}", row.to_json()));
        return Ok(());
    }
    let device = crate::device::device();
    let stream = device.stream()?;
    let dtype = options.dtype(device);
    let mut memory = Memory::new(&stream, &rows, dtype)?;
    let start = Instant::now();
    let clock = Clock::new(device)?;
    let empty_ms = sorted(clock.ms(&stream, 9, || Ok(()))?)[4];
    println!(
        "{}",
        json!({"kind": "head", "device": format!("{device}"), "dtype": format!("{dtype:?}"), "rows": rows.len(), "empty_ms": empty_ms})
    );
    let mut left = 0;
    for row in rows {
        if *device == Device::Cpu && row.form.is_some() {
            continue; // The CPU runs op by op.
        }
        if start.elapsed().as_secs_f64() > options.budget_s {
            left += 1;
            continue;
        }
        let mut line = row.to_json();
        match time(&stream, &mut memory, &clock, &row, options.repeats) {
            Ok(ms) => {
                line["ms"] = json!(ms[ms.len() / 2]);
                line["best_ms"] = json!(ms[0]);
            }
            Err(error) => line["error"] = json!(error.to_string()),
        }
        println!("{line}");
    }
    println!("{}", json!({"kind": "end", "left_for_want_of_time": left}));
    Ok(())
}

/// Milliseconds of the repeats, sorted.
fn time(stream: &Stream, memory: &mut Memory, clock: &Clock, row: &Row, repeats: usize) -> Result<Vec<f64>> {
    let work = Work::new(memory, row)?;
    if repeats > 1 {
        work.run(stream)?; // loads the kernel
    }
    Ok(sorted(clock.ms(stream, repeats as u64, || work.run(stream))?))
}

fn sorted(mut ms: Vec<f64>) -> Vec<f64> {
    ms.sort_by(f64::total_cmp);
    ms
}
