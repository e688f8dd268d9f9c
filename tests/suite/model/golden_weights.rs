//! A file of PyTorch with golden's parameters gives golden's logits.

use vcycle::device::Device;
use vcycle::model::{Mode, Model, NamedArray, Network};
use vcycle::shape::StepShape;
use vcycle::weights::{self, Format, Options};

use super::write_inputs;
use super::{config_of, filled_state, golden_models::assert_near, names_and_shapes, order_of_clips, restore_order};
use crate::golden;
use crate::weights::{torch, writer};

/// Written by PyTorch where there is one, otherwise byte by byte.
#[test]
fn golden_slowfast_from_a_pyth() {
    let Some(golden) = golden::open("models/slowfast_8x8_r50.json") else { return };
    let settings = &golden.json["settings"];
    let state = filled_state(&names_and_shapes(&golden.json["state_dict"]));
    let folder = tempfile::tempdir().unwrap();
    let path = match torch::python() {
        Some(python) => {
            torch::save(&python, folder.path(), &state);
            folder.path().join("new.pyth")
        }
        None => writer::put(folder.path(), "new.pyth", &writer::floats_file(&state)),
    };
    let model = Model::new(&config_of(settings)).unwrap();
    let mut network = Network::new(&Device::Cpu, model, 1).unwrap();
    let file = weights::load(&path).unwrap();
    assert_eq!(file.format, Format::PyTorch);
    let options = Options { complete: true, ..Options::default() };
    let report = weights::load_into(&mut network, file, &options).unwrap();
    assert_eq!((report.matched.len(), report.unexpected.len()), (state.len(), 0));

    let input = golden::input(&settings["input"]);
    let [n, _, t, h, w] = input.0[..] else { panic!("input shape {:?}", input.0) };
    let shape = StepShape { clips: n, frames: t, height_px: h, width_px: w, splits: 1 };
    network.prepare(&[], &[shape]).unwrap();
    let order = order_of_clips(n, 1);
    write_inputs(&network, Mode::Eval, shape, &input.1, &order);
    let output = restore_order(&network.forward_eval(shape).unwrap(), &order);
    let logits = restore_order(&network.eval_logits(shape).unwrap(), &order);
    assert_near(&golden, &golden.json["eval"]["logits"], &logits, 1e-4);
    assert_near(&golden, &golden.json["eval"]["output_after_act"], &output, 1e-4);
    golden::passed("models/slowfast_8x8_r50 from a .pyth", 1);
}

/// PySlowFast's names of sub-batch norm lead to the same network.
#[test]
fn golden_sub_batch_norm_from_a_pyth() {
    let Some(golden) = golden::open("models/slowfast_8x8_r50_subbn2.json") else { return };
    let model = Model::new(&config_of(&golden.json["settings"])).unwrap();
    let zeros = |(name, shape): (String, Vec<usize>)| {
        let values = vec![0.0; shape.iter().product()];
        NamedArray { name, shape, values }
    };
    let state: Vec<NamedArray> = names_and_shapes(&golden.json["state_dict"]).into_iter().map(zeros).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = weights::load(&writer::put(folder.path(), "splits.pyth", &writer::floats_file(&state))).unwrap();
    assert_eq!(file.tensors.len(), state.len());
    let options = Options { complete: true, ..Options::default() };
    let (tensors, report) = weights::fit(&model, file, &options).unwrap();
    let names: Vec<_> = tensors.into_iter().map(|t| (t.name, t.shape)).collect();
    assert_eq!(names, weights::entries(&model));
    assert_eq!(report.unexpected, Vec::<String>::new());
    assert!(report.renaming.notes[0].starts_with("sub-batch norm folded: "), "{report}");
    golden::passed("models/slowfast_8x8_r50_subbn2 from a .pyth", 1);
}
