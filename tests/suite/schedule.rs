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
