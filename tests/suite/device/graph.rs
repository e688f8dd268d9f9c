//! Launches that are captured once and replayed.

use vcycle::device::{Buffer, DType, Device, Graph, Pinned, Stream, Tensor};
use vcycle::error::{Error, Result};
use vcycle::ops::pointwise;
use vcycle::shape::ActivationShape;

use crate::executors;

fn tensor(device: &Device) -> Tensor {
    Tensor::zeroed(device, DType::F32, ActivationShape::new(1, 1, 2, 3, 8)).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let mut values = tensor.memory().read::<f32>().unwrap();
    values.dedup();
    values
}

/// `sum += one`, `one = value`.
fn work(stream: &Stream, one: &Tensor, sum: &Tensor, value: f32) -> Result<()> {
    pointwise::add(stream, one, sum)?;
    pointwise::fill(stream, one, value)
}

#[test]
fn a_graph_runs_when_it_is_launched_as_often_as_it_is() {
    for device in executors::with_kernels() {
        let stream = device.stream().unwrap();
        let (one, sum) = (tensor(&device), tensor(&device));
        pointwise::fill(&stream, &one, 1.0).unwrap();
        let mut ran = 0;
        let mut graph = Graph::capture(&stream, || {
            ran += 1;
            work(&stream, &one, &sum, 2.0)
        })
        .unwrap();
        assert_eq!((values(&sum), values(&one)), (vec![0.0], vec![1.0]), "{device}: nothing runs at the capture");
        for expected in [1.0, 3.0, 5.0] {
            graph.launch(&stream).unwrap();
            assert_eq!(values(&sum), [expected], "{device}");
        }
        assert_eq!((ran, graph.num_launches()), (1, 2));
        // Work beside the graph, and the graph on another stream of the device.
        pointwise::fill(&stream, &sum, 10.0).unwrap();
        stream.synchronize().unwrap();
        graph.launch(&device.stream().unwrap()).unwrap();
        assert_eq!(values(&sum), [12.0], "{device}");
        assert!(graph.launch(&Device::Cpu.stream().unwrap()).is_err());
    }
}

#[test]
fn memory_lives_as_long_as_the_graph() {
    for device in executors::with_kernels() {
        let stream = device.stream().unwrap();
        let kept = tensor(&device);
        let mut graph = {
            let gone = tensor(&device);
            pointwise::fill(&stream, &gone, 7.0).unwrap();
            Graph::capture(&stream, || pointwise::add(&stream, &gone, &kept)).unwrap()
        };
        // Were the memory free, the emulator would fault, and this might be given the same.
        let _other = tensor(&device);
        graph.launch(&stream).unwrap();
        assert_eq!(values(&kept), [7.0], "{device}");
    }
}

#[test]
fn two_captures_of_the_same_are_the_same_bytes() {
    for device in executors::with_kernels() {
        let stream = device.stream().unwrap();
        let (one, sum) = (tensor(&device), tensor(&device));
        let capture = |value| Graph::capture(&stream, || work(&stream, &one, &sum, value)).unwrap();
        let graph = capture(2.0);
        assert_eq!(graph.first_difference(&capture(2.0)), None);
        let said = graph.first_difference(&capture(2.5)).unwrap();
        assert!(said.starts_with("launch 1 (fill: pointwise_fill"), "{said}");
        assert!(said.contains("of its arguments is Some(0) and Some(32)"), "{said}");
        let swapped = Graph::capture(&stream, || pointwise::fill(&stream, &one, 2.0)).unwrap();
        assert!(graph.first_difference(&swapped).unwrap().contains("the other is fill"));
        let shorter = Graph::capture(&stream, || pointwise::add(&stream, &one, &sum)).unwrap();
        assert_eq!(graph.first_difference(&shorter).unwrap(), "2 launches and 1");
    }
}

#[test]
fn what_cannot_be_captured_is_named() {
    for device in executors::with_kernels() {
        let stream = device.stream().unwrap();
        let (one, sum) = (tensor(&device), tensor(&device));
        let mut pinned = Pinned::zeroed(&device, 192).unwrap();
        let other = device.stream().unwrap();
        let event = other.record().unwrap();
        let bytes = Buffer::zeroed(&device, 192).unwrap().slice::<u8>(0, 192).unwrap();
        type Work<'a> = Box<dyn FnMut() -> Result<()> + 'a>;
        let cases: Vec<(&str, Work)> = vec![
            ("a copy from the host", Box::new(|| one.memory().write(&[0f32; 48]))),
            ("a copy to the host", Box::new(|| one.memory().read::<f32>().map(drop))),
            ("a copy of a small table", Box::new(|| stream.write_small(&[0; 8], &bytes))),
            ("download", Box::new(|| stream.download(&bytes, &mut pinned))),
            ("an allocation", Box::new(|| Buffer::zeroed(&device, 16).map(drop))),
            ("an allocation of pinned memory", Box::new(|| Pinned::zeroed(&device, 16).map(drop))),
            ("waiting for the device", Box::new(|| device.synchronize())),
            ("waiting for the stream", Box::new(|| stream.synchronize())),
            ("waiting for an event", Box::new(|| stream.wait(&event))),
            ("an event", Box::new(|| stream.record().map(drop))),
            ("fill on another stream", Box::new(|| pointwise::fill(&other, &sum, 1.0))),
            ("a capture", Box::new(|| Graph::capture(&stream, || Ok(())).map(drop))),
        ];
        for (what, mut work) in cases {
            let error = Graph::capture(&stream, &mut work).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{what} is not supported: a graph is being captured")), "{error}");
            // Also where the work goes on as if nothing had happened.
            let error = Graph::capture(&stream, || work().or(Ok(()))).unwrap_err().to_string();
            assert!(error.starts_with(what), "{error}");
        }
        // The stream is as it was, also after an error and a panic of the work itself.
        let failed = Graph::capture(&stream, || Err(Error::Data("no clip".into())));
        assert_eq!(failed.unwrap_err().to_string(), "data: no clip");
        let panics = || drop(Graph::capture(&stream, || panic!("the work panics")));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        work(&stream, &one, &sum, 4.0).unwrap();
        assert_eq!(values(&one), [4.0], "{device}");
    }
}

#[test]
fn other_threads_work_on_during_a_capture() {
    for device in executors::with_kernels() {
        let stream = device.stream().unwrap();
        let (one, sum) = (tensor(&device), tensor(&device));
        let graph = Graph::capture(&stream, || {
            pointwise::add(&stream, &one, &sum)?;
            let elsewhere = || Buffer::zeroed(&device, 64).map(drop);
            std::thread::scope(|scope| scope.spawn(elsewhere).join().unwrap())
        });
        assert_eq!(graph.unwrap().num_launches(), 1);
    }
}

#[test]
fn the_cpu_has_no_graphs() {
    let stream = Device::Cpu.stream().unwrap();
    let error = Graph::capture(&stream, || panic!("it is not called")).unwrap_err().to_string();
    assert_eq!(error, "a graph is not supported: the device `cpu` queues nothing: call the ops each time");
    assert!(!Graph::is_used_on(&Device::Cpu));
}

/// In a process of its own, which is asked by its environment to wait after each launch.
#[cfg(feature = "simt")]
#[test]
fn a_failed_op_is_named_with_and_without_graphs() {
    use vcycle::device::{LaunchConfig, launch};

    let device = Device::Simt;
    let stream = device.stream().unwrap();
    let waits = std::env::var_os("VCYCLE_SYNC").is_some_and(|v| v == "1");
    assert_eq!(Graph::is_used_on(&device), !waits);
    let (one, sum) = (tensor(&device), tensor(&device));
    let bad = || {
        let config = LaunchConfig { grid: [1; 3], block: [32, 1, 1], shared_bytes: 0 };
        // SAFETY: the launch is refused, for its argument is missing, before any thread runs.
        unsafe { launch::launch(&stream, "a bad op", "unit_vote", config, &[]) }
    };
    let mut graph = Graph::capture(&stream, || {
        work(&stream, &one, &sum, 3.0)?;
        bad()?;
        pointwise::fill(&stream, &sum, 9.0)
    })
    .unwrap();
    let named = |error: Error| matches!(&error, Error::Driver { op, message } if op == "a bad op" && message.contains("expected 1 arguments"));
    assert!(named(graph.launch(&stream).unwrap_err()) && named(bad().unwrap_err()));
    assert_eq!((values(&one), values(&sum)), (vec![3.0], vec![0.0]), "what comes before it has run, nothing after it");
    if !waits {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "device::graph::a_failed_op_is_named_with_and_without_graphs"]);
        assert!(child.env("VCYCLE_SYNC", "1").status().unwrap().success());
    }
}
