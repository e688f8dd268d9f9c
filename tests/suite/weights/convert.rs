//! `vcycle convert` as a user meets it.

use std::path::Path;
use std::process::Command;

use vcycle::model::{Arch, Model, ModelConfig};
use vcycle::weights::{self, Format, StateDict, StoredTensor, entries};

use super::names::torchvision_name;
use crate::golden::fill;

/// Exit status, stdout and stderr of `vcycle ARGUMENTS` in `folder`.
fn vcycle(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_vcycle")).current_dir(folder).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const YAML: &str = "
MODEL: {ARCH: i3d, MODEL_NAME: ResNet, NUM_CLASSES: 5}
DATA: {INPUT_CHANNEL_NUM: [3]}
RESNET: {WIDTH_PER_GROUP: 8}
NONLOCAL: {POOL: [[[2, 1, 1]], [[2, 1, 1]], [[2, 1, 1]], [[2, 1, 1]]]}
";

#[test]
fn convert_inflates_an_image_network_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("i3d.yaml"), YAML).unwrap();
    let model = Model::new(&ModelConfig { width_per_group: 8, ..ModelConfig::new(Arch::I3d, 50, 5) }).unwrap();
    let tensors = entries(&model).into_iter().map(|(name, shape)| {
        let shape = if let [o, i, _, h, w] = shape[..] { vec![o, i, h, w] } else { shape };
        let name = torchvision_name(&name);
        StoredTensor::from_f32(&name, &shape, &fill::f32(&name, shape.iter().product(), 0.5, 0.0))
    });
    let state = StateDict { path: "".into(), format: Format::PyTorch, tensors: tensors.collect(), epoch: None };
    weights::save(&folder.path().join("resnet50.pth"), &state).unwrap();

    let arguments = ["convert", "resnet50.pth", "--out", "i3d.safetensors", "--cfg", "i3d.yaml"];
    let (status, _, stderr) = vcycle(folder.path(), &arguments);
    assert_eq!(status, Some(1));
    assert!(stderr.contains("tensors of another shape") && stderr.contains("--inflate"), "{stderr}");
    let (status, stdout, stderr) = vcycle(folder.path(), &[&arguments[..], &["--inflate"]].concat());
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    let (count, first) = (entries(&model).len(), "s1.pathway0_stem.conv.weight [8, 3, 7, 7] -> [8, 3, 5, 7, 7]");
    for line in [
        format!("resnet50.pth (PyTorch, zip): {count} tensors fit the model"),
        format!("{count} names of torchvision's ResNet translated"),
        format!("53 inflated: {first}, "),
        "written to i3d.safetensors".into(),
    ] {
        assert!(stdout.contains(&line), "{line}: {stdout}");
    }
    let (status, stdout, _) = vcycle(folder.path(), &["convert", "i3d.safetensors", "--out", "i3d.pyth"]);
    assert_eq!(status, Some(0));
    assert!(
        stdout.contains(&format!("i3d.safetensors (safetensors): {count} tensors\nwritten to i3d.pyth")),
        "{stdout}"
    );
    let (status, _, stderr) = vcycle(folder.path(), &["convert", "i3d.pyth", "--out", "i3d.safetensors"]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains("i3d.safetensors is there already"), "{stderr}");
    let (_, _, stderr) = vcycle(folder.path(), &["convert", "i3d.pyth", "--out", "x.pyth", "--inflate"]);
    assert!(stderr.contains("give its --cfg FILE"), "{stderr}");
}
