//! A step allocates nothing after the first: no device memory, and on the CPU executor nothing of the host's heap either. The emulator's
//! launches do, always as much.
//!
//! A binary of its own, because it counts with a global allocator, which would also count what other tests do meanwhile.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vcycle::device::{Buffer, Device};
use vcycle::labels::Labels;
use vcycle::model::plan::Memory;
use vcycle::model::{Arch, Mode, Model, ModelConfig, Network, StepInputs, StepTargets};
use vcycle::ops::attention::Instantiation;
use vcycle::optimizer::SgdConfig;
use vcycle::shape::StepShape;

/// Counts allocations of all threads while it is asked to. With `VCYCLE_TRACE_ALLOCATIONS=1` it prints where they come from.
struct Counting;

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static IS_TRACED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_TRACING: Cell<bool> = const { Cell::new(false) };
}

fn count(len: usize) {
    if !IS_COUNTING.load(Ordering::Relaxed) || IS_TRACING.get() {
        return;
    }
    COUNT.fetch_add(1, Ordering::Relaxed);
    LARGEST.fetch_max(len, Ordering::Relaxed);
    if IS_TRACED.load(Ordering::Relaxed) {
        IS_TRACING.set(true);
        eprintln!("allocation of {len} bytes\n{}", std::backtrace::Backtrace::force_capture());
        IS_TRACING.set(false);
    }
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's duty.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's duty.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        // SAFETY: the caller's duty.
        unsafe { System.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's duty.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of `work` on all threads, and the bytes of the largest.
fn allocations(work: impl FnOnce()) -> (usize, usize) {
    COUNT.store(0, Ordering::SeqCst);
    LARGEST.store(0, Ordering::SeqCst);
    IS_COUNTING.store(true, Ordering::SeqCst);
    work();
    IS_COUNTING.store(false, Ordering::SeqCst);
    (COUNT.load(Ordering::SeqCst), LARGEST.load(Ordering::SeqCst))
}

const TRAIN: StepShape = StepShape::square(4, 8, 32, 2);
const EVAL: StepShape = StepShape::square(2, 8, 48, 1);

fn configs() -> [ModelConfig; 2] {
    let tiny =
        |arch| ModelConfig { width_per_group: 8, beta_inv: 2, dropout_rate: 0.5, ..ModelConfig::new(arch, 18, 4) };
    let mut non_local = tiny(Arch::I3d);
    non_local.non_local.instantiation = Instantiation::Softmax;
    non_local.non_local.location[1][0] = vec![0];
    non_local.non_local.pool[1][0] = [1, 2, 2];
    [tiny(Arch::SlowFast), non_local]
}

/// Whole steps, or in micro-batches.
fn prepared(device: &Device, config: &ModelConfig, is_cut: bool) -> Network {
    let mut network = Network::new(device, Model::new(config).expect("model"), 1).expect("network");
    network.prepare(&[TRAIN], &[EVAL]).expect("prepare");
    if is_cut {
        network.limit_memory(Memory::of(network.model(), &network.plans().collect::<Vec<_>>()).total() - 1);
        network.prepare(&[TRAIN], &[EVAL]).expect("prepare");
        assert_eq!(network.plans().filter(|plan| plan.mode == Mode::Train).count(), 2);
    }
    network
}

/// Allocations of a training step, of hearing of it, and of an evaluation.
fn step(network: &mut Network, step_idx: u64) -> [(usize, usize); 3] {
    let labels = Labels::Classes(vec![0, 1, 2, 3]);
    let inputs = StepInputs { targets: StepTargets::Labels(&labels), step_idx, lr: 1e-3 };
    let config = SgdConfig::default();
    let train = allocations(|| network.train_step(TRAIN, &inputs, &config).expect("step"));
    let heard = allocations(|| drop(network.take_results().expect("results").expect("of the step")));
    let eval = allocations(|| drop(network.forward_eval(EVAL).expect("evaluation")));
    [train, heard, eval]
}

/// Steps until all is as large as it gets.
const WARM_UP: u64 = 3;

#[test]
fn a_step_allocates_nothing_after_the_first() {
    let simt = cfg!(feature = "simt").then(|| Device::select("simt").expect("the emulator").0);
    // Inside of the pool: work that comes from outside goes through a queue of the pool, which grows now and then.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("pool");
    for device in [Device::Cpu].into_iter().chain(simt) {
        for (config, is_cut) in configs().into_iter().flat_map(|config| [(config.clone(), false), (config, true)]) {
            pool.install(|| {
                let mut network = prepared(&device, &config, is_cut);
                for i in 0..WARM_UP {
                    step(&mut network, i);
                }
                IS_TRACED.store(std::env::var_os("VCYCLE_TRACE_ALLOCATIONS").is_some(), Ordering::Relaxed);
                let before = Buffer::count_made_on_this_thread();
                let [counts, later] = [0, 1].map(|i| step(&mut network, WARM_UP + i));
                IS_TRACED.store(false, Ordering::Relaxed);
                assert_eq!(Buffer::count_made_on_this_thread(), before, "{device} {:?}", config.arch);
                let what = format!("{device} {:?}, in micro-batches: {is_cut}", config.arch);
                println!("{what}: (allocations, largest) of step, results, evaluation: {counts:?}, then {later:?}");
                if device == Device::Cpu {
                    // What is returned: losses, and class scores.
                    assert_eq!([counts, later].map(|c| c.map(|(count, _)| count)), [[0, 1, 1]; 2], "{what}");
                } else {
                    // The emulator makes a few small ones for each launch: nothing grows, and nothing is of a tensor's size.
                    assert_eq!(counts, later, "{what}");
                    assert!(counts.iter().all(|&(_, largest)| largest < 4096), "{what}");
                }
            });
        }
    }
}
