//! What a training step would do and cost on kernels, without any: `cargo run --example 06_step_plan -- [slowfast|i3d|slow] [B,T,S]
//! [splits]`. Append `all` for a line an op.

use vcycle::device::{DType, Device};
use vcycle::model::{Arch, Lowering, Mode, Model, ModelConfig, Plan};
use vcycle::shape::StepShape;
use vcycle::{Error, Result};

fn main() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let all = args.last().is_some_and(|a| a == "all") && args.pop().is_some();
    let arch = Arch::from_name(args.first().map_or("slowfast", String::as_str))?;
    let numbers: Vec<usize> =
        args.get(1).map_or("8,32,224", String::as_str).split(',').filter_map(|n| n.parse().ok()).collect();
    let &[clips, frames, crop_px] = &numbers[..] else {
        return Err(Error::Config("shape: expected B,T,S such as 8,32,224".into()));
    };
    let splits = args.get(2).and_then(|n| n.parse().ok()).unwrap_or(1);
    let shape = StepShape::square(clips, frames, crop_px, splits);

    let (stream, mut model) = (Device::Cpu.stream()?, Model::new(&ModelConfig::new(arch, 50, 400))?);
    let plain = Plan::with_lowering(&stream, &model, shape, Mode::Train, 3, Lowering::Plain)?;
    model.store_input_channels(4);
    let fused = Plan::with_lowering(&stream, &model, shape, Mode::Train, 4, Lowering::Fused(DType::Bf16))?;
    if all {
        print!("{fused}");
    } else {
        println!("{}", fused.summary());
    }
    for (kind, num_ops, macs) in fused.work_by_kind() {
        let bytes: u64 = fused.ops().filter(|op| op.kind() == kind).map(|op| fused.cost_of(op).bytes).sum();
        println!(
            "{:<18} {num_ops:4} ops {:8.2} GB {:9.1} GFLOP",
            format!("{kind:?}"),
            bytes as f64 / 1e9,
            2e-9 * macs as f64
        );
    }
    println!("{}", plain.summary());
    println!("as frameworks run it, in 16 bits: {:.2} GB moved", plain.framework_bytes() as f64 / 1e9);
    Ok(())
}
