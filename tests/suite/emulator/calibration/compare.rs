//! The comparison of the emulator with the records.

use std::io::Read;
use std::path::{Path, PathBuf};

use vcycle::device::Device;

use super::{Record, file, hash};
use crate::emulator::on_a_gpu::run_cases;
use crate::emulator::unit::UnitCase;
use crate::emulator::unit_cases;

impl Record {
    fn output(&self) -> Result<Vec<u8>, String> {
        let byte = |i: usize| self.output.get(i..i + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let deflated: Option<Vec<u8>> = (0..self.output.len()).step_by(2).map(byte).collect();
        let mut output = Vec::new();
        let inflated = deflated.and_then(|d| flate2::read::ZlibDecoder::new(&d[..]).read_to_end(&mut output).ok());
        if inflated != Some(self.bytes) {
            return Err(format!("the record's output is damaged: it does not inflate to {} bytes", self.bytes));
        }
        Ok(output)
    }
}

/// Runs all cases of which the folder has records on `device` and compares; the number of cases, or all that differs.
fn compare(folder: &Path, cases: &[UnitCase], device: &Device) -> Result<usize, String> {
    let mut kernels: Vec<&str> = cases.iter().map(|case| case.kernel).collect();
    kernels.sort_unstable();
    kernels.dedup();
    let (mut compared, mut errors) = (0, Vec::new());
    for kernel in kernels.iter().filter(|kernel| file(folder, kernel).is_file()) {
        let path = file(folder, kernel);
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        for (number, line) in text.lines().enumerate() {
            match compare_line(line, kernel, cases, device) {
                Ok(()) => compared += 1,
                Err(error) => errors.push(format!("{}:{}: kernel {kernel}: {error}", path.display(), number + 1)),
            }
        }
    }
    let strays = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for stray in strays.flatten().map(|entry| entry.path()).filter(|p| p.extension().is_some_and(|e| e == "jsonl")) {
        if !kernels.iter().any(|kernel| file(folder, kernel) == stray) {
            errors.push(format!("{}: there is no such unit kernel; remove the file", stray.display()));
        }
    }
    if errors.is_empty() { Ok(compared) } else { Err(errors.join("\n")) }
}

fn compare_line(line: &str, kernel: &str, cases: &[UnitCase], device: &Device) -> Result<(), String> {
    let record: Record = serde_json::from_str(line).map_err(|e| format!("not a record: {e}"))?;
    let named = |case: &&UnitCase| case.kernel == kernel && case.name == record.case;
    let again = "record it again on a GPU, or remove its line";
    let case = cases.iter().find(named).ok_or_else(|| format!("there is no case `{}`; {again}", record.case))?;
    if record.inputs != hash(case) {
        return Err(format!("case `{}` is given other inputs than when it was recorded; {again}", case.name));
    }
    let recorded = record.output().map_err(|e| format!("case `{}`: {e}", case.name))?;
    let output = case.run(device).map_err(|e| format!("case `{}`: {e}", case.name))?;
    match first_difference(&recorded, &output) {
        None => Ok(()),
        Some(difference) => Err(format!("case `{}`: {difference}", case.name)),
    }
}

/// The first element that differs, of 4 bytes each.
fn first_difference(recorded: &[u8], output: &[u8]) -> Option<String> {
    if recorded.len() != output.len() {
        return Some(format!("{} bytes are recorded, {} were written", recorded.len(), output.len()));
    }
    let word = |bytes: &[u8]| bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
    let count = output.chunks(4).zip(recorded.chunks(4)).filter(|(got, expected)| got != expected).count();
    let mut pairs = recorded.chunks(4).zip(output.chunks(4)).enumerate();
    let (at, (expected, got)) = pairs.find(|(_, (expected, got))| expected != got)?;
    let all = output.len().div_ceil(4);
    Some(format!("element {at} of {all}: recorded {}, got {} ({count} differ)", word(expected), word(got)))
}

/// Folders of GPUs: tests/calibration, or that of VCYCLE_CALIBRATION.
#[test]
fn the_emulator_gives_the_bits_of_gpus() {
    let root = std::env::var("VCYCLE_CALIBRATION")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/calibration").into());
    let entries = std::fs::read_dir(&root).unwrap_or_else(|e| panic!("{root}: {e}"));
    let folders: Vec<PathBuf> = entries.map(|e| e.expect("entry").path()).filter(|path| path.is_dir()).collect();
    if folders.is_empty() {
        return eprintln!("SKIPPED: {root} has no outputs of a GPU");
    }
    for folder in folders {
        let compared = compare(&folder, &unit_cases(), &Device::Simt).unwrap_or_else(|e| panic!("{e}"));
        assert!(compared > 0, "{} has no records", folder.display());
        println!("{}: {compared} cases", folder.display());
    }
}

/// The emulator writes the files in a GPU's place.
#[test]
fn a_recorded_bit_that_differs_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut cases = unit_cases();
    for kernel in vcycle::device::simt::kernel_names().iter().filter(|name| name.starts_with("unit_")) {
        run_cases(kernel, &Device::Simt, Some(folder.path())).unwrap();
    }
    assert_eq!(compare(folder.path(), &cases, &Device::Simt), Ok(cases.len()));
    let sizes = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
    assert!(sizes.sum::<u64>() < 1 << 20, "too large for a repository");

    // From here on with one kernel: the others take longer.
    let only = tempfile::tempdir().unwrap();
    cases.retain(|case| case.kernel == "unit_mma");
    let text = std::fs::read_to_string(file(folder.path(), "unit_mma")).unwrap();
    let outcome = |text: &str, cases: &[UnitCase]| {
        std::fs::write(file(only.path(), "unit_mma"), text).unwrap();
        compare(only.path(), cases, &Device::Simt)
    };
    assert_eq!(outcome(&text, &cases), Ok(4));
    let line = text.lines().nth(1).unwrap();
    let record: Record = serde_json::from_str(line).unwrap();
    let mut output = record.output().unwrap();
    output[4 * 77 + 2] ^= 0x10;
    let flipped = serde_json::to_string(&Record::new(&cases[1], &output)).unwrap();
    let error = outcome(&text.replace(line, &flipped), &cases).unwrap_err();
    let named = "unit_mma.jsonl:2: kernel unit_mma: case `mma.sync m16n8k16, bf16 false`: element 77 of 128: recorded ";
    assert!(error.contains(named) && error.ends_with("(1 differ)"), "{error}");

    let damaged = line.replace(&record.output, &record.output[..40]);
    let error = outcome(&text.replace(line, &damaged), &cases).unwrap_err();
    assert!(error.contains("does not inflate to 512 bytes"), "{error}");
    let error = outcome("{}\n", &cases).unwrap_err();
    assert!(error.contains("not a record"), "{error}");
    let mut other = cases.clone();
    other[1].a[0] ^= 1;
    let error = outcome(&text, &other).unwrap_err();
    assert!(error.contains("bf16 false` is given other inputs") && error.lines().count() == 1, "{error}");
    let error = outcome(&text, &cases[1..]).unwrap_err();
    assert!(error.contains("there is no case `mma.sync m16n8k8, bf16 false`"), "{error}");
    std::fs::write(file(only.path(), "unit_gone"), "").unwrap();
    let error = outcome(&text, &cases).unwrap_err();
    assert!(error.contains("unit_gone.jsonl: there is no such unit kernel"), "{error}");
}
