//! Which family of kernels may be chosen.

use std::cell::Cell;

use crate::device::{Device, Stream};
use crate::error::{Error, Result};

/// The kernels that forward and grad_input may run on.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Method {
    /// What the plan thinks best for the device.
    #[default]
    Auto,
    /// Those for every GPU from sm_80 on.
    Mma,
    /// Those on wgmma, for sm_90a; with so many target channels a tile, or as many as the plan thinks best.
    Wgmma {
        /// 64, 128 or 256.
        tile_n: Option<usize>,
    },
}

thread_local! {
    static FORCED: Cell<Method> = const { Cell::new(Method::Auto) };
}

/// Runs `work`; this thread's forward and grad_input convolutions use `method`, and are refused where they cannot. For tests of
/// every variant and benches that compare them.
#[doc(hidden)]
pub fn with_method<O>(method: Method, work: impl FnOnce() -> O) -> O {
    /// Puts the method back, also after a panic.
    struct Restore(Method);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.replace(method));
    work()
}

/// The method for a stream's device. The emulator runs everything; it is planned for as a GPU without wgmma.
pub(super) fn of(name: &'static str, stream: &Stream) -> Result<Method> {
    let capability = match stream.device() {
        Device::Cuda(device) => Some(device.gpu().compute_capability),
        _ => None,
    };
    match (FORCED.get(), capability) {
        (Method::Auto, Some((9, 0))) => Ok(Method::Auto),
        (Method::Auto, _) => Ok(Method::Mma),
        (Method::Wgmma { .. }, Some((major, minor))) if (major, minor) != (9, 0) => {
            let message = format!("wgmma needs a GPU of compute capability 9.0, this one has {major}.{minor}");
            Err(Error::unsupported(name, message))
        }
        (forced, _) => Ok(forced),
    }
}
