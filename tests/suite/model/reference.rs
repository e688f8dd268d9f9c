//! A step in f64: the ops of a plan, plain or fused, through their references. `store` rounds whatever kernels keep in 16 bits,
//! which gives the yardstick of the tests; the identity gives the meaning.

use vcycle::model::layers::{Model, ParamKind};
use vcycle::model::plan::fused::{FusedOp, Load, LoadGrad, NormGrad, NormStatistics, PlannedMask, Table};
use vcycle::model::plan::{Place, StepOp};
use vcycle::model::{Mode, NamedArray, Plan};
use vcycle::ops::attention::reference as attention;
use vcycle::ops::batch_norm::BatchNorm;
use vcycle::ops::batch_norm::reference as batch_norm;
use vcycle::ops::conv3d::Conv3d;
use vcycle::ops::conv3d::reference::{self as fused, Rounding};
use vcycle::ops::gram::Gram;
use vcycle::ops::gram::reference as gram;
use vcycle::ops::{conv3d, linear, pool3d, softmax_loss};

fn exact(v: f64) -> f64 {
    v
}

/// Parameters and running statistics in storage order, by PySlowFast's name.
pub fn stored(array: &NamedArray) -> Vec<f64> {
    let values: Vec<f64> = array.values.iter().map(|&v| f64::from(v)).collect();
    if array.shape.len() != 5 {
        return values;
    }
    let (c_in, taps) = (array.shape[1], array.shape[2..].iter().product::<usize>());
    let of_output = |filter: &[f64]| (0..taps * c_in).map(|i| filter[i % c_in * taps + i / c_in]).collect::<Vec<_>>();
    values.chunks(c_in * taps).flat_map(of_output).collect()
}

/// NaN for each element of each storage.
fn memory(plan: &Plan) -> Vec<Vec<f64>> {
    let mut storages = vec![vec![]; plan.storages.len()];
    for tensor in &plan.tensors {
        if let Place::Arena { storage, .. } = tensor.place {
            storages[storage] = vec![f64::NAN; plan.storages[storage].len_bytes / tensor.dtype.size_bytes()];
        }
    }
    storages
}

/// `[c_out][c_in]`: the sum of `g x'`.
fn products_of(op: &Conv3d, x: &[f64], g: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0; op.c_out * op.input.c];
    for (x, g) in x.chunks(op.input.c).zip(g.chunks(op.c_out)) {
        for (sums, g) in sums.chunks_mut(op.input.c).zip(g) {
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += g * x);
        }
    }
    sums
}

/// `[splits][c_out][c_in + 1]`: `sum g (x - m)`, then `sum g`.
fn centred(c_in: usize, products: &[f64], grad_sums: &[f64], moments: &[f64]) -> Vec<f64> {
    let (of_split, c_out) = (c_in + c_in * c_in, grad_sums.len() * (c_in + c_in * c_in) / moments.len());
    let row = |(at, (row, sum)): (usize, (&[f64], &f64))| {
        let mean = &moments[at / c_out * of_split..][..c_in];
        row.iter().zip(mean).map(|(p, m)| p - sum * m).chain([*sum]).collect::<Vec<_>>()
    };
    products.chunks(c_in).zip(grad_sums).enumerate().flat_map(row).collect()
}

/// What a step computes.
pub struct Reference<'a> {
    pub plan: &'a Plan,
    pub model: &'a Model,
    store: fn(f64) -> f64,
    params: Vec<Vec<f64>>,
    state: &'a [NamedArray],
    labels: &'a [u32],
    inputs: &'a [Vec<f64>],
    /// Memory of each storage: nothing is shared here.
    storages: Vec<Vec<f64>>,
    indices: Vec<Vec<u32>>,
    norms: Vec<Option<batch_norm::Forward>>,
    /// What makes the gradient of the input behind the table of a norm in Gram form, by its tensor: `A W`, `W' diag(B) W`, `C W` of each split.
    gram_factors: Vec<Vec<[Vec<f64>; 3]>>,
    /// Gradient of each parameter, in storage order.
    pub grads: Vec<Vec<f64>>,
}

impl<'a> Reference<'a> {
    /// A step of `plan` from `state`; inputs are dense.
    pub fn new(
        model: &'a Model,
        plan: &'a Plan,
        state: &'a [NamedArray],
        inputs: &'a [Vec<f64>],
        labels: &'a [u32],
        store: fn(f64) -> f64,
    ) -> Reference<'a> {
        let find = |name: &str| stored(state.iter().find(|a| a.name == name).expect(name));
        // Filters and the projection have a 16-bit copy; what belongs to norms and the bias stays f32.
        let param = |p: &vcycle::model::layers::Param| match p.kind {
            ParamKind::Filter | ParamKind::Projection { .. } => find(&p.name).into_iter().map(store).collect(),
            _ => find(&p.name),
        };
        Reference {
            plan,
            model,
            store,
            params: model.params.iter().map(param).collect(),
            state,
            labels,
            inputs,
            storages: memory(plan),
            indices: vec![vec![]; plan.tensors.len()],
            norms: vec![None; model.norms.len()],
            gram_factors: vec![vec![]; plan.tensors.len()],
            grads: vec![vec![]; model.params.len()],
        }
    }

    /// Adds `factor` times `direction` to a parameter.
    pub fn move_param(&mut self, param: usize, direction: &[f64], factor: f64) {
        self.params[param].iter_mut().zip(direction).for_each(|(p, d)| *p += factor * d);
    }

    /// Runs all ops.
    pub fn run(&mut self) {
        for op in self.plan.ops() {
            self.op(op);
        }
    }

    /// A tensor without gaps.
    pub fn read(&self, tensor: usize) -> Vec<f64> {
        let t = &self.plan.tensors[tensor];
        match t.place {
            Place::Input(pathway) => self.inputs[pathway].clone(),
            Place::Arena { storage, offset_c, pitch_c } => {
                let rows = self.storages[storage].chunks(pitch_c);
                rows.flat_map(|row| &row[offset_c..offset_c + t.shape.c]).copied().collect()
            }
        }
    }

    fn write(&mut self, tensor: usize, values: &[f64], store: fn(f64) -> f64) {
        let t = &self.plan.tensors[tensor];
        assert_eq!(values.len(), t.shape.num_elements(), "{}", t.name);
        let Place::Arena { storage, offset_c, pitch_c } = t.place else { panic!("an input is written") };
        for (row, values) in self.storages[storage].chunks_mut(pitch_c).zip(values.chunks(t.shape.c)) {
            row[offset_c..][..t.shape.c].iter_mut().zip(values).for_each(|(to, &v)| *to = store(v));
        }
    }

    fn add(&mut self, tensor: usize, values: &[f64], accumulate: bool) {
        let sum = match accumulate {
            true => self.read(tensor).iter().zip(values).map(|(a, b)| a + b).collect(),
            false => values.to_vec(),
        };
        self.write(tensor, &sum, self.store);
    }

    fn op(&mut self, op: &StepOp) {
        let store = self.store;
        match *op {
            StepOp::Conv { ref op, filter, bias, input, output } => {
                let bias = bias.map(|b| &self.params[b][..]);
                let y = conv3d::reference::forward(op, &self.read(input), &self.params[filter], bias);
                self.write(output, &y, store);
            }
            StepOp::ConvGradFilter { ref op, filter, bias, input, grad_output } => {
                let (x, dy) = (self.read(input), self.read(grad_output));
                self.grad_filter(op, filter, bias, &x, &dy);
            }
            StepOp::ConvGradInput { ref op, filter, grad_output, grad_input, accumulate } => {
                let dx = conv3d::reference::grad_input(op, &self.read(grad_output), &self.params[filter]);
                self.add(grad_input, &dx, accumulate);
            }
            StepOp::BatchNormTrain { ref op, norm, input, residual, output, stats } => {
                let (gamma, beta) = self.affine(norm);
                let residual = residual.map(|r| self.read(r));
                let mut forward = batch_norm::forward(op, exact, &self.read(input), &gamma, &beta, residual.as_deref());
                forward.y.iter_mut().for_each(|y| *y = store(*y));
                self.write(output, &forward.y, exact);
                self.write(stats, &forward.stats, exact);
                self.norms[norm] = Some(forward);
            }
            StepOp::BatchNormEval { ref op, norm, input, residual, output } => {
                let (gamma, beta) = self.affine(norm);
                let (mean, var) = self.running(norm);
                let residual = residual.map(|r| self.read(r));
                let of = [&gamma[..], &beta, &mean, &var];
                let y = batch_norm::forward_eval(op, exact, &self.read(input), of, residual.as_deref());
                self.write(output, &y, store);
            }
            StepOp::BatchNormBackward { ref op, norm, input, grad_output, grad_input, grad_residual, .. } => {
                let (gamma, _) = self.affine(norm);
                let forward = self.norms[norm].take().expect("forward");
                let g = self.read(grad_output);
                let backward = batch_norm::backward(op, exact, &self.read(input), &gamma, &forward, &g);
                if let Some((residual, accumulate)) = grad_residual {
                    self.add(residual, &backward.dr, accumulate);
                }
                self.write(grad_input, &backward.dx, store);
                self.norms[norm] = Some(forward);
                let norm = &self.model.norms[norm];
                (self.grads[norm.gamma], self.grads[norm.beta]) = (backward.dgamma, backward.dbeta);
            }
            StepOp::Pool { ref op, input, output, indices } => {
                let (y, winner) = pool3d::reference::forward(op, exact, &self.read(input));
                self.write(output, &y, store);
                if let Some(indices) = indices {
                    self.indices[indices] = winner;
                }
            }
            StepOp::PoolGradInput { ref op, grad_output, indices, grad_input, accumulate } => {
                let winner = indices.map_or(vec![], |i| self.indices[i].clone());
                let zeros = vec![0.0; op.input.num_elements()];
                let dx = pool3d::reference::grad_input(op, exact, &self.read(grad_output), &winner, zeros);
                self.add(grad_input, &dx, accumulate);
            }
            StepOp::Attention { .. } | StepOp::AttentionBackward { .. } => self.attention(op),
            StepOp::Fused(ref op) => self.fused(op),
            _ => self.head(op),
        }
    }

    fn grad_filter(&mut self, op: &Conv3d, filter: usize, bias: Option<usize>, x: &[f64], dy: &[f64]) {
        self.grads[filter] = conv3d::reference::grad_filter(op, x, dy);
        if let Some(bias) = bias {
            self.grads[bias] = conv3d::reference::grad_bias(op, dy);
        }
    }

    /// Scores and probabilities are stored too, as plain code has them.
    fn attention(&mut self, op: &StepOp) {
        let rounding = attention::Rounding { sum: exact, store: self.store };
        match *op {
            StepOp::Attention { instantiation, heads, output, .. } => {
                let depth = self.plan.tensors[output].shape.c;
                let [q, k, v] = heads.map(|t| self.clips(t));
                let of_clip = |i: usize| attention::forward(rounding, instantiation, depth, &q[i], &k[i], &v[i]);
                let y: Vec<f64> = (0..q.len()).flat_map(of_clip).collect();
                self.write(output, &y, self.store);
            }
            StepOp::AttentionBackward { instantiation, heads, output, grad_output, grads, .. } => {
                let depth = self.plan.tensors[output].shape.c;
                let [q, k, v] = heads.map(|t| self.clips(t));
                let (y, dy) = (self.clips(output), self.clips(grad_output));
                let mut sums = [vec![], vec![], vec![]];
                for i in 0..q.len() {
                    let heads = [&q[i][..], &k[i], &v[i]];
                    let clip = attention::backward(rounding, instantiation, depth, heads, &y[i], &dy[i]);
                    sums.iter_mut().zip(clip).for_each(|(sum, clip)| sum.extend(clip));
                }
                grads.into_iter().zip(sums).for_each(|(grad, values)| self.write(grad, &values, self.store));
            }
            _ => unreachable!("no attention"),
        }
    }

    /// A tensor clip by clip.
    fn clips(&self, tensor: usize) -> Vec<Vec<f64>> {
        let (all, shape) = (self.read(tensor), self.plan.tensors[tensor].shape);
        all.chunks(all.len() / shape.n).map(<[f64]>::to_vec).collect()
    }

    fn fused(&mut self, op: &FusedOp) {
        match *op {
            FusedOp::Conv { ref op, filter, bias, ref input, statistics, output } => {
                let x = self.load(input, true);
                let bias = bias.map(|b| &self.params[b][..]);
                let y = conv3d::reference::forward(op, &x, &self.params[filter], bias);
                self.write(output, &y, self.store);
                if let Some(statistics) = &statistics {
                    self.statistics(output, statistics);
                }
            }
            FusedOp::Statistics { input, ref statistics } => self.statistics(input, statistics),
            FusedOp::GramMoments { .. }
            | FusedOp::GramStatistics { .. }
            | FusedOp::ConvNormalise { .. }
            | FusedOp::GramProducts { .. }
            | FusedOp::GramGradient { .. }
            | FusedOp::GramGradInput { .. } => self.gram(op),
            FusedOp::ConvGradFilter { ref op, filter, bias, ref input, ref grad_output, pool } => {
                let x = self.load(input, false);
                let dy = match (pool, grad_output.norm) {
                    (Some(pool), Some((table, y))) => {
                        let (g, zeros) = (self.read(grad_output.g), vec![0.0; pool.op.input.num_elements()]);
                        let dx = pool3d::reference::grad_input(&pool.op, exact, &g, &self.indices[pool.indices], zeros);
                        let g = self.masked(&dx, None, PlannedMask::Recomputed(pool.scale_shift, y), y);
                        let (y, table) = (self.read(y), self.read(table));
                        fused::grad_of_table(pool.op.input, self.splits(), self.rounding(), &g, &y, &table)
                    }
                    _ => self.load_grad(grad_output),
                };
                self.grad_filter(op, filter, bias, &x, &dy);
            }
            FusedOp::ConvGradInput { ref op, filter, ref grad_output, store_dy, ref store, grad_input } => {
                let dy = self.load_grad(grad_output);
                let dx = conv3d::reference::grad_input(op, &dy, &self.params[filter]);
                store_dy.into_iter().for_each(|to| self.write(to, &dy, exact));
                let add = store.accumulate.then(|| self.read(grad_input));
                self.store_masked(&dx, add.as_deref(), store.mask, grad_input);
                store.norms.iter().for_each(|norm| self.sums(&self.read(grad_input), norm));
            }
            FusedOp::ConvBackward { ref op, filter, input, grad_output, ref store, grad_input } => {
                let of_filter = FusedOp::ConvGradFilter { op: *op, filter, bias: None, input, grad_output, pool: None };
                let store = store.clone();
                let of_input =
                    FusedOp::ConvGradInput { op: *op, filter, grad_output, store_dy: None, store, grad_input };
                [of_filter, of_input].iter().for_each(|op| self.fused(op));
            }
            FusedOp::Apply { ref input, relu, output, .. } => {
                let y = if relu { self.load(input, false) } else { self.sum(input) };
                self.write(output, &y, exact);
            }
            FusedOp::GradSums { grad_output, mask, ref norm, .. } => {
                let g = self.masked(&self.read(grad_output), None, mask, grad_output);
                self.sums(&g, norm);
            }
            FusedOp::Gradient { grad_output, mask, ref norm, grad_input, .. } => {
                let g = self.read(grad_output);
                self.store_masked(&g, None, mask, grad_output);
                let dy = self.load_grad(&LoadGrad { g: grad_output, norm: Some((norm.grad_table, norm.y)) });
                self.write(grad_input, &dy, exact);
            }
            FusedOp::Pool { ref op, input, scale_shift, output, indices } => {
                let x = self.load(&Load { tensor: input, scale_shift: Some(scale_shift), join: None }, false);
                let (y, winner) = pool3d::reference::forward(op, exact, &x);
                self.write(output, &y, self.store);
                indices.into_iter().for_each(|i| self.indices[i].clone_from(&winner));
            }
            FusedOp::PoolGradNorm { ref op, grad_output, indices, scale_shift, ref norm, grad_input } => {
                let (g, zeros) = (self.read(grad_output), vec![0.0; op.input.num_elements()]);
                let dx = pool3d::reference::grad_input(op, exact, &g, &self.indices[indices], zeros);
                let g = self.masked(&dx, None, PlannedMask::Recomputed(scale_shift, norm.y), norm.y);
                grad_input.into_iter().for_each(|to| self.write(to, &g, exact));
                self.sums(&g, norm);
            }
        }
    }

    /// An op of a batch norm in Gram form.
    fn gram(&mut self, op: &FusedOp) {
        match *op {
            FusedOp::GramMoments { ref op, ref input, moments } => {
                let x = self.load(input, false);
                self.write(moments, &gram::moments(op, exact, &x), exact);
            }
            FusedOp::GramStatistics { ref op, filter, moments, ref statistics } => {
                let (gamma, beta) = self.affine(statistics.norm);
                let stats = gram::statistics(op, exact, &self.read(moments), &self.params[filter]);
                let c = op.norm.shape.c;
                let of_split = |stats: &[f64]| {
                    let scale: Vec<f64> = (0..c).map(|o| gamma[o] * stats[c + o]).collect();
                    let shift: Vec<f64> = (0..c).map(|o| beta[o] - stats[o] * scale[o]).collect();
                    [scale, shift].concat()
                };
                let table: Vec<f64> = stats.chunks(3 * c).flat_map(of_split).collect();
                self.write(statistics.stats, &stats, exact);
                self.write(statistics.scale_shift, &table, exact);
            }
            FusedOp::ConvNormalise { ref op, filter, ref input, scale_shift, shortcut, output } => {
                let y = conv3d::reference::forward(op, &self.load(input, false), &self.params[filter], None);
                let (residual, table) = (self.read(shortcut.tensor), shortcut.scale_shift.map(|t| self.read(t)));
                let residual = Some((&residual[..], table.as_deref()));
                let table = self.read(scale_shift);
                let end = fused::normalised(op.output(), self.splits(), self.rounding(), &y, &table, residual);
                self.write(output, &end, exact);
            }
            FusedOp::GramProducts { ref op, ref input, grad_output, to } => {
                let (x, g) = (self.load(input, false), self.read(grad_output));
                let per_split = op.output().num_positions() / op.input.n * op.input.n.div_ceil(self.splits());
                let splits = x.chunks(per_split * op.input.c).zip(g.chunks(per_split * op.c_out));
                let products: Vec<f64> = splits.clone().flat_map(|(x, g)| products_of(op, x, g)).collect();
                let sums: Vec<f64> = splits.flat_map(|(_, g)| conv3d::reference::grad_bias(op, g)).collect();
                self.write(to.products, &products, exact);
                self.write(to.grad_sums, &sums, exact);
            }
            FusedOp::GramGradient { ref op, filter, norm, from, moments, stats, grad_table, to } => {
                let (gamma, _) = self.affine(norm);
                let (moments, stats) = (self.read(moments), self.read(stats));
                let products = centred(op.c_in, &self.read(from.products), &self.read(from.grad_sums), &moments);
                let w = &self.params[filter];
                let [table, dgamma, dbeta] = gram::grad_tables(op, exact, &products, w, &gamma, &stats);
                let dw = gram::grad_filter(op, exact, &products, &moments, w, &table);
                let mut factors = gram::input_factors(op, exact, w, &table);
                for [of_g, of_x, _] in &mut factors {
                    of_g.iter_mut().chain(of_x).for_each(|v| *v = (self.store)(*v));
                }
                self.gram_factors[to.back_filter] = factors;
                self.write(grad_table, &table, exact);
                let norm = &self.model.norms[norm];
                (self.grads[norm.gamma], self.grads[norm.beta], self.grads[filter]) = (dgamma, dbeta, dw);
            }
            FusedOp::GramGradInput { ref op, ref input, grad_output, from, ref store, grad_input } => {
                let (x, g) = (self.load(input, false), self.read(grad_output));
                let norm = BatchNorm { shape: op.output(), splits: self.splits(), eps: 0.0, relu: false, part: None };
                let op = Gram { norm, c_in: op.input.c };
                let dx = gram::grad_input(&op, exact, &x, &g, &self.gram_factors[from.back_filter]);
                let add = store.accumulate.then(|| self.read(grad_input));
                self.store_masked(&dx, add.as_deref(), store.mask, grad_input);
                store.norms.iter().for_each(|norm| self.sums(&self.read(grad_input), norm));
            }
            ref other => unreachable!("{other:?}"),
        }
    }

    /// The tables of the batch norm of `y`.
    fn statistics(&mut self, y: usize, to: &NormStatistics) {
        let ((gamma, beta), y) = (self.affine(to.norm), self.read(y));
        let eps = f64::from(to.op.eps);
        let tables = fused::statistics(to.op.shape, to.op.splits, exact, eps, &y, &gamma, &beta);
        self.write(to.stats, &tables.stats, exact);
        self.write(to.scale_shift, &tables.scale_shift, exact);
    }

    /// A join without a ReLU: `s y + b + r`.
    fn sum(&self, load: &Load) -> Vec<f64> {
        let (shape, y) = (self.plan.tensors[load.tensor].shape, self.read(load.tensor));
        let (table, join) = (self.table(load.scale_shift.expect("a table")), load.join.expect("a join"));
        assert_eq!(join.residual_scale_shift, None);
        let (residual, clips_per_split) = (self.read(join.residual), shape.n.div_ceil(self.splits()));
        let split_len = clips_per_split * shape.num_elements() / shape.n;
        let of = |(i, (y, r)): (usize, (&f64, &f64))| {
            let at = i / split_len * 2 * shape.c + i % shape.c;
            (self.store)(table[at] * y + table[at + shape.c] + r)
        };
        y.iter().zip(&residual).enumerate().map(of).collect()
    }

    fn rounding(&self) -> Rounding {
        Rounding { round: exact, store: self.store }
    }

    fn splits(&self) -> usize {
        if self.plan.mode == Mode::Train { self.plan.shape.splits } else { 1 }
    }

    fn table(&self, table: Table) -> Vec<f64> {
        match table {
            Table::Batch(tensor) => self.read(tensor),
            Table::Running(norm) => {
                let ((gamma, beta), eps) = (self.affine(norm), f64::from(self.model.config.bn_eps));
                let (mean, var) = self.running(norm);
                let scale: Vec<f64> = gamma.iter().zip(&var).map(|(g, v)| g / (v + eps).sqrt()).collect();
                let shift = beta.iter().zip(&mean).zip(&scale).map(|((b, m), s)| b - m * s);
                scale.iter().copied().chain(shift).collect()
            }
        }
    }

    fn running(&self, norm: usize) -> (Vec<f64>, Vec<f64>) {
        let of = |what: &str| {
            let name = format!("{}.{what}", self.model.norms[norm].name);
            stored(self.state.iter().find(|a| a.name == name).expect("running statistics"))
        };
        (of("running_mean"), of("running_var"))
    }

    /// An activation on load. With `stores` the end of a block is written.
    fn load(&mut self, load: &Load, stores: bool) -> Vec<f64> {
        let (shape, x) = (self.plan.tensors[load.tensor].shape, self.read(load.tensor));
        let Some(table) = load.scale_shift else { return x };
        let join = load.join.map(|j| (self.read(j.residual), j.residual_scale_shift.map(|t| self.table(t)), j.output));
        let residual = join.as_ref().map(|(r, table, _)| (&r[..], table.as_deref()));
        let y = fused::normalised(shape, self.splits(), self.rounding(), &x, &self.table(table), residual);
        if let (Some(output), true) = (join.and_then(|j| j.2), stores) {
            self.write(output, &y, exact);
        }
        y
    }

    fn load_grad(&self, load: &LoadGrad) -> Vec<f64> {
        let (shape, g) = (self.plan.tensors[load.g].shape, self.read(load.g));
        let Some((table, y)) = load.norm else { return g };
        fused::grad_of_table(shape, self.splits(), self.rounding(), &g, &self.read(y), &self.read(table))
    }

    /// `dx + add` where the mask is open, as it is stored in `tensor`.
    fn masked(&self, dx: &[f64], add: Option<&[f64]>, mask: PlannedMask, tensor: usize) -> Vec<f64> {
        let before = match mask {
            PlannedMask::None => None,
            PlannedMask::Output(output) => Some(self.read(output)),
            PlannedMask::Recomputed(table, y) => {
                let (shape, y) = (self.plan.tensors[tensor].shape, self.read(y));
                let rounding = Rounding { round: exact, store: exact };
                Some(fused::normalised(shape, self.splits(), rounding, &y, &self.read(table), None))
            }
        };
        fused::masked(self.rounding(), dx, add, |i| before.as_ref().is_none_or(|y| y[i] > 0.0))
    }

    fn store_masked(&mut self, dx: &[f64], add: Option<&[f64]>, mask: PlannedMask, tensor: usize) {
        let g = self.masked(dx, add, mask, tensor);
        self.write(tensor, &g, exact);
    }

    /// The table of a norm from the masked gradient `g`.
    fn sums(&mut self, g: &[f64], norm: &NormGrad) {
        let (shape, (gamma, _)) = (self.plan.tensors[norm.y].shape, self.affine(norm.norm));
        let (y, stats) = (self.read(norm.y), self.read(norm.stats));
        let tables = fused::grad_tables(shape, self.splits(), exact, g, &y, &stats, &gamma);
        self.write(norm.grad_table, &tables.table, exact);
        let norm = &self.model.norms[norm.norm];
        (self.grads[norm.gamma], self.grads[norm.beta]) = (tables.dgamma, tables.dbeta);
    }

    fn head(&mut self, op: &StepOp) {
        match *op {
            StepOp::Linear { weight, bias, input, output, .. } => {
                let (c, bias) = (self.plan.tensors[input].shape.c, &self.params[bias]);
                let y = linear::reference::forward(c, &self.read(input), &self.params[weight], Some(bias));
                self.write(output, &y, exact);
            }
            StepOp::LinearBackward { weight, bias, input, grad_output, grad_input, .. } => {
                let (c, dy) = (self.plan.tensors[input].shape.c, self.read(grad_output));
                let (dx, dw, db) = linear::reference::backward(c, &self.read(input), &self.params[weight], &dy);
                self.write(grad_input, &dx, self.store);
                (self.grads[weight], self.grads[bias]) = (dw, db);
            }
            StepOp::CrossEntropy { logits, scale, loss, grad_logits } => {
                let classes = self.plan.tensors[logits].shape.c;
                let (losses, grad) = softmax_loss::reference::cross_entropy(
                    exact,
                    classes,
                    &self.read(logits),
                    self.labels,
                    f64::from(scale),
                );
                self.write(loss, &losses, exact);
                self.write(grad_logits, &grad, self.store);
            }
            StepOp::Softmax { logits, probabilities } => {
                let classes = self.plan.tensors[logits].shape.c;
                let p = softmax_loss::reference::softmax(exact, classes, &self.read(logits));
                self.write(probabilities, &p, exact);
            }
            StepOp::Sigmoid { logits, probabilities } => {
                let p: Vec<f64> = self.read(logits).iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
                self.write(probabilities, &p, exact);
            }
            ref other => panic!("{other:?} is no op of a plan without dropout"),
        }
    }

    fn affine(&self, norm: usize) -> (Vec<f64>, Vec<f64>) {
        let norm = &self.model.norms[norm];
        (self.params[norm.gamma].clone(), self.params[norm.beta].clone())
    }
}
