//! One launch of a convolution: its memory, its plan, and what is filled in from both.

use super::params::{ConvAxis, ConvGather, FastDiv, PackPairsParams, Params};
use super::plan::{self, OnLoad, Pairs, Plan, Request, TILE_K, Wgmma};
use super::{Conv3d, Direction, autotune, method};
use crate::device::{
    DType, Device, Im2col, LaunchConfig, OutOfBounds, Slice, Stream, Swizzle, Tensor, TensorLayout, TensorMap, launch,
};
use crate::error::{Error, Result};
use crate::ops::TICKET_BYTES;

/// Threads of a block (`THREADS` in the kernels).
pub(super) const THREADS: u32 = 256;
/// Multiprocessors that the emulator is planned for.
const SIMT_SMS: usize = 16;

pub(super) fn num_sms(stream: &Stream) -> usize {
    match stream.device() {
        Device::Cuda(device) => device.gpu().num_sms,
        _ => SIMT_SMS,
    }
}

/// All memory that a launch reads and writes.
#[derive(Default)]
pub(super) struct Memory<'a> {
    reads: Vec<&'a Slice>,
    writes: Vec<&'a Slice>,
    /// Whether an address that vectors are loaded from or stored to is no multiple of 16.
    is_misaligned: bool,
}

impl<'a> Memory<'a> {
    /// Read in vectors.
    pub(super) fn read(&mut self, slice: &'a Slice) -> u64 {
        self.is_misaligned |= !slice.address().is_multiple_of(16);
        self.read_singly(slice)
    }

    /// Written in vectors.
    pub(super) fn write(&mut self, slice: &'a Slice) -> u64 {
        self.is_misaligned |= !slice.address().is_multiple_of(16);
        self.write_singly(slice)
    }

    pub(super) fn reads(&self) -> &[&'a Slice] {
        &self.reads
    }

    pub(super) fn writes(&self) -> &[&'a Slice] {
        &self.writes
    }

    pub(super) fn is_misaligned(&self) -> bool {
        self.is_misaligned
    }

    /// Read element by element.
    pub(super) fn read_singly(&mut self, slice: &'a Slice) -> u64 {
        self.reads.push(slice);
        slice.address()
    }

    /// Written element by element.
    pub(super) fn write_singly(&mut self, slice: &'a Slice) -> u64 {
        self.writes.push(slice);
        slice.address()
    }
}

/// One convolution: the arrays, and what happens on load and on store.
pub(super) struct Job<'a> {
    pub stream: &'a Stream,
    pub op: &'a Conv3d,
    pub direction: Direction,
    pub name: &'static str,
    pub dtype: DType,
    pub filter: &'a Slice,
    pub workspace: &'a Slice,
    pub memory: Memory<'a>,
    pub params: Params,
    pub on_load: OnLoad,
    pub splits: usize,
    pub sums: usize,
    pub extra_tensors: usize,
    pub launches_before: usize,
    pub has_even_pitches: bool,
    /// Whether the input may be read as pairs of pixels.
    pub may_pair: bool,
    /// What is gathered, and what it is joined with.
    pub sources: [Option<&'a Tensor>; 2],
}

impl<'a> Job<'a> {
    /// What is gathered, and what is made of it.
    pub(super) fn gather(&mut self, source: &'a Tensor, target: &'a Tensor) {
        (self.params.source, self.params.source_pitch) = (self.memory.read(source.memory()), source.pitch_c() as i32);
        (self.params.target, self.params.target_pitch) = (self.memory.write(target.memory()), target.pitch_c() as i32);
        self.sources[0] = Some(source);
        self.look_at(Some(target));
        // Of pixels in pairs the pitch is that of a pair.
        if !self.may_pair {
            self.look_at(Some(source));
        }
    }

    /// Remembers whether vectors can be used.
    pub(super) fn look_at(&mut self, tensor: Option<&Tensor>) {
        self.has_even_pitches &= tensor.is_none_or(|t| t.pitch_c().is_multiple_of(8));
    }

    pub(super) fn run(mut self) -> Result<()> {
        self.params.filter = self.memory.read(self.filter);
        let mut request = Request {
            op: *self.op,
            output: self.op.output(),
            direction: self.direction,
            dtype: self.dtype,
            on_load: self.on_load,
            splits: self.splits,
            sums: self.sums,
            extra_tensors: self.extra_tensors,
            launches_before: self.launches_before,
            is_aligned: self.has_even_pitches && !self.memory.is_misaligned,
            num_sms: num_sms(self.stream),
            // Tensors side by side are for layers that memory bounds: mma.sync alone has them.
            method: match self.on_load {
                OnLoad::Beside => method::Method::Mma,
                _ => method::of(self.name, self.stream)?,
            },
        };
        let pairs = plan::pairs(self.op).filter(|_| self.may_pair && request.is_aligned);
        request.is_aligned &= !self.may_pair || pairs.is_some();
        request.op = pairs.map_or(*self.op, |pairs| pairs.op);
        request.launches_before += usize::from(pairs.is_some());
        request.method = autotune::method(self.name, self.stream, &request)?;
        let plan = plan::plan(self.name, &request)?;
        plan.print(&request);
        let packed = pairs.map(|pairs| pairs.packed_filter(plan.workspace_bytes));
        let needed = packed.as_ref().map_or(plan.workspace_bytes, |packed| packed.end);
        if self.workspace.len_bytes() < needed {
            let got = self.workspace.len_bytes();
            return Err(Error::shape(self.name, format!("workspace must have {needed} bytes, got {got}")));
        }
        let base = self.workspace.address();
        if needed > 0 {
            if !base.is_multiple_of(16) {
                return Err(Error::shape(self.name, "workspace must begin at a multiple of 16 bytes"));
            }
            self.memory.write(self.workspace);
            self.params.tickets = base;
            self.params.partials = base + TICKET_BYTES as u64;
            self.params.group_partials = base + plan.group_partials_at as u64;
            self.params.slice_sums = base + plan.slice_sums_at as u64;
        }
        if let Some((pairs, packed)) = pairs.zip(packed) {
            self.params.filter = base + packed.start as u64;
            self.params.source_pitch = 8;
            self.pack(&pairs)?;
        }
        self.fill(&request, &plan);
        let block = [plan.threads(), 1, 1];
        let config = LaunchConfig { grid: plan.grid(), block, shared_bytes: plan.shared_bytes as u32 };
        let maps = plan.wgmma.map_or(Ok(vec![]), |form| self.maps(&form))?;
        let (reads, writes) = (&self.memory.reads, &self.memory.writes);
        launch::run_with_maps(self.stream, self.name, &plan.kernel, config, reads, writes, &self.params, &maps)
    }

    /// The source, what it is joined with (or the source again), the filter.
    fn maps(&self, form: &Wgmma) -> Result<Vec<TensorMap>> {
        let map = |memory: &Slice, sizes: &[u64], pitches_bytes: &[u64], boxes: &[u32]| {
            let element_steps = &vec![1; sizes.len()];
            let (swizzle, out_of_bounds) = (Swizzle::Bytes128, OutOfBounds::Zero);
            TensorMap::tiled(
                &TensorLayout { memory, sizes, pitches_bytes, element_steps, swizzle, out_of_bounds },
                boxes,
            )
        };
        let step = TILE_K as u32;
        let mut maps = Vec::with_capacity(3);
        for source in [self.sources[0], self.sources[1].or(self.sources[0])].into_iter().flatten() {
            let (shape, pitch) = (source.shape(), 2 * source.pitch_c() as u64);
            let rows = (form.halo_rows / form.boxes()) as u32;
            if form.is_strided {
                maps.push(self.strided_map(source, rows)?);
                continue;
            }
            let sizes = [shape.c as u64, shape.num_positions() as u64];
            maps.push(map(source.memory(), &sizes, &[pitch], &[step, rows])?);
        }
        let (c_in, taps) = (self.op.input.c as u64, self.op.filter.iter().product::<usize>() as u64);
        let (sizes, pitches) = ([c_in, taps, self.op.c_out as u64], [2 * c_in, 2 * c_in * taps]);
        let rows = if self.direction == Direction::GradInput { step } else { form.width as u32 };
        maps.push(map(self.filter, &sizes, &pitches, &[step, 1, rows])?);
        Ok(maps)
    }

    /// Positions under the stride, in the order of the output's.
    fn strided_map(&self, source: &Tensor, rows: u32) -> Result<TensorMap> {
        let (shape, pitch, [st, sh, sw]) =
            (source.shape(), 2 * source.pitch_c() as u64, self.op.stride.map(|s| s as u32));
        let sizes = [shape.c, shape.w, shape.h, shape.t, shape.n].map(|size| size as u64);
        let pitches_bytes =
            [pitch, pitch * sizes[1], pitch * sizes[1] * sizes[2], pitch * sizes[1] * sizes[2] * sizes[3]];
        let layout = TensorLayout {
            memory: source.memory(),
            sizes: &sizes,
            pitches_bytes: &pitches_bytes,
            element_steps: &[1, sw, sh, st, 1],
            swizzle: Swizzle::Bytes128,
            out_of_bounds: OutOfBounds::Zero,
        };
        let all = Im2col { lower: &[0; 3], upper: &[0; 3], channels_per_pixel: TILE_K as u32, pixels_per_column: rows };
        TensorMap::im2col(&layout, &all)
    }

    /// Writes the filter to where `params.filter` says, in pairs of taps.
    fn pack(&self, pairs: &Pairs) -> Result<()> {
        let [ft, fh, num_pairs] = pairs.op.filter;
        let params = PackPairsParams {
            from: self.filter.address(),
            to: self.params.filter,
            rows: (self.op.c_out * ft * fh) as i32,
            taps: self.op.filter[2] as i32,
            pairs: num_pairs as i32,
            first: pairs.first_tap,
        };
        let threads = (self.op.c_out * ft * fh * num_pairs * 2) as u32;
        let config = LaunchConfig { grid: [threads.div_ceil(256), 1, 1], block: [256, 1, 1], shared_bytes: 0 };
        let kernel = "conv3d_pack_pairs_b16";
        launch::run(self.stream, self.name, kernel, config, &[self.filter], &[self.workspace], &params)
    }

    fn fill(&mut self, request: &Request, plan: &Plan) {
        let p = &mut self.params;
        let (source_channels, target_channels) = request.channels();
        p.gather = ConvGather {
            axes: ConvAxis::of(&request.op, request.output),
            n: self.op.input.n as i32,
            clips_per_split: plan.clips_per_split as i32,
            splits: plan.splits_used as i32,
            is_grad: i32::from(self.direction == Direction::GradInput),
            boxes: plan.boxes.map(|size| size as i32),
            reserved: 0,
        };
        p.source_chunks = FastDiv::by(source_channels.div_ceil(8) as u32);
        (p.source_channels, p.target_channels) = (source_channels as i32, target_channels as i32);
        p.columns = plan.columns as i32;
        p.tiles_per_split = plan.tiles_per_split as u32;
        (p.group_tiles, p.groups_per_split) = (plan.group_tiles as u32, plan.groups_per_split as u32);
        (p.slices, p.groups) = (plan.slices as i32, self.op.groups as i32);
        if let Some(form) = plan.wgmma {
            (p.tiles, p.halo_rows) = (plan.tiles as i32, form.halo_rows as i32);
            (p.source_stages, p.filter_stages) = (form.source_stages as i32, form.filter_stages as i32);
        }
    }
}
