//! Names of ops on the time lines of NVIDIA's profilers (NVTX ranges), where `libnvToolsExt` can be loaded.

use std::ffi::CString;
use std::marker::PhantomData;
use std::sync::OnceLock;

use cudarc::nvtx::sys;

static IS_ON: OnceLock<bool> = OnceLock::new();

/// Turns ranges on, if nobody has asked for one before. Answers whether there are any now: without the library there are none.
pub fn enable() -> bool {
    *IS_ON.get_or_init(is_there)
}

/// A range that ends when it is dropped, on the thread that began it.
#[must_use]
pub struct Range(PhantomData<*const ()>);

/// Begins a range of that name. `None`, and no name is made, unless [`enable`] or `VCYCLE_NVTX=1` in the environment asked for
/// ranges and the library is there; the lack is said once.
pub fn range(name: impl FnOnce() -> String) -> Option<Range> {
    let is_on = *IS_ON.get_or_init(|| {
        let is_asked = std::env::var_os("VCYCLE_NVTX").is_some_and(|v| v == "1");
        if is_asked && !is_there() {
            tracing::warn!("VCYCLE_NVTX=1: libnvToolsExt.so cannot be loaded, there are no NVTX ranges");
        }
        is_asked && is_there()
    });
    if !is_on {
        return None;
    }
    let name = name().replace('\0', " ");
    let name = CString::new(name).ok()?;
    // SAFETY: the library is there; it copies the terminated string.
    unsafe { sys::nvtxRangePushA(name.as_ptr()) };
    Some(Range(PhantomData))
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: ends the range that this thread began last; ranges are dropped in the order of their scopes.
        unsafe { sys::nvtxRangePop() };
    }
}

fn is_there() -> bool {
    // SAFETY: looks for the library; no function of it is called.
    unsafe { sys::is_culib_present() }
}
