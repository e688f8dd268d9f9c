//! A 3-D convolution on buffers of our own: moving edges of a clip, on whatever device there is.
//!
//! `cargo run --release --example 07_conv3d_user_buffers`

use half::bf16;
use vcycle::device::{Buffer, DType, Device, Tensor};
use vcycle::ops::TICKET_BYTES;
use vcycle::ops::conv3d::{self, Conv3d, Direction};
use vcycle::shape::ActivationShape;

fn main() -> vcycle::Result<()> {
    // 1. A device, and a queue of work on it. `auto` takes a GPU where there is one; a word on the command line names another.
    let (device, reason) = Device::select(&std::env::args().nth(1).unwrap_or_else(|| "auto".into()))?;
    println!("{reason}");
    let stream = device.stream()?;

    // 2. What is convolved. The filter subtracts the frame before from the frame after, in each of 8 channels.
    let channels = 8;
    let op = Conv3d {
        input: ActivationShape::new(1, 6, 1, 24, channels),
        c_out: channels,
        filter: [3, 1, 1],
        stride: [1; 3],
        padding: [1, 0, 0],
        dilation: [1; 3],
        groups: 1,
        part: None,
    };
    op.check()?;
    let mut filter = vec![0f32; op.filter_len()]; // [c_out][ft][fh][fw][c_in]
    for c in 0..channels {
        filter[(c * 3) * channels + c] = -1.0;
        filter[(c * 3 + 2) * channels + c] = 1.0;
    }

    // 3. Our own buffers: one for input and output together, one for the filter. A bar moves to the right, 3 pixels a frame.
    //    The CPU computes in f32, kernels in bf16 with f32 sums.
    let dtype = if device == Device::Cpu { DType::F32 } else { DType::Bf16 };
    let len = op.input.num_elements(); // padding keeps the output as large
    let both = Buffer::zeroed(&device, 2 * len * dtype.size_bytes())?;
    let input = Tensor::new(both.slice_of(dtype, 0, len)?, op.input, channels)?;
    let output = Tensor::new(both.slice_of(dtype, len * dtype.size_bytes(), len)?, op.output(), channels)?;
    let bar = |i: usize| {
        let (t, x) = (i / channels / 24, i / channels % 24);
        if (3 * t..3 * t + 4).contains(&x) { 1.0 } else { 0.0 }
    };
    let values: Vec<f32> = (0..len).map(bar).collect();
    let to_bf16 = |v: &[f32]| v.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>();
    let filter = match dtype {
        DType::F32 => {
            input.memory().write(&values)?;
            Buffer::from_host(&device, &filter)?
        }
        _ => {
            input.memory().write(&to_bf16(&values))?;
            Buffer::from_host(&device, &to_bf16(&filter))?
        }
    };

    // 4. Scratch memory is asked for and passed in; its first bytes must be zero, and are left zero.
    let bytes = conv3d::workspace_bytes(&stream, &op, Direction::Forward).max(TICKET_BYTES);
    let workspace = Buffer::zeroed(&device, bytes)?.slice::<f32>(0, bytes / 4)?;
    conv3d::forward(&stream, &op, &input, &filter, None, &output, &workspace)?;
    stream.synchronize()?;

    // 5. Where something came (+) and where something went (-).
    let output: Vec<f32> = match dtype {
        DType::F32 => output.read()?,
        _ => output.read::<bf16>()?.into_iter().map(f32::from).collect(),
    };
    for t in 0..6 {
        let value_at = |t: usize, x: usize| if t < 6 { values[(t * 24 + x) * channels] } else { 0.0 };
        let mut row = String::new();
        for x in 0..24 {
            let got = output[(t * 24 + x) * channels];
            let want = value_at(t + 1, x) - value_at(t.wrapping_sub(1), x);
            if got != want {
                return Err(vcycle::Error::Data(format!("frame {t}, column {x}: got {got}, want {want}")));
            }
            row.push(if got > 0.0 {
                '+'
            } else if got < 0.0 {
                '-'
            } else {
                '.'
            });
        }
        println!("frame {t}: {row}");
    }
    Ok(())
}
