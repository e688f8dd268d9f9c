//! The device that benches run on (`VCYCLE_DEVICE`, else `auto`), and how time is taken there.

use std::sync::OnceLock;
use std::time::Duration;

use vcycle::device::{Device, Stream};

/// The device, printed once.
pub fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let spec = std::env::var("VCYCLE_DEVICE").unwrap_or_else(|_| "auto".into());
        let (device, reason) = Device::select(&spec).unwrap_or_else(|e| panic!("VCYCLE_DEVICE={spec}: {e}"));
        println!("{reason}");
        device
    })
}

/// Whether this is the smoke run of `cargo bench -- --test`: one round of each bench, on small shapes.
pub fn is_smoke() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// The time of `rounds` calls of `work`: device events on a GPU, the wall clock elsewhere.
pub fn time(stream: &Stream, rounds: u64, mut work: impl FnMut()) -> Duration {
    let start = stream.record().expect("event");
    for _ in 0..rounds {
        work();
    }
    let end = stream.record().expect("event");
    Duration::from_secs_f64(start.elapsed_ms(&end).expect("elapsed time") / 1e3)
}

/// The text of tests/cases/`name`.toml, or of `name`.toml in the folder VCYCLE_CASES, for binaries that left their clone.
pub fn cases(name: &str) -> String {
    let folder =
        std::env::var("VCYCLE_CASES").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases").into());
    let path = format!("{folder}/{name}.toml");
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}
