//! YAML of configurations, and what is made of one that was accepted.

use std::fs;
use std::path::Path;

use vcycle::config::Config;
use vcycle::model::{Model, ModelConfig};
use vcycle::multigrid::Schedule;

use super::run;

/// What YAML can do beside our own files: anchors, merges, flow style, blocks, other spellings of numbers.
const ODD: [&str; 4] = [
    "a: &a\n  ENABLE: True\nTRAIN:\n  <<: *a\n  BATCH_SIZE: 1_6\n",
    "{TRAIN: {BATCH_SIZE: 0x10}, MULTIGRID: {SHORT_CYCLE: yes, LONG_CYCLE_FACTORS: [(0.25, 0.5 ** 0.5), [1, 1]]}}",
    "OUTPUT_DIR: |\n  a\n  b\nSOLVER: {STEPS: [0, 1, 2], LRS: [1, .1, 1e-2], MAX_EPOCH: 3}\n---\n...\n",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
];

#[test]
fn configs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut seeds: Vec<Vec<u8>> = ODD.iter().map(|text| text.as_bytes().to_vec()).collect();
    for file in [
        "moving_shapes_multigrid.yaml",
        "kinetics/SLOWFAST_8x8_R50_stepwise_multigrid.yaml",
        "kinetics/I3D_NLN_8x8_R50_stepwise_multigrid.yaml",
        "ssv2/SLOWFAST_16x8_R50_multigrid.yaml",
    ] {
        seeds.push(fs::read(folder.join(file)).expect(file));
    }
    run("config", &seeds, &mut |input| {
        let Ok(config) = Config::parse(&String::from_utf8_lossy(input), "bent.yaml", &[]) else { return };
        let again = Config::parse(&config.to_yaml(), "written.yaml", &[]).expect("what was accepted is accepted again");
        assert_eq!(again.entries(), config.entries());
        let _ = Schedule::new(&config);
        if let Ok(model) = ModelConfig::from_config(&config) {
            let _ = Model::new(&model);
        }
    });
}
