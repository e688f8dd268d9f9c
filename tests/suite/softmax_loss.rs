//! Softmax cross-entropy.

use vcycle::device::{Buffer, DType, Device, Tensor};
use vcycle::ops::softmax_loss;
use vcycle::shape::ActivationShape;

use crate::golden;

fn as_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn golden_loss() {
    let Some(golden) = golden::open("ops/loss.json") else { return };
    let (device, stream) = (Device::Cpu, Device::Cpu.stream().unwrap());
    let mut compared = 0;
    for case in golden.json.as_array().expect("cases") {
        let name = case["case"].as_str().expect("case");
        match case["params"]["kind"].as_str().expect("kind") {
            "cross_entropy" => {}
            "bce_with_logits" => {
                eprintln!("SKIPPED: {name}: binary cross-entropy is not there yet");
                continue;
            }
            other => panic!("{name}: loss {other:?}"),
        }
        let (dims, logits) = golden::input(&case["inputs"]["logits"]);
        let labels = golden::dims(&case["inputs"]["labels"]["values"]);
        let labels: Vec<u32> = labels.iter().map(|&l| l as u32).collect();
        let shape = ActivationShape::new(dims[0], 1, 1, 1, dims[1]);
        let logits = Tensor::from_host(&device, shape, &logits).unwrap();
        let labels = Buffer::from_host(&device, &labels).unwrap();
        let loss = Buffer::from_host(&device, &vec![0f32; shape.n]).unwrap();
        let grad = Tensor::zeroed(&device, DType::F32, shape).unwrap();
        softmax_loss::cross_entropy(&stream, &logits, &labels, 1.0 / shape.n as f32, &loss, &grad).unwrap();
        let mean = as_f64(&loss.read().unwrap()).iter().sum::<f64>() / shape.n as f64;
        golden.assert_close(name, &case["outputs"]["loss"], &[mean], 1e-5);
        golden.assert_close(name, &case["outputs"]["dlogits"], &as_f64(&grad.read().unwrap()), 1e-5);
        softmax_loss::softmax(&stream, &logits, &grad).unwrap();
        golden.assert_close(name, &case["outputs"]["softmax"], &as_f64(&grad.read().unwrap()), 1e-5);
        compared += 1;
    }
    golden::passed("loss", compared);
}
