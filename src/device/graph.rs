//! Launches that are queued again and again, captured once and started as one: on a GPU a CUDA graph, on the emulator a
//! list that is replayed. In both cases the launches with their arguments are kept, so that two captures can be compared.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaGraph, CudaStream, result, sys};

use super::cuda::driver_error;
use super::{Device, LaunchConfig, Slice, Stream, launch};
use crate::error::{Error, Result};

/// Captured launches. They keep the memory that the ops of this crate gave them; replaying them allocates nothing.
pub struct Graph {
    /// Dropped before the memory that its launches use.
    executable: Option<Executable>,
    device: Device,
    launches: Vec<Launch>,
}

/// A launch as it was captured.
#[derive(Debug)]
struct Launch {
    op: String,
    kernel: String,
    config: LaunchConfig,
    arguments: Vec<Vec<u8>>,
    reads: Vec<Slice>,
    writes: Vec<Slice>,
}

/// The driver's part of a graph.
struct Executable(CudaGraph);

// SAFETY: the driver lets any thread use a graph, one at a time; it is used through `&mut Graph` and by its drop alone.
unsafe impl Send for Executable {}
// SAFETY: a shared reference reaches nothing of it.
unsafe impl Sync for Executable {}

/// A capture under way on this thread.
struct Capture {
    stream: usize,
    device: Device,
    launches: Vec<Launch>,
    /// What was asked for first that cannot be captured.
    refused: Option<String>,
}

thread_local! {
    static CAPTURE: RefCell<Option<Capture>> = const { RefCell::new(None) };
}

impl Graph {
    /// Captures what `work` launches on `stream`, in order. Nothing of it runs before [`Graph::launch`], and what the host
    /// does in `work` is not repeated then: the same arguments are used every time.
    ///
    /// Work without a launch cannot be part of it and is refused by an error that names it: copies from and to the host,
    /// allocations, waiting, launches on other streams. On a GPU a kernel should have run before it is captured: the driver
    /// loads it then.
    ///
    /// # Errors
    /// `Unsupported` on `Cpu` (where ops are called directly), inside of another capture of this thread, and for work that
    /// cannot be captured; what `work` returns; what the driver refuses.
    pub fn capture(stream: &Stream, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        if *stream.device() == Device::Cpu {
            let message = "the device `cpu` queues nothing: call the ops each time".to_string();
            return Err(Error::unsupported("a graph", message));
        }
        let capturing = Capturing::begin(stream)?;
        let outcome = work();
        let ended = capturing.end();
        outcome?;
        let (capture, executable) = ended?;
        match capture.refused {
            Some(what) => Err(refusal(&what)),
            None => Ok(Graph { executable, device: capture.device, launches: capture.launches }),
        }
    }

    /// Whether a program should capture its steps on `device`: where launches are queued, and with `VCYCLE_SYNC=1`, which
    /// waits for each and names the op that failed, nowhere.
    pub fn is_used_on(device: &Device) -> bool {
        *device != Device::Cpu && !launch::waits_after_each_launch()
    }

    /// Queues all launches on `stream`, of the device that they were captured on.
    ///
    /// # Errors
    /// A stream of another device; what the driver or the emulator reports, on the emulator with the op that failed.
    pub fn launch(&mut self, stream: &Stream) -> Result<()> {
        if *stream.device() != self.device {
            let message = format!("the stream is on {}, the graph on {}", stream.device(), self.device);
            return Err(Error::shape("graph", message));
        }
        refuse_in_capture(&self.device, "the launch of a graph")?;
        let Some((Executable(graph), queue)) = self.executable.as_ref().zip(stream.cuda.as_ref()) else {
            return self.launches.iter().try_for_each(|launch| launch.replay(stream));
        };
        let failed = |e| driver_error(&format!("graph of {} launches", self.launches.len()), e);
        queue.context().bind_to_thread().map_err(failed)?;
        // SAFETY: both are alive and of one context. The launches met the duties of `launch` when they were captured; the
        // memory of this crate's ops is kept by `launches`.
        unsafe { result::graph::launch(graph.cu_graph_exec(), queue.cu_stream()) }.map_err(failed)?;
        if launch::waits_after_each_launch() {
            stream.synchronize()?;
        }
        Ok(())
    }

    /// How many launches it holds.
    pub fn num_launches(&self) -> usize {
        self.launches.len()
    }

    /// Where `other` differs first: in the number or order of launches, in a grid, or in a byte of an argument. `None` for two
    /// captures that do the very same.
    pub fn first_difference(&self, other: &Graph) -> Option<String> {
        let pairs = self.launches.iter().zip(&other.launches).enumerate();
        let differs = |(i, (a, b)): (usize, (&Launch, &Launch))| {
            Some(format!("launch {i} ({}: {}): {}", a.op, a.kernel, a.first_difference(b)?))
        };
        let [a, b] = [self.launches.len(), other.launches.len()];
        pairs.into_iter().find_map(differs).or_else(|| (a != b).then(|| format!("{a} launches and {b}")))
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({} launches on {})", self.launches.len(), self.device)
    }
}

impl Launch {
    fn replay(&self, stream: &Stream) -> Result<()> {
        let [reads, writes] = [&self.reads, &self.writes].map(|slices| slices.iter().collect::<Vec<_>>());
        let arguments: Vec<&[u8]> = self.arguments.iter().map(Vec::as_slice).collect();
        // SAFETY: as the captured launch, whose memory `reads` and `writes` keep.
        unsafe { launch::launch_with(stream, &self.op, &self.kernel, self.config, &arguments, &reads, &writes) }
    }

    fn first_difference(&self, other: &Launch) -> Option<String> {
        if (&self.op, &self.kernel) != (&other.op, &other.kernel) {
            return Some(format!("the other is {}: {}", other.op, other.kernel));
        }
        if self.config != other.config {
            return Some(format!("{} and {}", self.config, other.config));
        }
        let [a, b] = [self, other].map(|launch| launch.arguments.concat());
        let at = a.iter().zip(&b).position(|(a, b)| a != b).or((a.len() != b.len()).then_some(a.len().min(b.len())))?;
        Some(format!("byte {at} of its arguments is {:?} and {:?}", a.get(at), b.get(at)))
    }
}

/// A capture that ends with it, also by a panic.
struct Capturing<'a>(Option<&'a Arc<CudaStream>>);

impl<'a> Capturing<'a> {
    fn begin(stream: &'a Stream) -> Result<Capturing<'a>> {
        refuse_in_capture(stream.device(), "a capture")?;
        if let Some(queue) = &stream.cuda {
            // Other threads (the loader's, one that saves) may allocate and copy meanwhile.
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            queue.begin_capture(mode).map_err(|e| driver_error("begin capture", e))?;
        }
        let (stream_id, device) = (stream.id(), stream.device().clone());
        CAPTURE.set(Some(Capture { stream: stream_id, device, launches: vec![], refused: None }));
        Ok(Capturing(stream.cuda.as_ref()))
    }

    fn end(mut self) -> Result<(Capture, Option<Executable>)> {
        let Some(capture) = CAPTURE.take() else { unreachable!("it was begun") };
        let Some(queue) = self.0.take() else { return Ok((capture, None)) };
        let graph = queue.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(|e| driver_error("end capture", e))?;
        let message = || Error::Driver { op: "end capture".into(), message: "the driver gave no graph".into() };
        Ok((capture, Some(Executable(graph.ok_or_else(message)?))))
    }
}

impl Drop for Capturing<'_> {
    fn drop(&mut self) {
        CAPTURE.take();
        if let Some(queue) = self.0 {
            // Given up: what was captured, or why it could not be, is of no use.
            let _ = queue.end_capture(sys::CUgraphInstantiate_flags(0));
        }
    }
}

/// Notes a launch where one is being captured. True when it was: the emulator must not run it then.
pub(super) fn note_launch(
    stream: &Stream,
    (op, kernel): (&str, &str),
    config: LaunchConfig,
    arguments: &[&[u8]],
    reads: &[&Slice],
    writes: &[&Slice],
) -> Result<bool> {
    CAPTURE.with_borrow_mut(|capture| {
        let Some(capture) = capture.as_mut().filter(|capture| capture.device == *stream.device()) else {
            return Ok(false);
        };
        if capture.stream != stream.id() {
            return Err(capture.refuse(&format!("{op} on another stream")));
        }
        capture.launches.push(Launch {
            op: op.into(),
            kernel: kernel.into(),
            config,
            arguments: arguments.iter().map(|bytes| bytes.to_vec()).collect(),
            reads: reads.iter().copied().cloned().collect(),
            writes: writes.iter().copied().cloned().collect(),
        });
        Ok(true)
    })
}

/// An error where this thread captures work of `device`: `what` is none that could be part of it.
pub(super) fn refuse_in_capture(device: &Device, what: &str) -> Result<()> {
    CAPTURE.with_borrow_mut(|capture| match capture {
        Some(capture) if capture.device == *device => Err(capture.refuse(what)),
        _ => Ok(()),
    })
}

impl Capture {
    /// Remembered, so that a capture whose work passes over the error fails all the same.
    fn refuse(&mut self, what: &str) -> Error {
        self.refused.get_or_insert_with(|| what.into());
        refusal(what)
    }
}

fn refusal(what: &str) -> Error {
    let message = "a graph is being captured, and launches on its stream alone can be part of one: do it before the \
                   capture, or after the launch of the graph";
    Error::unsupported(what, message)
}
