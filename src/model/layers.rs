//! The network as a list of layers with parameters and no shape: weights are shared by all grids.

use super::config::ModelConfig;
use crate::ops::attention::Instantiation;

/// Index of a value that flows between layers.
pub type ValueId = usize;
/// Index in [`Model::params`].
pub type ParamId = usize;
/// Index in [`Model::norms`].
pub type NormId = usize;

/// What a parameter is, which decides its storage order, its initial values and its weight decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ParamKind {
    /// Filter, stored `[c_out][ft][fh][fw][c_in / groups]`; starts normal with std sqrt(2 / (c_out * taps)), or at 0.
    Filter,
    /// Weight of the projection, `[c_out][c_in]`; starts normal with `std`.
    Projection {
        /// Standard deviation of the initial values.
        std: f32,
    },
    /// Bias of the projection, or of a convolution; starts at 0.
    Bias,
    /// Gamma of a batch norm.
    Gamma {
        /// 1, or 0 for the last one of a residual block.
        start: f32,
    },
    /// Beta of a batch norm; starts at 0.
    Beta,
}

impl ParamKind {
    /// Whether BN.WEIGHT_DECAY applies instead of SOLVER.WEIGHT_DECAY.
    pub fn is_norm(self) -> bool {
        matches!(self, ParamKind::Gamma { .. } | ParamKind::Beta)
    }
}

/// A trainable array.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// PySlowFast's name, such as `s2.pathway0_res0.branch2.a.weight`.
    pub name: String,
    /// PySlowFast's shape; filters are `[c_out][c_in / groups][ft][fh][fw]` there.
    pub shape: Vec<usize>,
    /// What it is.
    pub kind: ParamKind,
    /// Whether it starts at 0 whatever its kind says.
    pub starts_at_zero: bool,
    /// First element in the flat arrays of parameters, gradients and momenta.
    pub offset: usize,
    /// Input channels of a filter that are stored a tap: `shape[1]`, or more, where the rest is zero and stays so.
    pub stored_c_in: usize,
}

impl Param {
    /// Number of elements.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of elements in the flat arrays.
    pub fn stored_len(&self) -> usize {
        match self.kind {
            ParamKind::Filter => self.len() / self.shape[1] * self.stored_c_in,
            _ => self.len(),
        }
    }

    /// Values in storage order without gaps as they lie in the flat arrays.
    pub fn with_gaps(&self, values: Vec<f32>) -> Vec<f32> {
        if self.stored_len() == self.len() {
            return values;
        }
        let mut stored = vec![0.0; self.stored_len()];
        for (to, from) in stored.chunks_exact_mut(self.stored_c_in).zip(values.chunks_exact(self.shape[1])) {
            to[..from.len()].copy_from_slice(from);
        }
        stored
    }

    /// The reverse of [`Param::with_gaps`].
    pub fn without_gaps(&self, stored: Vec<f32>) -> Vec<f32> {
        if self.stored_len() == self.len() {
            return stored;
        }
        stored.chunks_exact(self.stored_c_in).flat_map(|tap| &tap[..self.shape[1]]).copied().collect()
    }
}

/// A batch norm: its parameters and the place of its running statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// PySlowFast's name, such as `s1.pathway0_stem.bn`.
    pub name: String,
    /// Channels.
    pub c: usize,
    /// Scale.
    pub gamma: ParamId,
    /// Shift.
    pub beta: ParamId,
    /// First element of the running mean in the flat array of running statistics.
    pub mean_offset: usize,
    /// First element of the running variance.
    pub var_offset: usize,
}

/// One layer's work. Channel counts are those of its values.
#[derive(Clone, Debug, PartialEq)]
pub enum LayerOp {
    /// Convolution.
    Conv {
        /// Its filter.
        filter: ParamId,
        /// Its bias: inside of non-local blocks.
        bias: Option<ParamId>,
        /// Taps (t, h, w).
        kernel: [usize; 3],
        /// Step.
        stride: [usize; 3],
        /// Zeros on both sides.
        padding: [usize; 3],
        /// Distance of two taps.
        dilation: [usize; 3],
        /// Groups of channels.
        groups: usize,
    },
    /// Batch norm of the first input; the second, if there is one, is added (the residual), then ReLU.
    BatchNorm {
        /// Which norm.
        norm: NormId,
        /// Whether a ReLU follows.
        relu: bool,
    },
    /// Max pool.
    MaxPool {
        /// Window.
        kernel: [usize; 3],
        /// Step.
        stride: [usize; 3],
        /// Padding on both sides.
        padding: [usize; 3],
        /// Runs of frames, one after another, that are clips of their own from here on.
        time_groups: usize,
    },
    /// Attention of a non-local block: queries, keys and values.
    Attention {
        /// How scores become weights.
        instantiation: Instantiation,
        /// Runs of frames within which queries see keys. Keys and values may be cut up already, by their pool.
        time_groups: usize,
    },
    /// Mean over all positions of a clip: works at every grid. In evaluation, over windows as large as the maps of `head_grid`.
    GlobalAveragePool,
    /// Channels of the inputs one after another. Costs nothing: the inputs are written where the output lies.
    Concat,
    /// Dropout, in training only.
    Dropout {
        /// Probability of a zero.
        rate: f32,
    },
    /// Projection to the classes.
    Linear {
        /// `[classes][c_in]`.
        weight: ParamId,
        /// `[classes]`.
        bias: ParamId,
    },
}

/// A layer: an op, what it reads and what it makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// PySlowFast's module name, such as `s2.pathway0_res0.branch2.a`.
    pub name: String,
    /// The work.
    pub op: LayerOp,
    /// Values read.
    pub inputs: Vec<ValueId>,
    /// Value made.
    pub output: ValueId,
}

/// A value between layers: what is known of it without a shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Name of the layer or pathway that makes it.
    pub name: String,
    /// Channels.
    pub c: usize,
}

/// A network without shapes: values `0 .. num_pathways` are the inputs, layers come in the order of execution, the last
/// layer makes the logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// What it was built from.
    pub config: ModelConfig,
    /// Values.
    pub values: Vec<Value>,
    /// Layers, in the order of execution.
    pub layers: Vec<Layer>,
    /// Parameters, in PySlowFast's order.
    pub params: Vec<Param>,
    /// Batch norms, in PySlowFast's order.
    pub norms: Vec<Norm>,
    /// Batch norms that take their statistics from their own input, whatever VCYCLE.GRAM_BATCH_NORM says: moments would not give them exactly
    /// enough.
    pub standard_norms: Vec<NormId>,
    /// Elements of the flat parameter array, gaps for alignment included.
    pub params_len: usize,
    /// Elements of the flat array whose parameters are not of a batch norm; those of the batch norms follow.
    pub params_len_without_norms: usize,
    /// Elements of the flat array of running statistics.
    pub running_len: usize,
    /// Stage outputs by PySlowFast's name and pathway, such as `s2.0` and `s2_fuse.0`.
    pub stages: Vec<(String, ValueId)>,
}

/// Every parameter begins at a multiple of this many elements (256 bytes of f32), for vector loads.
const PARAM_ALIGNMENT: usize = 64;

impl Model {
    /// Lets the inputs have `c` stored channels, of which those beyond the model's are zero; so do the filters that read them.
    pub fn store_input_channels(&mut self, c: usize) {
        for pathway in 0..self.num_pathways() {
            self.values[pathway].c = c;
        }
        for layer in &self.layers {
            if let (LayerOp::Conv { filter, .. }, true) = (&layer.op, layer.inputs[0] < self.num_pathways()) {
                self.params[*filter].stored_c_in = c;
            }
        }
        self.lay_out();
    }

    /// Offsets in the flat arrays: parameters with SOLVER.WEIGHT_DECAY first, then those of the batch norms.
    pub(super) fn lay_out(&mut self) {
        let mut next = 0;
        for of_norm in [false, true] {
            for param in self.params.iter_mut().filter(|p| p.kind.is_norm() == of_norm) {
                param.offset = next;
                next += param.stored_len().next_multiple_of(PARAM_ALIGNMENT);
            }
            if !of_norm {
                self.params_len_without_norms = next;
            }
        }
        self.params_len = next;
        let mut next = 0;
        for norm in &mut self.norms {
            let len = norm.c.next_multiple_of(PARAM_ALIGNMENT);
            (norm.mean_offset, norm.var_offset) = (next, next + len);
            next += 2 * len;
        }
        self.running_len = next;
    }

    pub(super) fn keep_standard(&mut self, norm: NormId) {
        if !self.standard_norms.contains(&norm) {
            self.standard_norms.push(norm);
        }
    }

    /// Number of inputs.
    pub fn num_pathways(&self) -> usize {
        self.config.arch.num_pathways()
    }

    /// Number of trainable numbers.
    pub fn param_count(&self) -> usize {
        self.params.iter().map(Param::len).sum()
    }
}
