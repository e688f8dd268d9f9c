//! How well the device is fed: whether steps wait for their clips, and what holds those up.

use std::collections::VecDeque;

use crate::upload::Cost;

/// What is looked at: the latest steps that took so long together, at least so many of them.
const WINDOW_S: f64 = 20.0;
const MIN_STEPS: usize = 20;
/// A larger share of the time spent waiting for clips is worth a word.
const MAX_WAIT_SHARE: f64 = 0.1;

/// A step as the feeding sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Fed {
    /// The whole step.
    pub seconds: f64,
    /// Of these, the device worked on it.
    pub busy_s: f64,
    /// Waiting for the loader.
    pub data_wait_s: f64,
    /// Bringing the clips up.
    pub upload: Cost,
}

/// Watches the latest steps, and warns once.
#[derive(Debug, Default)]
pub(super) struct Feeding {
    window: VecDeque<Fed>,
    has_warned: bool,
}

/// What limits a run that starves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Decode,
    Upload,
    Ring,
}

impl Feeding {
    /// Takes a step into account. Where the latest steps waited too long, says so once, with what to do about it;
    /// `threads` decode.
    pub fn step(&mut self, fed: Fed, threads: usize) -> Option<String> {
        self.window.push_back(fed);
        let total = |window: &VecDeque<Fed>, of: fn(&Fed) -> f64| window.iter().map(of).sum::<f64>();
        while self.window.len() > MIN_STEPS && total(&self.window, |f| f.seconds) - self.window[0].seconds >= WINDOW_S {
            self.window.pop_front();
        }
        let seconds = total(&self.window, |f| f.seconds);
        if self.has_warned || self.window.len() < MIN_STEPS || seconds < WINDOW_S {
            return None;
        }
        let stages = [
            (total(&self.window, |f| f.data_wait_s), Stage::Decode),
            (total(&self.window, |f| f.upload.fill_s), Stage::Upload),
            (total(&self.window, |f| f.upload.ring_wait_s), Stage::Ring),
        ];
        // What the host waits for while the device is at work costs nothing.
        let idle_share = 1.0 - total(&self.window, |f| f.busy_s) / seconds;
        let waited = stages.iter().map(|(waited_s, _)| waited_s).sum::<f64>() / seconds;
        let share = waited.min(idle_share);
        if share <= MAX_WAIT_SHARE {
            return None;
        }
        self.has_warned = true;
        let (_, stage) = stages.into_iter().max_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(format!(
            "warning: the steps of the last {seconds:.0} s waited {:.0} % of it for clips; {}",
            100.0 * share,
            advice(stage, threads)
        ))
    }
}

fn advice(stage: Stage, threads: usize) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match stage {
        Stage::Decode if threads < cores => format!(
            "decoding limits: {threads} threads decode, there are {cores} cores: raise DATA_LOADER.NUM_WORKERS; or decode once: \
             `vcycle pack`, or VCYCLE.CACHE_GIB where the clips fit the memory"
        ),
        Stage::Decode => format!(
            "decoding limits, on all {cores} cores: decode once: `vcycle pack`, or VCYCLE.CACHE_GIB where the clips fit the memory"
        ),
        Stage::Upload => "the host's copies into the ring of the upload limit: make the frames smaller, `vcycle pack` at a short side \
                          no larger than TRAIN_JITTER_SCALES"
            .into(),
        Stage::Ring => "the copies to the device limit: make the frames smaller, `vcycle pack` at a short side no larger than \
                        TRAIN_JITTER_SCALES"
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(data_wait_s: f64, fill_s: f64, ring_wait_s: f64, busy_s: f64) -> Fed {
        Fed { seconds: 1.0, busy_s, data_wait_s, upload: Cost { bytes: 1, ring_wait_s, fill_s } }
    }

    fn warnings(feeding: &mut Feeding, steps: usize, fed: Fed) -> Vec<String> {
        (0..steps).filter_map(|_| feeding.step(fed, 1)).collect()
    }

    #[test]
    fn a_run_that_starves_says_so_once_with_the_stage() {
        let cases = [
            (fed(0.4, 0.1, 0.0, 0.5), "50 % of it for clips; decoding limits"),
            (fed(0.05, 0.3, 0.1, 0.5), "45 % of it for clips; the host's copies into the ring"),
            (fed(0.0, 0.1, 0.3, 0.8), "20 % of it for clips; the copies to the device"),
        ];
        for (starving, expected) in cases {
            let mut feeding = Feeding::default();
            assert!(warnings(&mut feeding, 19, starving).is_empty(), "too early");
            let said = warnings(&mut feeding, 100, starving);
            assert!(said.len() == 1 && said[0].contains(expected), "{said:?}");
        }
    }

    #[test]
    fn a_run_that_is_fed_says_nothing() {
        let mut feeding = Feeding::default();
        // A slow start, then hardly a wait; at last long waits that are hidden behind a device at work.
        assert!(warnings(&mut feeding, 5, fed(0.9, 0.0, 0.0, 0.1)).is_empty());
        feeding.window.clear();
        assert!(warnings(&mut feeding, 50, fed(0.05, 0.04, 0.0, 0.91)).is_empty());
        assert!(warnings(&mut feeding, 50, fed(0.6, 0.2, 0.1, 0.99)).is_empty());
        // The window moves: what comes later is seen.
        assert_eq!(warnings(&mut feeding, 30, fed(0.9, 0.0, 0.0, 0.1)).len(), 1);
        assert!(feeding.window.len() <= 21);
    }
}
