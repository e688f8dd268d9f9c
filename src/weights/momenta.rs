//! Momenta of PyTorch's SGD, which knows parameters by number only: PySlowFast's groups say which number is whose.

use super::pickle::{Object, Outcome, Pickle, Value};
use super::pytorch::Named;
use super::tensor::StoredTensor;
use crate::model::layers::Param;
use crate::model::{Model, OptimizerState};

/// The momenta of a pickle's `optimizer_state`, named `GROUP.PLACE`, and the sizes of the groups; nothing where there is none.
pub fn wanted(pickle: &Pickle) -> Outcome<(Named<'_>, Vec<usize>)> {
    let Some(optimizer) = pickle.get(pickle.root, "optimizer_state") else { return Ok((vec![], vec![])) };
    let (state, groups) = (pickle.get(optimizer, "state"), pickle.get(optimizer, "param_groups"));
    let wrong = || "its optimizer_state is not one of PyTorch".to_string();
    let state = pickle.dict(state.ok_or_else(wrong)?).ok_or_else(wrong)?;
    let state: std::collections::HashMap<i64, Value> = state
        .iter()
        .filter_map(|&(key, value)| match key {
            Value::Int(number) => Some((number, value)),
            _ => None,
        })
        .collect();
    let (mut momenta, mut sizes) = (vec![], vec![]);
    for (g, &group) in pickle.list(groups.ok_or_else(wrong)?).ok_or_else(wrong)?.iter().enumerate() {
        let numbers = pickle.get(group, "params").and_then(|params| pickle.list(params)).ok_or_else(wrong)?;
        sizes.push(numbers.len());
        for (place, number) in numbers.iter().enumerate() {
            let Value::Int(number) = number else { return Err(wrong()) };
            let buffer = state.get(number).and_then(|of_param| pickle.get(*of_param, "momentum_buffer"));
            if let Some(Object::Tensor(tensor)) = buffer.and_then(|buffer| pickle.object(buffer)) {
                momenta.push((format!("{g}.{place}"), tensor));
            }
        }
    }
    Ok((momenta, sizes))
}

/// The parameters of each of PySlowFast's groups (slowfast/models/optimizer.py): batch norms; the rest; with
/// SOLVER.ZERO_WD_1D_PARAM its arrays of one axis apart; and all in one where sub-batch norm hides the norms from it.
fn groups<'a>(model: &'a Model, sizes: &[usize]) -> Option<Vec<Vec<&'a Param>>> {
    let pick = |wanted: &dyn Fn(&Param) -> bool| model.params.iter().filter(|p| wanted(p)).collect::<Vec<_>>();
    let norm = |p: &Param| p.kind.is_norm();
    let flat = |p: &Param| p.shape.len() == 1;
    let candidates = [
        vec![pick(&norm), pick(&|p| !norm(p))],
        vec![pick(&norm), pick(&|p| !norm(p) && !flat(p)), pick(&|p| !norm(p) && flat(p))],
        vec![pick(&|_| true)],
        vec![pick(&|p| !flat(p)), pick(&flat)],
    ];
    candidates.into_iter().find(|groups| groups.iter().map(Vec::len).eq(sizes.iter().copied()))
}

/// `tensors`, as [`wanted`] names them, under the names of the parameters.
pub fn named(model: &Model, tensors: &[StoredTensor], sizes: &[usize]) -> Outcome<OptimizerState> {
    let groups = groups(model, sizes)
        .ok_or_else(|| format!("its optimizer has groups of {sizes:?} parameters, as none of this model"))?;
    let mut momentum = vec![];
    for tensor in tensors {
        let (group, place) = tensor.name.split_once('.').unwrap_or_default();
        let of_group = group.parse::<usize>().ok().and_then(|g| groups.get(g));
        let param = of_group.zip(place.parse::<usize>().ok()).and_then(|(group, place)| group.get(place));
        let mut array = tensor.to_array();
        array.name = param.ok_or_else(|| format!("momentum {} belongs to no parameter", tensor.name))?.name.clone();
        momentum.push(array);
    }
    if momentum.is_empty() {
        // Saved before the first step: momenta that do not count, of the right shapes.
        momentum.extend(model.params.iter().map(|p| crate::model::NamedArray {
            name: p.name.clone(),
            shape: p.shape.clone(),
            values: vec![0.0; p.len()],
        }));
        return Ok(OptimizerState { has_momentum: false, momentum, loss_scale: None });
    }
    Ok(OptimizerState { has_momentum: true, momentum, loss_scale: None })
}
