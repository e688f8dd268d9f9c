//! Where a network has non-local blocks (Wang et al. 2018), in PySlowFast's terms.

use super::config::ModelConfig;
use crate::error::{Error, Result};
use crate::ops::attention::{Instantiation, MAX_DEPTH};

/// PySlowFast's section NONLOCAL. Lists hold one entry a stage (s2 to s5), then one a pathway.
#[derive(Clone, Debug, PartialEq)]
pub struct NonLocal {
    /// NONLOCAL.LOCATION: residual blocks that a non-local block follows.
    pub location: [Vec<Vec<usize>>; 4],
    /// NONLOCAL.GROUP: runs of frames that see only themselves.
    pub group: [Vec<usize>; 4],
    /// NONLOCAL.POOL: window (t, h, w) of the max pool of keys and values; all 1 for none.
    pub pool: [Vec<[usize; 3]>; 4],
    /// NONLOCAL.INSTANTIATION.
    pub instantiation: Instantiation,
}

impl NonLocal {
    /// No blocks; pools and groups as PySlowFast has them where a configuration says nothing.
    pub fn none(num_pathways: usize) -> NonLocal {
        NonLocal {
            location: std::array::from_fn(|_| vec![vec![]; num_pathways]),
            group: std::array::from_fn(|_| vec![1; num_pathways]),
            pool: std::array::from_fn(|_| vec![[1, 2, 2]; num_pathways]),
            instantiation: Instantiation::DotProduct,
        }
    }

    /// The instantiation of PySlowFast's name.
    pub fn instantiation_from_name(name: &str) -> Result<Instantiation> {
        match name {
            "softmax" => Ok(Instantiation::Softmax),
            "dot_product" => Ok(Instantiation::DotProduct),
            other => {
                Err(Error::Config(format!("NONLOCAL.INSTANTIATION: expected softmax or dot_product, got {other}")))
            }
        }
    }

    /// Refuses blocks that `config`'s network cannot have, naming the key.
    pub(super) fn check(&self, config: &ModelConfig) -> Result<()> {
        let (blocks, pathways) = (config.blocks()?, config.arch.num_pathways());
        for (stage, &num_blocks) in blocks.iter().enumerate() {
            let name = format!("s{}", stage + 2);
            let refuse = |key: &str, message: String| Err(Error::Config(format!("NONLOCAL.{key}: {message}")));
            let lens = [
                ("LOCATION", self.location[stage].len()),
                ("GROUP", self.group[stage].len()),
                ("POOL", self.pool[stage].len()),
            ];
            if let Some((key, got)) = lens.into_iter().find(|(_, len)| *len != pathways) {
                return refuse(key, format!("expected {pathways} entries (one a pathway) for {name}, got {got}"));
            }
            for (pathway, location) in self.location[stage].iter().enumerate() {
                if location.is_empty() {
                    continue;
                }
                if let Some(block) = location.iter().find(|&&block| block >= num_blocks) {
                    let most = num_blocks - 1;
                    return refuse("LOCATION", format!("{name} has blocks 0 to {most}, got {block}"));
                }
                if !(1..=MAX_SIZE).contains(&self.group[stage][pathway]) {
                    let got = self.group[stage][pathway];
                    return refuse("GROUP", format!("expected 1 to {MAX_SIZE} for {name}, got {got}"));
                }
                let pool = self.pool[stage][pathway];
                if !pool.iter().all(|size| (1..=MAX_SIZE).contains(size)) {
                    return refuse("POOL", format!("expected windows of 1 to {MAX_SIZE} for {name}, got {pool:?}"));
                }
                let c = config.stage_channels(stage, pathway) / 2;
                if !(1..=MAX_DEPTH).contains(&c) {
                    let message = format!("inside of a block of {name} are {c} channels, expected 1 to {MAX_DEPTH}");
                    return refuse("LOCATION", message);
                }
            }
        }
        Ok(())
    }
}

/// Most groups, and frames or pixels of a pool: no clip has more.
const MAX_SIZE: usize = 1 << 14;
