//! What a GPU wrote, bit for bit, kept in files that the emulator must reproduce.
//!
//! A folder a GPU, a file a unit kernel, a line of JSON a case: its name, a hash of all that it is given, and the bytes of
//! its output, deflated, in hexadecimal. tests/calibration/README.md says how a folder is made.

#[cfg(feature = "simt")]
mod compare;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::unit::UnitCase;

/// A line of a file.
#[derive(Serialize, Deserialize)]
struct Record {
    case: String,
    /// Of all that the case is given: other inputs make the record worthless.
    inputs: String,
    /// Bytes of the output, before deflating.
    bytes: usize,
    output: String,
}

impl Record {
    fn new(case: &UnitCase, output: &[u8]) -> Record {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(output).expect("memory");
        let deflated = encoder.finish().expect("memory");
        let output_hex = deflated.iter().map(|byte| format!("{byte:02x}")).collect();
        Record { case: case.name.clone(), inputs: hash(case), bytes: output.len(), output: output_hex }
    }
}

/// FNV-1a: short, and the same for ever.
fn hash(case: &UnitCase) -> String {
    let plain =
        format!("{} {} {} {:?} {:?} {:?}", case.grid, case.block, case.shared_bytes, case.bits, case.flags, case.map);
    let all = [plain.as_bytes(), &case.a, &case.b, &case.c];
    let step = |h: u64, byte: &u8| (h ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let parts = all.map(|part| part.iter().fold(0xcbf2_9ce4_8422_2325, step));
    parts.map(|h| format!("{h:016x}")).concat()
}

/// The file of a kernel.
pub fn file(folder: &Path, kernel: &str) -> PathBuf {
    folder.join(format!("{kernel}.jsonl"))
}

/// Writes a kernel's file: its cases with what a device gave.
pub fn write(folder: &Path, kernel: &str, outputs: &[(&UnitCase, Vec<u8>)]) -> Result<(), String> {
    let line =
        |(case, output): &(&UnitCase, Vec<u8>)| serde_json::to_string(&Record::new(case, output)).expect("text") + "\n";
    let text: String = outputs.iter().map(line).collect();
    let path = file(folder, kernel);
    std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
}
