//! `vcycle schedule`.

use serde_json::Value;

fn schedule_command(arguments: &[&str]) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vcycle"));
    command.arg("schedule").args(arguments).output().expect("vcycle")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn schedule_command_prints_every_shipped_config() {
    for path in super::config::shipped_configs() {
        let path = path.to_str().unwrap();
        let output = schedule_command(&["--cfg", path]);
        let stdout = text(&output.stdout);
        assert!(output.status.success(), "{path}: {}", text(&output.stderr));
        for part in ["default shape", "B x T x S", "iterations", "expected saving"] {
            assert!(stdout.contains(part), "{path}: {stdout}");
        }
        assert!(!text(&output.stderr).contains("never trained"), "{path}: {}", text(&output.stderr));
    }
}

#[test]
fn schedule_command_prints_one_json_object_alone() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/kinetics/SLOWFAST_8x8_R50_stepwise_multigrid.yaml");
    let ask = |overrides: &[&str]| -> Value {
        let output = schedule_command(&[&["--cfg", path, "--json"], overrides].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    };
    let object = ask(&["NUM_GPUS", "16"]);
    assert_eq!(object["schedule"][0], serde_json::json!([0, [8, 8, 158], 73]));
    assert_eq!(object["steps"].as_array().unwrap().len(), 14);
    assert_eq!(object["lrs"][0], 8.0);
    assert_eq!(object["max_epoch"], 358);
    let last = serde_json::json!({"first_epoch": 142, "t": 32, "s": 224, "batch": 64,
        "bn": {"type": "sync_batchnorm", "splits": 1}, "short_cycle": [[16, 112], [8, 158], [4, 224]]});
    assert_eq!(object["phases"][3], last);
    let keys: Vec<&String> = object.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["schedule", "steps", "lrs", "max_epoch", "phases"]);

    let short = ask(&["MULTIGRID.LONG_CYCLE", "False"]);
    assert!(short["schedule"].is_null());
    assert_eq!(short["lrs"].as_array().unwrap().len(), 6);
    assert_eq!(ask(&["MULTIGRID.SHORT_CYCLE", "False"])["phases"][0]["short_cycle"], serde_json::json!([[64, 158]]));
}

#[test]
fn schedule_command_draws_and_warns() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/kinetics/SLOWFAST_8x8_R50_stepwise_multigrid.yaml");
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("schedule.svg");
    let short = ["SOLVER.STEPS", "[0, 14, 18]", "SOLVER.MAX_EPOCH", "22", "--clips", "500"];
    let output = schedule_command(&[&["--cfg", path, "--plot", picture.to_str().unwrap()], &short[..]].concat());
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("epoch rounding deletes segment 7"), "{stderr}");
    assert!(stderr.contains("grid 512x8x158 is never trained"), "{stderr}");
    assert!(text(&output.stdout).contains("over 500 clips (--clips)"));
    let svg = std::fs::read_to_string(picture).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("learning rate") && svg.trim_end().ends_with("</svg>"));

    // One line on stderr that says why, nothing on stdout, exit status 1.
    for (arguments, part) in [
        (vec!["--cfg", "no/such.yaml"], "no/such.yaml"),
        (vec!["--cfg", path, "DATA.NUM_FRAMES", "8"], "SLOWFAST.ALPHA"),
        (vec!["--cfg", path, "DATA.NUM_FRAME", "8"], "DATA.NUM_FRAMES"),
        (vec!["--cfg", path, "DATA.NUM_FRAMES"], "no value"),
        (vec!["--cfg", path, "--plot", "/no/such/folder/f.svg"], "/no/such/folder/f.svg"),
    ] {
        let output = schedule_command(&arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty() && stderr.contains(part), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().filter(|line| line.starts_with("vcycle:")).count(), 1, "{stderr}");
    }
}

/// Plans for GPUs that are not there: kernels, launches and memory as a network on such a device has them.
#[test]
fn schedule_command_plans_every_shape() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/moving_shapes_multigrid.yaml");
    let ask = |arguments: &[&str]| {
        let output =
            schedule_command(&[&["--cfg", path, "--plan", "RESNET.WIDTH_PER_GROUP", "16"], arguments].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let plan = |arguments: &[&str]| -> Value {
        let object: Value = serde_json::from_str(&ask(&[arguments, &["--json"]].concat())).expect("one JSON object");
        object["plan"].clone()
    };
    let (h100, a100, cpu) = (plan(&[]), plan(&["--device", "a100"]), plan(&["--device", "cpu"]));
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value}"));
    let names = |plan: &Value| -> Vec<String> {
        let shapes = plan["shapes"].as_array().expect("shapes").clone();
        shapes.iter().flat_map(|s| s["variants"].as_object().expect("variants").keys().cloned()).collect()
    };
    // What a device can do decides: wgmma on the one, not on the other.
    assert!(names(&h100).iter().any(|name| name.contains("wgmma")), "{h100}");
    assert!(names(&a100).iter().all(|name| !name.contains("wgmma")), "{a100}");
    assert!(names(&cpu).contains(&"ConvForward".to_string()), "{cpu}");
    for plan in [&h100, &a100, &cpu] {
        let (shapes, memory) = (plan["shapes"].as_array().expect("shapes"), &plan["memory"]);
        assert_eq!(shapes.last().expect("shapes")["for"], "validate");
        for part in ["arena_bytes", "inputs_bytes", "workspace_bytes"] {
            let largest = shapes.iter().map(|s| number(&s[part])).max();
            assert!(Some(number(&memory[part])) >= largest, "{part}: {plan}");
        }
        let parts = memory.as_object().expect("memory").iter().filter(|(key, _)| *key != "total_bytes");
        assert_eq!(parts.map(|(_, bytes)| number(bytes)).sum::<u64>(), number(&memory["total_bytes"]));
        assert!(
            shapes.iter().all(|s| number(&s["flops"]) > 0 && number(&s["launches"]) >= number(&s["ops"])),
            "{plan}"
        );
    }
    // What does not fit whole is cut, and what fits in no way is planned whole, with the reason.
    let whole = number(&h100["memory"]["total_bytes"]) as f64;
    let share = |part: f64| (part * whole / number(&h100["device_bytes"]) as f64).to_string();
    let cut = plan(&["VCYCLE.MEMORY_FRACTION", &share(0.97), "MULTIGRID.SHORT_CYCLE", "False"]);
    let counts: Vec<u64> =
        cut["shapes"].as_array().expect("shapes").iter().map(|s| number(&s["micro_batches"])).collect();
    assert!(counts.iter().any(|&count| count > 1) && counts.last() == Some(&1), "{cut}");
    assert!(cut["refused"].is_null() && number(&cut["memory"]["total_bytes"]) as f64 <= 0.97 * whole, "{cut}");
    let refused = plan(&["VCYCLE.MEMORY_FRACTION", &share(0.1)]);
    assert!(refused["refused"].as_str().expect("a reason").contains("VCYCLE.MEMORY_FRACTION"), "{refused}");
    for (arguments, form) in [(&["VCYCLE.PRECISION", "f16"][..], "f16\n"), (&["--device", "cpu"], "f32\n")] {
        assert!(ask(arguments).contains(&format!("activations in {form}")), "{arguments:?}");
    }
    let table = ask(&[]);
    for part in ["Plans for H100 (9.0, 132 SMs): activations in bf16", "allocated once", "conv3d_forward_", "launches"]
    {
        assert!(table.contains(part), "{part}: {table}");
    }
    for (arguments, part) in [(&["--plan", "--device", "v100"][..], "h100"), (&["--device", "cpu"], "--plan")] {
        let output = schedule_command(&[&["--cfg", path], arguments].concat());
        assert!(output.status.code() == Some(1) && text(&output.stderr).contains(part), "{}", text(&output.stderr));
    }
}
