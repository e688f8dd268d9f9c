//! `vcycle info`.

use serde_json::Value;

fn info(arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vcycle"));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/kinetics/SLOWFAST_8x8_R50_stepwise.yaml");
    let output = command.args(["info", "--cfg", path]).args(arguments).output().expect("vcycle");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// PySlowFast's numbers for SlowFast 8x8 (golden has them, and the paper 65.7 G at crop 256). There the head has four windows instead of
/// the one that they are counted for.
#[test]
fn info_counts_as_the_paper_does() {
    let text = info(&["--layers"]);
    for part in [
        "34 566 488 parameters",
        "32 frames and 256 x 256 px: 65.71 G",
        "s5.pathway1_res2.branch2.b",
        "train  64  32  224",
    ] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    let object: Value = serde_json::from_str(&info(&["--json", "--layers"])).expect("one JSON object");
    assert_eq!(number(&object["params"]), 34_566_488);
    assert_eq!(number(&object["macs_of_a_view"]), 65_708_888_064 + 3 * 921_600);
    let layers = object["layers"].as_array().expect("layers");
    let sum = |key: &str| layers.iter().map(|layer| number(&layer[key])).sum::<u64>();
    assert_eq!((sum("params"), sum("macs")), (34_566_488, number(&object["macs_of_a_view"])));
    let stem = serde_json::json!({"name": "s1.pathway0_stem.conv", "kind": "conv 1x7x7 stride 1x2x2",
        "output": [1, 8, 128, 128, 64], "params": 9408, "macs": 9408 * 8 * 128 * 128});
    assert_eq!(layers[0], stem);
    let grids = object["grids"].as_array().expect("grids");
    let purposes: Vec<&str> = grids.iter().filter_map(|grid| grid["for"].as_str()).collect();
    assert_eq!(purposes, ["train", "validate", "test"]);
    assert_eq!(number(&grids[0]["forward_macs"]), 64 * 50_308_583_424);
    for grid in grids {
        let [plain, fused] = ["plain_f32", "fused_bf16"].map(|form| number(&grid[form]["arena_bytes"]));
        assert!(0 < fused && fused < plain, "{grid}");
    }
}
