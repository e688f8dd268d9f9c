//! Kernels with a mistake (kernels/simt/tests), which the emulator must find; and the same kernels without it, which it must
//! pass. With the checker every mistake is an error that names kernel, block and thread. Without it some are not seen at
//! all: the table says what can be relied upon.

use half::bf16;
use vcycle::device::simt::{self, AsyncMode, Guard, SimtOptions, with_options};
use vcycle::device::{DType, Device, OutOfBounds, Swizzle};

use super::unit::{MapCase, MapKind, UnitCase, bytes};
use super::unit_wgmma::place;

/// What the build without the checker makes of a mistake.
#[derive(Clone, Copy, PartialEq)]
enum Plain {
    /// An error, too.
    Error,
    /// An error or a wrong result.
    Visible,
    /// Perhaps nothing.
    Unseen,
}

/// In which modes the mistake matters.
#[derive(Clone, Copy, PartialEq)]
enum Modes {
    Both,
    Lazy,
    Eager,
}

struct Fault {
    number: i32,
    what: &'static str,
    plain: Plain,
    modes: Modes,
    /// One of these is in the checker's error.
    words: &'static [&'static str],
}

const fn fault(number: i32, what: &'static str, plain: Plain, words: &'static [&'static str]) -> Fault {
    Fault { number, what, plain, modes: Modes::Both, words }
}

const fn fault_in(modes: Modes, fault: Fault) -> Fault {
    Fault { modes, ..fault }
}

/// Runs the kernel without a mistake, then with each, in every mode and schedule.
fn test(case: UnitCase, faults: &[Fault]) {
    for options in SimtOptions::all() {
        with_options(options, || {
            case.check(&Device::Simt).unwrap_or_else(|e| panic!("{} without a mistake, {options:?}: {e}", case.kernel));
            for fault in faults {
                test_fault(&case, fault, options);
            }
        });
    }
}

fn test_fault(case: &UnitCase, fault: &Fault, options: SimtOptions) {
    let mut wrong = case.clone();
    wrong.flags[0] = fault.number;
    let outcome = wrong.run(&Device::Simt);
    let name = format!("{}, {} ({options:?})", case.kernel, fault.what);
    let applies = match fault.modes {
        Modes::Both => true,
        Modes::Lazy => options.async_mode == AsyncMode::Lazy,
        Modes::Eager => options.async_mode == AsyncMode::Eager,
    };
    match outcome {
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(&format!("kernel {}", case.kernel)), "{name}: no kernel in: {text}");
            let is_of_host = text.contains("write at byte"); // found after the launch, by a canary
            assert!(
                is_of_host || text.contains("block (") && text.contains("thread ("),
                "{name}: no thread in: {text}"
            );
            if simt::is_checked() && applies {
                assert!(fault.words.iter().any(|word| text.contains(word)), "{name}: unexpected words: {text}");
            }
        }
        Ok(output) if applies => {
            assert!(!simt::is_checked(), "{name}: the checker did not find it");
            assert!(fault.plain != Plain::Error, "{name}: no error");
            assert!(fault.plain != Plain::Visible || output != case.expected, "{name}: no error and the right result");
        }
        Ok(_) => {}
    }
}

fn values() -> Vec<u32> {
    (0..64).map(|i| i * i + 3).collect()
}

fn reversed(kernel: &'static str, shared_bytes: u32) -> UnitCase {
    let expected: Vec<u32> = values().into_iter().rev().collect();
    UnitCase {
        kernel,
        grid: 2,
        block: 64,
        shared_bytes,
        a: bytes(&values()),
        expected: bytes(&expected),
        ..Default::default()
    }
}

#[test]
fn dynamic_shared_memory() {
    let case = UnitCase { grid: 1, ..reversed("fault_dynamic_shared", 256) };
    test(
        case,
        &[
            fault(1, "no __syncthreads", Plain::Visible, &["RACE at byte"]),
            fault(2, "half of the threads at __syncthreads", Plain::Error, &["DEADLOCK", "RACE"]),
            fault(3, "write behind the end", Plain::Error, &["dynamic shared memory, which has 256"]),
            fault(4, "read behind the end", Plain::Unseen, &["dynamic shared memory, which has 256"]),
        ],
    );
}

#[test]
fn static_shared_memory() {
    let case = UnitCase { grid: 1, ..reversed("fault_static_shared", 0) };
    test(
        case,
        &[
            fault(1, "no __syncthreads", Plain::Unseen, &["RACE at static shared memory"]),
            fault(2, "overwritten too early", Plain::Unseen, &["RACE at static shared memory"]),
        ],
    );
}

#[test]
fn exchange_in_a_warp() {
    let case = UnitCase {
        kernel: "fault_warp_exchange",
        grid: 1,
        block: 32,
        shared_bytes: 128,
        expected: bytes(&(0..32).map(|lane| lane ^ 1).collect::<Vec<u32>>()),
        ..Default::default()
    };
    test(case, &[fault(1, "a shuffle for __syncwarp", Plain::Unseen, &["RACE at byte"])]);
}

#[test]
fn collectives() {
    let case = UnitCase {
        kernel: "fault_collective",
        grid: 1,
        block: 64,
        expected: bytes(&(0..64).map(|t| t % 32).collect::<Vec<i32>>()),
        ..Default::default()
    };
    test(
        case,
        &[
            fault(1, "divergent collectives", Plain::Error, &["divergent warp collective"]),
            fault(2, "a lane outside its mask", Plain::Error, &["not in its mask"]),
            fault(3, "a warp that skips bar.sync", Plain::Error, &["DEADLOCK"]),
            fault(4, "other numbers of threads", Plain::Error, &["named barrier 1 is used with"]),
            fault(5, "a shuffle from an absent lane", Plain::Error, &["does not take part"]),
        ],
    );
}

fn global() -> UnitCase {
    let mut expected = values();
    expected[7] += 5;
    expected.extend([5; 3]);
    UnitCase {
        kernel: "fault_global",
        grid: 3,
        block: 64,
        a: bytes(&values()),
        expected: bytes(&expected),
        ..Default::default()
    }
}

#[test]
fn global_memory() {
    test(
        global(),
        &[
            fault(1, "load behind the end", Plain::Error, &["byte 256 of a buffer of 256", "bytes 256..260"]),
            fault(2, "store before the start", Plain::Unseen, &["4 bytes before a buffer of 256 bytes"]),
            fault(3, "blocks store the same word", Plain::Visible, &["RACE at byte 0 of a global buffer"]),
            fault(4, "a block loads what another stores", Plain::Unseen, &["of a global buffer of 268 bytes: "]),
            fault(5, "threads of a block without a barrier", Plain::Unseen, &["RACE at byte"]),
            fault(6, "store into the slack", Plain::Error, &["byte 268 of a buffer of 268 bytes"]),
        ],
    );
}

#[test]
fn start_of_global_memory_without_the_checker() {
    with_options(SimtOptions { guard: Guard::Start, ..Default::default() }, || {
        let mut case = global();
        case.check(&Device::Simt).unwrap();
        case.flags[0] = 2;
        let error = case.run(&Device::Simt).unwrap_err().to_string();
        assert!(error.contains("4 bytes before a buffer of 256 bytes"), "{error}");
    });
}

#[test]
fn last_block_reduces() {
    let blocks = 12;
    let mut expected = vec![blocks];
    expected.extend(1..=blocks);
    expected.push(blocks * (blocks + 1) / 2);
    let case =
        UnitCase { kernel: "fault_ticket", grid: blocks, block: 64, expected: bytes(&expected), ..Default::default() };
    test(
        case,
        &[
            fault(1, "no fence before the ticket", Plain::Unseen, &["RACE at byte"]),
            fault(2, "no fence after the ticket", Plain::Unseen, &["RACE at byte"]),
            fault(3, "a plain counter", Plain::Unseen, &["RACE at byte 0 of a global buffer"]),
        ],
    );
}

#[test]
fn dependent_grids() {
    let case =
        UnitCase { kernel: "fault_griddep", grid: 1, block: 32, expected: bytes(&[2u32; 32]), ..Default::default() };
    test(case, &[fault(1, "written before the wait", Plain::Unseen, &["griddepcontrol.wait after"])]);
}

#[test]
fn a_thread_of_its_own() {
    let case =
        UnitCase { kernel: "fault_thread", grid: 1, block: 32, expected: bytes(&[1u32; 32]), ..Default::default() };
    test(
        case,
        &[
            fault(1, "stack overflow", Plain::Error, &["stack of 65536 bytes overflows"]),
            fault(2, "__trap", Plain::Error, &["__trap()"]),
        ],
    );
}

#[test]
fn cp_async() {
    let pieces = 8;
    let source: Vec<u32> = (0..pieces * 128).map(|i| i as u32 * 3).collect();
    let sums: Vec<u32> = (0..32).map(|lane| (0..pieces).map(|p| source[p * 128 + (lane ^ 1) * 4]).sum()).collect();
    let case = UnitCase {
        kernel: "fault_cp_async",
        grid: 1,
        block: 32,
        shared_bytes: 1536,
        flags: [0, pieces as i32, 0, 0, 0, 0],
        a: bytes(&source),
        expected: bytes(&sums),
        ..Default::default()
    };
    let under_way = &["while a cp.async into it is under way", "RACE"];
    test(
        case,
        &[
            fault_in(Modes::Lazy, fault(1, "a wait too lax", Plain::Visible, under_way)),
            fault_in(Modes::Eager, fault(1, "a wait too lax", Plain::Unseen, under_way)),
            fault(2, "no __syncwarp before the read", Plain::Unseen, under_way),
            fault(3, "no __syncwarp before the refill", Plain::Unseen, under_way),
            fault(4, "no wait at the end", Plain::Error, &["cp.async never waited for"]),
            fault(5, "a misaligned source", Plain::Error, &["byte aligned"]),
            fault(6, "a copy behind the end", Plain::Error, &["of dynamic shared memory, which has 1536"]),
        ],
    );
}

fn box_map(dtype: DType, sizes: &[u64], pitches_bytes: &[u64], box_sizes: &[u32], is_over_output: bool) -> MapCase {
    MapCase {
        dtype,
        sizes: sizes.to_vec(),
        pitches_bytes: pitches_bytes.to_vec(),
        element_steps: vec![1; sizes.len()],
        swizzle: Swizzle::None,
        out_of_bounds: OutOfBounds::Zero,
        kind: MapKind::Tiled { box_sizes: box_sizes.to_vec() },
        is_over_output,
    }
}

#[test]
fn mbarrier_and_tma() {
    let boxes = 6;
    let source: Vec<f32> = (0..boxes * 256).map(|i| (i % 97) as f32).collect();
    let sum =
        |lane: usize| -> f32 { source.iter().enumerate().filter(|(i, _)| (i ^ 1) % 32 == lane).map(|(_, v)| v).sum() };
    let case = UnitCase {
        kernel: "fault_tma_ring",
        grid: 1,
        block: 64,
        shared_bytes: 3072,
        flags: [0, boxes, 0, 0, 0, 0],
        map: Some(box_map(DType::F32, &[boxes as u64 * 256], &[], &[256], false)),
        a: bytes(&source),
        expected: bytes(&(0..32).map(sum).collect::<Vec<f32>>()),
        ..Default::default()
    };
    test(
        case,
        &[
            fault(1, "expect_tx too small", Plain::Visible, &["DEADLOCK", "RACE", "more arrivals"]),
            fault(2, "empty barrier ignored", Plain::Visible, &["DEADLOCK", "RACE", "more arrivals"]),
            fault(3, "wrong parity", Plain::Visible, &["DEADLOCK", "RACE", "more arrivals"]),
            fault(4, "slot released before it is read", Plain::Unseen, &["RACE"]),
            fault(5, "no init", Plain::Error, &["before mbarrier.init"]),
            fault(6, "an arrival too many", Plain::Error, &["more arrivals", "RACE"]),
            fault_in(Modes::Lazy, fault(7, "last box not waited for", Plain::Error, &["nobody waited for"])),
            fault(8, "misaligned", Plain::Error, &["128-byte aligned"]),
            fault(9, "rank", Plain::Error, &["2 coordinates for a map of rank 1"]),
        ],
    );
}

#[test]
fn tma_store() {
    let packed: Vec<u16> = (0..32 * 16).map(|i| bf16::from_f32((i % 200) as f32).to_bits()).collect();
    let case = UnitCase {
        kernel: "fault_tma_store",
        grid: 1,
        block: 32,
        shared_bytes: 1024,
        bits: [1024, 0],
        map: Some(box_map(DType::Bf16, &[32, 16], &[64], &[32, 16], true)),
        a: bytes(&packed),
        expected: bytes(&packed),
        ..Default::default()
    };
    test(
        case,
        &[
            fault(1, "no fence.proxy.async", Plain::Unseen, &["missing fence.proxy.async"]),
            fault(2, "no barrier before the store", Plain::Unseen, &["RACE", "missing fence.proxy.async"]),
            fault_in(Modes::Lazy, fault(3, "overwritten before it is read", Plain::Visible, &["RACE"])),
            fault_in(Modes::Eager, fault(3, "overwritten before it is read", Plain::Unseen, &["RACE"])),
            fault(4, "no wait", Plain::Error, &["wait_group.read is missing"]),
        ],
    );
}

#[test]
fn wgmma() {
    let rounds = 3;
    let a = |m: usize, k: usize| (m + 3 * k) as i32 % 7 - 3;
    let b = |n: usize, k: usize| (2 * n + k) as i32 % 5 - 2;
    let half = |v: i32| bf16::from_f32(v as f32).to_bits();
    let operand_a = place(64, 64, false, Swizzle::Bytes128, 0, |m, k| half(a(m, k)));
    let operand_b = place(64, 64, false, Swizzle::Bytes128, 0, |n, k| half(b(n, k)));
    let expected: Vec<f32> =
        (0..64 * 64).map(|i| (rounds * (0..64).map(|k| a(i / 64, k) * b(i % 64, k)).sum::<i32>()) as f32).collect();
    let image = [operand_a.image, operand_b.image].concat();
    assert_eq!(image.len(), 16384);
    let case = UnitCase {
        kernel: "fault_wgmma",
        grid: 1,
        block: 128,
        shared_bytes: 32768,
        bits: [operand_a.descriptor, operand_b.descriptor + (8192 >> 4)],
        flags: [0, rounds, 0, 0, 0, 0],
        a: image,
        expected: bytes(&expected),
        ..Default::default()
    };
    test(
        case,
        &[
            fault(1, "no wgmma.fence", Plain::Error, &["without a wgmma.fence"]),
            fault(2, "no fence.proxy.async", Plain::Unseen, &["missing fence.proxy.async"]),
            fault(3, "no __syncthreads", Plain::Unseen, &["RACE", "while a wgmma that reads it is in flight"]),
            fault_in(
                Modes::Eager,
                fault(4, "stage refilled in flight", Plain::Unseen, &["while a wgmma that reads it is in flight"]),
            ),
            fault(5, "no wait", Plain::Error, &["wgmma never waited for"]),
            fault_in(Modes::Eager, fault(7, "accumulator written in flight", Plain::Error, &["was written while"])),
            fault(8, "other descriptors", Plain::Error, &["thread 77 of the warpgroup has other operands"]),
            fault(9, "operands behind the end", Plain::Error, &["dynamic shared memory, which has 32768"]),
        ],
    );
}

/// Reading an accumulator in flight gives NaN (eager) or counts it twice (lazy): a wrong result, no error.
#[test]
fn wgmma_accumulator_read_in_flight() {
    for options in SimtOptions::all() {
        with_options(options, || {
            let mut case = one_wgmma("fault_wgmma");
            case.check(&Device::Simt).unwrap();
            case.flags[0] = 6;
            assert_ne!(case.run(&Device::Simt).unwrap(), case.expected, "{options:?}");
        });
    }
}

fn one_wgmma(kernel: &'static str) -> UnitCase {
    let half = |v: f32| bf16::from_f32(v).to_bits();
    let ones = place(64, 64, false, Swizzle::Bytes128, 0, |_, _| half(1.0));
    UnitCase {
        kernel,
        grid: 1,
        block: 128,
        shared_bytes: 32768,
        bits: [ones.descriptor, ones.descriptor + (8192 >> 4)],
        flags: [0, 1, 0, 0, 0, 0],
        a: [ones.image.clone(), ones.image].concat(),
        expected: bytes(&[64.0f32; 64 * 64]),
        ..Default::default()
    }
}

#[test]
fn wgmma_registers_changed_in_flight() {
    let plain = one_wgmma("fault_wgmma_registers");
    let case = UnitCase {
        shared_bytes: 8192,
        c: plain.a[..8192].to_vec(),
        bits: [0, plain.bits[0]],
        flags: [0; 6],
        expected: bytes(&[16.0f32; 64 * 64]),
        ..plain
    };
    test(case, &[fault_in(Modes::Eager, fault(1, "a register of A changed", Plain::Error, &["registers of A"]))]);
}

#[test]
fn register_pool() {
    let case = UnitCase {
        kernel: "fault_setmaxnreg",
        grid: 1,
        block: 384,
        expected: bytes(&(0..384).collect::<Vec<u32>>()),
        ..Default::default()
    };
    test(
        case,
        &[
            fault(1, "nobody gives registers", Plain::Error, &["DEADLOCK"]),
            fault(2, "a thread stays away", Plain::Error, &["DEADLOCK"]),
            fault(3, "inc to less", Plain::Error, &["setmaxnreg.inc to 160 registers"]),
        ],
    );
}
