//! scripts/gpu_run.sh, with small scripts in the place of the bundle's programs.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const GPU: &str = "echo '  cuda  cuda:0, NVIDIA H100 80GB HBM3 (9.0, 79 GiB, 132 SMs)'";
const NO_GPU: &str = "echo '  cuda  none: there is no CUDA driver'";
/// Passes `device`, fails a test of `sgd`, dies in one of `conv3d`.
const SUITE: &str = r#"
case "$*" in
  *gives_its_meaning*) echo '{}' > "$VCYCLE_CALIBRATION_OUT/unit_mma.jsonl"; echo H100 > "$VCYCLE_CALIBRATION_OUT/device.txt" ;;
  *--exact*) echo "by itself $VCYCLE_SYNC$VCYCLE_PRINT_LAUNCHES" ;;
  *sgd::*) printf 'test sgd::a ... ok\ntest sgd::b ... FAILED\n\ntest result: FAILED. 1 passed\n'; exit 101 ;;
  *conv3d::*) printf 'test conv3d::a ... ok\ntest conv3d::dies ... '; kill -SEGV $$ ;;
  *) printf 'test device::a ... ok\n\ntest result: ok. 1 passed\n' ;;
esac"#;
const BENCH: &str = r#"
printf '%s_forward/case/with_a_long_name\n   time:   [1.2 ms 1.3000 ms 1.4 ms]\n   thrpt:  [1 MiB/s 2 MiB/s 3 MiB/s]\n' "$VCYCLE_BENCH_OP"
[ "$VCYCLE_BENCH_OP" != conv3d ] || exec sleep 30"#;

fn bundle(folder: &Path, devices: &str) -> bool {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gpu_run.sh");
    if !Path::new(script).is_file() {
        eprintln!("SKIPPED: the scripts are not here");
        return false;
    }
    let files = [("vcycle", devices), ("suite", SUITE), ("kernels_bench", BENCH)];
    std::fs::copy(script, folder.join("run.sh")).unwrap();
    for (name, text) in files {
        std::fs::write(folder.join(name), format!("#!/bin/bash\n{text}\n")).unwrap();
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (name, text) in
        [("VERSION", "commit 12ab with \"changes\"\n"), ("ops", "conv3d\nsgd\n"), ("small_tests", "sgd::a\n")]
    {
        std::fs::write(folder.join(name), text).unwrap();
    }
    true
}

fn run(folder: &Path, stages: &[&str], limit_s: u32) -> (Output, Value) {
    let mut command = Command::new("bash");
    command.arg("run.sh").args(stages).current_dir(folder).env("VCYCLE_STAGE_SECONDS", limit_s.to_string());
    let output = command.env("OUT", folder.join("out")).output().unwrap();
    let json = std::fs::read_to_string(folder.join("out/results.json")).unwrap_or("null".into());
    (output, serde_json::from_str(&json).unwrap())
}

/// Stage and outcome of each row of a list.
fn outcomes(results: &Value, list: &str, name: &str) -> Vec<String> {
    let rows = results[list].as_array().unwrap().iter();
    rows.map(|row| format!("{} {}", row[name].as_str().unwrap(), row["outcome"].as_str().unwrap())).collect()
}

#[test]
fn without_a_gpu_each_stage_says_so_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    if !bundle(folder.path(), NO_GPU) {
        return;
    }
    let (output, results) = run(folder.path(), &[], 60);
    assert_eq!(output.status.code(), Some(1));
    let stages = outcomes(&results, "stages", "stage");
    assert!(stages.len() == 9 && stages.iter().all(|stage| stage.ends_with(" NO DEVICE")), "{stages:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.matches(" s: there is no CUDA driver\n").count(), 9, "{said}");
    assert_eq!(run(folder.path(), &["unit", "all"], 60).0.status.code(), Some(2), "there is no stage `all`");
}

#[test]
fn results_of_stages_are_joined_and_late_ones_stopped() {
    let folder = tempfile::tempdir().unwrap();
    if !bundle(folder.path(), GPU) {
        return;
    }
    let (output, _) = run(folder.path(), &["report", "unit", "tests"], 60);
    assert_eq!(output.status.code(), Some(1));
    let (_, results) = run(folder.path(), &["bench", "bench_conv3d"], 1);
    let stages = ["report pass", "unit pass", "tests FAIL", "bench pass", "bench_conv3d STOPPED"];
    assert_eq!(outcomes(&results, "stages", "stage"), stages);
    assert_eq!(outcomes(&results, "tests", "of"), ["device pass", "conv3d FAIL", "sgd FAIL"]);
    assert!(results["tests"][1]["note"].as_str().unwrap().ends_with(", conv3d::dies"), "{results}");
    assert!(results["tests"][2]["note"].as_str().unwrap().ends_with(", sgd::b"), "{results}");
    assert_eq!(results["facts"]["commit"], "12ab with \"changes\"");
    assert_eq!(results["facts"]["device"], "cuda:0, NVIDIA H100 80GB HBM3 (9.0, 79 GiB, 132 SMs)");
    // What a stopped stage has measured is kept.
    let benches = results["benches"].as_array().unwrap();
    let ids: Vec<&str> = benches.iter().map(|bench| bench["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["sgd_forward/case/with_a_long_name", "conv3d_forward/case/with_a_long_name"]);
    assert_eq!(benches[0]["median_ns"], 1.3e6);
    let log = std::fs::read_to_string(folder.path().join("out/log.txt")).unwrap();
    assert_eq!(log.matches("by itself 11\n").count(), 2, "{log}");
    let packed = Command::new("tar").arg("tzf").arg(folder.path().join("out/calibration.tar.gz")).output().unwrap();
    assert!(String::from_utf8(packed.stdout).unwrap().contains("nvidia_h100_80gb_hbm3/unit_mma.jsonl"));
}
