//! Max and average pooling.

use vcycle::device::{Buffer, DType, Device, Tensor};
use vcycle::ops::pool3d::{self, Pool3d, PoolKind};
use vcycle::shape::ActivationShape;

use crate::golden;

fn triple(value: &serde_json::Value) -> [usize; 3] {
    golden::dims(value).try_into().expect("three sizes")
}

#[test]
fn golden_pool() {
    let Some(golden) = golden::open("ops/pool.json") else { return };
    let cases = golden.json.as_array().expect("cases");
    let (device, stream) = (Device::Cpu, Device::Cpu.stream().unwrap());
    for case in cases {
        let (name, params) = (case["case"].as_str().expect("case"), &case["params"]);
        let (dims, mut values) = golden::input(&case["inputs"]["x"]);
        if case["inputs"]["x"]["then_relu"] == true {
            values.iter_mut().for_each(|v| *v = v.max(0.0));
        }
        let input = ActivationShape::new(dims[0], dims[2], dims[3], dims[4], dims[1]);
        let sizes = |kind| Pool3d {
            kind,
            input,
            kernel: triple(&params["kernel"]),
            stride: triple(&params["stride"]),
            padding: triple(&params["padding"]),
        };
        let op = match params["kind"].as_str().expect("kind") {
            "max" => sizes(PoolKind::Max),
            "avg" => sizes(PoolKind::Average),
            "adaptive_avg_1x1x1" => Pool3d::global_average(input),
            other => panic!("{name}: pooling {other:?}"),
        };
        let (dy_dims, dy) = golden::input(&case["inputs"]["dy"]);
        let x = Tensor::from_host(&device, input, &golden::channels_last(&dims, &values)).unwrap();
        let dy = Tensor::from_host(&device, op.output(), &golden::channels_last(&dy_dims, &dy)).unwrap();
        let y = Tensor::zeroed(&device, DType::F32, op.output()).unwrap();
        let dx = Tensor::zeroed(&device, DType::F32, input).unwrap();
        let len = op.output().num_elements();
        let indices = Buffer::zeroed(&device, 4 * len).unwrap().slice::<u32>(0, len).unwrap();
        pool3d::forward(&stream, &op, &x, &y, Some(&indices)).unwrap();
        pool3d::grad_input(&stream, &op, &dy, Some(&indices), &dx, false).unwrap();
        for (key, dims, tensor) in [("y", &dy_dims, &y), ("dx", &dims, &dx)] {
            let got = golden::channels_first(dims, &tensor.read::<f32>().unwrap());
            golden.assert_close(name, &case["outputs"][key], &got, 1e-5);
        }
    }
    golden::passed("pool", cases.len());
}
