//! The device that benches run on (`VCYCLE_DEVICE`, else `auto`), and how time is taken there.

use std::sync::OnceLock;
use std::time::Duration;

use vcycle::Result;
use vcycle::device::{Buffer, DType, Device, Slice, Stream, Tensor};
use vcycle::ops::{TICKET_BYTES, pointwise};
use vcycle::shape::ActivationShape;

/// Written before each timed call on a GPU: more than any L2 holds, and long enough for the host to queue what follows.
const FLUSH_BYTES: usize = 512 << 20;
/// Calls whose times are read at once.
const ROUNDS_UNDER_WAY: u64 = 128;

/// The device, printed once.
pub fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let spec = std::env::var("VCYCLE_DEVICE").unwrap_or_else(|_| "auto".into());
        let (device, reason) = Device::select(&spec).unwrap_or_else(|e| panic!("VCYCLE_DEVICE={spec}: {e}"));
        println!("{reason}");
        device
    })
}

/// Whether this is the smoke run of `cargo bench -- --test`: one round of each bench, on small shapes.
pub fn is_smoke() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// Takes times; on a GPU with device events around each call and a cold L2, elsewhere with the wall clock.
pub struct Clock {
    flush: Option<Tensor>,
}

impl Clock {
    pub fn new(device: &Device) -> Result<Clock> {
        let shape = ActivationShape::new(1, 1, 1, FLUSH_BYTES / 2 / 4096, 4096);
        let memory = || Tensor::zeroed(device, DType::Bf16, shape);
        Ok(Clock { flush: matches!(device, Device::Cuda(_)).then(memory).transpose()? })
    }

    /// Milliseconds of each call. Nothing waits between them, so that the host stays ahead of the device.
    pub fn ms(&self, stream: &Stream, rounds: u64, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
        let mut points = vec![];
        for _ in 0..rounds {
            self.flush.as_ref().map_or(Ok(()), |memory| pointwise::fill(stream, memory, 0.5))?;
            let start = stream.record()?;
            work()?;
            points.push((start, stream.record()?));
        }
        points.iter().map(|(start, end)| start.elapsed_ms(end)).collect()
    }
}

/// The time of `rounds` calls of `work`, for criterion. It counts rounds by the wall clock, so the time that a flush takes makes
/// them fewer, not the benches longer.
pub fn time(stream: &Stream, rounds: u64, mut work: impl FnMut()) -> Duration {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    let clock = CLOCK.get_or_init(|| Clock::new(device()).expect("memory for the flush"));
    let mut run = |rounds: u64| -> f64 {
        let call = || {
            work();
            Ok(())
        };
        clock.ms(stream, rounds, call).expect("times").iter().sum()
    };
    let starts = (0..rounds).step_by(ROUNDS_UNDER_WAY as usize);
    let ms: f64 = starts.map(|start| run(ROUNDS_UNDER_WAY.min(rounds - start))).sum();
    Duration::from_secs_f64(ms / 1e3)
}

/// The text of tests/cases/`name`.toml, or of `name`.toml in the folder VCYCLE_CASES, for binaries that left their clone.
pub fn cases(name: &str) -> String {
    let folder =
        std::env::var("VCYCLE_CASES").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases").into());
    let path = format!("{folder}/{name}.toml");
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The type of activations on the device.
pub fn dtype() -> DType {
    if *device() == Device::Cpu { DType::F32 } else { DType::Bf16 }
}

/// Executor and type, for ids.
pub fn label() -> &'static str {
    if *device() == Device::Cpu { "cpu_f32" } else { "cuda_bf16" }
}

/// Clips of a bench: one on the CPU and in the smoke run, else the batch that layers are scheduled at.
pub fn clips(of_case: usize) -> usize {
    const BATCH: usize = 8;
    if is_smoke() || *device() == Device::Cpu { of_case } else { of_case * BATCH }
}

/// Random activations without gaps, in the device's type.
pub fn activations(device: &Device, shape: ActivationShape, seed: u64) -> Tensor {
    let values = crate::cases::random(shape.num_elements(), seed);
    match dtype() {
        DType::F32 => Tensor::from_host(device, shape, &values),
        _ => {
            let short: Vec<half::bf16> = values.iter().map(|v| half::bf16::from_f32(*v)).collect();
            Tensor::from_host(device, shape, &short)
        }
    }
    .expect("tensor")
}

/// f32 values on the device.
pub fn f32s(device: &Device, values: &[f32]) -> Slice {
    Buffer::from_host(device, values).expect("buffer")
}

/// Zeroed scratch memory of at least `len_bytes`.
pub fn workspace(device: &Device, len_bytes: usize) -> Slice {
    let len = len_bytes.max(TICKET_BYTES).div_ceil(4);
    Buffer::zeroed(device, 4 * len).and_then(|b| b.slice::<f32>(0, len)).expect("workspace")
}
