//! Puts the tensors of a file into the shapes of a model, or says which one does not fit.

use std::collections::HashMap;

use super::names::rename;
use super::pickle::Outcome;
use super::report::{Change, Report, first_few};
use super::tensor::{Format, StateDict, StoredTensor};
use crate::error::{Error, Result};
use crate::model::layers::ParamKind;
use crate::model::{Model, Network};

/// How tensors may be changed to fit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// 2D filters become 3D ones: repeated over the taps in time and divided by their number (Carreira and Zisserman 2017;
    /// TRAIN.CHECKPOINT_INFLATE). Without it they are refused.
    pub inflate: bool,
    /// Texts of which the first occurrence in each name goes away (TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN).
    pub clear_name_patterns: Vec<String>,
    /// Refuses a file that lacks tensors of the model, or has another number of classes: a test needs all of them.
    pub complete: bool,
}

/// Names and shapes of a model's state dict, in PySlowFast's order.
pub fn entries(model: &Model) -> Vec<(String, Vec<usize>)> {
    let mut entries = vec![];
    let mut norms = model.norms.iter();
    for param in &model.params {
        entries.push((param.name.clone(), param.shape.clone()));
        if param.kind != ParamKind::Beta {
            continue;
        }
        if let Some(norm) = norms.next() {
            entries.push((format!("{}.running_mean", norm.name), vec![norm.c]));
            entries.push((format!("{}.running_var", norm.name), vec![norm.c]));
            entries.push((format!("{}.{TRACKED}", norm.name), vec![]));
        }
    }
    entries
}

/// Counters that older files lack and that change no result.
const TRACKED: &str = "num_batches_tracked";
/// The classifier's layer.
const CLASSIFIER: &str = "head.projection.";

/// The tensors of `model` that `state` has, in the model's order and shapes, and what became of the rest. Names become
/// PySlowFast's; tensors that need no change keep their bits.
///
/// # Errors
/// [`Error::Checkpoint`]: a tensor of another shape (the first few are named, with both shapes), no tensor that the model
/// has, and what [`Options`] refuse. [`Error::Unsupported`]: torchvision's ResNet for a network of two pathways.
pub fn fit(model: &Model, mut state: StateDict, options: &Options) -> Result<(Vec<StoredTensor>, Report)> {
    let path = state.path.clone();
    let refuse = |why: String| Error::Checkpoint(format!("{}: {why}", path.display()));
    let renaming = rename(&mut state, &options.clear_name_patterns)?;
    if renaming.is_torchvision && model.num_pathways() != 1 {
        let what = format!("{}: torchvision's ResNet in a network of two pathways", path.display());
        return Err(Error::unsupported(what, "its filters fit MODEL.ARCH c2d, i3d and slow"));
    }
    let mut fitting = Fitting {
        report: Report {
            path: state.path,
            format: state.format,
            renaming,
            matched: vec![],
            inflated: vec![],
            reshaped: vec![],
            other_classes: vec![],
            missing: vec![],
            unexpected: vec![],
        },
        inflate: options.inflate,
        wrong: vec![],
        tensors: vec![],
    };
    let mut by_name: HashMap<String, StoredTensor> = state.tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
    for (name, shape) in entries(model) {
        match by_name.remove(&name) {
            Some(tensor) => fitting.place(tensor, shape),
            None if name.ends_with(TRACKED) => {}
            None => fitting.report.missing.push(name),
        }
    }
    fitting.report.unexpected = by_name.into_keys().collect();
    fitting.report.unexpected.sort();
    fitting.finish(options.complete).map_err(refuse)
}

/// The model's tensors found so far.
struct Fitting {
    report: Report,
    inflate: bool,
    /// Tensors of another shape, as text.
    wrong: Vec<String>,
    tensors: Vec<StoredTensor>,
}

impl Fitting {
    /// Puts one tensor into the shape `to`.
    fn place(&mut self, mut tensor: StoredTensor, to: Vec<usize>) {
        let (name, from) = (tensor.name.clone(), tensor.shape.clone());
        let change = Change { name: name.clone(), from: from.clone(), to: to.clone() };
        let is_filter = from.len() == 4 && to.len() == 5 && from[..2] == to[..2] && from[2..] == to[3..];
        if from == to {
        } else if is_filter && self.inflate {
            tensor = StoredTensor::from_f32(&name, &to, &inflate(&tensor.to_f32(), from[2] * from[3], to[2]));
            self.report.inflated.push(change);
        } else if self.report.format == Format::Caffe2 && from.len() < to.len() && is_padded(&from, &to) {
            tensor.shape = to;
            self.report.reshaped.push(change);
        } else if name.starts_with(CLASSIFIER) && from.len() == to.len() && from[1..] == to[1..] {
            return self.report.other_classes.push(change);
        } else {
            let hint = match is_filter {
                true => "; 2D filters are inflated with TRAIN.CHECKPOINT_INFLATE True, `convert --inflate`",
                false => "",
            };
            return self.wrong.push(format!("{name}: the model has shape {to:?}, the file {from:?}{hint}"));
        }
        self.report.matched.push(name);
        self.tensors.push(tensor);
    }

    fn finish(self, complete: bool) -> Outcome<(Vec<StoredTensor>, Report)> {
        let report = self.report;
        if !self.wrong.is_empty() {
            let count = self.wrong.len();
            return Err(format!("{count} tensors of another shape: {}", first_few(&self.wrong)));
        }
        if report.matched.is_empty() {
            let (file, model) = (first_few(&report.unexpected), first_few(&report.missing));
            return Err(format!("no tensor of it belongs to the model; the file has {file}; the model has {model}"));
        }
        if complete && let Some(change) = report.other_classes.first() {
            return Err(format!("{}: the model has shape {:?}, the file {:?}", change.name, change.to, change.from));
        }
        if complete && !report.missing.is_empty() {
            return Err(format!("{} tensors are missing: {}", report.missing.len(), first_few(&report.missing)));
        }
        Ok((self.tensors, report))
    }
}

/// Whether `from` followed by ones is `to`: caffe2 keeps 1x1x1 filters as matrices.
fn is_padded(from: &[usize], to: &[usize]) -> bool {
    to.starts_with(from) && to[from.len()..].iter().all(|&size| size == 1)
}

/// `[c_out][c_in][taps]` to `[c_out][c_in][ft][taps]`, each a `1 / ft` of the 2D filter.
fn inflate(values: &[f32], taps: usize, ft: usize) -> Vec<f32> {
    let divisor = ft as f32;
    let repeated = values.chunks(taps.max(1)).flat_map(|filter| std::iter::repeat_n(filter, ft).flatten());
    repeated.map(|v| v / divisor).collect()
}

/// Puts `state` into `network`; what the file does not have keeps its values. Momenta do not change.
///
/// # Errors
/// Those of [`fit`]; then nothing was changed.
pub fn load_into(network: &mut Network, state: StateDict, options: &Options) -> Result<Report> {
    let (tensors, report) = fit(network.model(), state, options)?;
    let mut found: HashMap<String, StoredTensor> = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
    let mut all = network.state_dict()?;
    for array in &mut all {
        if let Some(loaded) = found.remove(&array.name) {
            *array = loaded.to_array();
        }
    }
    network.load_state_dict(&all)?;
    Ok(report)
}
