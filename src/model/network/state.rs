//! Parameters, running statistics and momenta by PySlowFast's names and in its layout, in and out.

use std::collections::HashMap;

use super::Network;
use crate::device::Slice;
use crate::error::{Error, Result};
use crate::model::layers::{Param, ParamKind};
use crate::ops::batch_norm::fold_split_statistics;

/// A named array in PySlowFast's shape and order (row-major; filters `[c_out][c_in / groups][ft][fh][fw]`).
#[derive(Clone, Debug, PartialEq)]
pub struct NamedArray {
    /// Such as `s2.pathway0_res0.branch2.a.weight`.
    pub name: String,
    /// Sizes; empty for a single number.
    pub shape: Vec<usize>,
    /// Elements.
    pub values: Vec<f32>,
}

/// What the optimizer remembers between steps.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerState {
    /// Whether a step was made: before it, momenta do not count.
    pub has_momentum: bool,
    /// Momentum of each parameter under the parameter's name.
    pub momentum: Vec<NamedArray>,
    /// With f16 gradients. A network without them takes none.
    pub loss_scale: Option<LossScale>,
}

/// What the loss is multiplied with, and when that grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    /// The factor of the next step.
    pub scale: f32,
    /// Steps taken since it last changed.
    pub good_steps: u32,
}

impl Network {
    /// Parameters and running statistics in PySlowFast's order. `…num_batches_tracked` are exact up to 2^24.
    pub fn state_dict(&self) -> Result<Vec<NamedArray>> {
        Ok(self.snapshot()?.state_dict())
    }

    /// Replaces parameters and running statistics. Every parameter and statistic must be there with its shape, nothing
    /// else may be; `…num_batches_tracked` may be missing. On an error nothing was changed.
    pub fn load_state_dict(&mut self, state: &[NamedArray]) -> Result<()> {
        let mut by_name = index(state)?;
        let mut loads: Vec<(&Slice, Vec<f32>)> = vec![];
        for (param, slice) in self.model.params.iter().zip(&self.arrays.param) {
            loads.push((slice, import(param, take(&mut by_name, &param.name, &param.shape)?)));
        }
        let mut tracked = self.count_batches_tracked()?;
        for (norm, (mean, var)) in self.model.norms.iter().zip(&self.arrays.norm) {
            for (suffix, slice) in [("running_mean", mean), ("running_var", var)] {
                let array = take(&mut by_name, &format!("{}.{suffix}", norm.name), &[norm.c])?;
                loads.push((slice, array.values.clone()));
            }
            if let Some(array) = by_name.remove(format!("{}.num_batches_tracked", norm.name).as_str()) {
                tracked = array.values.first().map_or(tracked, |&v| v as u64);
            }
        }
        refuse_unknown(&by_name)?;
        for (slice, values) in loads {
            slice.write(&values)?;
        }
        while self.take_results()?.is_some() {}
        self.batches_tracked = tracked;
        self.values_changed()?;
        Ok(())
    }

    /// Gradients of the last step under the parameters' names.
    pub fn gradients(&self) -> Result<Vec<NamedArray>> {
        self.model.params.iter().zip(&self.arrays.grad).map(|(p, slice)| Ok(export(p, &slice.read()?))).collect()
    }

    /// Momenta and loss scale, for a checkpoint.
    ///
    /// # Errors
    /// A network that is prepared for evaluation only.
    pub fn optimizer_state(&self) -> Result<OptimizerState> {
        self.check_trains()?;
        Ok(self.snapshot()?.optimizer_state())
    }

    /// Replaces the momenta, and the loss scale where there is one. On an error nothing was changed.
    pub fn load_optimizer_state(&mut self, state: &OptimizerState) -> Result<()> {
        self.check_trains()?;
        let mut by_name = index(&state.momentum)?;
        let mut flat = vec![0f32; self.model.params_len];
        for param in &self.model.params {
            let values = import(param, take(&mut by_name, &param.name, &param.shape)?);
            flat[param.offset..param.offset + values.len()].copy_from_slice(&values);
        }
        refuse_unknown(&by_name)?;
        self.arrays.momentum.write(&flat)?;
        self.reset_update_state(state.has_momentum, state.loss_scale)
    }

    fn check_trains(&self) -> Result<()> {
        if self.arrays.momentum.is_empty() {
            return Err(Error::unsupported("optimizer state", "prepare the network with a training shape first"));
        }
        Ok(())
    }
}

fn index(state: &[NamedArray]) -> Result<HashMap<&str, &NamedArray>> {
    let mut by_name = HashMap::with_capacity(state.len());
    for array in state {
        if array.values.len() != array.shape.iter().product::<usize>() {
            let NamedArray { name, shape, values } = array;
            return Err(Error::Checkpoint(format!("{name}: shape {shape:?} does not hold {} values", values.len())));
        }
        if by_name.insert(array.name.as_str(), array).is_some() {
            return Err(Error::Checkpoint(format!("{} is there twice", array.name)));
        }
    }
    Ok(by_name)
}

fn take<'a>(by_name: &mut HashMap<&str, &'a NamedArray>, name: &str, shape: &[usize]) -> Result<&'a NamedArray> {
    let array = by_name
        .remove(name)
        .ok_or_else(|| Error::Checkpoint(format!("{name} is missing: the checkpoint belongs to another model")))?;
    if array.shape != shape {
        let got = &array.shape;
        return Err(Error::Checkpoint(format!("{name}: the model has shape {shape:?}, the checkpoint {got:?}")));
    }
    Ok(array)
}

fn refuse_unknown(rest: &HashMap<&str, &NamedArray>) -> Result<()> {
    match rest.keys().min() {
        None => Ok(()),
        Some(name) => Err(Error::Checkpoint(format!(
            "{} arrays that the model does not have, such as {name}: the checkpoint belongs to another model",
            rest.len()
        ))),
    }
}

/// From storage order to PySlowFast's.
pub(super) fn export(param: &Param, stored: &[f32]) -> NamedArray {
    let stored = param.without_gaps(stored.to_vec());
    let (name, shape) = (param.name.clone(), param.shape.clone());
    let values = match taps_and_channels(param) {
        Some((taps, c_in)) => transpose(&stored, taps, c_in),
        None => stored,
    };
    NamedArray { name, shape, values }
}

/// From PySlowFast's order to storage order.
fn import(param: &Param, array: &NamedArray) -> Vec<f32> {
    param.with_gaps(match taps_and_channels(param) {
        Some((taps, c_in)) => transpose(&array.values, c_in, taps),
        None => array.values.clone(),
    })
}

fn taps_and_channels(param: &Param) -> Option<(usize, usize)> {
    (param.kind == ParamKind::Filter).then(|| (param.shape[2..].iter().product(), param.shape[1]))
}

/// Every `rows x columns` matrix of `values` to `columns x rows`.
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for matrix in values.chunks_exact(rows * columns) {
        for column in 0..columns {
            out.extend((0..rows).map(|row| matrix[row * columns + column]));
        }
    }
    out
}

/// Names of PySlowFast's sub-batch norm become those of batch norm: `….bn.bn.running_mean` is `….bn.running_mean`, and
/// `….split_bn.*` goes away. Where `aggregate` is set, the statistics of the splits, folded by
/// [`fold_split_statistics`](crate::ops::batch_norm::fold_split_statistics), replace the others first.
///
/// # Errors
/// Statistics of splits whose lengths do not fit those of the whole.
pub fn fold_sub_batch_norm(state: &[NamedArray], aggregate: bool) -> Result<Vec<NamedArray>> {
    let by_name = index(state)?;
    let find = |norm: &str, what: &str| by_name.get(format!("{norm}.split_bn.{what}").as_str()).copied();
    let mut folded = vec![];
    for array in state.iter().filter(|a| !a.name.contains(".split_bn.")) {
        let mut array = array.clone();
        if let Some((norm, what)) = array.name.rsplit_once(".bn.")
            && let Some((means, vars)) = find(norm, "running_mean").zip(find(norm, "running_var"))
            && matches!(what, "running_mean" | "running_var" | "num_batches_tracked")
        {
            if aggregate && what != "num_batches_tracked" {
                let splits = means.values.len() / array.values.len().max(1);
                let (mean, var) = fold_split_statistics(splits, &means.values, &vars.values)?;
                array.values = if what == "running_mean" { mean } else { var };
            }
            array.name = format!("{norm}.{what}");
        }
        folded.push(array);
    }
    Ok(folded)
}
