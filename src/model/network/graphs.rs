//! The launches of a training step, and of an evaluation, as one graph for each shape. They have the same arguments in every step of a shape
//! (`block.rs` says how), so they are captured once.

use std::fmt;

use super::Network;
use crate::device::Graph;
use crate::error::Result;
use crate::model::plan::{Mode, Plan};
use crate::shape::StepShape;

/// How far the launches of a prepared step have come.
#[derive(Debug, Default)]
pub(super) enum Repeated {
    #[default]
    Never,
    /// Once, one by one: the driver has loaded the kernels.
    Once,
    Captured(Graph),
}

/// What is queued of a prepared step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// All of a training step.
    Step,
    /// The forward pass alone: an evaluation, or a training step's for its statistics.
    Forward,
}

/// Launches that were captured, for a word about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Such as "a step".
    pub what: &'static str,
    /// Of the step.
    pub shape: StepShape,
    /// How many.
    pub num_launches: usize,
}

impl fmt::Display for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Captured { what, shape, num_launches } = self;
        write!(f, "graph: {what} at {shape} (clips x frames x crop) has {num_launches} launches")
    }
}

impl Network {
    /// Queues the launches of `work` of the prepared step number `step`: the first time one by one, from the second on as the graph that is
    /// captured then.
    pub(super) fn launch_repeated(&mut self, step: usize, work: Work) -> Result<()> {
        // What waits after each op, or writes between them, cannot be captured.
        let is_watched = self.profile.is_some() || self.is_poisoned;
        if !self.uses_graphs || is_watched || !Graph::is_used_on(self.device()) {
            return self.queue(step, work);
        }
        let kind = match work {
            // Targets shared among classes take another kernel.
            Work::Step => usize::from(self.is_soft),
            // With labels, or without a loss.
            Work::Forward => 2,
        };
        let mut graph = match std::mem::take(&mut self.steps[step].graphs[kind]) {
            Repeated::Never => {
                self.queue(step, work)?;
                self.steps[step].graphs[kind] = Repeated::Once;
                return Ok(());
            }
            Repeated::Once => {
                let stream = self.stream.clone();
                let graph = Graph::capture(&stream, || self.queue(step, work))?;
                let Plan { mode, shape, .. } = self.steps[step].plan;
                let what = match (work, mode) {
                    (Work::Step, _) => "a step",
                    (Work::Forward, Mode::Eval) => "an evaluation",
                    (Work::Forward, Mode::Train) => "a forward pass for batch-norm statistics",
                };
                self.captured = Some(Captured { what, shape, num_launches: graph.num_launches() });
                graph
            }
            Repeated::Captured(graph) => graph,
        };
        let launched = graph.launch(&self.stream);
        self.steps[step].graphs[kind] = Repeated::Captured(graph);
        launched
    }

    fn queue(&mut self, step: usize, work: Work) -> Result<()> {
        match work {
            Work::Step => self.queue_step(step),
            Work::Forward => self.queue_forward(step),
        }
    }

    /// Forgets the graphs: their launches have arguments that are no longer true.
    pub(super) fn drop_graphs(&mut self) {
        self.steps.iter_mut().for_each(|step| step.graphs = Default::default());
    }

    /// What was captured last, since the last call.
    pub fn take_captured(&mut self) -> Option<Captured> {
        self.captured.take()
    }

    /// Whether steps and evaluations are captured as graphs, where the device has them: they are, unless told otherwise. A step gives the
    /// same bits with and without.
    #[doc(hidden)]
    pub fn use_graphs(&mut self, uses_graphs: bool) {
        self.uses_graphs = uses_graphs;
    }

    /// The launches of a training step at a prepared shape, of the kind of targets of the last one. Nothing runs. For tests.
    #[doc(hidden)]
    pub fn capture(&mut self, shape: StepShape) -> Result<Graph> {
        let (step, stream) = (self.step_idx(Mode::Train, shape)?, self.stream.clone());
        Graph::capture(&stream, || self.queue_step(step))
    }
}
