//! The one way a kernel is started, on the driver and on the emulator alike: by its name, with grid, block and dynamic
//! shared memory, and with the arguments as bytes: as a rule one plain struct by value.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Mutex, OnceLock};

use cudarc::driver::sys;

use super::kernels::find;
use super::{CudaDevice, Device, Slice, Stream, TensorMap};
use crate::error::{Error, Result};

/// How many threads a kernel is launched with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
}

impl fmt::Display for LaunchConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([x, y, z], threads) = (self.grid, self.block.iter().product::<u32>());
        write!(f, "{x} x {y} x {z} blocks of {threads} threads, {} shared bytes", self.shared_bytes)
    }
}

/// A kernel that was launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// The op that launched it.
    pub op: String,
    /// Its name.
    pub kernel: String,
    /// With how many threads.
    pub config: LaunchConfig,
}

thread_local! {
    static RECORD: RefCell<Option<Vec<Launched>>> = const { RefCell::new(None) };
}

/// Runs `work`, and tells which kernels this thread launched meanwhile, in order.
pub fn recorded<O>(work: impl FnOnce() -> O) -> (O, Vec<Launched>) {
    let before = RECORD.replace(Some(vec![]));
    let outcome = work();
    let launched = RECORD.replace(before).unwrap_or_default();
    (outcome, launched)
}

/// Launches `kernel` on `stream`; `op` names it in errors. `arguments` hold the bytes of its parameters in order, each of
/// the very size of the kernel's own type: as a rule one plain struct by value (`bytemuck::bytes_of`), after it tensor
/// maps, if any. They are copied before the call returns.
///
/// With `VCYCLE_SYNC=1` in the environment every launch is waited for, so that an error names the op that caused it; with
/// `VCYCLE_PRINT_LAUNCHES=1` each is printed before it starts; with `VCYCLE_PRINT_PLANS=1` each kind of launch once. With
/// `VCYCLE_DEPENDENT_LAUNCH=1` a kernel of this crate may begin on an H100 while the one before it in the stream still runs
/// (programmatic dependent launch): it waits for that one before it touches memory.
///
/// # Errors
/// `Unsupported` on a device that runs no kernels, `Driver` when the kernel is unknown, refused or fails.
///
/// # Safety
/// - Every address in `arguments` is of memory that lives on the stream's device until the launch has finished, and that
///   is as large as the kernel's contract says for the other parameters.
/// - Nobody else reads what the kernel writes, or writes what it reads or writes, until it has finished.
/// - Where it is captured in a [`Graph`](super::Graph), this holds for every launch of the graph.
pub unsafe fn launch(stream: &Stream, op: &str, kernel: &str, config: LaunchConfig, arguments: &[&[u8]]) -> Result<()> {
    // SAFETY: the caller's duties are the same.
    unsafe { launch_with(stream, op, kernel, config, arguments, &[], &[]) }
}

/// [`launch`] of a kernel that reads and writes the given memory: the emulator locks it, a graph keeps it.
///
/// # Safety
/// As [`launch`].
pub(super) unsafe fn launch_with(
    stream: &Stream,
    op: &str,
    kernel: &str,
    config: LaunchConfig,
    arguments: &[&[u8]],
    reads: &[&Slice],
    writes: &[&Slice],
) -> Result<()> {
    if prints_launches() {
        eprintln!("launch {op}: {kernel}, {config}");
    }
    print_plan(|| format!("{op}: {kernel}, {config}"));
    RECORD.with_borrow_mut(|record| {
        if let Some(record) = record {
            record.push(Launched { op: op.into(), kernel: kernel.into(), config });
        }
    });
    let is_captured = super::graph::note_launch(stream, (op, kernel), config, arguments, reads, writes)?;
    match stream.device() {
        Device::Cpu => {
            return Err(Error::unsupported(
                op,
                format!("the device `cpu` runs no kernels such as {kernel}; ops have a native form there"),
            ));
        }
        // SAFETY: the caller's duties are the same.
        Device::Cuda(device) => unsafe { launch_on_gpu(device, stream, op, kernel, config, arguments) }?,
        #[cfg(feature = "simt")]
        Device::Simt if is_captured => {}
        #[cfg(feature = "simt")]
        Device::Simt => {
            // The emulator works on host memory, which another thread could read or write meanwhile.
            let _guards = super::host_access::lock_all(reads, writes);
            // SAFETY: the caller's duties are the same.
            unsafe { super::simt::launch(op, kernel, &config, arguments) }?;
        }
        #[cfg(not(feature = "simt"))]
        Device::Simt => return Err(Error::NoDevice("this program was built without the feature `simt`".into())),
    }
    if waits_after_each_launch() && !is_captured {
        stream.synchronize().map_err(|e| Error::Driver { op: op.into(), message: format!("{kernel}: {e}") })?;
    }
    Ok(())
}

/// # Safety
/// As [`launch`].
unsafe fn launch_on_gpu(
    device: &CudaDevice,
    stream: &Stream,
    op: &str,
    kernel: &str,
    config: LaunchConfig,
    arguments: &[&[u8]],
) -> Result<()> {
    const MAX_ARGUMENTS: usize = 8;
    // A GPU that is only described has no queue.
    let Some(queue) = &stream.cuda else { return Ok(()) };
    let function = device.function(kernel, config.shared_bytes)?;
    if arguments.len() > MAX_ARGUMENTS {
        return Err(Error::unsupported(op, format!("kernel {kernel}: more than {MAX_ARGUMENTS} arguments")));
    }
    let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGUMENTS];
    for (pointer, argument) in pointers.iter_mut().zip(arguments) {
        // The driver only reads through it.
        *pointer = argument.as_ptr().cast_mut().cast();
    }
    let ([gx, gy, gz], [bx, by, bz]) = (config.grid, config.block);
    let mut may_overlap = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let launch = sys::CUlaunchConfig {
        gridDimX: gx,
        gridDimY: gy,
        gridDimZ: gz,
        blockDimX: bx,
        blockDimY: by,
        blockDimZ: bz,
        sharedMemBytes: config.shared_bytes,
        hStream: queue.cu_stream(),
        attrs: &raw mut may_overlap,
        numAttrs: u32::from(launches_dependent() && waits_for_the_grid_before(device, kernel)),
    };
    // SAFETY: the caller's duties; `function` belongs to the context that is bound, the arguments and the attribute outlive the
    // call.
    device.with_context(op, || unsafe {
        sys::cuLaunchKernelEx(&raw const launch, function, pointers.as_mut_ptr(), std::ptr::null_mut()).result()
    })
}

/// Whether a kernel may start while the one before it still runs. Without `VCYCLE_DEPENDENT_LAUNCH=1` none does.
fn launches_dependent() -> bool {
    static IS_ASKED: OnceLock<bool> = OnceLock::new();
    *IS_ASKED.get_or_init(|| std::env::var_os("VCYCLE_DEPENDENT_LAUNCH").is_some_and(|v| v == "1"))
}

/// `begin_grid` of the kernels waits in code for sm_90a, not in code for older GPUs, nor in their PTX translated for a newer one.
fn waits_for_the_grid_before(device: &CudaDevice, kernel: &str) -> bool {
    device.gpu().compute_capability == (9, 0) && find(kernel).is_some_and(|k| k.archs.contains(&"sm_90a"))
}

fn prints_launches() -> bool {
    static PRINTS: OnceLock<bool> = OnceLock::new();
    *PRINTS.get_or_init(|| std::env::var_os("VCYCLE_PRINT_LAUNCHES").is_some_and(|v| v == "1"))
}

/// Prints a choice, each one once, where `VCYCLE_PRINT_PLANS=1` asks for it.
pub(crate) fn print_plan(line: impl FnOnce() -> String) {
    static IS_ASKED: OnceLock<bool> = OnceLock::new();
    static SAID: OnceLock<Mutex<HashSet<String>>> = OnceLock::new();
    if !*IS_ASKED.get_or_init(|| std::env::var_os("VCYCLE_PRINT_PLANS").is_some_and(|v| v == "1")) {
        return;
    }
    let line = line();
    let mut said = SAID.get_or_init(Mutex::default).lock().unwrap_or_else(|p| p.into_inner());
    if !said.contains(&line) {
        println!("plan: {line}");
        said.insert(line);
    }
}

/// Whether `VCYCLE_SYNC=1` is set.
pub(super) fn waits_after_each_launch() -> bool {
    static WAITS: OnceLock<bool> = OnceLock::new();
    *WAITS.get_or_init(|| std::env::var_os("VCYCLE_SYNC").is_some_and(|v| v == "1"))
}

/// [`launch`] for the ops of this crate. `reads` and `writes` are all memory whose addresses `params` holds: it is checked
/// that they lie on the stream's device and that nothing written overlaps anything else. `op` names it in errors.
pub(crate) fn run<P: bytemuck::Pod>(
    stream: &Stream,
    op: &'static str,
    kernel: &str,
    config: LaunchConfig,
    reads: &[&Slice],
    writes: &[&Slice],
    params: &P,
) -> Result<()> {
    run_with_maps(stream, op, kernel, config, reads, writes, params, &[])
}

/// [`run`] for a kernel that takes tensor maps after its params: of memory among `reads` and `writes`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn run_with_maps<P: bytemuck::Pod>(
    stream: &Stream,
    op: &'static str,
    kernel: &str,
    config: LaunchConfig,
    reads: &[&Slice],
    writes: &[&Slice],
    params: &P,
    maps: &[TensorMap],
) -> Result<()> {
    for slice in reads.iter().chain(writes) {
        slice.check_device(stream.device(), op)?;
    }
    super::host_access::check_overlap(reads, writes)?;
    // SAFETY: kernels and their params are parts of this crate: sizes are asserted on both sides, and an op checks its
    // shapes against the lengths of these slices before it comes here. Buffers outlive queued work, because freeing waits;
    // on the emulator they are locked until it is done, and a captured launch keeps them.
    let arguments: Vec<&[u8]> =
        [bytemuck::bytes_of(params)].into_iter().chain(maps.iter().map(bytemuck::bytes_of)).collect();
    unsafe { launch_with(stream, op, kernel, config, &arguments, reads, writes) }
}
