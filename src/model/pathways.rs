//! Which frames of a clip each pathway sees.

/// Frames of the slow pathway among `frames` frames: `trunc(linspace(0, frames - 1, frames / alpha))`, in f32 as PySlowFast
/// computes it (slowfast/datasets/utils.py, pack_pathway_output). These are not every `alpha`-th frame.
pub fn slow_pathway_indices(frames: usize, alpha: usize) -> Vec<u32> {
    let count = frames / alpha;
    let end = frames.saturating_sub(1) as f32;
    let step = if count > 1 { end / (count - 1) as f32 } else { 0.0 };
    (0..count)
        .map(|i| {
            // torch.linspace counts from the nearer end.
            let position =
                if i < count / 2 || count == 1 { step * i as f32 } else { end - step * (count - 1 - i) as f32 };
            position as u32
        })
        .collect()
}
