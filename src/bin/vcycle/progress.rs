//! The progress bar of `vcycle train`; plain lines where stderr is no terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use vcycle::train::log::Epoch;
use vcycle::train::{Lines, Progress, StepReport, describe_epoch, describe_step};

use super::out;

/// A bar on a terminal, otherwise one line for every `period` steps.
pub fn progress(period: usize) -> Box<dyn Progress> {
    match std::io::stderr().is_terminal() {
        true => Box::new(Bar(ProgressBar::no_length())),
        false => Box::new(Lines::new(std::io::stderr(), period)),
    }
}

struct Bar(ProgressBar);

impl Bar {
    fn at(&self, report: &StepReport<'_>) {
        if self.0.length() != Some(report.total_iterations) {
            self.0.set_length(report.total_iterations);
            if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len}  {wide_msg}") {
                self.0.set_style(style);
            }
        }
        self.0.set_position(report.step.iteration);
        self.0.set_message(describe_step(report));
    }
}

impl Progress for Bar {
    fn message(&mut self, text: &str) {
        self.0.suspend(|| out::stderr(text));
    }

    fn step(&mut self, report: &StepReport<'_>) {
        self.at(report);
    }

    fn evaluating(&mut self, what: &str, done: usize, total: usize) {
        self.0.set_message(format!("{what}: batch {done} of {total}"));
    }

    fn epoch(&mut self, epoch: &Epoch, total_epochs: u64) {
        self.0.suspend(|| out::stderr(describe_epoch(epoch, total_epochs)));
    }
}
