//! From the lines of a log to the curves and table rows of a report.

use std::collections::BTreeMap;

use crate::chart::{Join, Panel, Series};
use crate::train::log::{Epoch, Iteration, Line};

/// Most points of a curve: enough for a chart, small enough for a file that opens at once.
const MOST_POINTS: usize = 500;

/// The lines that curves are made of.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub iterations: Vec<Iteration>,
    pub epochs: Vec<Epoch>,
    pub skipped: Vec<(u64, Vec<String>)>,
    pub device: Option<String>,
    pub total_iterations: Option<u64>,
}

/// What was spent at one shape.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ShapeRow {
    pub iterations: usize,
    pub clips: usize,
    pub seconds: f64,
    pub data_wait_s: f64,
    /// None where a step's log has none.
    pub busy_s: Option<f64>,
}

impl Record {
    pub fn of(lines: Vec<Line>) -> Record {
        let mut record = Record::default();
        for line in lines {
            match line {
                Line::Run(run) => {
                    record.device = Some(run.device);
                    record.total_iterations = Some(run.total_iterations);
                }
                Line::Iteration(iteration) => record.iterations.push(iteration),
                Line::Epoch(epoch) => record.epochs.push(epoch),
                Line::Skipped { iteration, clips } => record.skipped.push((iteration, clips)),
            }
        }
        record
    }

    /// Rows of (clips, frames, crop, splits), in order of first use.
    pub fn shapes(&self) -> Vec<([usize; 4], ShapeRow)> {
        let mut order: Vec<[usize; 4]> = vec![];
        let mut rows: BTreeMap<[usize; 4], ShapeRow> = BTreeMap::new();
        for step in &self.iterations {
            let [b, t, s] = step.shape;
            let key = [b, t, s, step.splits];
            if !order.contains(&key) {
                order.push(key);
            }
            let row = rows.entry(key).or_insert_with(|| ShapeRow { busy_s: Some(0.0), ..ShapeRow::default() });
            row.iterations += 1;
            row.clips += b;
            row.seconds += seconds(step);
            row.data_wait_s += step.data_wait_s;
            row.busy_s = row.busy_s.zip(step.busy).map(|(sum, busy)| sum + busy * seconds(step));
        }
        order.into_iter().map(|key| (key, rows.remove(&key).unwrap_or_default())).collect()
    }

    /// Charts over the epochs.
    pub fn panels(&self) -> Vec<Panel> {
        let by_epoch = |value: fn(&Epoch) -> Option<f64>| self.epochs_at(|e| e.epoch as f64, value);
        let bucketed = |value: fn(&[Iteration]) -> Option<f64>| self.bucketed(value);
        vec![
            panel(
                "loss",
                vec![
                    series("train", Join::Line, bucketed(mean_loss)),
                    series("validation", Join::Marks, by_epoch(|e| e.val_loss)),
                ],
            ),
            match self.epochs.iter().any(|e| e.val_map.is_some()) {
                true => panel(
                    "mean average precision (%)",
                    vec![series("validation", Join::Marks, by_epoch(|e| e.val_map))],
                ),
                false => panel(
                    "accuracy, top-1 (%)",
                    vec![
                        series("train", Join::Line, by_epoch(|e| e.train_top1)),
                        series("validation", Join::Marks, by_epoch(|e| e.val_top1)),
                    ],
                ),
            },
            panel("learning rate", vec![series("", Join::Line, bucketed(|steps| steps.last().map(|s| s.lr)))]),
            panel("frames of a clip, T", vec![series("", Join::Dots, self.dots(|s| s.shape[1]))]),
            panel("crop, S (px)", vec![series("", Join::Dots, self.dots(|s| s.shape[2]))]),
            Panel {
                log2: true,
                ..panel("clips in a batch, B", vec![series("", Join::Dots, self.dots(|s| s.shape[0]))])
            },
            panel("clips per second", vec![series("", Join::Line, bucketed(clips_per_second))]),
            panel("waiting for data (% of the time)", vec![series("", Join::Line, bucketed(data_wait))]),
        ]
    }

    /// Accuracy over the minutes of the run.
    pub fn panels_over_time(&self) -> Vec<Panel> {
        let over_time = |value: fn(&Epoch) -> Option<f64>| self.epochs_at(|e| e.wall_s / 60.0, value);
        if self.epochs.iter().any(|e| e.val_map.is_some()) {
            let validation = series("validation", Join::Marks, over_time(|e| e.val_map));
            return vec![panel("mean average precision over time (%)", vec![validation])];
        }
        vec![panel(
            "accuracy over time, top-1 (%)",
            vec![
                series("train", Join::Line, over_time(|e| e.train_top1)),
                series("validation", Join::Marks, over_time(|e| e.val_top1)),
            ],
        )]
    }

    fn epochs_at(&self, x: impl Fn(&Epoch) -> f64, value: impl Fn(&Epoch) -> Option<f64>) -> Vec<(f64, f64)> {
        self.epochs.iter().filter_map(|e| Some((x(e), value(e)?))).collect()
    }

    /// One value for each stretch of equally many iterations, at the epoch where the stretch ends.
    fn bucketed(&self, value: impl Fn(&[Iteration]) -> Option<f64>) -> Vec<(f64, f64)> {
        // Whole short cycles, so that the mix of shapes is about the same in every stretch.
        let size = self.iterations.len().div_ceil(MOST_POINTS).next_multiple_of(3);
        let point = |steps: &[Iteration]| Some((steps.last()?.epoch, value(steps)?));
        self.iterations.chunks(size.max(1)).filter_map(point).collect()
    }

    /// The values of each iteration, or of each stretch where there are very many.
    fn dots(&self, value: impl Fn(&Iteration) -> usize) -> Vec<(f64, f64)> {
        let size = self.iterations.len().div_ceil(MOST_POINTS);
        let mut points = vec![];
        for steps in self.iterations.chunks(size.max(1)) {
            let mut values: Vec<usize> = steps.iter().map(&value).collect();
            values.sort_unstable();
            values.dedup();
            points.extend(values.into_iter().map(|v| (steps[0].epoch, v as f64)));
        }
        points
    }
}

fn panel(title: &str, series: Vec<Series>) -> Panel {
    Panel { title: title.into(), series, log2: false }
}

fn series(name: &str, join: Join, points: Vec<(f64, f64)>) -> Series {
    Series { name: name.into(), points, join }
}

/// Seconds of a step, from its rate.
fn seconds(step: &Iteration) -> f64 {
    if step.clips_per_s > 0.0 { step.shape[0] as f64 / step.clips_per_s } else { 0.0 }
}

/// Mean over the clips of the steps that have a loss.
fn mean_loss(steps: &[Iteration]) -> Option<f64> {
    let (sum, clips) = steps.iter().fold((0.0, 0.0), |(sum, clips), step| match step.loss {
        Some(loss) => (sum + loss * step.shape[0] as f64, clips + step.shape[0] as f64),
        None => (sum, clips),
    });
    (clips > 0.0).then(|| sum / clips)
}

fn clips_per_second(steps: &[Iteration]) -> Option<f64> {
    let time: f64 = steps.iter().map(seconds).sum();
    let clips: usize = steps.iter().map(|s| s.shape[0]).sum();
    (time > 0.0).then(|| clips as f64 / time)
}

fn data_wait(steps: &[Iteration]) -> Option<f64> {
    let time: f64 = steps.iter().map(seconds).sum();
    let wait: f64 = steps.iter().map(|s| s.data_wait_s).sum();
    (time > 0.0).then(|| 100.0 * wait / time)
}
