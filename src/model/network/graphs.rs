//! A training step's launches as one graph for each shape. They have the same arguments in every step of a shape (`block.rs`
//! says how), so they are captured once.

use super::Network;
use crate::device::Graph;
use crate::error::Result;
use crate::model::plan::Mode;
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

impl Network {
    /// Queues the launches of the prepared step number `step`: the first time of a shape one by one, from the second on as the
    /// graph that is captured then.
    pub(super) fn launch_step(&mut self, step: usize) -> Result<()> {
        // What waits after each op, or writes between them, cannot be captured.
        let is_watched = self.profile.is_some() || self.is_poisoned;
        if !self.uses_graphs || is_watched || !Graph::is_used_on(self.device()) {
            return self.queue_step(step);
        }
        // Targets shared among classes take another kernel.
        let kind = usize::from(self.is_soft);
        let mut graph = match std::mem::take(&mut self.steps[step].graphs[kind]) {
            Repeated::Never => {
                self.queue_step(step)?;
                self.steps[step].graphs[kind] = Repeated::Once;
                return Ok(());
            }
            Repeated::Once => {
                let stream = self.stream.clone();
                let graph = Graph::capture(&stream, || self.queue_step(step))?;
                self.captured = Some((self.steps[step].plan.shape, graph.num_launches()));
                graph
            }
            Repeated::Captured(graph) => graph,
        };
        let launched = graph.launch(&self.stream);
        self.steps[step].graphs[kind] = Repeated::Captured(graph);
        launched
    }

    /// Forgets the graphs: their launches have arguments that are no longer true.
    pub(super) fn drop_graphs(&mut self) {
        self.steps.iter_mut().for_each(|step| step.graphs = Default::default());
    }

    /// The shape whose step was captured since the last call, and how many launches its graph has.
    pub fn take_captured(&mut self) -> Option<(StepShape, usize)> {
        self.captured.take()
    }

    /// Whether training steps are captured as graphs, where the device has them: they are, unless told otherwise. A step gives the
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
