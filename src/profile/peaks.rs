//! The two ceilings of a device.

use crate::device::{Device, Gpu, Tensor};
use crate::error::Result;
use crate::ops::conv3d::{Conv3d, Direction, forward, workspace_bytes};
use crate::ops::pointwise;
use crate::shape::ActivationShape;

/// What a device does at best.
#[derive(Clone, Debug, PartialEq)]
pub struct Peaks {
    /// Of a large product of matrices.
    pub flops_per_s: f64,
    /// Of a large copy, bytes read and bytes written.
    pub bytes_per_s: f64,
    /// Where the numbers are from.
    pub source: String,
}

impl Peaks {
    /// Those that are known of the device, otherwise what [`Peaks::measure`] finds.
    pub fn of(device: &Device) -> Result<Peaks> {
        match device {
            Device::Cuda(cuda) => Peaks::known(cuda.gpu()).map_or_else(|| Peaks::measure(device), Ok),
            _ => Peaks::measure(device),
        }
    }

    /// Copy and bf16 product of cuBLAS as measured on H100 and H200 (SXM).
    fn known(gpu: &Gpu) -> Option<Peaks> {
        let is_sxm = !gpu.name.contains("PCIe") && !gpu.name.contains("NVL");
        let bytes_per_s = match () {
            () if gpu.name.contains("H100") && is_sxm => 3.0e12,
            () if gpu.name.contains("H200") && is_sxm => 4.3e12,
            () => return None,
        };
        let source = format!("those known of {}: a large bf16 product of cuBLAS, a large copy", gpu.name);
        Some(Peaks { flops_per_s: 798e12, bytes_per_s, source })
    }

    /// The best of some runs of this crate's own copy and of its convolution of one tap, both larger than any cache.
    pub fn measure(device: &Device) -> Result<Peaks> {
        // Positions, channels of the product; elements of the copy. The emulator is not measured for its speed.
        let (positions, channels, elements) = match device {
            Device::Cpu => (8 << 10, 512, 32 << 20),
            Device::Cuda(_) => (64 << 10, 2048, 512 << 20),
            Device::Simt => (256, 64, 64 << 10),
        };
        let dtype = crate::model::Lowering::of(device).dtype();
        let tensor =
            |positions: usize, c: usize| Tensor::zeroed(device, dtype, ActivationShape::new(1, 1, 1, positions, c));
        let stream = device.stream()?;
        let best = |run: &dyn Fn() -> Result<()>| -> Result<f64> {
            run()?;
            let mut best = f64::INFINITY;
            for _ in 0..5 {
                let start = stream.record()?;
                run()?;
                best = best.min(start.elapsed_ms(&stream.record()?)? / 1e3);
            }
            Ok(best)
        };
        let (from, to) = (tensor(elements / 256, 256)?, tensor(elements / 256, 256)?);
        let copy_s = best(&|| pointwise::copy(&stream, &from, &to))?;
        drop((from, to));
        let (input, output) = (tensor(positions, channels)?, tensor(positions, channels)?);
        let (op, filter) = (product(input.shape()), tensor(channels, channels)?);
        let workspace = Tensor::zeroed(
            device,
            crate::device::DType::U8,
            ActivationShape::new(1, 1, 1, 1, workspace_bytes(&stream, &op, Direction::Forward).max(1)),
        )?;
        let run = || forward(&stream, &op, &input, filter.memory(), None, &output, workspace.memory());
        let product_s = best(&run)?;
        Ok(Peaks {
            flops_per_s: 2.0 * op.macs() as f64 / product_s,
            bytes_per_s: (2 * elements * dtype.size_bytes()) as f64 / copy_s,
            source: "measured: this crate's largest product and copy".into(),
        })
    }

    /// Seconds that an op takes at least.
    pub fn floor_s(&self, flops: u64, bytes: u64) -> f64 {
        (flops as f64 / self.flops_per_s).max(bytes as f64 / self.bytes_per_s)
    }

    /// `compute` where arithmetic takes longer than moving the bytes, otherwise `memory`.
    pub fn side(&self, flops: u64, bytes: u64) -> &'static str {
        if flops as f64 / self.flops_per_s > bytes as f64 / self.bytes_per_s { "compute" } else { "memory" }
    }
}

fn product(input: ActivationShape) -> Conv3d {
    Conv3d {
        input,
        c_out: input.c,
        filter: [1; 3],
        stride: [1; 3],
        padding: [0; 3],
        dilation: [1; 3],
        groups: 1,
        part: None,
    }
}
