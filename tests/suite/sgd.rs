//! SGD: torch.optim.SGD's rule.

use vcycle::device::{Buffer, Device};
use vcycle::ops::sgd::{self, ParamRange, Sgd};

use crate::golden;

fn as_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn golden_sgd() {
    let Some(golden) = golden::open("ops/sgd.json") else { return };
    let (device, stream) = (Device::Cpu, Device::Cpu.stream().unwrap());
    let cases = golden.json.as_array().expect("cases");
    for case in cases {
        let (name, params) = (case["case"].as_str().expect("case"), &case["params"]);
        let number = |key: &str| params[key].as_f64().unwrap_or_else(|| panic!("{name}: {key}")) as f32;
        let (dims, p) = golden::input(&case["inputs"]["p0"]);
        let ranges = [ParamRange { start: 0, len: dims[0], weight_decay: number("weight_decay") }];
        let p = Buffer::from_host(&device, &p).unwrap();
        let momentum = Buffer::from_host(&device, &vec![f32::NAN; dims[0]]).unwrap();
        let g_name = case["inputs"]["g_t"]["fill"].as_str().expect("fill");
        let (stem, _) = g_name.split_once("{t}").expect("a name for every step");
        for (t, lr) in params["lrs"].as_array().expect("lrs").iter().enumerate() {
            let g = golden::fill::f32(&format!("{stem}{t}"), dims[0], 1.0, 0.0);
            let op = Sgd {
                lr: lr.as_f64().expect("lr") as f32,
                momentum: number("momentum"),
                dampening: number("dampening"),
                nesterov: params["nesterov"] == true,
                first_step: t == 0,
            };
            sgd::step(&stream, &op, &ranges, &p, &Buffer::from_host(&device, &g).unwrap(), &momentum).unwrap();
            let outputs = &case["outputs"];
            golden.assert_close(name, &outputs[format!("p{}", t + 1)], &as_f64(&p.read().unwrap()), 1e-5);
            golden.assert_close(name, &outputs[format!("buf{}", t + 1)], &as_f64(&momentum.read().unwrap()), 1e-5);
        }
    }
    golden::passed("sgd", cases.len());
}
