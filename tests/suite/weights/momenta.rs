//! Momenta of PyTorch's SGD under the names of the parameters that PySlowFast's groups number.

use vcycle::model::{Arch, Model, ModelConfig};
use vcycle::weights;

use super::writer::{Pickle, TorchTensor, le_bytes, put, zip_file};

fn tiny() -> Model {
    Model::new(&ModelConfig { width_per_group: 8, ..ModelConfig::new(Arch::C2d, 50, 5) }).unwrap()
}

/// A checkpoint whose optimizer has groups of these parameters, by name, each with a momentum of its place in the model.
fn file(model: &Model, groups: &[Vec<String>], has_momenta: bool) -> Vec<u8> {
    let names: Vec<&String> = groups.iter().flatten().collect();
    let keys: Vec<String> = (0..=names.len()).map(|key| key.to_string()).collect();
    let mut pickle = Pickle::protocol(2);
    pickle.op(b"}(").text("epoch").op(b"K\x04").text("model_state").op(b"}(");
    TorchTensor::whole("x", "0", &[1]).write(&mut pickle, false);
    pickle.op(b"u").text("optimizer_state").op(b"}(").text("state").op(b"}(");
    let mut storages = vec![("0", le_bytes(&[1.0]))];
    for (number, name) in names.iter().enumerate().filter(|_| has_momenta) {
        let place = model.params.iter().position(|p| p.name == **name).unwrap();
        let param = &model.params[place];
        pickle.int(number).op(b"}(");
        TorchTensor::whole("momentum_buffer", &keys[number + 1], &param.shape).write(&mut pickle, false);
        pickle.op(b"u");
        storages.push((&keys[number + 1], le_bytes(&vec![place as f32; param.len()])));
    }
    pickle.op(b"u").text("param_groups").op(b"](");
    let mut number = 0;
    for group in groups {
        pickle.op(b"}(").text("lr").op(b"G").op(0.1f64.to_be_bytes()).text("params").op(b"](");
        for _ in group {
            pickle.int(number);
            number += 1;
        }
        pickle.op(b"eu");
    }
    zip_file(&pickle.op(b"euu").stop(), &storages)
}

#[test]
fn momenta_find_their_parameters_in_every_grouping() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny();
    let pick = |of_group: &dyn Fn(bool, bool) -> bool| {
        let params = model.params.iter().filter(|p| of_group(p.kind.is_norm(), p.shape.len() == 1));
        params.map(|p| p.name.clone()).collect::<Vec<_>>()
    };
    let usual = vec![pick(&|norm, _| norm), pick(&|norm, _| !norm)];
    // SOLVER.ZERO_WD_1D_PARAM, and sub-batch norm, whose gammas PySlowFast does not take for those of a norm.
    let flat_apart = vec![pick(&|norm, _| norm), pick(&|norm, flat| !norm && !flat), pick(&|norm, flat| !norm && flat)];
    let all_in_one = vec![pick(&|_, _| true)];
    for groups in [&usual, &flat_apart, &all_in_one] {
        let path = put(folder.path(), "momenta.pyth", &file(&model, groups, true));
        assert_eq!(weights::load(&path).unwrap().epoch, Some(4));
        let momenta = weights::load_momenta(&path, &model).unwrap().expect("momenta");
        assert!(momenta.has_momentum);
        assert_eq!(momenta.momentum.len(), model.params.len());
        for array in &momenta.momentum {
            let place = model.params.iter().position(|p| p.name == array.name).unwrap();
            assert_eq!(array.shape, model.params[place].shape);
            assert!(array.values.iter().all(|&v| v == place as f32), "{}", array.name);
        }
    }
    let path = put(folder.path(), "fresh.pyth", &file(&model, &usual, false));
    let momenta = weights::load_momenta(&path, &model).unwrap().expect("an optimizer");
    assert!(!momenta.has_momentum && momenta.momentum.len() == model.params.len());
    let path = put(folder.path(), "other.pyth", &file(&model, &usual[..1], true));
    let error = weights::load_momenta(&path, &model).unwrap_err().to_string();
    assert!(error.contains("its optimizer has groups of [106] parameters, as none of this model"), "{error}");
    let state = vcycle::weights::StateDict { tensors: vec![], ..weights::load(&path).unwrap() };
    let plain = folder.path().join("plain.pyth");
    weights::save(&plain, &state).unwrap();
    assert_eq!(weights::load_momenta(&plain, &model).unwrap(), None);
}
