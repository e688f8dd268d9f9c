//! What the programs that run a network have in common.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vcycle::{Error, Result};

/// Exit status of a run that was stopped by Ctrl-C or SIGTERM: 128 + SIGINT, as shells count.
pub const STOPPED: u8 = 130;

/// Most threads that may be asked for: more than any machine has cores.
const MAX_THREADS: usize = 1024;

/// Threads of the cpu executor.
pub fn set_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    if !(1..=MAX_THREADS).contains(&threads) {
        return Err(Error::Config(format!("--threads: expected 1 to {MAX_THREADS}, got {threads}")));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global().map_err(|e| Error::Config(format!("--threads {threads}: {e}")))
}

/// `moving_shapes` of `configs/moving_shapes.yaml`.
pub fn name_of(cfg: &Path) -> String {
    cfg.file_stem().map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned())
}

/// An argument takes the place of a key.
pub fn replace_path(key: &mut String, argument: Option<&Path>) {
    if let Some(path) = argument {
        *key = path.display().to_string();
    }
}

/// Set by the first Ctrl-C or SIGTERM; the second one ends the program at once.
pub fn stop_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let shared = flag.clone();
    ctrlc::set_handler(move || {
        if shared.swap(true, Ordering::Relaxed) {
            std::process::exit(STOPPED.into());
        }
        super::out::stderr("stopping after this step; once more to stop at once");
    })
    .map_err(|e| Error::Config(format!("cannot catch Ctrl-C: {e}")))?;
    Ok(flag)
}
