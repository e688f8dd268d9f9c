//! The executor `Simt`: runs the CUDA kernels on the host's cores, compiled as C++ (kernels/simt). For tests: slow, but
//! it finds what a GPU hides. Work is done when a launch returns.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;

use super::launch::LaunchConfig;
use super::{DType, Im2col, OutOfBounds, Swizzle, TensorLayout, TensorMap};
use crate::error::{Error, Result};

/// When the asynchronous instructions take effect. A correct kernel works either way; run both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AsyncMode {
    /// Copies as late as legal, wgmma at once: finds missing waits.
    #[default]
    Lazy,
    /// Copies at once, wgmma as late as legal: finds buffers that are refilled too early.
    Eager,
}

/// Which of the threads that can run runs next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// By lane and block number.
    #[default]
    InOrder,
    /// The last first.
    Reverse,
    /// Random, the same for the same seed.
    Random {
        /// Seed of the order.
        seed: u64,
    },
}

/// Which end of a buffer touches memory that faults when used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Guard {
    /// The end, rounded up to 16 bytes; the buffer is aligned to 16 bytes.
    #[default]
    End,
    /// The start; the buffer is aligned to 4096 bytes.
    Start,
}

/// How the emulator runs kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SimtOptions {
    /// When asynchronous instructions take effect.
    pub async_mode: AsyncMode,
    /// Order of threads.
    pub schedule: Schedule,
    /// Where buffers end.
    pub guard: Guard,
    /// Host threads that run blocks; 0 for one per core.
    pub host_threads: u32,
}

thread_local! {
    static OPTIONS: Cell<SimtOptions> = const { Cell::new(SimtOptions::DEFAULT) };
}

/// Runs `work`; kernels that this thread launches in it run with `options`, and so are buffers made.
pub fn with_options<O>(options: SimtOptions, work: impl FnOnce() -> O) -> O {
    /// Puts the options back, also after a panic.
    struct Restore(SimtOptions);
    impl Drop for Restore {
        fn drop(&mut self) {
            OPTIONS.set(self.0);
        }
    }
    let _restore = Restore(OPTIONS.replace(options));
    work()
}

impl SimtOptions {
    const DEFAULT: SimtOptions =
        SimtOptions { async_mode: AsyncMode::Lazy, schedule: Schedule::InOrder, guard: Guard::End, host_threads: 0 };

    /// Both async modes with each of the three schedules: what a kernel's test should pass.
    pub fn all() -> Vec<SimtOptions> {
        let schedules = [Schedule::InOrder, Schedule::Reverse, Schedule::Random { seed: 1 }];
        let with = |async_mode| schedules.map(|schedule| SimtOptions { async_mode, schedule, ..Default::default() });
        [with(AsyncMode::Lazy), with(AsyncMode::Eager)].concat()
    }
}

/// Mirrors `simt::Options` in kernels/simt/machine.hpp.
#[repr(C)]
struct RawOptions {
    eager: u32,
    schedule: u32,
    seed: u64,
    threads: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<RawOptions>() == 24);

unsafe extern "C" {
    fn simt_alloc(bytes: usize, at_front: c_int) -> *mut c_void;
    fn simt_free(memory: *mut c_void);
    fn simt_error() -> *const c_char;
    fn simt_kernel_name(index: usize) -> *const c_char;
    fn simt_is_checked() -> c_int;
    fn simt_launch(
        name: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared_bytes: u32,
        arguments: *const *const c_void,
        argument_bytes: *const usize,
        num_arguments: usize,
        options: *const RawOptions,
    ) -> c_int;
    fn simt_tensor_map_error() -> *const c_char;
    fn simt_encode_tiled(
        map: *mut TensorMap,
        element_type: c_int,
        rank: u32,
        base: u64,
        sizes: *const u64,
        pitches_bytes: *const u64,
        box_sizes: *const u32,
        element_steps: *const u32,
        swizzle: c_int,
        fill_nan: c_int,
    ) -> c_int;
    fn simt_encode_im2col(
        map: *mut TensorMap,
        element_type: c_int,
        rank: u32,
        base: u64,
        sizes: *const u64,
        pitches_bytes: *const u64,
        lower: *const c_int,
        upper: *const c_int,
        channels_per_pixel: u32,
        pixels_per_column: u32,
        element_steps: *const u32,
        swizzle: c_int,
        fill_nan: c_int,
    ) -> c_int;
}

/// Refuses a processor that the emulator's code does not run on.
pub(super) fn check_processor() -> Result<()> {
    let has_all = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("bmi2");
    if has_all {
        return Ok(());
    }
    Err(Error::NoDevice(
        "the kernel emulator needs a processor with AVX2, FMA, BMI2 and F16C; use `--device cpu`".into(),
    ))
}

/// Whether the kernels were compiled with the race checker (feature `simt-check`).
pub fn is_checked() -> bool {
    // SAFETY: no arguments, no state.
    unsafe { simt_is_checked() != 0 }
}

/// Names of the kernels that are compiled in, sorted.
pub fn kernel_names() -> Vec<String> {
    // SAFETY: any index is accepted; the names are terminated strings that live as long as the program.
    let name = |index| unsafe {
        NonNull::new(simt_kernel_name(index).cast_mut())
            .map(|n| CStr::from_ptr(n.as_ptr()).to_string_lossy().into_owned())
    };
    (0..).map_while(name).collect()
}

/// Zeroed memory between guard pages, aligned to 16 bytes; `None` if there is none. Give it back with `free`.
pub(super) fn allocate(len_bytes: usize) -> Option<NonNull<u8>> {
    let at_front = c_int::from(OPTIONS.get().guard == Guard::Start);
    // SAFETY: any size is accepted.
    NonNull::new(unsafe { simt_alloc(len_bytes, at_front) }.cast())
}

/// # Safety
/// `memory` came from `allocate` and is not used any more.
pub(super) unsafe fn free(memory: NonNull<u8>) {
    // SAFETY: as stated.
    unsafe { simt_free(memory.as_ptr().cast()) }
}

/// Runs a kernel and waits for it. `arguments` are the bytes of its parameters, in order. A fault, a deadlock or a race is
/// an error that names kernel, block and thread.
///
/// # Safety
/// As [`super::launch::launch`].
pub(super) unsafe fn launch(op: &str, kernel: &str, config: &LaunchConfig, arguments: &[&[u8]]) -> Result<()> {
    check_processor()?;
    let error = |message: String| Error::Driver { op: op.into(), message: format!("emulator: {message}") };
    let name = CString::new(kernel).map_err(|_| error(format!("{kernel:?} is no kernel's name")))?;
    let options = OPTIONS.get();
    let (schedule, seed) = match options.schedule {
        Schedule::InOrder => (0, 1),
        Schedule::Reverse => (1, 1),
        Schedule::Random { seed } => (2, seed),
    };
    let eager = u32::from(options.async_mode == AsyncMode::Eager);
    let raw = RawOptions { eager, schedule, seed, threads: options.host_threads, reserved: 0 };
    let pointers: Vec<*const c_void> = arguments.iter().map(|a| a.as_ptr().cast()).collect();
    let sizes: Vec<usize> = arguments.iter().map(|a| a.len()).collect();
    // SAFETY: the arrays have the lengths that are passed and outlive the call; the kernel itself is the caller's duty.
    let status = unsafe {
        simt_launch(
            name.as_ptr(),
            config.grid.as_ptr(),
            config.block.as_ptr(),
            config.shared_bytes,
            pointers.as_ptr(),
            sizes.as_ptr(),
            arguments.len(),
            &raw,
        )
    };
    if status == 0 {
        return Ok(());
    }
    // SAFETY: a terminated string of this thread, valid until its next launch.
    Err(error(unsafe { CStr::from_ptr(simt_error()) }.to_string_lossy().into_owned()))
}

/// The value of the driver's `CUtensorMapDataType`.
fn element_type(dtype: DType) -> c_int {
    match dtype {
        DType::U8 => 0,
        DType::U32 => 2,
        DType::F16 => 6,
        DType::F32 => 7,
        DType::Bf16 => 9,
    }
}

fn swizzle(swizzle: Swizzle) -> c_int {
    match swizzle {
        Swizzle::None => 0,
        Swizzle::Bytes32 => 1,
        Swizzle::Bytes64 => 2,
        Swizzle::Bytes128 => 3,
    }
}

fn encoded(map: TensorMap, status: c_int) -> Result<TensorMap> {
    if status == 0 {
        return Ok(map);
    }
    // SAFETY: a terminated string of this thread, valid until its next encoding.
    let message = unsafe { CStr::from_ptr(simt_tensor_map_error()) }.to_string_lossy().into_owned();
    Err(Error::Driver { op: "tensor map".into(), message })
}

/// The arrays of `layout` have the lengths that its rank asks for.
pub(super) fn encode_tiled(layout: &TensorLayout<'_>, box_sizes: &[u32]) -> Result<TensorMap> {
    let mut map: TensorMap = bytemuck::Zeroable::zeroed();
    // SAFETY: arrays of the right lengths, which are only read; 128 bytes to write.
    let status = unsafe {
        simt_encode_tiled(
            &mut map,
            element_type(layout.memory.dtype()),
            layout.sizes.len() as u32,
            layout.memory.address(),
            layout.sizes.as_ptr(),
            layout.pitches_bytes.as_ptr(),
            box_sizes.as_ptr(),
            layout.element_steps.as_ptr(),
            swizzle(layout.swizzle),
            c_int::from(layout.out_of_bounds == OutOfBounds::Nan),
        )
    };
    encoded(map, status)
}

/// As [`encode_tiled`]; the corners have as many values as there are spatial dimensions.
pub(super) fn encode_im2col(layout: &TensorLayout<'_>, im2col: &Im2col<'_>) -> Result<TensorMap> {
    let mut map: TensorMap = bytemuck::Zeroable::zeroed();
    // SAFETY: as in `encode_tiled`.
    let status = unsafe {
        simt_encode_im2col(
            &mut map,
            element_type(layout.memory.dtype()),
            layout.sizes.len() as u32,
            layout.memory.address(),
            layout.sizes.as_ptr(),
            layout.pitches_bytes.as_ptr(),
            im2col.lower.as_ptr(),
            im2col.upper.as_ptr(),
            im2col.channels_per_pixel,
            im2col.pixels_per_column,
            layout.element_steps.as_ptr(),
            swizzle(layout.swizzle),
            c_int::from(layout.out_of_bounds == OutOfBounds::Nan),
        )
    };
    encoded(map, status)
}
