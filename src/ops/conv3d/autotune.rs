//! Kernels chosen by their time on the device, for those who ask: `VCYCLE_AUTOTUNE=FILE`.
//!
//! The plan chooses by rules. Where the environment names a file, forward and grad_input take the fastest of the kernels that can
//! do what is asked: the first time that a problem is met on a GPU, the candidates are timed on memory of their own, and the
//! fastest is kept in the file, under the GPU's name, the driver's version and a hash of the compiled kernels. What was timed
//! elsewhere stays in the file. Each choice is printed. A kernel's order of sums is its own: with other choices a run gives other
//! bits.
//!
//! Only where there is more than one candidate is anything timed: GPUs without wgmma, the emulator and the CPU have one.

mod file;
mod measure;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use super::method::Method;
use super::plan::{self, Request};
use crate::device::{Device, Stream, kernels};
use crate::error::{Error, Result};
use file::{Choice, Choices, Machine};
use measure::Trial;

/// What may be timed. A width that the plan finds is one of the three.
const METHODS: [Method; 4] = [
    Method::Mma,
    Method::Wgmma { tile_n: Some(64) },
    Method::Wgmma { tile_n: Some(128) },
    Method::Wgmma { tile_n: Some(256) },
];

/// The file that was asked for.
fn asked() -> Option<&'static Path> {
    static PATH: OnceLock<Option<std::ffi::OsString>> = OnceLock::new();
    let path = PATH.get_or_init(|| std::env::var_os("VCYCLE_AUTOTUNE").filter(|path| !path.is_empty()));
    path.as_deref().map(Path::new)
}

/// The methods for which a workspace must be large enough, where the plan would use `method`.
pub(super) fn methods(method: Method) -> Vec<Method> {
    match method {
        Method::Auto if asked().is_some() => [method].into_iter().chain(METHODS).collect(),
        _ => vec![method, Method::Mma],
    }
}

/// The method of a request: as it is, or what was found fastest.
pub(super) fn method(name: &'static str, stream: &Stream, r: &Request) -> Result<Method> {
    // Only a GPU that has several families leaves the choice open.
    let (Some(path), Method::Auto, Device::Cuda(device)) = (asked(), r.method, stream.device()) else {
        return Ok(r.method);
    };
    if !device.is_there() {
        return Ok(r.method);
    }
    static FOUND: OnceLock<Mutex<HashMap<(usize, Request), Method>>> = OnceLock::new();
    let found = FOUND.get_or_init(Mutex::default);
    // A part of a batch takes what the batch takes, whose order of sums it shares.
    let key = (device.gpu().ordinal, r.of_batch());
    if let Some(method) = found.lock().unwrap_or_else(|p| p.into_inner()).get(&key) {
        return Ok(*method);
    }
    let candidates = candidates(name, r);
    let [_, _, ..] = candidates[..] else { return Ok(r.method) };
    let machine = Machine {
        device: device.gpu().name.clone(),
        driver: device.driver_version()?,
        kernels: format!("{:016x}", kernels::hash()),
    };
    let names: Vec<&str> = candidates.iter().map(|(_, kernel)| kernel.as_str()).collect();
    let mut trial = None;
    let mut time = |i: usize| -> Result<f64> {
        let trial = match &mut trial {
            Some(trial) => trial,
            none => none.insert(Trial::new(stream, r)?),
        };
        trial.microseconds(candidates[i].0)
    };
    let i =
        choose(path, &machine, &problem(&r.of_batch()), &names, &mut time, &mut |line| println!("autotune: {line}"))?;
    found.lock().unwrap_or_else(|p| p.into_inner()).insert(key, candidates[i].0);
    Ok(candidates[i].0)
}

/// Methods that can, and their kernels; each kernel once.
fn candidates(name: &'static str, r: &Request) -> Vec<(Method, String)> {
    let mut all: Vec<(Method, String)> = vec![];
    for method in METHODS {
        if let Ok(plan) = plan::plan(name, &Request { method, ..*r })
            && all.iter().all(|(_, kernel)| *kernel != plan.kernel)
        {
            all.push((method, plan.kernel));
        }
    }
    all
}

/// All of a request that its time depends on.
fn problem(r: &Request) -> String {
    let by = |sizes: [usize; 3]| sizes.map(|size| size.to_string()).join("x");
    let op = r.op;
    format!(
        "{:?} {:?} {} -> {}, filter {}, stride {}, padding {}, dilation {}, groups {}, {:?} on load, {} splits, {} sums, {} more \
         tensors, {}",
        r.direction,
        r.dtype,
        op.input,
        r.output,
        by(op.filter),
        by(op.stride),
        by(op.padding),
        by(op.dilation),
        op.groups,
        r.on_load,
        r.splits,
        r.sums,
        r.extra_tensors,
        if r.is_aligned { "aligned" } else { "not aligned" }
    )
    .to_lowercase()
}

/// Which of `kernels` runs: what the file says, or the fastest by `time` (microseconds of one of them), which the file then says.
fn choose(
    path: &Path,
    machine: &Machine,
    problem: &str,
    kernels: &[&str],
    time: &mut dyn FnMut(usize) -> Result<f64>,
    say: &mut dyn FnMut(String),
) -> Result<usize> {
    // Read each time: another process may have added to it.
    let mut choices = Choices::read(path)?;
    if let Some(choice) = choices.find(machine, problem) {
        if let Some(i) = kernels.iter().position(|kernel| *kernel == choice.kernel) {
            say(format!("{problem}: {}, from {}", choice.kernel, path.display()));
            return Ok(i);
        }
        say(format!("{problem}: {} in {} is no candidate any more", choice.kernel, path.display()));
    }
    let times = (0..kernels.len()).map(&mut *time).collect::<Result<Vec<f64>>>()?;
    if let Some(i) = times.iter().position(|t| !t.is_finite() || *t < 0.0) {
        return Err(Error::Driver {
            op: kernels[i].into(),
            message: format!("its time was {} microseconds", times[i]),
        });
    }
    let fastest = (0..times.len()).min_by(|&a, &b| times[a].total_cmp(&times[b])).unwrap_or(0);
    let microseconds = kernels.iter().map(|k| k.to_string()).zip(times).collect::<std::collections::BTreeMap<_, _>>();
    let listed: Vec<String> = microseconds.iter().map(|(kernel, time)| format!("{kernel} {time:.1} us")).collect();
    say(format!("{problem}: {} of {}", kernels[fastest], listed.join(", ")));
    choices.insert(machine, problem, Choice { kernel: kernels[fastest].into(), microseconds });
    choices.write(path)?;
    Ok(fastest)
}
