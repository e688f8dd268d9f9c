//! What the loop tells whoever watches, and the plain form: lines.

use std::io::Write;

use super::log::{Epoch, Iteration};

/// A step, with what a watcher wants to know around it.
#[derive(Clone, Debug)]
pub struct StepReport<'a> {
    /// The step.
    pub step: &'a Iteration,
    /// Steps of the whole schedule.
    pub total_iterations: u64,
    /// Epochs of the whole schedule.
    pub total_epochs: u64,
    /// Seconds that the rest of the schedule will take.
    pub eta_s: Option<f64>,
    /// Hits so far in this epoch, in percent.
    pub train_top1: Option<f64>,
    /// Latest accuracy at the default shape, in percent.
    pub val_top1: Option<f64>,
}

/// Watches a run.
pub trait Progress {
    /// Something worth a line: what was chosen, a skipped step, a new shape.
    fn message(&mut self, text: &str);
    /// A step was done.
    fn step(&mut self, report: &StepReport<'_>);
    /// `done` of `total` batches of an evaluation (or of the batches for precise statistics) were done.
    fn evaluating(&mut self, what: &str, done: usize, total: usize) {
        let _ = (what, done, total);
    }
    /// An epoch ended.
    fn epoch(&mut self, epoch: &Epoch, total_epochs: u64);
}

/// Writes lines: every message and epoch, and one step in `period`.
#[derive(Debug)]
pub struct Lines<W> {
    to: W,
    period: u64,
}

impl<W: Write> Lines<W> {
    /// Lines on `to`, one for every `period` steps.
    pub fn new(to: W, period: usize) -> Self {
        Lines { to, period: period.max(1) as u64 }
    }

    fn line(&mut self, text: &str) {
        // A closed pipe must not end a training run.
        let _ = writeln!(self.to, "{text}");
    }
}

impl<W: Write> Progress for Lines<W> {
    fn message(&mut self, text: &str) {
        self.line(text);
    }

    fn step(&mut self, report: &StepReport<'_>) {
        if report.step.iteration.is_multiple_of(self.period) {
            let (iteration, total) = (report.step.iteration, report.total_iterations);
            self.line(&format!("iteration {iteration}/{total}  {}", describe_step(report)));
        }
    }

    fn epoch(&mut self, epoch: &Epoch, total_epochs: u64) {
        self.line(&describe_epoch(epoch, total_epochs));
    }
}

/// Shape, loss, rate, clips a second, data wait, how busy the device was, bytes uploaded, accuracy and time left, as text.
pub fn describe_step(report: &StepReport<'_>) -> String {
    let step = report.step;
    let [clips, frames, crop_px] = step.shape;
    let loss = step.loss.map_or("not finite".into(), |l| format!("{l:.3}"));
    let mut text = format!(
        "epoch {:.2}/{}  {clips}x{frames}x{crop_px}  loss {loss}  lr {:.4}  {:.0} clips/s  data wait {:.0} ms",
        step.epoch,
        report.total_epochs,
        step.lr,
        step.clips_per_s,
        step.data_wait_s * 1e3
    );
    if let Some((busy, bytes)) = step.busy.zip(step.upload_bytes_per_s) {
        text += &format!("  busy {:.0}%  upload {:.1} MB/s", 100.0 * busy, bytes / 1e6);
    }
    let percent = |name: &str, value: Option<f64>| value.map_or(String::new(), |v| format!("  {name} {v:.1}%"));
    text += &percent("top1", report.train_top1);
    text += &percent("val", report.val_top1);
    if let Some(eta_s) = report.eta_s {
        text += &format!("  ETA {}", describe_duration(eta_s));
    }
    text
}

/// An epoch's losses and accuracies, as text.
pub fn describe_epoch(epoch: &Epoch, total_epochs: u64) -> String {
    let number = |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
    let mut text = format!(
        "epoch {}/{total_epochs}  train loss {}  top1 {}%",
        epoch.epoch,
        number(epoch.train_loss, 3),
        number(epoch.train_top1, 1)
    );
    if let Some(map) = epoch.val_map {
        text += &format!("  val loss {}  mAP {map:.2}%", number(epoch.val_loss, 3));
    } else if epoch.val_top1.is_some() {
        text += &format!("  val loss {}  top1 {}%", number(epoch.val_loss, 3), number(epoch.val_top1, 2));
    }
    text + &format!("  after {}", describe_duration(epoch.wall_s))
}

/// Seconds as `1:02:03` or `2:03`.
pub fn describe_duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        hours => format!("{hours}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}
