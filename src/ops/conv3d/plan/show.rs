//! The shape of a plan's launch, and how it is printed.

use std::fmt;

use super::{MAX_SHARED_BYTES, Plan, Request, THREADS};

/// Consumers and the producer's warpgroup.
const WGMMA_THREADS: u32 = 384;

impl Plan {
    pub(in crate::ops::conv3d) fn grid(&self) -> [u32; 3] {
        match self.wgmma {
            Some(form) => [form.works(self.tiles, self.columns, self.slices).min(self.num_sms) as u32, 1, 1],
            None => [(self.tiles * self.columns) as u32, self.slices as u32, 1],
        }
    }

    pub(in crate::ops::conv3d) fn threads(&self) -> u32 {
        if self.wgmma.is_some() { WGMMA_THREADS } else { THREADS as u32 }
    }

    /// Blocks over what the multiprocessors hold at once: two each, or what shared memory allows.
    fn waves(&self) -> f64 {
        if let Some(form) = self.wgmma {
            return form.works(self.tiles, self.columns, self.slices) as f64 / self.num_sms as f64;
        }
        let at_once = (MAX_SHARED_BYTES / self.shared_bytes).clamp(1, 2) * self.num_sms;
        (self.tiles * self.columns * self.slices) as f64 / at_once as f64
    }

    /// Prints the plan, each one once, where VCYCLE_PRINT_PLANS=1 asks for it.
    pub(in crate::ops::conv3d) fn print(&self, r: &Request) {
        use std::collections::HashSet;
        use std::sync::{Mutex, OnceLock};
        static ASKED: OnceLock<bool> = OnceLock::new();
        static SAID: OnceLock<Mutex<HashSet<Request>>> = OnceLock::new();
        if !*ASKED.get_or_init(|| std::env::var_os("VCYCLE_PRINT_PLANS").is_some_and(|v| v == "1")) {
            return;
        }
        let mut said = SAID.get_or_init(Mutex::default).lock().unwrap_or_else(|p| p.into_inner());
        if said.insert(*r) {
            println!("plan: conv3d {:?} {} -> {}: {self}", r.direction, r.op.input, r.output);
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}): {} x {} tiles of {}x{}, {} splits, {} slices, {:.2} waves, {} shared bytes, {} launches, {:.1} MB, \
             {:.2} GFLOP",
            self.kernel,
            self.why,
            self.tiles,
            self.columns,
            self.tile_m,
            self.tile_n,
            self.splits_used,
            self.slices,
            self.waves(),
            self.shared_bytes,
            self.launches,
            self.bytes as f64 / 1e6,
            self.flops as f64 / 1e9
        )
    }
}
