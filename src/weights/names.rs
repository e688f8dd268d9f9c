//! Names of other programs become PySlowFast's, which are this crate's own.
//!
//! | from | told by | example |
//! |---|---|---|
//! | PySlowFast and PyTorch behind a wrapper | every name begins with `module.` | `module.head.projection.weight` |
//! | caffe2 (slowfast/utils/c2_model_loading.py) | the format | `res4_0_branch2a_bn_s`, `nonlocal_conv3_1_theta_w` |
//! | torchvision's ImageNet ResNets | `conv1.weight` and `layer1.0.…` | `layer3.0.downsample.1.running_var` |
//! | PySlowFast's sub-batch norm | `.split_bn.` | `s1.pathway0_stem.bn.split_bn.running_mean` |

use std::collections::HashSet;
use std::fmt::{self, Display, Formatter};

use super::pickle::Outcome;
use super::report::first_few;
use super::tensor::{Format, StateDict, StoredTensor};
use crate::error::{Error, Result};
use crate::model::NamedArray;
use crate::model::network::fold_sub_batch_norm;

/// What was done to the names of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Renaming {
    /// One line a rule that was applied.
    pub notes: Vec<String>,
    /// Tensors of an optimizer and its counters, which are no part of a model.
    pub left_out: Vec<String>,
    /// Whether the file was torchvision's, whose networks have one pathway.
    pub is_torchvision: bool,
}

impl Display for Renaming {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            write!(f, "\n  {note}")?;
        }
        if !self.left_out.is_empty() {
            write!(f, "\n  {} of an optimizer left out: {}", self.left_out.len(), first_few(&self.left_out))?;
        }
        Ok(())
    }
}

/// Gives all tensors PySlowFast's names and folds sub-batch norm; `clear_patterns` are texts of which the first occurrence
/// in each name goes away first (TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN).
///
/// # Errors
/// [`Error::Checkpoint`] when two tensors get the same name, or the splits of a batch norm do not fit its whole.
pub fn rename(state: &mut StateDict, clear_patterns: &[String]) -> Result<Renaming> {
    rename_all(state, clear_patterns).map_err(|why| Error::Checkpoint(format!("{}: {why}", state.path.display())))
}

fn rename_all(state: &mut StateDict, clear_patterns: &[String]) -> Outcome<Renaming> {
    let mut renaming = Renaming::default();
    for pattern in clear_patterns.iter().filter(|pattern| !pattern.is_empty()) {
        let cleared = |name: &str| name.contains(pattern.as_str()).then(|| name.replacen(pattern.as_str(), "", 1));
        let count = rename_each(&mut state.tensors, cleared);
        renaming.notes.push(format!("{pattern:?} cleared from {count} names"));
    }
    if state.tensors.iter().all(|t| t.name.starts_with("module.")) {
        let count = rename_each(&mut state.tensors, |name| name.strip_prefix("module.").map(String::from));
        renaming.notes.push(format!("`module.` taken off {count} names"));
    }
    if state.format == Format::Caffe2 {
        let is_model = |t: &StoredTensor| !is_of_caffe2_solver(&t.name);
        let (model, solver) = std::mem::take(&mut state.tensors).into_iter().partition(is_model);
        state.tensors = model;
        let solver: Vec<StoredTensor> = solver;
        renaming.left_out = solver.into_iter().map(|t| t.name).collect();
        let count = rename_each(&mut state.tensors, from_caffe2);
        renaming.notes.push(format!("{count} names of caffe2 translated"));
    }
    let has = |start: &str| state.tensors.iter().any(|t| t.name.starts_with(start));
    if has("conv1.weight") && has("layer1.0.conv1.weight") {
        let count = rename_each(&mut state.tensors, from_torchvision);
        renaming.notes.push(format!("{count} names of torchvision's ResNet translated"));
        renaming.is_torchvision = true;
    }
    fold(state, &mut renaming)?;
    let mut seen = HashSet::new();
    match state.tensors.iter().find(|t| !seen.insert(t.name.as_str())) {
        Some(twice) => Err(format!("{} is there twice", twice.name)),
        None => Ok(renaming),
    }
}

fn rename_each(tensors: &mut [StoredTensor], new_name: impl Fn(&str) -> Option<String>) -> usize {
    let mut count = 0;
    for tensor in tensors {
        if let Some(name) = new_name(&tensor.name) {
            tensor.name = name;
            count += 1;
        }
    }
    count
}

/// Momenta, the learning rate and the iteration.
fn is_of_caffe2_solver(name: &str) -> bool {
    name.ends_with("_momentum") || name == "lr" || name == "model_iter"
}

/// PySlowFast's name for a blob; `None` where it has none.
///
/// A blob is `[t_]PLACE[_bn]_KIND`: `t_` is the Fast pathway, `w`, `b` are a layer's weight and bias, `s`, `b`, `rm`, `riv`
/// a batch norm's gamma, beta, mean and variance (the model zoo stores the variance itself, whatever the name says).
pub fn from_caffe2(name: &str) -> Option<String> {
    let (place, kind) = name.rsplit_once('_')?;
    let (place, is_norm) = match place.strip_suffix("_bn") {
        Some(place) => (place, true),
        None => (place, false),
    };
    let kind = match (kind, is_norm) {
        ("w", false) | ("s", true) => "weight",
        ("b", _) => "bias",
        ("rm", true) => "running_mean",
        ("riv", true) => "running_var",
        _ => return None,
    };
    let (pathway, in_pathway) = match place.strip_prefix("t_") {
        Some(rest) => (1, rest),
        None => (0, place),
    };
    let module = match (in_pathway, is_norm) {
        ("pred", false) if pathway == 0 => "head.projection".to_string(),
        ("conv1", false) => format!("s1.pathway{pathway}_stem.conv"),
        ("res_conv1", true) => format!("s1.pathway{pathway}_stem.bn"),
        (subsampled, _) if subsampled.ends_with("_subsample") => {
            let stage = fused_stage(subsampled.strip_suffix("_subsample")?).filter(|_| pathway == 1)?;
            format!("s{stage}_fuse.{}", if is_norm { "bn" } else { "conv_f2s" })
        }
        (block, _) if block.starts_with("nonlocal_conv") && pathway == 0 => non_local(block, is_norm)?,
        (block, _) => format!("{}{}", residual(block, pathway)?, if is_norm { "_bn" } else { "" }),
    };
    Some(format!("{module}.{kind}"))
}

/// The stage behind which Fast joins Slow: `pool1` is the stem's, `res4_5_branch2c_bn` the fourth's.
fn fused_stage(place: &str) -> Option<usize> {
    if place == "pool1" {
        return Some(1);
    }
    let (stage, block) = place.strip_prefix("res")?.strip_suffix("_branch2c_bn")?.split_once('_')?;
    block.parse::<usize>().ok()?;
    stage.parse().ok()
}

/// `nonlocal_conv3_1_theta` and, of its batch norm, `nonlocal_conv3_1`.
fn non_local(place: &str, is_norm: bool) -> Option<String> {
    let (stage, rest) = place.strip_prefix("nonlocal_conv")?.split_once('_')?;
    let (block, layer) = match rest.split_once('_') {
        Some((block, layer @ ("theta" | "phi" | "g" | "out"))) if !is_norm => (block, format!("conv_{layer}")),
        None if is_norm => (rest, "bn".to_string()),
        _ => return None,
    };
    let (stage, block): (usize, usize) = (stage.parse().ok()?, block.parse().ok()?);
    Some(format!("s{stage}.pathway0_nonlocal{block}.{layer}"))
}

/// `res4_0_branch1` and `res4_0_branch2a`.
fn residual(place: &str, pathway: usize) -> Option<String> {
    let (stage, rest) = place.strip_prefix("res")?.split_once('_')?;
    let (block, branch) = rest.split_once("_branch")?;
    let (stage, block): (usize, usize) = (stage.parse().ok()?, block.parse().ok()?);
    let branch = match branch {
        "1" => "branch1",
        "2a" => "branch2.a",
        "2b" => "branch2.b",
        "2c" => "branch2.c",
        _ => return None,
    };
    Some(format!("s{stage}.pathway{pathway}_res{block}.{branch}"))
}

/// PySlowFast's name for a tensor of torchvision's ResNet; `None` where it has none.
pub fn from_torchvision(name: &str) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    let module = match module {
        "conv1" => "s1.pathway0_stem.conv".to_string(),
        "bn1" => "s1.pathway0_stem.bn".to_string(),
        "fc" => "head.projection".to_string(),
        _ => {
            let (stage, rest) = module.strip_prefix("layer")?.split_once('.')?;
            let (block, layer) = rest.split_once('.')?;
            let layer = match layer {
                "conv1" => "branch2.a",
                "bn1" => "branch2.a_bn",
                "conv2" => "branch2.b",
                "bn2" => "branch2.b_bn",
                "conv3" => "branch2.c",
                "bn3" => "branch2.c_bn",
                "downsample.0" => "branch1",
                "downsample.1" => "branch1_bn",
                _ => return None,
            };
            // Their stages are counted behind the stem.
            let (stage, block): (usize, usize) = (stage.parse().ok()?, block.parse().ok()?);
            format!("s{}.pathway0_res{block}.{layer}", stage.checked_add(1)?)
        }
    };
    Some(format!("{module}.{kind}"))
}

/// Folds PySlowFast's sub-batch norm into batch norm. The statistics of the splits are those that training kept; those of
/// the whole are only as new as the last validation, so they are formed again.
fn fold(state: &mut StateDict, renaming: &mut Renaming) -> Outcome<()> {
    const OF_NORMS: [&str; 3] = ["running_mean", "running_var", "num_batches_tracked"];
    let is_split = |t: &StoredTensor| {
        let of_norm = OF_NORMS.iter().any(|what| t.name.ends_with(what));
        of_norm
            && (t.name.contains(".split_bn.") || t.name.rsplit_once('.').is_some_and(|(norm, _)| norm.ends_with(".bn")))
    };
    if state.tensors.iter().any(|t| t.name.contains(".split_bn.")) {
        let (statistics, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut state.tensors).into_iter().partition(is_split);
        let statistics: Vec<NamedArray> = statistics.iter().map(StoredTensor::to_array).collect();
        let folded = fold_sub_batch_norm(&statistics, true).map_err(|e| e.to_string())?;
        let count = statistics.len() - folded.len();
        state.tensors = rest;
        state.tensors.extend(folded.iter().map(|array| match array.name.ends_with("num_batches_tracked") {
            true => StoredTensor::from_i64(&array.name, array.values.first().map_or(0, |&v| v as i64)),
            false => StoredTensor::from_f32(&array.name, &array.shape, &array.values),
        }));
        renaming.notes.push(format!("sub-batch norm folded: {count} arrays of splits"));
    }
    let mut flattened = 0;
    for tensor in &mut state.tensors {
        let of_norm = tensor.name.ends_with("bn.weight") || tensor.name.ends_with("bn.bias");
        if let (true, &[channels, 1, 1, 1]) = (of_norm, tensor.shape.as_slice()) {
            tensor.shape = vec![channels];
            flattened += 1;
        }
    }
    if flattened > 0 {
        renaming.notes.push(format!("{flattened} arrays [c, 1, 1, 1] of batch norms made [c]"));
    }
    Ok(())
}
