//! The list of convolutions that the benches time: what the networks are known to have.

#[path = "../../benches/kernels/layers/list.rs"]
#[allow(dead_code)] // Benches use the rest.
mod list;

use std::collections::HashSet;

use list::{NETWORKS, Row};
use vcycle::model::{Arch, Mode, Model, ModelConfig, Plan};
use vcycle::ops::conv3d::Direction;
use vcycle::shape::StepShape;

fn plain(rows: &[Row], direction: Direction) -> Vec<&Row> {
    rows.iter().filter(|r| r.form.is_none() && r.direction == direction).collect()
}

#[test]
fn eight_grids_of_about_the_same_volume() {
    for network in NETWORKS {
        let grids = network.grids().expect("grids");
        assert_eq!(grids.len(), 8, "{grids:?}");
        let volume = |g: &StepShape| (g.clips * g.frames * g.height_px * g.width_px) as f64;
        for grid in &grids {
            assert!((0.97..1.03).contains(&(volume(grid) / volume(&grids[0]))), "{grid}");
        }
        assert_eq!((grids[0].clips, grids[0].height_px), (8, 224), "the default shape comes first");
    }
    let names: Vec<String> = NETWORKS[0].grids().expect("grids").iter().map(|g| g.to_string()).collect();
    assert_eq!(names[..3], ["8x32x224", "16x32x158", "32x32x112"]);
    assert_eq!(names[3..], ["16x16x224", "32x16x158", "64x16x112", "64x8x158", "128x8x112"]);
}

#[test]
fn each_distinct_convolution_once() {
    // Five non-local blocks have four convolutions each: of keys and values alike, and s4's of queries is that of s5 at its start.
    for (network, distinct, convolutions) in [(NETWORKS[0], 51, 110), (NETWORKS[1], 26, 53), (NETWORKS[2], 31, 73)] {
        for grid in network.grids().expect("grids") {
            let rows = network.rows(grid).expect("rows");
            let forward = plain(&rows, Direction::Forward);
            assert_eq!(forward.len(), distinct, "{} {grid}", network.name);
            assert_eq!(forward.iter().map(|r| r.count).sum::<usize>(), convolutions, "{} {grid}", network.name);
            let stems = forward.iter().filter(|r| r.c_in == 3).count();
            assert_eq!(plain(&rows, Direction::GradInput).len(), distinct - stems, "a stem's input needs no gradient");
            assert_eq!(plain(&rows, Direction::GradFilter).len(), distinct);
            let ids: HashSet<String> = rows.iter().map(Row::id).collect();
            assert_eq!(ids.len(), rows.len(), "ids of {} {grid}", network.name);
        }
    }
}

/// A fused step runs each convolution that a plain one runs, and the list counts the work of a step.
#[test]
fn the_list_counts_a_step() {
    let stream = vcycle::device::Device::Cpu.stream().expect("stream");
    let model = Model::new(&ModelConfig::new(Arch::SlowFast, 50, 400)).expect("model");
    let grid = StepShape::square(8, 32, 224, 1);
    let step = Plan::new(&stream, &model, grid, Mode::Train, 3).expect("plan");
    let projection = 8 * 2304 * 400; // The head's, as large in each direction.
    let rows = NETWORKS[0].rows(grid).expect("rows");
    let flops = |is_fused: bool, directions: &[Direction]| -> u64 {
        let of = rows.iter().filter(|r| r.form.is_some() == is_fused && directions.contains(&r.direction));
        of.map(|r| r.count as u64 * r.flops()).sum()
    };
    for is_fused in [false, true] {
        assert_eq!(flops(is_fused, &[Direction::Forward]), 2 * (step.forward_macs - projection));
        let backward = flops(is_fused, &[Direction::GradInput, Direction::GradFilter]);
        assert_eq!(backward, 2 * (step.backward_macs - 2 * projection));
    }
}
