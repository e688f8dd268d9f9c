//! Saving beside the training: a thread writes, syncs and renames while the next steps run.

use std::fs::File;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Checkpoint, Store};
use crate::error::{Error, Result};

/// Saves checkpoints in the background, at most one at a time. Dropping it waits for the last one.
#[derive(Debug)]
pub struct Saver {
    store: Store,
    running: Option<JoinHandle<Result<Duration>>>,
    took: Duration,
}

impl Saver {
    /// Saves into `store`.
    pub fn new(store: Store) -> Saver {
        Saver { store, running: None, took: Duration::ZERO }
    }

    /// The folder that it saves into.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Begins to save what `checkpoint` makes (in the thread), once the one before is saved. `log` is brought to the disk
    /// first: a checkpoint must not be newer than the log that belongs to it.
    ///
    /// # Errors
    /// Of the save before, as [`Store::save`]; the new one is then not begun. Its own error comes from a later call.
    pub fn begin(&mut self, checkpoint: impl FnOnce() -> Checkpoint + Send + 'static, log: Option<File>) -> Result<()> {
        self.wait()?;
        let store = self.store.clone();
        let save = move || {
            let start = Instant::now();
            if let Some(log) = log {
                let failed = |e| Error::Checkpoint(format!("cannot save: the log cannot be synced: {e}"));
                log.sync_all().map_err(failed)?;
            }
            store.save(&checkpoint())?;
            let took = start.elapsed();
            tracing::debug!("checkpoint: written in {:.1} ms", took.as_secs_f64() * 1e3);
            Ok(took)
        };
        let spawned = std::thread::Builder::new().name("checkpoint".into()).spawn(save);
        let failed = |e| Error::Checkpoint(format!("cannot save: no thread can be started: {e}"));
        self.running = Some(spawned.map_err(failed)?);
        Ok(())
    }

    /// Whether a save is under way. It does not wait.
    ///
    /// # Errors
    /// Of a save that has ended.
    pub fn is_busy(&mut self) -> Result<bool> {
        match &self.running {
            Some(running) if !running.is_finished() => Ok(true),
            _ => self.wait().map(|()| false),
        }
    }

    /// Waits until the last checkpoint is on the disk.
    ///
    /// # Errors
    /// As [`Store::save`], once for each save that failed.
    pub fn wait(&mut self) -> Result<()> {
        if let Some(running) = self.running.take() {
            let panicked = |_| Err(Error::Checkpoint("cannot save: the thread that saves panicked".into()));
            self.took = running.join().unwrap_or_else(panicked)?;
        }
        Ok(())
    }

    /// How long the last save took.
    pub fn took(&self) -> Duration {
        self.took
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        if let Err(error) = self.wait() {
            tracing::error!("{error}");
        }
    }
}
