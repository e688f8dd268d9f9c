//! Tensor maps: what TMA needs to know of a tensor in global memory. A kernel takes them by value, as
//! `const __grid_constant__ CUtensorMap` after its parameter struct.

use super::buffer::{DType, Slice};
use super::{CudaDevice, Device};
use crate::error::{Error, Result};

/// The 128 bytes of a `CUtensorMap`, encoded for one device. It does not keep its memory alive.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub struct TensorMap([u64; 16]);

/// How 16-byte chunks are permuted in shared memory, so that matrices can be read without bank conflicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// As they come.
    #[default]
    None,
    /// Within 32 bytes.
    Bytes32,
    /// Within 64 bytes.
    Bytes64,
    /// Within 128 bytes.
    Bytes128,
}

/// What is loaded where the tensor has no element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OutOfBounds {
    /// 0.
    #[default]
    Zero,
    /// A NaN that the instruction `fma.rn.oob` takes for a 0. Float types only.
    Nan,
}

/// A tensor of rank 1 to 5. Dimension 0 is the innermost, whose elements lie together.
#[derive(Clone, Debug)]
pub struct TensorLayout<'a> {
    /// Its elements; the first one is 16-byte aligned.
    pub memory: &'a Slice,
    /// Elements along each dimension.
    pub sizes: &'a [u64],
    /// Bytes from one element to the next along dimension 1 and up; multiples of 16.
    pub pitches_bytes: &'a [u64],
    /// Step in elements along each dimension (the stride of a convolution), 1 to 8; that of dimension 0 is not used.
    pub element_steps: &'a [u32],
    /// Permutation in shared memory.
    pub swizzle: Swizzle,
    /// What lies outside.
    pub out_of_bounds: OutOfBounds,
}

/// The pixels that im2col walks over, and how many it takes.
#[derive(Clone, Copy, Debug)]
pub struct Im2col<'a> {
    /// First pixel of the bounding box along W, H, D, relative to the tensor's first.
    pub lower: &'a [i32],
    /// Last pixel, relative to the tensor's last.
    pub upper: &'a [i32],
    /// Channels of one load, at most 256.
    pub channels_per_pixel: u32,
    /// Pixels of one load, at most 1024.
    pub pixels_per_column: u32,
}

impl TensorMap {
    /// A map whose loads and stores move boxes of `box_sizes` elements (at most 256 along each dimension).
    ///
    /// # Errors
    /// `Shape` for a tensor that does not fit its memory; `Driver` for what hardware cannot do; `Unsupported` on `Cpu`.
    pub fn tiled(layout: &TensorLayout<'_>, box_sizes: &[u32]) -> Result<TensorMap> {
        check(layout, "tiled tensor map")?;
        if box_sizes.len() != layout.sizes.len() {
            return Err(Error::shape(
                "tiled tensor map",
                format!("{} box sizes for {} dimensions", box_sizes.len(), layout.sizes.len()),
            ));
        }
        match layout.memory.device() {
            Device::Cuda(device) => gpu::tiled(device, layout, box_sizes),
            #[cfg(feature = "simt")]
            Device::Simt => super::simt::encode_tiled(layout, box_sizes),
            other => Err(Error::unsupported("tensor map", format!("{other} has no TMA"))),
        }
    }

    /// A map for im2col loads of a tensor `[n]([d])([h])[w][c]`.
    ///
    /// # Errors
    /// As [`TensorMap::tiled`].
    pub fn im2col(layout: &TensorLayout<'_>, im2col: &Im2col<'_>) -> Result<TensorMap> {
        check(layout, "im2col tensor map")?;
        let spatial = layout.sizes.len().saturating_sub(2);
        if spatial == 0 || im2col.lower.len() != spatial || im2col.upper.len() != spatial {
            return Err(Error::shape(
                "im2col tensor map",
                format!("{} dimensions need {spatial} (1 to 3) corners", layout.sizes.len()),
            ));
        }
        match layout.memory.device() {
            Device::Cuda(device) => gpu::im2col(device, layout, im2col),
            #[cfg(feature = "simt")]
            Device::Simt => super::simt::encode_im2col(layout, im2col),
            other => Err(Error::unsupported("tensor map", format!("{other} has no TMA"))),
        }
    }
}

fn check(layout: &TensorLayout<'_>, op: &'static str) -> Result<()> {
    let rank = layout.sizes.len();
    if !(1..=5).contains(&rank) || layout.pitches_bytes.len() + 1 != rank || layout.element_steps.len() != rank {
        return Err(Error::shape(
            op,
            format!(
                "expected 1 to 5 sizes, as many steps and one pitch less; got {rank}, {} and {}",
                layout.element_steps.len(),
                layout.pitches_bytes.len()
            ),
        ));
    }
    let element_bytes = layout.memory.dtype().size_bytes() as u64;
    let pitches = std::iter::once(&element_bytes).chain(layout.pitches_bytes);
    let end = layout.sizes.iter().zip(pitches).try_fold(element_bytes, |end, (size, pitch)| {
        size.checked_sub(1).and_then(|last| last.checked_mul(*pitch)).and_then(|offset| end.checked_add(offset))
    });
    let has_bytes = (layout.memory.len() * layout.memory.dtype().size_bytes()) as u64;
    if end.is_none_or(|end| end > has_bytes) {
        return Err(Error::shape(op, format!("sizes {:?} do not fit memory of {has_bytes} bytes", layout.sizes)));
    }
    Ok(())
}

/// The driver's encoders.
mod gpu {
    use std::mem::MaybeUninit;

    use cudarc::driver::sys;

    use super::*;

    pub(super) fn tiled(device: &CudaDevice, layout: &TensorLayout<'_>, box_sizes: &[u32]) -> Result<TensorMap> {
        encode(device, "tiled tensor map", |map| {
            // SAFETY: the arrays have the lengths that the rank asks for (checked in `tiled`); the driver only reads them.
            unsafe {
                sys::cuTensorMapEncodeTiled(
                    map,
                    data_type(layout.memory.dtype()),
                    layout.sizes.len() as u32,
                    layout.memory.address() as *mut _,
                    layout.sizes.as_ptr(),
                    layout.pitches_bytes.as_ptr(),
                    box_sizes.as_ptr(),
                    layout.element_steps.as_ptr(),
                    sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                    swizzle(layout.swizzle),
                    sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
                    fill(layout.out_of_bounds),
                )
            }
        })
    }

    pub(super) fn im2col(device: &CudaDevice, layout: &TensorLayout<'_>, im2col: &Im2col<'_>) -> Result<TensorMap> {
        encode(device, "im2col tensor map", |map| {
            // SAFETY: as in `tiled`.
            unsafe {
                sys::cuTensorMapEncodeIm2col(
                    map,
                    data_type(layout.memory.dtype()),
                    layout.sizes.len() as u32,
                    layout.memory.address() as *mut _,
                    layout.sizes.as_ptr(),
                    layout.pitches_bytes.as_ptr(),
                    im2col.lower.as_ptr(),
                    im2col.upper.as_ptr(),
                    im2col.channels_per_pixel,
                    im2col.pixels_per_column,
                    layout.element_steps.as_ptr(),
                    sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                    swizzle(layout.swizzle),
                    sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
                    fill(layout.out_of_bounds),
                )
            }
        })
    }

    fn encode(
        device: &CudaDevice,
        op: &str,
        call: impl FnOnce(*mut sys::CUtensorMap) -> sys::CUresult,
    ) -> Result<TensorMap> {
        if !device.is_there() {
            return Ok(bytemuck::Zeroable::zeroed());
        }
        let mut map = MaybeUninit::<sys::CUtensorMap>::zeroed();
        device.with_context(op, || call(map.as_mut_ptr()).result())?;
        // SAFETY: zeroed, then written by the driver; all bits are valid integers.
        Ok(TensorMap(unsafe { map.assume_init() }.opaque))
    }

    fn data_type(dtype: DType) -> sys::CUtensorMapDataType {
        match dtype {
            DType::U8 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            DType::U32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT32,
            DType::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        }
    }

    fn swizzle(swizzle: Swizzle) -> sys::CUtensorMapSwizzle {
        match swizzle {
            Swizzle::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::Bytes32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::Bytes64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::Bytes128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        }
    }

    fn fill(out_of_bounds: OutOfBounds) -> sys::CUtensorMapFloatOOBfill {
        match out_of_bounds {
            OutOfBounds::Zero => sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            OutOfBounds::Nan => sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA,
        }
    }
}
