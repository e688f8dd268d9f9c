//! Weights in the shapes of a model: what fits, what is inflated, folded or left out, and what is refused by name.

use vcycle::device::Device;
use vcycle::model::{Arch, Model, ModelConfig, Network};
use vcycle::weights::{self, Format, Options, StateDict, StoredTensor, entries};

use super::names::torchvision_name;
use crate::golden::fill;

fn tiny(arch: Arch, classes: usize) -> ModelConfig {
    ModelConfig { width_per_group: 8, ..ModelConfig::new(arch, 50, classes) }
}

/// A state dict with a value of its own in every place.
fn state_of(model: &Model) -> StateDict {
    let tensors = entries(model).into_iter().map(|(name, shape)| {
        if name.ends_with("num_batches_tracked") {
            return StoredTensor::from_i64(&name, 17);
        }
        StoredTensor::from_f32(&name, &shape, &fill::f32(&name, shape.iter().product(), 0.5, 1.0))
    });
    StateDict { path: "weights.pyth".into(), format: Format::PyTorch, tensors: tensors.collect(), epoch: None }
}

fn find<'a>(state: &'a mut StateDict, name: &str) -> &'a mut StoredTensor {
    state.tensors.iter_mut().find(|t| t.name == name).unwrap()
}

fn refused(model: &Model, state: StateDict, options: &Options) -> String {
    weights::fit(model, state, options).unwrap_err().to_string()
}

#[test]
fn a_network_takes_its_own_state_behind_any_wrapper() {
    let model = Model::new(&tiny(Arch::SlowFast, 5)).unwrap();
    for (prefix, patterns) in [("", vec![]), ("module.", vec![]), ("backbone.", vec!["backbone.".to_string()])] {
        let mut state = state_of(&model);
        state.tensors.iter_mut().for_each(|t| t.name = format!("{prefix}{}", t.name));
        let mut network = Network::new(&Device::Cpu, model.clone(), 0).unwrap();
        let options = Options { clear_name_patterns: patterns, complete: true, ..Options::default() };
        let report = weights::load_into(&mut network, state, &options).unwrap();
        assert_eq!(report.matched.len(), entries(&model).len());
        assert_eq!((report.missing.len(), report.unexpected.len(), report.inflated.len()), (0, 0, 0));
        assert_eq!(report.renaming.notes.len(), usize::from(!prefix.is_empty()), "{report}");
        let expected: Vec<_> = state_of(&model).tensors.iter().map(StoredTensor::to_array).collect();
        assert_eq!(network.state_dict().unwrap(), expected, "{prefix}");
    }
}

#[test]
fn what_is_missing_keeps_its_values_and_is_counted() {
    let model = Model::new(&tiny(Arch::C2d, 5)).unwrap();
    let mut network = Network::new(&Device::Cpu, model.clone(), 3).unwrap();
    let first = network.state_dict().unwrap();
    let mut state = state_of(&model);
    state.tensors.retain(|t| !t.name.starts_with("s5.") && !t.name.ends_with("num_batches_tracked"));
    state.tensors.push(StoredTensor::from_f32("head.extra", &[1], &[1.0]));
    let report = weights::load_into(&mut network, state.clone(), &Options::default()).unwrap();
    assert_eq!(report.unexpected, ["head.extra"]);
    assert!(!report.missing.is_empty() && report.missing.iter().all(|name| name.starts_with("s5.")));
    for (now, before) in network.state_dict().unwrap().iter().zip(&first) {
        let kept = report.missing.contains(&now.name) || now.name.ends_with("num_batches_tracked");
        assert_eq!(now == before, kept, "{}", now.name);
    }
    let text = report.to_string();
    let counts = format!("{} of the model are missing in the file", report.missing.len());
    assert!(text.contains(&counts) && text.contains("1 of the file are unexpected and not used: head.extra"), "{text}");
    let error = refused(&model, state, &Options { complete: true, ..Options::default() });
    assert!(error.contains(&format!("{} tensors are missing: s5.pathway0_res0", report.missing.len())), "{error}");
}

#[test]
fn another_classifier_keeps_its_first_values() {
    let file = Model::new(&tiny(Arch::Slow, 7)).unwrap();
    let model = Model::new(&tiny(Arch::Slow, 5)).unwrap();
    let mut network = Network::new(&Device::Cpu, model.clone(), 3).unwrap();
    let first = network.state_dict().unwrap();
    let report = weights::load_into(&mut network, state_of(&file), &Options::default()).unwrap();
    let names: Vec<&str> = report.other_classes.iter().map(|change| change.name.as_str()).collect();
    assert_eq!(names, ["head.projection.weight", "head.projection.bias"]);
    assert_eq!((report.other_classes[1].from.as_slice(), report.other_classes[1].to.as_slice()), (&[7][..], &[5][..]));
    assert!(report.to_string().contains("2 of the classifier keep their first values"), "{report}");
    let now = network.state_dict().unwrap();
    assert_eq!(now[now.len() - 2..], first[first.len() - 2..]);
    assert_ne!(now[0], first[0]);
    let error = refused(&model, state_of(&file), &Options { complete: true, ..Options::default() });
    assert!(error.contains("head.projection.weight: the model has shape [5, 256], the file [7, 256]"), "{error}");
}

#[test]
fn a_wrong_shape_names_tensor_and_shapes() {
    let model = Model::new(&tiny(Arch::I3d, 5)).unwrap();
    let mut state = state_of(&model);
    find(&mut state, "s2.pathway0_res0.branch1_bn.bias").shape = vec![16, 2];
    let error = refused(&model, state, &Options::default());
    let expected = "weights.pyth: 1 tensors of another shape: \
                    s2.pathway0_res0.branch1_bn.bias: the model has shape [32], the file [16, 2]";
    assert!(error.contains(expected), "{error}");
    let stranger = StateDict { tensors: vec![StoredTensor::from_f32("a", &[1], &[1.0])], ..state_of(&model) };
    let error = refused(&model, stranger, &Options::default());
    assert!(error.contains("no tensor of it belongs to the model; the file has a;"), "{error}");
    let mut twice = state_of(&model);
    twice.tensors[0].name = "x.s1.pathway0_stem.bn.bias".into();
    let error = refused(&model, twice, &Options { clear_name_patterns: vec!["x.".into()], ..Options::default() });
    assert!(error.contains("s1.pathway0_stem.bn.bias is there twice"), "{error}");
}

/// The state of `model` as a 2D ResNet of torchvision has it.
fn torchvision_state(model: &Model) -> StateDict {
    let mut state = state_of(model);
    for tensor in &mut state.tensors {
        tensor.name = torchvision_name(&tensor.name);
        if let &[c_out, c_in, _, h, w] = tensor.shape.as_slice() {
            let values = fill::f32(&tensor.name, c_out * c_in * h * w, 0.5, 0.0);
            *tensor = StoredTensor::from_f32(&tensor.name, &[c_out, c_in, h, w], &values);
        }
    }
    state
}

#[test]
fn an_image_network_is_inflated() {
    let model = Model::new(&tiny(Arch::I3d, 5)).unwrap();
    let state = torchvision_state(&model);
    let options = Options { inflate: true, complete: true, ..Options::default() };
    let (tensors, report) = weights::fit(&model, state.clone(), &options).unwrap();
    assert_eq!(report.matched.len(), entries(&model).len());
    assert_eq!(report.inflated.len(), 53);
    assert_eq!(report.renaming.notes, [format!("{} names of torchvision's ResNet translated", tensors.len())]);
    for (tensor, (name, shape)) in tensors.iter().zip(entries(&model)) {
        assert_eq!((&tensor.name, &tensor.shape), (&name, &shape));
        let &[_, _, ft, h, w] = shape.as_slice() else { continue };
        let flat = state.tensors.iter().find(|t| t.name == torchvision_name(&name)).unwrap().to_f32();
        for (i, value) in tensor.to_f32().into_iter().enumerate() {
            let (filter, tap) = (i / (ft * h * w), i % (h * w));
            assert_eq!(value, flat[filter * h * w + tap] / ft as f32, "{name} {i}");
        }
    }
    let error = refused(&model, state.clone(), &Options::default());
    let expected = "53 tensors of another shape: \
                    s1.pathway0_stem.conv.weight: the model has shape [8, 3, 5, 7, 7], the file [8, 3, 7, 7]; 2D filters";
    assert!(error.contains(expected) && error.contains("TRAIN.CHECKPOINT_INFLATE True"), "{error}");
    let two_pathways = Model::new(&tiny(Arch::SlowFast, 5)).unwrap();
    let error = refused(&two_pathways, state, &options);
    assert!(error.contains("torchvision's ResNet in a network of two pathways"), "{error}");
}

#[test]
fn blobs_of_caffe2_are_named_and_get_their_axes() {
    let model = Model::new(&tiny(Arch::C2d, 5)).unwrap();
    let blob = |name: &str, shape: &[usize]| StoredTensor::from_f32(name, shape, &vec![2.0; shape.iter().product()]);
    let tensors = vec![
        blob("conv1_w", &[8, 3, 1, 7, 7]),
        blob("res2_0_branch1_w", &[32, 8]),
        blob("conv1_w_momentum", &[8, 3, 1, 7, 7]),
        blob("lr", &[1]),
        blob("model_iter", &[1]),
        blob("data", &[1]),
    ];
    let state = StateDict { path: "weights.pkl".into(), format: Format::Caffe2, tensors, epoch: None };
    let (tensors, report) = weights::fit(&model, state, &Options::default()).unwrap();
    assert_eq!(report.matched, ["s1.pathway0_stem.conv.weight", "s2.pathway0_res0.branch1.weight"]);
    assert_eq!((report.reshaped.len(), tensors[1].shape.as_slice()), (1, &[32, 8, 1, 1, 1][..]));
    assert_eq!(report.renaming.left_out, ["conv1_w_momentum", "lr", "model_iter"]);
    assert_eq!(report.unexpected, ["data"]);
}

#[test]
fn sub_batch_norm_is_folded() {
    let model = Model::new(&tiny(Arch::C2d, 5)).unwrap();
    let mut state = state_of(&model);
    let norm = "s1.pathway0_stem.bn";
    let (means, vars) = (fill::f32("means", 24, 1.0, 0.0), fill::f32("vars", 24, 0.5, 1.0));
    for (what, splits) in [("running_mean", &means), ("running_var", &vars)] {
        find(&mut state, &format!("{norm}.{what}")).name = format!("{norm}.bn.{what}");
        state.tensors.push(StoredTensor::from_f32(&format!("{norm}.split_bn.{what}"), &[24], splits));
    }
    find(&mut state, &format!("{norm}.num_batches_tracked")).name = format!("{norm}.bn.num_batches_tracked");
    state.tensors.push(StoredTensor::from_i64(&format!("{norm}.split_bn.num_batches_tracked"), 17));
    // PySlowFast's older checkpoints have gamma with four axes.
    find(&mut state, &format!("{norm}.weight")).shape = vec![8, 1, 1, 1];
    let options = Options { complete: true, ..Options::default() };
    let (tensors, report) = weights::fit(&model, state, &options).unwrap();
    assert_eq!(report.unexpected, Vec::<String>::new());
    assert_eq!(report.renaming.notes.len(), 2, "{report}");
    let values = |what: &str| tensors.iter().find(|t| t.name == format!("{norm}.{what}")).unwrap().to_f32();
    for c in 0..8 {
        let of_splits = |values: &[f32]| [0, 1, 2].map(|split| f64::from(values[split * 8 + c]));
        let (m, v) = (of_splits(&means), of_splits(&vars));
        let mean = m.iter().sum::<f64>() / 3.0;
        let var = v.iter().sum::<f64>() / 3.0 + m.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 3.0;
        assert!((f64::from(values("running_mean")[c]) - mean).abs() < 1e-6);
        assert!((f64::from(values("running_var")[c]) - var).abs() < 1e-6);
    }
}
