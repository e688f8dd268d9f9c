//! Runs whose memory does not suffice for whole steps: VCYCLE.MEMORY_FRACTION.

use vcycle::device::Device;
use vcycle::model::plan::Memory;
use vcycle::train::Start;

use super::{Colours, Watch, config, essence, run, trainer};

#[test]
fn a_run_in_micro_batches_says_so_and_gives_the_same_bits() {
    let Some(device_bytes) = Device::Cpu.memory_bytes() else {
        println!("SKIPPED: no /proc/meminfo");
        return;
    };
    let splits = ["BN.NORM_TYPE", "sub_batchnorm", "BN.NUM_SPLITS", "2"];
    let short = ["SOLVER.MAX_EPOCH", "2", "SOLVER.STEPS", "[0]", "SOLVER.LRS", "[1]"];
    let overrides = |more: &[&'static str]| [&splits[..], &short, more].concat();
    let [whole, cut] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut watch = Watch::nothing();
    run(&config("", &overrides(&[])), whole.path(), Start::New, &mut watch).unwrap();
    assert!(watch.messages.iter().all(|m| !m.contains("micro-batches")), "{:?}", watch.messages);

    let asked = trainer(&config("", &overrides(&[])), Colours::new(24), whole.path(), Start::Resume).unwrap();
    let network = asked.network();
    let needed = Memory::of(network.model(), &network.plans().collect::<Vec<_>>()).total();
    let fraction = ((needed - 1) as f64 / device_bytes as f64).to_string();
    let given = config("", &[&overrides(&[])[..], &["VCYCLE.MEMORY_FRACTION", &fraction]].concat());
    let mut watch = Watch::nothing();
    run(&given, cut.path(), Start::New, &mut watch).unwrap();
    let line = "4x4x32 runs in 2 micro-batches of 2 clips, 1 of 2 batch-norm splits: VCYCLE.MEMORY_FRACTION";
    assert!(watch.messages.iter().any(|m| m.starts_with(line)), "{:?}", watch.messages);
    assert!(essence(cut.path()) == essence(whole.path()));

    let one_split = config("", &["VCYCLE.MEMORY_FRACTION", "1e-9"]);
    let refused = trainer(&one_split, Colours::new(24), &cut.path().join("other"), Start::New).map(drop).unwrap_err();
    assert!(refused.to_string().contains("one batch-norm split"), "{refused}");
}
