//! Points in a stream.

use std::time::Instant;

use cudarc::driver::{CudaEvent, sys};

use super::Stream;
use super::cuda::driver_error;
use super::graph::refuse_in_capture;
use crate::error::{Error, Result};

/// A point in a stream: to wait for, and to measure time between two of them. On `Cpu` and `Simt`, where work is done when
/// a call returns, it is the time of the wall clock.
#[derive(Debug)]
pub struct Event {
    point: Point,
}

#[derive(Debug)]
enum Point {
    Host(Instant),
    Cuda(CudaEvent),
}

impl Event {
    pub(super) fn record(stream: &Stream) -> Result<Event> {
        refuse_in_capture(stream.device(), "an event")?;
        let point = match &stream.cuda {
            None => Point::Host(Instant::now()),
            Some(cuda) => {
                // The default flag is the one that takes times.
                let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
                Point::Cuda(cuda.record_event(Some(flags)).map_err(|e| driver_error("record event", e))?)
            }
        };
        Ok(Event { point })
    }

    pub(super) fn cuda(&self) -> Option<&CudaEvent> {
        match &self.point {
            Point::Host(_) => None,
            Point::Cuda(event) => Some(event),
        }
    }

    /// Waits until the work before the event has finished.
    pub fn synchronize(&self) -> Result<()> {
        match &self.point {
            Point::Host(_) => Ok(()),
            Point::Cuda(event) => event.synchronize().map_err(|e| driver_error("wait for event", e)),
        }
    }

    /// Milliseconds from this event to `end`; waits for both.
    pub fn elapsed_ms(&self, end: &Event) -> Result<f64> {
        match (&self.point, &end.point) {
            (Point::Host(from), Point::Host(to)) => Ok(to.saturating_duration_since(*from).as_secs_f64() * 1e3),
            (Point::Cuda(from), Point::Cuda(to)) => {
                from.elapsed_ms(to).map(f64::from).map_err(|e| driver_error("elapsed time", e))
            }
            _ => Err(Error::shape("elapsed time", "the events are of different kinds of devices")),
        }
    }
}
