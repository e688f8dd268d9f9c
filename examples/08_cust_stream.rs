//! Resamples a clip on a stream and a buffer of the `cust` crate. Without a driver it says that it is skipped.
//!
//! `cargo run --release --features cust --example 08_cust_stream`
//!
//! `cust` links against libcuda, so this needs it at build time too; `DOCS_RS=1 cargo check` does not.

use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use vcycle::device::{Buffer, DType, Device, Tensor, cust_interop};
use vcycle::ops::resample::{self, Axis, ClipGrid, Filter, Pathway, Resample, SourceClip};
use vcycle::shape::ActivationShape;

fn cust_error(e: cust::error::CudaError) -> vcycle::Error {
    vcycle::Error::Driver { op: "cust".into(), message: e.to_string() }
}

fn main() -> vcycle::Result<()> {
    // 1. A GPU. Both crates work in its primary context.
    let (device, cuda) = match Device::select("cuda") {
        Ok((Device::Cuda(cuda), reason)) => {
            println!("{reason}");
            (Device::Cuda(cuda.clone()), cuda)
        }
        Ok((other, _)) => return Err(vcycle::Error::NoDevice(format!("asked for a GPU, got {other}"))),
        Err(reason) => {
            println!("SKIPPED: {reason}");
            return Ok(());
        }
    };
    let _context = cust_interop::context(&cuda)?;

    // 2. The stream and the decoded clip, [frames][height][width][3] bytes, are cust's: as in a program that uses it already.
    let (frames, height, width) = (8, 48, 64);
    let pixels: Vec<u8> = (0..frames * height * width * 3).map(|i| (i / 3 % width * 4) as u8).collect();
    let their_stream = Stream::new(StreamFlags::NON_BLOCKING, None).map_err(cust_error)?;
    let their_pixels = DeviceBuffer::from_slice(&pixels).map_err(cust_error)?;

    // 3. The same two, for us: nothing is copied.
    // SAFETY: the stream and the memory are of the primary context, live to the end of `main` and are used by nobody else.
    let (stream, memory) = unsafe {
        let address = their_pixels.as_device_ptr().as_raw();
        (cust_interop::stream(&cuda, &their_stream), Buffer::from_raw(&cuda, address, pixels.len())?)
    };

    // 4. Resample on their stream: all frames, half the height and width.
    let grid = ClipGrid {
        t: Axis::identity(frames),
        y: Axis::crop_then_resize(0, height, height / 2),
        x: Axis::crop_then_resize(0, width, width / 2),
        flip: false,
    };
    let memory = memory.slice::<u8>(0, pixels.len())?;
    let clip = SourceClip { memory, frames, height_px: height, width_px: width, origin_px: (0, 0), grid };
    let op = Resample { filter: Filter::Trilinear, mean: [0.0; 3], std: [1.0; 3] };
    let shape = ActivationShape::new(1, frames, height / 2, width / 2, 4);
    let output = Tensor::zeroed(&device, DType::Bf16, shape)?;
    let indices: Vec<_> = (0..frames).map(|t| t as u32).collect();
    let scratch = Buffer::zeroed(&device, resample::workspace_bytes(1, frames))?;
    let workspace = scratch.slice::<u8>(0, scratch.len_bytes())?;
    let pathway = Pathway { output: &output, frame_indices: &indices };
    resample::forward(&stream, &op, &[clip], &[pathway], &workspace)?;

    // 5. Waiting for their stream is waiting for our work.
    their_stream.synchronize().map_err(cust_error)?;
    let values = output.read::<half::bf16>()?;
    let row: Vec<String> = values.chunks(4).take(8).map(|rgb| format!("{:.2}", rgb[0].to_f32())).collect();
    println!("red in the first row: {}", row.join(" "));
    Ok(())
}
