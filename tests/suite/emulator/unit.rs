//! What a unit case is, and how it is run on any device.

use vcycle::device::{
    Buffer, DType, Device, Im2col, LaunchConfig, OutOfBounds, Slice, Swizzle, TensorLayout, TensorMap, launch,
};
use vcycle::{Error, Result};

/// Mirrors `UnitArgs` in kernels/unit/unit.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct UnitArgs {
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub output: u64,
    pub bits: [u64; 2],
    pub flags: [i32; 6],
}
const _: () = assert!(size_of::<UnitArgs>() == 72);

/// A kernel, what it is given, and the bytes that it must write.
#[derive(Clone, Debug, Default)]
pub struct UnitCase {
    pub name: String,
    pub kernel: &'static str,
    pub grid: u32,
    pub block: u32,
    pub shared_bytes: u32,
    pub a: Vec<u8>,
    pub b: Vec<u8>,
    pub c: Vec<u8>,
    pub bits: [u64; 2],
    pub flags: [i32; 6],
    pub map: Option<MapCase>,
    pub expected: Vec<u8>,
}

/// A tensor map over `a`, or over the output if the kernel stores.
#[derive(Clone, Debug)]
pub struct MapCase {
    pub dtype: DType,
    pub sizes: Vec<u64>,
    pub pitches_bytes: Vec<u64>,
    pub element_steps: Vec<u32>,
    pub swizzle: Swizzle,
    pub out_of_bounds: OutOfBounds,
    pub kind: MapKind,
    pub is_over_output: bool,
}

#[derive(Clone, Debug)]
pub enum MapKind {
    Tiled { box_sizes: Vec<u32> },
    Im2col { lower: Vec<i32>, upper: Vec<i32>, channels_per_pixel: u32, pixels_per_column: u32 },
}

/// Bytes of plain values.
pub fn bytes<T: bytemuck::NoUninit>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

fn encode(map: &MapCase, memory: &Slice) -> Result<TensorMap> {
    let memory = memory.buffer().slice_of(map.dtype, 0, memory.len() / map.dtype.size_bytes())?;
    let layout = TensorLayout {
        memory: &memory,
        sizes: &map.sizes,
        pitches_bytes: &map.pitches_bytes,
        element_steps: &map.element_steps,
        swizzle: map.swizzle,
        out_of_bounds: map.out_of_bounds,
    };
    match &map.kind {
        MapKind::Tiled { box_sizes } => TensorMap::tiled(&layout, box_sizes),
        MapKind::Im2col { lower, upper, channels_per_pixel, pixels_per_column } => TensorMap::im2col(
            &layout,
            &Im2col { lower, upper, channels_per_pixel: *channels_per_pixel, pixels_per_column: *pixels_per_column },
        ),
    }
}

impl UnitCase {
    /// Runs the kernel on `device`; the bytes of its output, which is zeroed before.
    pub fn run(&self, device: &Device) -> Result<Vec<u8>> {
        let stream = device.stream()?;
        let [a, b, c] = [&self.a, &self.b, &self.c].map(|bytes| Buffer::from_host(device, bytes));
        let (a, b, c) = (a?, b?, c?);
        let output = Buffer::from_host(device, &vec![0u8; self.expected.len()])?;
        let args = UnitArgs {
            a: a.address(),
            b: b.address(),
            c: c.address(),
            output: output.address(),
            bits: self.bits,
            flags: self.flags,
        };
        let config =
            LaunchConfig { grid: [self.grid, 1, 1], block: [self.block, 1, 1], shared_bytes: self.shared_bytes };
        let map = match &self.map {
            Some(map) => Some(encode(map, if map.is_over_output { &output } else { &a })?),
            None => None,
        };
        let mut arguments = vec![bytemuck::bytes_of(&args)];
        arguments.extend(map.as_ref().map(bytemuck::bytes_of));
        // SAFETY: the case states sizes that fit the kernel's contract; the buffers live until the read below.
        unsafe { launch::launch(&stream, "unit", self.kernel, config, &arguments)? };
        stream.synchronize()?;
        output.read::<u8>()
    }

    /// Runs it and compares with `expected`.
    #[cfg(feature = "simt")]
    pub fn check(&self, device: &Device) -> Result<()> {
        self.compare(&self.run(device)?)
    }

    /// Compares what it wrote with `expected`.
    pub fn compare(&self, output: &[u8]) -> Result<()> {
        match output.iter().zip(&self.expected).position(|(got, expected)| got != expected) {
            None => Ok(()),
            Some(at) => {
                let word = at / 4 * 4..(at / 4 * 4 + 4).min(output.len());
                let message = format!(
                    "byte {at} of {}: expected {:02x?}, got {:02x?} in its word",
                    output.len(),
                    &self.expected[word.clone()],
                    &output[word]
                );
                Err(Error::Data(message))
            }
        }
    }
}
