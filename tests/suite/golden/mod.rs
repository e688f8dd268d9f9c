//! Reference results made with PySlowFast and PyTorch in float64, read from `$VCYCLE_GOLDEN`. They are not part of the
//! repository: without them the golden tests say SKIPPED (and fail with `VCYCLE_REQUIRE_GOLDEN=1`).
//!
//! Every golden test is named `golden_*`; it ends with [`Golden::passed`], whose lines `make golden` adds up. `walk.rs` looks for
//! files that no test opens.

mod walk;

use std::path::PathBuf;

use serde_json::Value;
use vcycle::device::Device;

/// Values of a named counter-based stream, bit-equal on every platform.
pub mod fill {
    fn seed(name: &str) -> u64 {
        name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    }

    /// Number `i` of the stream.
    pub fn hash(name: &str, i: usize) -> u64 {
        mix(seed(name), i)
    }

    fn mix(seed: u64, i: usize) -> u64 {
        let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn unit_of(hash: u64) -> f64 {
        (hash >> 40) as f64 * 2f64.powi(-23) - 1.0
    }

    /// In [-1, 1), exact in f32.
    pub fn unit(name: &str, i: usize) -> f64 {
        unit_of(hash(name, i))
    }

    /// `n` values `offset + scale * unit`, rounded once to f32.
    pub fn f32(name: &str, n: usize, scale: f64, offset: f64) -> Vec<f32> {
        let seed = seed(name);
        (0..n).map(|i| (offset + scale * unit_of(mix(seed, i))) as f32).collect()
    }

    /// `n` bytes.
    pub fn u8(name: &str, n: usize) -> Vec<u8> {
        let seed = seed(name);
        (0..n).map(|i| (mix(seed, i) >> 56) as u8).collect()
    }

    /// `n` integers in 0..modulus.
    pub fn int(name: &str, n: usize, modulus: u64) -> Vec<u64> {
        (0..n).map(|i| (hash(name, i) >> 33) % modulus).collect()
    }

    #[test]
    fn the_published_vectors() {
        assert_eq!(seed("probe"), 0xf976_9124_6db2_66f1);
        assert_eq!(hash("probe", 0), 0x3ede_7513_a174_263d);
        assert_eq!(u8("probe", 6), [62, 5, 187, 194, 4, 191]);
        assert_eq!(int("probe", 6, 400), [377, 258, 266, 54, 383, 198]);
        assert_eq!(f32("probe", 3, 0.3, 1.0), [0.847_349_17_f32, 0.712_090_2, 1.139_117_4]);
    }
}

/// A JSON file of the golden folder with the tensors stored beside it.
pub struct Golden {
    /// The parsed JSON.
    pub json: Value,
    file: String,
    tensors: Option<Vec<u8>>,
}

/// The golden folder, or a loud skip.
pub fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("VCYCLE_GOLDEN").map(PathBuf::from).filter(|p| p.is_dir());
    if folder.is_none() {
        assert!(
            std::env::var_os("VCYCLE_REQUIRE_GOLDEN").is_none(),
            "VCYCLE_REQUIRE_GOLDEN is set, VCYCLE_GOLDEN is no folder"
        );
        eprintln!("SKIPPED: golden tests, because VCYCLE_GOLDEN names no folder");
    }
    folder
}

/// Opens `name` (such as `ops/conv3d.json`), or skips.
pub fn open(name: &str) -> Option<Golden> {
    let path = folder()?.join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Some(Golden { json, file: name.to_string(), tensors: std::fs::read(path.with_extension("safetensors")).ok() })
}

/// Files below `folder` (such as `schedule`) that end in `.json`, sorted; none when skipped.
pub fn list(subfolder: &str) -> Vec<String> {
    let Some(folder) = folder() else { return vec![] };
    let mut names: Vec<String> = std::fs::read_dir(folder.join(subfolder))
        .expect("golden subfolder")
        .map(|e| format!("{subfolder}/{}", e.expect("entry").file_name().to_string_lossy()))
        .filter(|n| n.ends_with(".json"))
        .collect();
    names.sort();
    names
}

/// To be called at the end of a golden test that compares a part of a file's cases, with their number.
pub fn passed(what: &str, cases: usize) {
    assert!(cases > 0, "{what}: no case was compared");
    println!("golden: {what}: {cases} cases");
}

/// How far computed values are from a stored tensor.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    /// l2 of the difference over l2 of the stored values (absolute where these are all zero).
    pub rel_l2: f64,
    /// Largest absolute difference.
    pub max_abs: f64,
}

impl Golden {
    /// To be called at the end of the golden test of a file, with the number of cases that were compared: all of them.
    pub fn passed(&self, cases: usize) {
        self.passed_on(&Device::Cpu, cases);
    }

    /// The same for one device.
    pub fn passed_on(&self, device: &Device, cases: usize) {
        let of_model = 1 + usize::from(!self.json["eval_larger_crop"].is_null());
        let all = self.json.as_array().map_or(of_model, Vec::len);
        assert_eq!(cases, all, "{}: some cases were not compared", self.file);
        let on = if *device == Device::Cpu { "" } else { " on kernels" };
        passed(&format!("{}{on}", self.file.trim_end_matches(".json")), cases);
    }

    /// Compares all of `got` (row-major, in the descriptor's shape) with the tensor that `descriptor` describes.
    pub fn compare(&self, descriptor: &Value, got: &[f64]) -> Difference {
        let key = descriptor["key"].as_str().expect("descriptor has a key");
        let stride = descriptor["stride"].as_u64().expect("stride") as usize;
        assert_eq!(
            got.len(),
            descriptor["n"].as_u64().expect("n") as usize,
            "{}: {key}: number of elements",
            self.file
        );
        let bytes = self.tensors.as_ref().unwrap_or_else(|| panic!("{}: no tensors beside it", self.file));
        let tensors = safetensors::SafeTensors::deserialize(bytes).expect("safetensors");
        let stored: Vec<f64> = tensors
            .tensor(key)
            .expect("tensor")
            .data()
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes")))
            .collect();
        let (mut error2, mut norm2, mut max_abs) = (0.0, 0.0, 0f64);
        for (want, have) in stored.iter().zip(got.iter().step_by(stride)) {
            assert!(have.is_finite(), "{}: {key}: {have}", self.file);
            error2 += (want - have).powi(2);
            norm2 += want.powi(2);
            max_abs = max_abs.max((want - have).abs());
        }
        let sampled = (error2 / if norm2 == 0.0 { 1.0 } else { norm2 }).sqrt();
        // The probe sums over all elements: it sees what the sampling skipped. Its noise is about error * l2 * sqrt(1/3).
        let probe: f64 = got.iter().enumerate().map(|(i, v)| v * fill::unit("probe", i)).sum();
        let l2 = descriptor["l2"].as_f64().expect("l2");
        let probe_error =
            (probe - descriptor["probe"].as_f64().expect("probe")).abs() / if l2 == 0.0 { 1.0 } else { l2 };
        Difference { rel_l2: sampled.max(probe_error), max_abs }
    }

    /// As [`Golden::compare`], and fails when the relative l2 exceeds `tolerance`.
    pub fn assert_close(&self, case: &str, descriptor: &Value, got: &[f64], tolerance: f64) {
        let d = self.compare(descriptor, got);
        let key = &descriptor["key"];
        assert!(
            d.rel_l2 <= tolerance,
            "{}: {case}: {key}: rel l2 {:.3e} > {tolerance:.0e}, max abs {:.3e}",
            self.file,
            d.rel_l2,
            d.max_abs
        );
    }
}

/// An input as its descriptor (`{fill, shape, scale, offset}`) asks.
pub fn input(descriptor: &Value) -> (Vec<usize>, Vec<f32>) {
    let shape = dims(&descriptor["shape"]);
    let name = descriptor["fill"].as_str().expect("fill");
    let number = |key: &str| descriptor[key].as_f64().unwrap_or_else(|| panic!("{name}: {key}"));
    let values = fill::f32(name, shape.iter().product(), number("scale"), number("offset"));
    (shape, values)
}

/// A JSON array of integers.
pub fn dims(value: &Value) -> Vec<usize> {
    value.as_array().expect("array").iter().map(|v| v.as_u64().expect("integer") as usize).collect()
}

/// `[n][c][t][h][w]` (PyTorch) to `[n][t][h][w][c]`; filters `[c_out][c_in][t][h][w]` likewise.
pub fn channels_last<T: Copy>(shape: &[usize], values: &[T]) -> Vec<T> {
    let (n, c, inner) = (shape[0], shape[1], shape[2..].iter().product::<usize>());
    let mut out = Vec::with_capacity(values.len());
    for i in 0..n {
        for p in 0..inner {
            out.extend((0..c).map(|ch| values[(i * c + ch) * inner + p]));
        }
    }
    out
}

/// `[n][t][h][w][c]` to `[n][c][t][h][w]`; `shape` is the PyTorch one. As f64, ready to compare.
pub fn channels_first(shape: &[usize], values: &[f32]) -> Vec<f64> {
    let (n, c, inner) = (shape[0], shape[1], shape[2..].iter().product::<usize>());
    let mut out = Vec::with_capacity(values.len());
    for i in 0..n {
        for ch in 0..c {
            out.extend((0..inner).map(|p| f64::from(values[(i * inner + p) * c + ch])));
        }
    }
    out
}
