//! The `json_stats:` lines of training and validation, as PySlowFast's TrainMeter and ValMeter write them
//! (`slowfast/utils/meters.py`).

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::Evaluation;
use crate::checkpoint::State;
use crate::error::Result;
use crate::json_stats::{self, Stat};

/// Writes them below the folder of the run.
#[derive(Debug)]
pub(super) struct Stats {
    folder: PathBuf,
    max_epoch: usize,
    /// LOG_PERIOD.
    period: usize,
    /// Loss, top-1 and top-5 error of the last steps, for medians.
    window: VecDeque<[Option<f64>; 3]>,
}

/// A training step that was not skipped.
pub(super) struct Step {
    /// Its number in its epoch, from 1, and their count.
    pub iteration: [u64; 2],
    pub clips: usize,
    pub loss: f64,
    pub hits: Option<[usize; 2]>,
    pub grad_norm: Option<f64>,
    pub lr: f64,
    pub seconds: f64,
    pub data_wait_s: f64,
    pub eta_s: Option<f64>,
}

impl Stats {
    /// For a run of `max_epoch` epochs in `folder` that begins or goes on at `state`.
    pub fn open(folder: &Path, max_epoch: usize, period: usize, state: &State) -> Result<Stats> {
        json_stats::rewind(folder, state.epoch, state.iteration_in_epoch)?;
        Ok(Stats { folder: folder.to_path_buf(), max_epoch, period, window: VecDeque::new() })
    }

    /// Every LOG_PERIOD-th step of an epoch becomes a line: medians over the steps since the last, numbers of this one.
    pub fn step(&mut self, epochs_done: u64, step: &Step) -> Result<()> {
        let error = |k: usize| step.hits.map(|hits| 100.0 * (1.0 - hits[k] as f64 / step.clips.max(1) as f64));
        self.window.push_back([Some(step.loss), error(0), error(1)]);
        if self.window.len() > self.period {
            self.window.pop_front();
        }
        let [iteration, of] = step.iteration;
        if !iteration.is_multiple_of(self.period as u64) {
            return Ok(());
        }
        let mut stats = vec![
            ("_type", Stat::Text("train_iter_".into())),
            ("epoch", self.epoch(epochs_done)),
            ("iter", Stat::Text(format!("{iteration}/{of}"))),
            ("dt", Stat::Number(step.seconds)),
            ("dt_data", Stat::Number(step.data_wait_s)),
            ("dt_net", Stat::Number(step.seconds - step.data_wait_s)),
            ("eta", Stat::Text(time_delta(step.eta_s.unwrap_or(0.0)))),
            ("lr", Stat::Number(step.lr)),
        ];
        stats.extend(step.grad_norm.map(|norm| ("grad_norm", Stat::Number(norm))));
        for (k, key) in ["loss", "top1_err", "top5_err"].into_iter().enumerate() {
            stats.extend(median(self.window.iter().filter_map(|s| s[k]).collect()).map(|m| (key, Stat::Number(m))));
        }
        self.write(&stats)
    }

    /// The end of an epoch: `state` before its sums are cleared.
    pub fn epoch_end(&mut self, state: &State, is_multi_label: bool, evaluation: Option<&Evaluation>) -> Result<()> {
        self.window.clear();
        let clips = state.epoch_clips as f64;
        let mut stats = vec![("_type", Stat::Text("train_epoch".into())), ("epoch", self.epoch(state.epoch))];
        if state.epoch_clips > 0 && !is_multi_label {
            let error = |hits: u64| Stat::Number(100.0 * (1.0 - hits as f64 / clips));
            stats.push(("top1_err", error(state.epoch_hits)));
            stats.push(("top5_err", error(state.epoch_hits_top5)));
        }
        if state.epoch_clips > 0 {
            stats.push(("loss", Stat::Number(state.epoch_loss_sum / clips)));
        }
        self.write(&stats)?;
        let Some(evaluation) = evaluation else { return Ok(()) };
        let mut stats = vec![("_type", Stat::Text("val_epoch".into())), ("epoch", self.epoch(state.epoch))];
        // A share, as there; percent everywhere else.
        stats.extend(evaluation.map.map(|map| ("map", Stat::Number(map / 100.0))));
        for (key, least, now, best) in [
            ("top1_err", "min_top1_err", evaluation.top1, state.best_val_top1),
            ("top5_err", "min_top5_err", evaluation.top5, state.best_val_top5),
        ] {
            let Some(now) = now else { continue };
            stats.push((key, Stat::Number(100.0 - now)));
            stats.push((least, Stat::Number(100.0 - best.map_or(now, |best| best.max(now)))));
        }
        self.write(&stats)
    }

    fn epoch(&self, epochs_done: u64) -> Stat {
        Stat::Text(format!("{}/{}", epochs_done + 1, self.max_epoch))
    }

    fn write(&self, stats: &[(&str, Stat)]) -> Result<()> {
        json_stats::append(&self.folder, &json_stats::line(stats))
    }
}

/// As numpy: the mean of the middle two of an even number.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    (n > 0).then(|| (values[(n - 1) / 2] + values[n / 2]) / 2.0)
}

/// Seconds as Python's timedelta prints them: `1:02:03` or `2 days, 1:02:03`.
fn time_delta(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    let clock = format!("{}:{:02}:{:02}", s / 3600 % 24, s / 60 % 60, s % 60);
    match s / 86400 {
        0 => clock,
        1 => format!("1 day, {clock}"),
        days => format!("{days} days, {clock}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_times() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
        assert_eq!(time_delta(3723.9), "1:02:03");
        assert_eq!(time_delta(86400.0), "1 day, 0:00:00");
        assert_eq!(time_delta(3.0 * 86400.0 + 59.0), "3 days, 0:00:59");
    }

    #[test]
    fn an_epoch_gives_lines_of_the_original_kinds() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = State { epoch: 2, iteration_in_epoch: 0, ..State::default() };
        let mut stats = Stats::open(folder.path(), 9, 2, &state).unwrap();
        for (i, loss) in [3.0, 1.0, 5.0].into_iter().enumerate() {
            let step = Step {
                iteration: [i as u64 + 1, 3],
                clips: 4,
                loss,
                hits: Some([i, 4]),
                grad_norm: Some(0.5),
                lr: 0.1,
                seconds: 2.0,
                data_wait_s: 0.5,
                eta_s: Some(61.0),
            };
            stats.step(state.epoch, &step).unwrap();
        }
        (state.epoch_clips, state.epoch_hits, state.epoch_hits_top5, state.epoch_loss_sum) = (12, 3, 12, 36.0);
        state.best_val_top1 = Some(60.0);
        let evaluation = Evaluation { top1: Some(50.0), top5: Some(100.0), map: None, loss: None, clips: 8 };
        stats.epoch_end(&state, false, Some(&evaluation)).unwrap();
        let text = std::fs::read_to_string(folder.path().join("json_stats.log")).unwrap();
        let expected = [
            "{\"_type\": \"train_iter_\", \"dt\": 2.00000, \"dt_data\": 0.50000, \"dt_net\": 1.50000, \"epoch\": \"3/9\", \
             \"eta\": \"0:01:01\", \"grad_norm\": 0.50000, \"iter\": \"2/3\", \"loss\": 2.00000, \"lr\": 0.10000, \
             \"top1_err\": 87.50000, \"top5_err\": 0.00000}",
            "{\"_type\": \"train_epoch\", \"epoch\": \"3/9\", \"loss\": 3.00000, \"top1_err\": 75.00000, \"top5_err\": 0.00000}",
            "{\"_type\": \"val_epoch\", \"epoch\": \"3/9\", \"min_top1_err\": 40.00000, \"min_top5_err\": 0.00000, \
             \"top1_err\": 50.00000, \"top5_err\": 0.00000}",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected.map(|line| format!("json_stats: {line}")));
    }
}
