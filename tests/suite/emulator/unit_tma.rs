//! mbarrier, and TMA: tiled loads of every rank, swizzle and fill, im2col loads, stores.

use half::bf16;
use vcycle::device::{DType, OutOfBounds, Swizzle};

use super::unit::{MapCase, MapKind, UnitCase, bytes};

pub fn cases() -> Vec<UnitCase> {
    let mut all = vec![ring(1), ring(7)];
    all.extend(tiled_cases().iter().map(Tiled::load));
    all.extend(im2col_cases().iter().map(Conv::load));
    all.extend(store_cases().iter().map(Tiled::store));
    all
}

fn ring(rounds: usize) -> UnitCase {
    let expected: Vec<u32> =
        (0..rounds as u32).flat_map(|round| (0..32).map(move |lane| 1000 * round + 31 - lane)).collect();
    UnitCase {
        name: format!("mbarrier ring, {rounds} rounds"),
        kernel: "unit_mbarrier_ring",
        grid: 1,
        block: 64,
        shared_bytes: 288,
        flags: [rounds as i32, 0, 0, 0, 0, 0],
        expected: bytes(&expected),
        ..Default::default()
    }
}

/// Where the byte at `offset` of a packed box lies in shared memory whose rows are as long as the swizzle.
pub fn swizzled(offset: usize, swizzle: Swizzle) -> usize {
    let row_bytes = match swizzle {
        Swizzle::None => return offset,
        Swizzle::Bytes32 => 32,
        Swizzle::Bytes64 => 64,
        Swizzle::Bytes128 => 128,
    };
    // The pattern repeats after 8 rows of 128 bytes' worth: chunk c of line l (128 bytes) moves to c ^ part of l.
    let (row, chunk, byte) = (offset / row_bytes, offset % row_bytes / 16, offset % 16);
    let line = row * row_bytes / 128;
    row * row_bytes + (chunk ^ (line % (row_bytes / 16))) * 16 + byte
}

fn swizzle_all(packed: &[u8], swizzle: Swizzle) -> Vec<u8> {
    let mut placed = vec![0; packed.len()];
    for (offset, byte) in packed.iter().enumerate() {
        placed[swizzled(offset, swizzle)] = *byte;
    }
    placed
}

/// A tiled map and one box; everything counted from the innermost dimension.
struct Tiled {
    dtype: DType,
    sizes: Vec<usize>,
    /// Elements along dimension 0 in memory, so that the pitch is a multiple of 16 bytes.
    row_elements: usize,
    steps: Vec<u32>,
    box_sizes: Vec<u32>,
    start: Vec<i32>,
    swizzle: Swizzle,
    out_of_bounds: OutOfBounds,
}

fn tiled_cases() -> Vec<Tiled> {
    let case = |dtype, sizes: &[usize], row_elements, box_sizes: &[u32], start: &[i32]| Tiled {
        dtype,
        sizes: sizes.to_vec(),
        row_elements,
        steps: vec![1; sizes.len()],
        box_sizes: box_sizes.to_vec(),
        start: start.to_vec(),
        swizzle: Swizzle::None,
        out_of_bounds: OutOfBounds::Zero,
    };
    let mut all = vec![
        case(DType::F32, &[100], 100, &[64], &[50]),
        case(DType::U8, &[64, 5], 64, &[32, 3], &[16, 1]),
        case(DType::U8, &[50, 5], 64, &[32, 4], &[30, 3]),
        case(DType::F32, &[10, 4, 3], 12, &[8, 3, 2], &[-3, 2, -1]),
        case(DType::Bf16, &[24, 3, 4, 2], 24, &[16, 2, 3, 2], &[16, -1, 2, 1]),
        case(DType::Bf16, &[16, 3, 3, 2, 3], 16, &[16, 2, 2, 2, 2], &[0, 2, 1, 1, 2]),
        case(DType::Bf16, &[16, 3, 3, 2, 3], 16, &[16, 2, 2, 2, 2], &[0, 40, 1, 1, 2]),
    ];
    for (swizzle, elements) in [(Swizzle::Bytes32, 16), (Swizzle::Bytes64, 32), (Swizzle::Bytes128, 64)] {
        for out_of_bounds in [OutOfBounds::Zero, OutOfBounds::Nan] {
            let inside = case(DType::Bf16, &[96, 40], 96, &[elements, 32], &[16, 5]);
            let outside = case(DType::F16, &[96, 40], 96, &[elements, 32], &[-8, 20]);
            all.extend([inside, outside].map(|c| Tiled { swizzle, out_of_bounds, ..c }));
        }
    }
    let strided = case(DType::Bf16, &[16, 9, 8], 16, &[16, 6, 5], &[0, 1, 2]);
    all.push(Tiled { steps: vec![1, 2, 3], ..strided });
    // Halos and filters of a convolution: as many rows as a box may have, before the first; a box beyond both its channels and rows.
    let halo = case(DType::Bf16, &[64, 300], 64, &[64, 256], &[0, -5]);
    let filter = case(DType::F16, &[72, 9, 40], 72, &[64, 1, 64], &[64, 4, 8]);
    all.extend([halo, filter].map(|c| Tiled { swizzle: Swizzle::Bytes128, ..c }));
    all.push(Tiled { out_of_bounds: OutOfBounds::Nan, ..case(DType::F32, &[10, 4, 3], 12, &[8, 3, 2], &[-3, 2, -1]) });
    all
}

fn store_cases() -> Vec<Tiled> {
    let case = |sizes: &[usize], box_sizes: &[u32], start: &[i32], swizzle| Tiled {
        dtype: DType::Bf16,
        sizes: sizes.to_vec(),
        row_elements: sizes[0],
        steps: vec![1; sizes.len()],
        box_sizes: box_sizes.to_vec(),
        start: start.to_vec(),
        swizzle,
        out_of_bounds: OutOfBounds::Zero,
    };
    vec![
        case(&[64, 20], &[32, 8], &[16, 4], Swizzle::None),
        case(&[64, 20], &[64, 8], &[-16, 16], Swizzle::Bytes128),
        case(&[32, 5, 3], &[32, 3, 2], &[0, 3, 2], Swizzle::Bytes64),
        case(&[16, 5, 3, 2], &[16, 3, 2, 2], &[0, -1, 2, 1], Swizzle::Bytes32),
        case(&[16, 3, 3, 2, 2], &[16, 2, 2, 2, 2], &[0, 2, -1, 0, 1], Swizzle::None),
    ]
}

impl Tiled {
    fn element_bytes(&self) -> usize {
        self.dtype.size_bytes()
    }

    /// Elements of the box along each dimension: every step-th, and all of dimension 0.
    fn extent(&self) -> Vec<usize> {
        let steps = self.steps.iter().enumerate().map(|(d, s)| if d == 0 { 1 } else { *s });
        self.box_sizes.iter().zip(steps).map(|(b, s)| b.div_ceil(s) as usize).collect()
    }

    fn pitches_elements(&self) -> Vec<usize> {
        let mut pitches = vec![1];
        for d in 1..self.sizes.len() {
            pitches.push(if d == 1 { self.row_elements } else { pitches[d - 1] * self.sizes[d - 1] });
        }
        pitches
    }

    fn num_elements(&self) -> usize {
        self.row_elements * self.sizes[1..].iter().product::<usize>()
    }

    /// Calls `visit(index in the box, index in the tensor if inside)` for every element of the box, in packed order.
    fn for_each(&self, mut visit: impl FnMut(usize, Option<usize>)) {
        let (extent, pitches) = (self.extent(), self.pitches_elements());
        for packed in 0..extent.iter().product() {
            let (mut rest, mut at, mut inside) = (packed, 0, true);
            for d in 0..extent.len() {
                let step = if d == 0 { 1 } else { self.steps[d] as i32 };
                let coordinate = self.start[d] + (rest % extent[d]) as i32 * step;
                rest /= extent[d];
                inside &= (0..self.sizes[d] as i32).contains(&coordinate);
                at += coordinate.max(0) as usize * pitches[d];
            }
            visit(packed, inside.then_some(at));
        }
    }

    fn map(&self, is_over_output: bool) -> MapCase {
        let e = self.element_bytes() as u64;
        MapCase {
            dtype: self.dtype,
            sizes: self.sizes.iter().map(|s| *s as u64).collect(),
            pitches_bytes: self.pitches_elements()[1..].iter().map(|p| *p as u64 * e).collect(),
            element_steps: self.steps.clone(),
            swizzle: self.swizzle,
            out_of_bounds: self.out_of_bounds,
            kind: MapKind::Tiled { box_sizes: self.box_sizes.clone() },
            is_over_output,
        }
    }

    fn flags(&self) -> [i32; 6] {
        let mut flags = [self.sizes.len() as i32, 0, 0, 0, 0, 0];
        flags[1..=self.start.len()].copy_from_slice(&self.start);
        flags
    }

    fn name(&self, what: &str) -> String {
        format!(
            "TMA {what} of {:?} {:?} from {:?} of {:?}, steps {:?}, swizzle {:?}, outside {:?}",
            self.dtype, self.box_sizes, self.start, self.sizes, self.steps, self.swizzle, self.out_of_bounds
        )
    }

    fn fill_bytes(&self) -> Vec<u8> {
        match (self.out_of_bounds, self.element_bytes()) {
            (OutOfBounds::Zero, e) => vec![0; e],
            (OutOfBounds::Nan, 2) => 0x7FFFu16.to_le_bytes().to_vec(),
            (OutOfBounds::Nan, _) => 0x7FFF_FFFFu32.to_le_bytes().to_vec(),
        }
    }

    fn load(&self) -> UnitCase {
        let e = self.element_bytes();
        let source: Vec<u8> = (0..self.num_elements() * e).map(|i| (i * 37 % 251) as u8).collect();
        let mut packed = Vec::new();
        self.for_each(|_, at| match at {
            Some(at) => packed.extend_from_slice(&source[at * e..at * e + e]),
            None => packed.extend(self.fill_bytes()),
        });
        UnitCase {
            name: self.name("load"),
            kernel: "unit_tma_load",
            grid: 1,
            block: 32,
            shared_bytes: (packed.len().next_multiple_of(1024) + 1024) as u32,
            bits: [packed.len() as u64, 0],
            flags: self.flags(),
            map: Some(self.map(false)),
            a: source,
            expected: swizzle_all(&packed, self.swizzle),
            ..Default::default()
        }
    }

    fn store(&self) -> UnitCase {
        let e = self.element_bytes();
        let box_bytes = self.extent().iter().product::<usize>() * e;
        let packed: Vec<u8> = (0..box_bytes).map(|i| (i * 37 % 251) as u8 + 1).collect();
        let mut expected = vec![0; self.num_elements() * e];
        self.for_each(|from, at| {
            if let Some(at) = at {
                expected[at * e..at * e + e].copy_from_slice(&packed[from * e..from * e + e]);
            }
        });
        UnitCase {
            name: self.name("store"),
            kernel: "unit_tma_store",
            grid: 1,
            block: 32,
            shared_bytes: box_bytes.next_multiple_of(1024) as u32,
            bits: [box_bytes as u64, 0],
            flags: self.flags(),
            map: Some(self.map(true)),
            a: swizzle_all(&packed, self.swizzle),
            expected,
            ..Default::default()
        }
    }
}

/// One im2col load, told as a convolution: the pixels are consecutive output positions, the offsets a filter tap.
struct Conv {
    /// W, H, D; one to three.
    sizes: Vec<usize>,
    filter: Vec<usize>,
    stride: Vec<usize>,
    padding: Vec<usize>,
    padding_after: Vec<usize>,
    tap: Vec<usize>,
    n: usize,
    c: usize,
    first_channel: usize,
    channels: usize,
    first_output: usize,
    pixels: usize,
    swizzle: Swizzle,
    out_of_bounds: OutOfBounds,
}

fn im2col_cases() -> Vec<Conv> {
    let mut all = Vec::new();
    let case = |sizes: &[usize], stride: &[usize], tap: &[usize], first_output, pixels| Conv {
        sizes: sizes.to_vec(),
        filter: vec![3; sizes.len()],
        stride: stride.to_vec(),
        padding: vec![1; sizes.len()],
        padding_after: vec![1; sizes.len()],
        tap: tap.to_vec(),
        n: 2,
        c: 16,
        first_channel: 0,
        channels: 16,
        first_output,
        pixels,
        swizzle: Swizzle::None,
        out_of_bounds: OutOfBounds::Zero,
    };
    all.push(case(&[7], &[1], &[0], 0, 12));
    all.push(case(&[7], &[2], &[2], 1, 7));
    all.push(case(&[5, 4], &[1, 1], &[0, 2], 3, 30));
    all.push(case(&[5, 4], &[2, 2], &[1, 0], 2, 10));
    all.push(case(&[6, 5, 3], &[1, 1, 1], &[0, 1, 2], 7, 64));
    all.push(case(&[6, 5, 3], &[2, 2, 2], &[2, 0, 1], 1, 24));
    // Beyond the last clip: zeros.
    all.push(case(&[6, 5, 3], &[1, 1, 1], &[2, 2, 2], 150, 64));
    let no_padding = case(&[6, 5, 4], &[2, 1, 1], &[1, 2, 0], 3, 16);
    all.push(Conv { padding: vec![0, 1, 0], padding_after: vec![0, 1, 0], ..no_padding });
    let one_sided = case(&[6, 5, 3], &[2, 1, 1], &[2, 2, 1], 0, 48);
    all.push(Conv { padding_after: vec![0, 2, 0], ..one_sided });
    // NaN outside, and channels beyond the last.
    for out_of_bounds in [OutOfBounds::Zero, OutOfBounds::Nan] {
        let edge = case(&[6, 5, 3], &[1, 1, 1], &[0, 2, 1], 100, 64);
        all.push(Conv { c: 24, first_channel: 16, out_of_bounds, ..edge });
    }
    for (swizzle, channels) in [(Swizzle::Bytes32, 16), (Swizzle::Bytes64, 32), (Swizzle::Bytes128, 64)] {
        let conv = case(&[6, 5, 3], &[1, 2, 1], &[1, 1, 0], 5, 64);
        all.push(Conv { c: 128, channels, first_channel: 64, swizzle, ..conv });
    }
    all
}

impl Conv {
    fn outputs(&self) -> Vec<usize> {
        (0..self.sizes.len())
            .map(|d| (self.sizes[d] + self.padding[d] + self.padding_after[d] - self.filter[d]) / self.stride[d] + 1)
            .collect()
    }

    /// Input position of the first filter tap for output `index`, and the clip.
    fn corner(&self, index: usize) -> (Vec<i32>, usize) {
        let mut rest = index;
        let corner = (0..self.sizes.len())
            .map(|d| {
                let output = rest % self.outputs()[d];
                rest /= self.outputs()[d];
                (output * self.stride[d]) as i32 - self.padding[d] as i32
            })
            .collect();
        (corner, rest)
    }

    fn load(&self) -> UnitCase {
        let spatial = self.sizes.len();
        let positions: usize = self.sizes.iter().product::<usize>() * self.n;
        let source: Vec<u16> = (0..positions * self.c).map(|i| bf16::from_f32((i % 256) as f32).to_bits()).collect();
        let mut packed: Vec<u16> = Vec::new();
        for pixel in 0..self.pixels {
            let (corner, clip) = self.corner(self.first_output + pixel);
            let at: Vec<i32> = corner.iter().zip(&self.tap).map(|(c, t)| c + *t as i32).collect();
            let inside = clip < self.n && at.iter().zip(&self.sizes).all(|(a, s)| (0..*s as i32).contains(a));
            let fill = if self.out_of_bounds == OutOfBounds::Zero { 0 } else { 0x7FFF };
            if !inside {
                packed.extend(vec![fill; self.channels]);
                continue;
            }
            let position = (0..spatial).rev().fold(clip, |p, d| p * self.sizes[d] + at[d] as usize);
            let first = position * self.c + self.first_channel;
            let there = self.channels.min(self.c - self.first_channel);
            packed.extend_from_slice(&source[first..first + there]);
            packed.extend(vec![fill; self.channels - there]);
        }
        let (corner, clip) = self.corner(self.first_output);
        let mut flags = [spatial as i32 + 2, self.first_channel as i32, 0, 0, 0, 0];
        flags[2..2 + spatial].copy_from_slice(&corner);
        flags[2 + spatial] = clip as i32;
        let offsets = self.tap.iter().enumerate().fold(0, |bits, (d, tap)| bits | (*tap as u64) << (16 * d));
        let packed = bytes(&packed);
        UnitCase {
            name: format!(
                "TMA im2col of {:?}, filter {:?}, stride {:?}, padding {:?} and {:?}, tap {:?}, {} pixels from {}, {} channels from {}, \
                 swizzle {:?}, outside {:?}",
                self.sizes,
                self.filter,
                self.stride,
                self.padding,
                self.padding_after,
                self.tap,
                self.pixels,
                self.first_output,
                self.channels,
                self.first_channel,
                self.swizzle,
                self.out_of_bounds
            ),
            kernel: "unit_tma_im2col",
            grid: 1,
            block: 32,
            shared_bytes: (packed.len().next_multiple_of(1024) + 1024) as u32,
            bits: [packed.len() as u64, offsets],
            flags,
            map: Some(self.map()),
            a: bytes(&source),
            expected: swizzle_all(&packed, self.swizzle),
            ..Default::default()
        }
    }

    fn map(&self) -> MapCase {
        let mut sizes = vec![self.c as u64];
        sizes.extend(self.sizes.iter().map(|s| *s as u64));
        sizes.push(self.n as u64);
        let mut pitches_bytes = Vec::new();
        let mut pitch = 2;
        for size in &sizes[..sizes.len() - 1] {
            pitch *= size;
            pitches_bytes.push(pitch);
        }
        let steps = self.stride.iter().map(|s| *s as u32);
        MapCase {
            dtype: DType::Bf16,
            element_steps: std::iter::once(1).chain(steps).chain([1]).collect(),
            sizes,
            pitches_bytes,
            swizzle: self.swizzle,
            out_of_bounds: self.out_of_bounds,
            kind: MapKind::Im2col {
                lower: self.padding.iter().map(|p| -(*p as i32)).collect(),
                upper: self.padding_after.iter().zip(&self.filter).map(|(p, f)| *p as i32 - *f as i32 + 1).collect(),
                channels_per_pixel: self.channels as u32,
                pixels_per_column: self.pixels as u32,
            },
            is_over_output: false,
        }
    }
}
