//! The CUDA driver, loaded at run time: a machine without one gets a typed error. Everything here runs in the primary
//! context of a GPU, which other CUDA code in the process (PyTorch, `cust`) shares.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError, result, sys};
use cudarc::nvrtc::Ptx;

use super::kernels;
use crate::error::{Error, Result};

/// Lowest driver that runs the embedded kernels, as `cuDriverGetVersion` counts: 13.0, which drivers from 580 on have.
const MIN_DRIVER_VERSION: i32 = 13000;

/// What the driver tells about a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, as in `cuda:N`.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub compute_capability: (i32, i32),
    /// Memory.
    pub memory_bytes: usize,
    /// Streaming multiprocessors.
    pub num_sms: usize,
    /// Largest shared memory that a block may ask for.
    pub max_shared_bytes: usize,
}

/// An opened GPU with the compiled kernels loaded. Cheap to clone.
#[derive(Clone)]
pub struct CudaDevice {
    inner: Arc<Inner>,
}

struct Inner {
    gpu: Gpu,
    /// The loaded fatbins; `None` for one without code for this GPU.
    modules: Vec<Option<Arc<CudaModule>>>,
    /// Kernels that were launched, with the dynamic shared memory that they may use so far.
    functions: Mutex<HashMap<String, (CudaFunction, u32)>>,
    /// None for a GPU that is only described.
    context: Option<Arc<CudaContext>>,
    /// Where the next memory of such a GPU would be.
    next_address: AtomicU64,
}

impl PartialEq for CudaDevice {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner) || self.is_there() && self.inner.context == other.inner.context
    }
}

impl Eq for CudaDevice {}

impl std::fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{}", self.inner.gpu.ordinal)
    }
}

/// The driver's words for `error`, as an error of `op`.
pub(super) fn driver_error(op: &str, error: DriverError) -> Error {
    let text = |text: Result<&std::ffi::CStr, DriverError>| {
        text.map(|t| t.to_string_lossy().into_owned()).unwrap_or_else(|_| "unknown error".into())
    };
    let message =
        catch_unwind(AssertUnwindSafe(|| format!("{}: {}", text(error.error_name()), text(error.error_string()))))
            .unwrap_or_else(|_| format!("driver error {}", error.0 as u32));
    Error::Driver { op: op.into(), message }
}

/// Turns a panic of `call` into [`Error::NoDevice`]: cudarc panics where a driver lacks a symbol.
fn without_panics<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    // One at a time: two that take and put back the hook of the process at once could leave it silent.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(|p| p.into_inner());
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(AssertUnwindSafe(call));
    std::panic::set_hook(hook);
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "the driver library is unusable".into());
        Err(Error::NoDevice(format!("the CUDA driver cannot be used: {text}. Install a driver from 580 on")))
    })
}

/// Checks that there is a driver, and that it is new enough. Answers its version, such as 13000.
fn driver_version() -> Result<i32> {
    // SAFETY: looks for the library and closes it again; no function of it is called.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDevice(
            "there is no CUDA driver (libcuda.so was not found). Install one, or use cpu".into(),
        ));
    }
    let mut version = 0;
    // SAFETY: the pointer is valid for the call. This is the one function that every driver has and that needs no init.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    if status != sys::CUresult::CUDA_SUCCESS {
        return Err(Error::NoDevice(format!("the CUDA driver does not tell its version (error {})", status as u32)));
    }
    if version < MIN_DRIVER_VERSION {
        return Err(Error::NoDevice(format!(
            "the CUDA driver is for CUDA {}, the kernels need 13.0: install a driver from 580 on, or use cpu",
            version_text(version)
        )));
    }
    Ok(version)
}

fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// All GPUs of the machine with the driver's version, or why there are none.
pub(super) fn list() -> Result<(String, Vec<Gpu>)> {
    without_panics(|| {
        let version = driver_version()?;
        let no_device = |e: DriverError| Error::NoDevice(driver_error("cuInit", e).to_string());
        let count = CudaContext::device_count().map_err(no_device)?;
        if count == 0 {
            return Err(Error::NoDevice("the CUDA driver sees no GPU".into()));
        }
        let gpus = (0..count as usize).map(describe).collect::<Result<_, _>>().map_err(no_device)?;
        Ok((version_text(version), gpus))
    })
}

fn describe(ordinal: usize) -> Result<Gpu, DriverError> {
    use sys::CUdevice_attribute as A;
    let device = result::device::get(ordinal as i32)?;
    // SAFETY: `device` was answered by the driver.
    let attribute = |a| unsafe { result::device::get_attribute(device, a) };
    Ok(Gpu {
        ordinal,
        name: result::device::get_name(device)?,
        compute_capability: (
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }?,
        num_sms: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
        max_shared_bytes: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
    })
}

/// Of a GPU that is only described.
const FIRST_ADDRESS: u64 = 1 << 40;

const NO_BINARY: DriverError = DriverError(sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);

/// Loads a fatbin, if it has code for the GPU: those of wgmma kernels have none for GPUs before sm_90.
fn load(context: &Arc<CudaContext>, fatbin: &[u8]) -> Result<Option<Arc<CudaModule>>, DriverError> {
    match context.load_module(Ptx::from_binary(fatbin.to_vec())) {
        Ok(module) => Ok(Some(module)),
        Err(error) if error == NO_BINARY => Ok(None),
        Err(error) => Err(error),
    }
}

impl CudaDevice {
    /// Opens GPU `ordinal` and loads the kernels.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a driver, with one that is too old, without GPUs, for a number that there is not, for a
    /// GPU older than the kernels, and when no kernels are compiled in.
    pub fn open(ordinal: usize) -> Result<CudaDevice> {
        let (_, gpus) = list()?;
        let Some(gpu) = gpus.get(ordinal).cloned() else {
            return Err(Error::NoDevice(format!("cuda:{ordinal} does not exist: there are {} GPUs", gpus.len())));
        };
        if kernels::FATBINS.is_empty() {
            return Err(Error::NoDevice(format!(
                "{} is there, but this program was built without nvcc and has no kernels: run `make cuda-toolkit` or set \
                 CUDA_HOME, then build again",
                gpu.name
            )));
        }
        without_panics(|| {
            let failed = |e: DriverError| {
                let error = driver_error("loading the kernels", e);
                Error::NoDevice(format!("{} (compute capability {:?}): {error}", gpu.name, gpu.compute_capability))
            };
            let context = CudaContext::new(ordinal).map_err(failed)?;
            let modules = kernels::FATBINS.iter().map(|fatbin| load(&context, fatbin));
            let modules = modules.collect::<Result<Vec<_>, _>>().map_err(failed)?;
            if modules.iter().all(Option::is_none) {
                return Err(failed(NO_BINARY));
            }
            Ok(CudaDevice::new(gpu.clone(), modules, Some(context)))
        })
    }

    /// A GPU that is not there, to plan for: what runs on it chooses its kernels and counts its memory as on the real one, but no
    /// memory is taken, nothing is computed and what is read back is zero. See [`launch::recorded`](super::launch::recorded).
    pub fn described(gpu: Gpu) -> CudaDevice {
        CudaDevice::new(gpu, vec![], None)
    }

    fn new(gpu: Gpu, modules: Vec<Option<Arc<CudaModule>>>, context: Option<Arc<CudaContext>>) -> CudaDevice {
        let (functions, next_address) = (Mutex::new(HashMap::new()), AtomicU64::new(FIRST_ADDRESS));
        CudaDevice { inner: Arc::new(Inner { gpu, modules, functions, context, next_address }) }
    }

    /// Bytes that were asked of a GPU that is only described, since it was made; freed ones count.
    #[doc(hidden)]
    pub fn asked_bytes(&self) -> u64 {
        self.inner.next_address.load(Ordering::Relaxed) - FIRST_ADDRESS
    }

    /// Whether it is more than a description.
    pub fn is_there(&self) -> bool {
        self.inner.context.is_some()
    }

    /// What the driver tells about it.
    pub fn gpu(&self) -> &Gpu {
        &self.inner.gpu
    }

    pub(super) fn context(&self) -> Option<&Arc<CudaContext>> {
        self.inner.context.as_ref()
    }

    pub(super) fn synchronize(&self) -> Result<()> {
        self.context().map_or(Ok(()), |c| c.synchronize()).map_err(|e| driver_error("synchronize", e))
    }

    /// Runs `call` with the context bound to this thread.
    pub(super) fn with_context<T>(
        &self,
        op: &str,
        call: impl FnOnce() -> std::result::Result<T, DriverError>,
    ) -> Result<T> {
        let not_there = || Error::NoDevice(format!("{op}: {} is described, it is not there", self.inner.gpu.name));
        let context = self.context().ok_or_else(not_there)?;
        context.bind_to_thread().and_then(|()| call()).map_err(|e| driver_error(op, e))
    }

    /// `len_bytes` of zeroed memory.
    pub(super) fn allocate(&self, len_bytes: usize) -> Result<u64> {
        if !self.is_there() {
            let len = len_bytes.max(1).next_multiple_of(super::buffer::ALIGNMENT_BYTES) as u64;
            return Ok(self.inner.next_address.fetch_add(len, Ordering::Relaxed));
        }
        self.with_context(&format!("allocate {len_bytes} bytes"), || {
            // SAFETY: the memory is zeroed before anyone sees it, and freed by `free` alone.
            unsafe {
                let address = result::malloc_sync(len_bytes.max(1))?;
                result::memset_d8_sync(address, 0, len_bytes.max(1))?;
                Ok(address)
            }
        })
    }

    /// The CUDA version of the driver, such as 13000.
    ///
    /// # Errors
    /// A driver that does not tell it.
    pub fn driver_version(&self) -> Result<i32> {
        driver_version()
    }

    /// Frees what [`CudaDevice::allocate`] gave. The driver waits for kernels that still use it.
    ///
    /// # Safety
    /// `address` came from `allocate` of this device, is freed once, and no work is queued on it later.
    pub(super) unsafe fn free(&self, address: u64) {
        // A failure can only mean that the context is gone, and the memory with it.
        // SAFETY: the caller's duty.
        let _ = self.with_context("free", || unsafe { result::free_sync(address) });
    }

    /// The kernel `name`, allowed to use `shared_bytes` of dynamic shared memory.
    pub(super) fn function(&self, name: &str, shared_bytes: u32) -> Result<sys::CUfunction> {
        let mut functions = self.inner.functions.lock().unwrap_or_else(|p| p.into_inner());
        if !functions.contains_key(name) {
            let module = kernels::find(name).and_then(|kernel| self.inner.modules[kernel.fatbin].as_ref());
            let Some(module) = module else {
                let message = format!("it is not compiled for {:?}", self.inner.gpu.compute_capability);
                return Err(Error::unsupported(format!("kernel {name}"), message));
            };
            let function = module.load_function(name).map_err(|e| driver_error(name, e))?;
            functions.insert(name.to_string(), (function, 48 << 10));
        }
        let Some((function, allowed)) = functions.get_mut(name) else { unreachable!("inserted above") };
        if shared_bytes > *allowed {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, shared_bytes as i32).map_err(|e| driver_error(name, e))?;
            *allowed = shared_bytes;
        }
        Ok(function.cu_function())
    }
}
