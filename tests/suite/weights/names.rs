//! Names of caffe2 and of torchvision: every tensor of every network has one, and it leads back.

use std::collections::BTreeSet;

use vcycle::model::{Arch, Model, ModelConfig, NonLocal};
use vcycle::weights::{entries, from_caffe2, from_torchvision};

#[test]
fn caffe2_names_one_by_one() {
    for (caffe2, ours) in [
        ("conv1_w", "s1.pathway0_stem.conv.weight"),
        ("t_conv1_w", "s1.pathway1_stem.conv.weight"),
        ("res_conv1_bn_s", "s1.pathway0_stem.bn.weight"),
        ("res_conv1_bn_b", "s1.pathway0_stem.bn.bias"),
        ("t_res_conv1_bn_rm", "s1.pathway1_stem.bn.running_mean"),
        ("res_conv1_bn_riv", "s1.pathway0_stem.bn.running_var"),
        ("res2_0_branch1_w", "s2.pathway0_res0.branch1.weight"),
        ("res2_0_branch1_bn_s", "s2.pathway0_res0.branch1_bn.weight"),
        ("res4_22_branch2a_w", "s4.pathway0_res22.branch2.a.weight"),
        ("t_res4_5_branch2c_bn_riv", "s4.pathway1_res5.branch2.c_bn.running_var"),
        ("res5_2_branch2b_bn_b", "s5.pathway0_res2.branch2.b_bn.bias"),
        ("nonlocal_conv3_1_theta_w", "s3.pathway0_nonlocal1.conv_theta.weight"),
        ("nonlocal_conv4_5_phi_b", "s4.pathway0_nonlocal5.conv_phi.bias"),
        ("nonlocal_conv4_1_g_w", "s4.pathway0_nonlocal1.conv_g.weight"),
        ("nonlocal_conv4_1_out_w", "s4.pathway0_nonlocal1.conv_out.weight"),
        ("nonlocal_conv4_5_bn_s", "s4.pathway0_nonlocal5.bn.weight"),
        ("nonlocal_conv4_5_bn_rm", "s4.pathway0_nonlocal5.bn.running_mean"),
        ("t_pool1_subsample_w", "s1_fuse.conv_f2s.weight"),
        ("t_pool1_subsample_bn_s", "s1_fuse.bn.weight"),
        ("t_res4_5_branch2c_bn_subsample_w", "s4_fuse.conv_f2s.weight"),
        ("t_res4_5_branch2c_bn_subsample_bn_riv", "s4_fuse.bn.running_var"),
        ("pred_w", "head.projection.weight"),
        ("pred_b", "head.projection.bias"),
    ] {
        assert_eq!(from_caffe2(caffe2).as_deref(), Some(ours), "{caffe2}");
    }
    for unknown in ["conv1", "lin_5_w", "conv_5_w", "res2_0_branch2a_bn", "res2_x_branch1_w", "pool1_subsample_w", ""] {
        assert_eq!(from_caffe2(unknown), None, "{unknown}");
    }
}

/// The networks of the paper, with blocks of R50 or R101, and non-local blocks.
fn networks() -> Vec<Model> {
    let mut configs = vec![];
    for arch in [Arch::SlowFast, Arch::Slow, Arch::I3d, Arch::C2d] {
        for depth in [50, 101] {
            configs.push(ModelConfig::new(arch, depth, 400));
        }
        let mut config = ModelConfig::new(arch, 50, 400);
        let mut non_local = NonLocal::none(arch.num_pathways());
        (non_local.location[1][0], non_local.location[2][0]) = (vec![1, 3], vec![1, 3, 5]);
        config.non_local = non_local;
        configs.push(config);
    }
    configs.iter().map(|config| Model::new(config).unwrap()).collect()
}

/// What caffe2 called a tensor of PySlowFast.
fn caffe2_name(name: &str, last_block: impl Fn(&str) -> String) -> String {
    let (module, kind) = name.rsplit_once('.').unwrap();
    let is_norm = module.ends_with("bn");
    let kind = match (kind, is_norm) {
        ("weight", true) => "s",
        ("weight", false) => "w",
        ("bias", _) => "b",
        ("running_mean", _) => "rm",
        ("running_var", _) => "riv",
        _ => panic!("{name}"),
    };
    let bn = if is_norm { "_bn" } else { "" };
    if module == "head.projection" {
        return format!("pred_{kind}");
    }
    let (stage, rest) = module.split_once(['.', '_']).unwrap();
    let stage = &stage[1..];
    if rest.starts_with("fuse") {
        let place = if stage == "1" { "pool1".into() } else { format!("res{stage}_{}_branch2c_bn", last_block(stage)) };
        return format!("t_{place}_subsample{bn}_{kind}");
    }
    let (pathway, rest) = rest.strip_prefix("pathway").unwrap().split_once('_').unwrap();
    let fast = if pathway == "1" { "t_" } else { "" };
    if rest.starts_with("stem") {
        return format!("{fast}{}conv1{bn}_{kind}", if is_norm { "res_" } else { "" });
    }
    let (block, layer) = rest.split_once('.').unwrap();
    if let Some(block) = block.strip_prefix("nonlocal") {
        let layer = if is_norm { bn.into() } else { layer.replace("conv", "") };
        return format!("nonlocal_conv{stage}_{block}{layer}_{kind}");
    }
    let branch = layer.trim_end_matches("_bn").replace('.', "");
    format!("{fast}res{stage}_{}_{branch}{bn}_{kind}", block.strip_prefix("res").unwrap())
}

#[test]
fn every_tensor_has_a_caffe2_name() {
    for model in networks() {
        let names: Vec<String> = entries(&model).into_iter().map(|(name, _)| name).collect();
        let last_block = |stage: &str| {
            let of_stage = names.iter().filter_map(|n| n.strip_prefix(&format!("s{stage}.pathway1_res")));
            let blocks = of_stage.map(|n| n.split_once('.').unwrap().0.parse::<usize>().unwrap());
            blocks.max().unwrap().to_string()
        };
        let mut seen = BTreeSet::new();
        for name in names.iter().filter(|name| !name.ends_with("num_batches_tracked")) {
            let caffe2 = caffe2_name(name, last_block);
            assert_eq!(from_caffe2(&caffe2).as_ref(), Some(name), "{caffe2}");
            assert!(seen.insert(caffe2), "{name}");
        }
        assert!(seen.len() > 260, "{}", seen.len());
    }
}

/// What torchvision calls a tensor of a one-pathway network of PySlowFast.
pub fn torchvision_name(name: &str) -> String {
    let (module, kind) = name.rsplit_once('.').unwrap();
    let module = match module {
        "s1.pathway0_stem.conv" => "conv1".to_string(),
        "s1.pathway0_stem.bn" => "bn1".to_string(),
        "head.projection" => "fc".to_string(),
        _ => {
            let (stage, rest) = module.strip_prefix('s').unwrap().split_once(".pathway0_res").unwrap();
            let (block, layer) = rest.split_once('.').unwrap();
            let layer = match layer {
                "branch1" => "downsample.0".to_string(),
                "branch1_bn" => "downsample.1".to_string(),
                other => {
                    let number = match &other["branch2.".len()..][..1] {
                        "a" => 1,
                        "b" => 2,
                        _ => 3,
                    };
                    format!("{}{number}", if other.ends_with("_bn") { "bn" } else { "conv" })
                }
            };
            format!("layer{}.{block}.{layer}", stage.parse::<usize>().unwrap() - 1)
        }
    };
    format!("{module}.{kind}")
}

#[test]
fn every_tensor_of_one_pathway_has_a_torchvision_name() {
    assert_eq!(from_torchvision("layer1.0.conv1.weight").as_deref(), Some("s2.pathway0_res0.branch2.a.weight"));
    assert_eq!(
        from_torchvision("layer4.2.bn3.running_var").as_deref(),
        Some("s5.pathway0_res2.branch2.c_bn.running_var")
    );
    assert_eq!(
        from_torchvision("layer3.0.downsample.1.num_batches_tracked").as_deref(),
        Some("s4.pathway0_res0.branch1_bn.num_batches_tracked")
    );
    assert_eq!(from_torchvision("fc.bias").as_deref(), Some("head.projection.bias"));
    for unknown in ["layer1.0.se.weight", "classifier.1.weight", "layerx.0.conv1.weight", "conv1", ""] {
        assert_eq!(from_torchvision(unknown), None, "{unknown}");
    }
    for (arch, depth) in [(Arch::C2d, 18), (Arch::C2d, 50), (Arch::I3d, 101), (Arch::Slow, 50)] {
        let model = Model::new(&ModelConfig::new(arch, depth, 400)).unwrap();
        let names: BTreeSet<String> = entries(&model).into_iter().map(|(name, _)| name).collect();
        let theirs: BTreeSet<String> = names.iter().map(|name| torchvision_name(name)).collect();
        assert_eq!(theirs.len(), names.len());
        assert_eq!(theirs.iter().map(|name| from_torchvision(name).unwrap()).collect::<BTreeSet<_>>(), names);
    }
}
