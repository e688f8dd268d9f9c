//! First values of the parameters, as PySlowFast's utils/weight_init_helper.py: filters normal with the standard
//! deviation sqrt(2 / fan_out) (He et al. 2015), the projection normal with MODEL.FC_INIT_STD, gammas 1 or 0, the rest 0.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::layers::{Param, ParamKind};

/// Values of `param` in storage order. The random stream is keyed by the seed and the parameter's name alone, so a layer
/// starts the same whatever else the network holds.
pub fn initial_values(param: &Param, seed: u64) -> Vec<f32> {
    if param.starts_at_zero {
        return vec![0.0; param.len()];
    }
    match param.kind {
        ParamKind::Filter => {
            let fan_out: usize = param.shape[0] * param.shape[2..].iter().product::<usize>();
            normal(param, seed, (2.0 / fan_out as f64).sqrt())
        }
        ParamKind::Projection { std } => normal(param, seed, f64::from(std)),
        ParamKind::Gamma { start } => vec![start; param.len()],
        ParamKind::Beta | ParamKind::Bias => vec![0.0; param.len()],
    }
}

fn normal(param: &Param, seed: u64, std: f64) -> Vec<f32> {
    let mut rng = stream(seed, &param.name);
    let mut values = Vec::with_capacity(param.len() + 1);
    while values.len() < param.len() {
        // Box and Muller: two uniform numbers give two normal ones.
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        let (radius, angle) = ((-2.0 * u.ln()).sqrt() * std, std::f64::consts::TAU * v);
        values.push((radius * angle.cos()) as f32);
        values.push((radius * angle.sin()) as f32);
    }
    values.truncate(param.len());
    values
}

fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    // FNV-1a: the name's place in the key must be the same on every platform and in every version.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&hash.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}
