//! `vcycle profile` and what it is made of.

use serde_json::Value;
use vcycle::model::{Arch, Mode, Model, ModelConfig, Network};
use vcycle::profile::{Peaks, StepProfile};
use vcycle::shape::StepShape;

use crate::executors;

fn profile_command(arguments: &[&str]) -> std::process::Output {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/moving_shapes_multigrid.yaml");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vcycle"));
    command.args(["profile", "--cfg", path]).args(arguments).output().expect("vcycle")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Every op once, with the numbers of the plan; sums and sides follow from them.
#[test]
fn every_op_is_timed_on_every_executor() {
    let shape = StepShape::square(2, 4, 32, 2);
    for device in executors::all() {
        let config = ModelConfig { width_per_group: 8, ..ModelConfig::new(Arch::Slow, 18, 4) };
        let mut network = Network::new(&device, Model::new(&config).expect("model"), 1).expect("network");
        network.prepare(&[shape], &[shape]).expect("prepare");
        for mode in [Mode::Train, Mode::Eval] {
            let step = StepProfile::measure(&mut network, mode, shape, 1).expect("profile");
            let plan = network.plan(mode, shape).expect("plan");
            let updates = usize::from(mode == Mode::Train);
            assert_eq!(step.ops.len(), plan.ops().count() + updates);
            let sum = |of: &dyn Fn(&vcycle::profile::OpProfile) -> u64| {
                step.ops.iter().filter(|op| op.kind != "Update").map(of).sum::<u64>()
            };
            assert_eq!((sum(&|op| op.flops), sum(&|op| op.bytes)), (plan.cost().flops, plan.cost().bytes));
            assert!(step.ops.iter().all(|op| op.seconds >= 0.0) && step.seconds() > 0.0, "{step:?}");
            let has_kernels = step.ops.iter().filter(|op| op.kind != "Update").all(|op| !op.kernels.is_empty());
            assert_eq!(has_kernels, device != vcycle::device::Device::Cpu, "{step:?}");
            let peaks = Peaks { flops_per_s: 1e12, bytes_per_s: 1e10, source: "a test".into() };
            assert_eq!((peaks.side(101, 1), peaks.side(99, 1)), ("compute", "memory"));
            assert_eq!(peaks.floor_s(2_000_000_000_000, 1), 2.0);
            let rows = step.kind_rows(&peaks);
            let last = rows.last().expect("rows");
            assert_eq!((last[0].as_str(), last[3].as_str()), ("step", "100.0 %"));
            assert_eq!(step.op_rows(&peaks, 3).len(), 4);
        }
    }
}

#[test]
fn profile_command_prints_a_table_and_writes_json_and_a_picture() {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("of/profile");
    let peaks = ["--peak-tflops", "0.1", "--peak-gbs", "10"];
    let run = |arguments: &[&str]| {
        let all = [&["--device", "cpu", "--repeats", "1", "--out", out.to_str().expect("path")], arguments].concat();
        let output = profile_command(&all);
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let (table, said) = run(&[&["--shape", "2x16x24", "--shape", "2x4x24"], &peaks[..]].concat());
    for part in
        ["ceilings: 0.100 TFLOP/s, 10.0 GB/s (as given", "ConvGradFilter", "train 2x16x24", "train 2x4x24", "memory"]
    {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(
        said.contains("precision: f32") && said.contains("is no shape of the schedule") && said.contains("NVTX"),
        "{said}"
    );
    let written = std::fs::read_to_string(out.join("profile.json")).expect("profile.json");
    let object: Value = serde_json::from_str(&written).expect("JSON");
    let steps = object["steps"].as_array().expect("steps");
    assert_eq!((steps.len(), &object["precision"]), (2, &Value::from("precision: f32")));
    for step in steps {
        let ops = step["ops"].as_array().expect("ops");
        let sum: f64 = ops.iter().map(|op| op["ms"].as_f64().expect("ms")).sum();
        assert!((sum / step["ms"].as_f64().expect("ms") - 1.0).abs() < 1e-6, "{step}");
        assert_eq!(ops.last().expect("ops")["kind"], "Update");
    }
    let svg = std::fs::read_to_string(out.join("profile.svg")).expect("profile.svg");
    assert!(svg.starts_with("<svg") && svg.contains("ConvGradFilter") && svg.contains("2x16x24"), "{svg}");

    // Without ceilings they are measured; --json has stdout for itself.
    let (json, said) = run(&["--shape", "2x4x24", "--eval", "--json"]);
    let object: Value = serde_json::from_str(&json).expect("JSON alone");
    assert!(object["peaks"].as_str().expect("source").starts_with("measured"), "{said}");
    assert!(object["peak_flops_per_s"].as_f64().expect("number") > 1e9 && object["steps"][0]["mode"] == "eval");

    for (arguments, part) in [
        (&["--shape", "8x8"][..], "expected CLIPSxFRAMESxCROP"),
        (&["--repeats", "0"], "--repeats: expected at least 1"),
        (&["--peak-tflops", "-1", "--peak-gbs", "1"], "above 0"),
        (&["--peak-tflops", "1"], "--peak-gbs"),
    ] {
        let output = profile_command(arguments);
        assert!(output.status.code() == Some(1) && text(&output.stderr).contains(part), "{}", text(&output.stderr));
    }
}
