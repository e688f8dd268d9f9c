//! Builds the layer list as PySlowFast's slowfast/models/video_model_builder.py (SlowFast, ResNet) describes it.

use super::config::{ModelConfig, Transform};
use super::layers::{Layer, LayerOp, Model, Norm, NormId, Param, ParamId, ParamKind, Value, ValueId};
use crate::error::Result;

impl Model {
    /// The network that `config` describes.
    pub fn new(config: &ModelConfig) -> Result<Model> {
        config.check()?;
        let mut b = Builder { model: empty(config) };
        let mut maps: Vec<ValueId> =
            (0..b.model.num_pathways()).map(|p| b.value(format!("input.{p}"), config.input_channels)).collect();
        b.stem(&mut maps);
        b.fuse("s1_fuse", &mut maps);
        let blocks = config.blocks()?;
        for (stage, &num_blocks) in blocks.iter().enumerate() {
            b.stage(stage, num_blocks, &mut maps);
            if stage < 3 {
                b.fuse(&format!("s{}_fuse", stage + 2), &mut maps);
            }
            if stage == 0 {
                b.temporal_pool(&mut maps);
            }
        }
        b.head(&maps);
        b.model.lay_out();
        Ok(b.model)
    }
}

fn empty(config: &ModelConfig) -> Model {
    Model {
        config: config.clone(),
        values: vec![],
        layers: vec![],
        params: vec![],
        norms: vec![],
        standard_norms: vec![],
        params_len: 0,
        params_len_without_norms: 0,
        running_len: 0,
        stages: vec![],
    }
}

struct Builder {
    model: Model,
}

/// Sizes of one convolution.
#[derive(Clone, Copy)]
struct ConvSizes {
    c_out: usize,
    kernel: [usize; 3],
    stride: [usize; 3],
    padding: [usize; 3],
    dilation: [usize; 3],
    groups: usize,
    has_bias: bool,
}

impl ConvSizes {
    fn new(c_out: usize, kernel: [usize; 3], stride: [usize; 3]) -> ConvSizes {
        ConvSizes {
            c_out,
            kernel,
            stride,
            padding: kernel.map(|k| k / 2),
            dilation: [1; 3],
            groups: 1,
            has_bias: false,
        }
    }
}

/// What all blocks of one stage and pathway share.
struct BlockSizes {
    c_out: usize,
    c_inner: usize,
    dilation: usize,
}

impl Builder {
    fn value(&mut self, name: String, c: usize) -> ValueId {
        self.model.values.push(Value { name, c });
        self.model.values.len() - 1
    }

    fn param(&mut self, name: String, shape: Vec<usize>, kind: ParamKind) -> ParamId {
        let stored_c_in = shape.get(1).copied().unwrap_or(1);
        self.model.params.push(Param { name, shape, kind, starts_at_zero: false, offset: 0, stored_c_in });
        self.model.params.len() - 1
    }

    fn layer(&mut self, name: &str, op: LayerOp, inputs: Vec<ValueId>, c: usize) -> ValueId {
        let output = self.value(name.to_string(), c);
        self.model.layers.push(Layer { name: name.to_string(), op, inputs, output });
        output
    }

    fn channels(&self, value: ValueId) -> usize {
        self.model.values[value].c
    }

    fn conv(&mut self, name: &str, input: ValueId, sizes: ConvSizes) -> ValueId {
        let ConvSizes { c_out, kernel, stride, padding, dilation, groups, has_bias } = sizes;
        let shape = vec![c_out, self.channels(input) / groups, kernel[0], kernel[1], kernel[2]];
        let filter = self.param(format!("{name}.weight"), shape, ParamKind::Filter);
        let bias = has_bias.then(|| self.param(format!("{name}.bias"), vec![c_out], ParamKind::Bias));
        self.layer(name, LayerOp::Conv { filter, bias, kernel, stride, padding, dilation, groups }, vec![input], c_out)
    }

    fn norm(&mut self, name: &str, c: usize, gamma_start: f32) -> NormId {
        let gamma = self.param(format!("{name}.weight"), vec![c], ParamKind::Gamma { start: gamma_start });
        let beta = self.param(format!("{name}.bias"), vec![c], ParamKind::Beta);
        self.model.norms.push(Norm { name: name.to_string(), c, gamma, beta, mean_offset: 0, var_offset: 0 });
        self.model.norms.len() - 1
    }

    fn batch_norm_relu(&mut self, name: &str, input: ValueId) -> ValueId {
        let c = self.channels(input);
        let norm = self.norm(name, c, 1.0);
        self.layer(name, LayerOp::BatchNorm { norm, relu: true }, vec![input], c)
    }

    fn stem(&mut self, maps: &mut [ValueId]) {
        let config = self.model.config.clone();
        for (pathway, map) in maps.iter_mut().enumerate() {
            let name = format!("s1.pathway{pathway}_stem");
            let kernel = [config.arch.temporal_kernels(0, pathway)[0], 7, 7];
            let c_out = config.pathway_channels(config.width_per_group, pathway);
            let x = self.conv(&format!("{name}.conv"), *map, ConvSizes::new(c_out, kernel, [1, 2, 2]));
            let x = self.batch_norm_relu(&format!("{name}.bn"), x);
            let pool = LayerOp::MaxPool { kernel: [1, 3, 3], stride: [1, 2, 2], padding: [0, 1, 1], time_groups: 1 };
            *map = self.layer(&format!("{name}.pool_layer"), pool, vec![x], c_out);
            self.model.stages.push((format!("s1.{pathway}"), *map));
        }
    }

    /// The lateral connection from the fast to the slow pathway (FuseFastToSlow).
    fn fuse(&mut self, name: &str, maps: &mut [ValueId]) {
        let &mut [slow, fast] = maps else { return };
        let config = self.model.config.clone();
        let c_out = self.channels(fast) * config.fusion_conv_channel_ratio;
        let sizes = ConvSizes::new(c_out, [config.fusion_kernel_size, 1, 1], [config.alpha, 1, 1]);
        let lateral = self.conv(&format!("{name}.conv_f2s"), fast, sizes);
        let lateral = self.batch_norm_relu(&format!("{name}.bn"), lateral);
        let c = self.channels(slow) + c_out;
        maps[0] = self.layer(name, LayerOp::Concat, vec![slow, lateral], c);
        self.model.stages.push((format!("{name}.0"), maps[0]));
        self.model.stages.push((format!("{name}.1"), fast));
    }

    fn temporal_pool(&mut self, maps: &mut [ValueId]) {
        let k = self.model.config.arch.temporal_pool();
        if k == 1 {
            return;
        }
        for (pathway, map) in maps.iter_mut().enumerate() {
            let pool = LayerOp::MaxPool { kernel: [k, 1, 1], stride: [k, 1, 1], padding: [0; 3], time_groups: 1 };
            let c = self.channels(*map);
            *map = self.layer(&format!("pathway{pathway}_pool"), pool, vec![*map], c);
        }
    }

    /// Stage `stage` (0 is s2) of every pathway (ResStage).
    fn stage(&mut self, stage: usize, num_blocks: usize, maps: &mut [ValueId]) {
        let config = self.model.config.clone();
        for (pathway, map) in maps.iter_mut().enumerate() {
            let sizes = BlockSizes {
                c_out: config.stage_channels(stage, pathway),
                c_inner: config.pathway_channels((config.num_groups * config.width_per_group) << stage, pathway),
                dilation: config.spatial_dilations[stage][pathway],
            };
            let basis = config.arch.temporal_kernels(stage + 1, pathway);
            for i in 0..num_blocks {
                let with_time = i < config.num_block_temp_kernel[stage][pathway];
                let kernel_t = if with_time { basis[i % basis.len()] } else { 1 };
                let stride = if i == 0 { config.spatial_strides[stage][pathway] } else { 1 };
                let name = format!("s{}.pathway{pathway}", stage + 2);
                *map = self.block(&format!("{name}_res{i}"), *map, kernel_t, stride, &sizes);
                if config.non_local.location[stage][pathway].contains(&i) {
                    *map = self.non_local(&format!("{name}_nonlocal{i}"), *map, stage, pathway);
                }
            }
            self.model.stages.push((format!("s{}.{pathway}", stage + 2), *map));
        }
    }

    /// A residual block (ResBlock): the last batch norm joins the shortcut and applies the ReLU.
    fn block(&mut self, name: &str, input: ValueId, kernel_t: usize, stride: usize, sizes: &BlockSizes) -> ValueId {
        let mut shortcut = input;
        if self.channels(input) != sizes.c_out || stride != 1 {
            let branch = format!("{name}.branch1");
            let x = self.conv(&branch, input, ConvSizes::new(sizes.c_out, [1; 3], [1, stride, stride]));
            let norm = self.norm(&format!("{branch}_bn"), sizes.c_out, 1.0);
            let op = LayerOp::BatchNorm { norm, relu: false };
            shortcut = self.layer(&format!("{branch}_bn"), op, vec![x], sizes.c_out);
        }
        let (last, x) = match self.model.config.transform {
            Transform::Bottleneck => ("c", self.bottleneck(name, input, kernel_t, stride, sizes)),
            Transform::Basic => ("b", self.basic(name, input, kernel_t, stride, sizes)),
        };
        if let (true, Some(filter)) = (self.model.config.zero_init_final_conv, self.model.params.last_mut()) {
            filter.starts_at_zero = true;
        }
        let gamma_start = if self.model.config.zero_init_final_bn { 0.0 } else { 1.0 };
        let name = format!("{name}.branch2.{last}_bn");
        let norm = self.norm(&name, sizes.c_out, gamma_start);
        self.layer(&name, LayerOp::BatchNorm { norm, relu: true }, vec![x, shortcut], sizes.c_out)
    }

    fn bottleneck(&mut self, name: &str, x: ValueId, kernel_t: usize, stride: usize, sizes: &BlockSizes) -> ValueId {
        let (groups, d) = (self.model.config.num_groups, sizes.dilation);
        let (stride_a, stride_b) = if self.model.config.stride_1x1 { (stride, 1) } else { (1, stride) };
        let a = ConvSizes::new(sizes.c_inner, [kernel_t, 1, 1], [1, stride_a, stride_a]);
        let x = self.conv(&format!("{name}.branch2.a"), x, a);
        let x = self.batch_norm_relu(&format!("{name}.branch2.a_bn"), x);
        let b = ConvSizes::new(sizes.c_inner, [1, 3, 3], [1, stride_b, stride_b]);
        let b = ConvSizes { padding: [0, d, d], dilation: [1, d, d], groups, ..b };
        let x = self.conv(&format!("{name}.branch2.b"), x, b);
        let x = self.batch_norm_relu(&format!("{name}.branch2.b_bn"), x);
        self.conv(&format!("{name}.branch2.c"), x, ConvSizes::new(sizes.c_out, [1; 3], [1; 3]))
    }

    fn basic(&mut self, name: &str, x: ValueId, kernel_t: usize, stride: usize, sizes: &BlockSizes) -> ValueId {
        let d = sizes.dilation;
        let a = ConvSizes::new(sizes.c_out, [kernel_t, 3, 3], [1, stride, stride]);
        let x = self.conv(&format!("{name}.branch2.a"), x, a);
        let x = self.batch_norm_relu(&format!("{name}.branch2.a_bn"), x);
        let b = ConvSizes::new(sizes.c_out, [1, 3, 3], [1; 3]);
        self.conv(&format!("{name}.branch2.b"), x, ConvSizes { padding: [0, d, d], dilation: [1, d, d], ..b })
    }

    /// A non-local block (Nonlocal): attention between the positions of a clip, added to the map. Its batch norm counts as the
    /// last one of a block.
    fn non_local(&mut self, name: &str, x: ValueId, stage: usize, pathway: usize) -> ValueId {
        let config = self.model.config.clone();
        let (c, instantiation) = (self.channels(x), config.non_local.instantiation);
        let (pool, time_groups) = (config.non_local.pool[stage][pathway], config.non_local.group[stage][pathway]);
        let head = ConvSizes { has_bias: true, ..ConvSizes::new(c / 2, [1; 3], [1; 3]) };
        let theta = self.conv(&format!("{name}.conv_theta"), x, head);
        let mut pooled = x;
        if pool != [1; 3] {
            let op = LayerOp::MaxPool { kernel: pool, stride: pool, padding: [0; 3], time_groups };
            pooled = self.layer(&format!("{name}.pool"), op, vec![x], c);
        }
        let phi = self.conv(&format!("{name}.conv_phi"), pooled, head);
        let g = self.conv(&format!("{name}.conv_g"), pooled, head);
        let op = LayerOp::Attention { instantiation, time_groups };
        let attended = self.layer(&format!("{name}.attention"), op, vec![theta, phi, g], c / 2);
        let out = ConvSizes { c_out: c, ..head };
        let out = self.conv(&format!("{name}.conv_out"), attended, out);
        let gamma_start = if config.zero_init_final_bn { 0.0 } else { 1.0 };
        let bn = format!("{name}.bn");
        let norm = self.norm(&bn, c, gamma_start);
        self.layer(&bn, LayerOp::BatchNorm { norm, relu: false }, vec![out, x], c)
    }

    /// Global average pool of every pathway, side by side, dropout, projection (ResNetBasicHead).
    fn head(&mut self, maps: &[ValueId]) {
        let config = self.model.config.clone();
        let mut pooled = vec![];
        for (pathway, &map) in maps.iter().enumerate() {
            let c = self.channels(map);
            pooled.push(self.layer(
                &format!("head.pathway{pathway}_avgpool"),
                LayerOp::GlobalAveragePool,
                vec![map],
                c,
            ));
        }
        let c: usize = pooled.iter().map(|&v| self.channels(v)).sum();
        let mut x = match pooled[..] {
            [one] => one,
            _ => self.layer("head.concat", LayerOp::Concat, pooled, c),
        };
        if config.dropout_rate > 0.0 {
            x = self.layer("head.dropout", LayerOp::Dropout { rate: config.dropout_rate }, vec![x], c);
        }
        let classes = config.num_classes;
        let kind = ParamKind::Projection { std: config.fc_init_std };
        let weight = self.param("head.projection.weight".into(), vec![classes, c], kind);
        let bias = self.param("head.projection.bias".into(), vec![classes], ParamKind::Bias);
        self.layer("head.projection", LayerOp::Linear { weight, bias }, vec![x], classes);
    }
}
