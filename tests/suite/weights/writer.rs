//! Writes the formats that `weights::load` reads, byte by byte and by no code of the crate: pickles of several protocols,
//! PyTorch's zip and legacy files, caffe2's blobs.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

/// A pickle under construction.
#[derive(Default)]
pub struct Pickle(pub Vec<u8>);

impl Pickle {
    pub fn protocol(n: u8) -> Pickle {
        Pickle(vec![0x80, n])
    }

    pub fn op(&mut self, bytes: impl AsRef<[u8]>) -> &mut Pickle {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    /// BINUNICODE.
    pub fn text(&mut self, text: &str) -> &mut Pickle {
        self.op(b"X").op((text.len() as u32).to_le_bytes()).op(text)
    }

    /// BININT.
    pub fn int(&mut self, value: usize) -> &mut Pickle {
        self.op(b"J").op((value as i32).to_le_bytes())
    }

    /// A tuple of integers.
    pub fn sizes(&mut self, sizes: &[usize]) -> &mut Pickle {
        self.op(b"(");
        for &size in sizes {
            self.int(size);
        }
        self.op(b"t")
    }

    pub fn stop(&mut self) -> Vec<u8> {
        self.op(b".");
        std::mem::take(&mut self.0)
    }
}

/// A tensor of PyTorch: a view of a storage.
pub struct TorchTensor<'a> {
    pub name: &'a str,
    pub class: &'static str,
    pub key: &'a str,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
    /// Elements of the storage.
    pub stored: usize,
}

impl<'a> TorchTensor<'a> {
    /// A whole storage of floats.
    pub fn whole(name: &'a str, key: &'a str, shape: &[usize]) -> TorchTensor<'a> {
        let strides = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        let stored = shape.iter().product();
        TorchTensor { name, class: "FloatStorage", key, offset: 0, shape: shape.to_vec(), strides, stored }
    }

    pub fn write(&self, pickle: &mut Pickle, is_legacy: bool) {
        pickle.text(self.name).op(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        pickle.text("storage").op(format!("ctorch\n{}\n", self.class)).text(self.key).text("cuda:0").int(self.stored);
        // The legacy format says None where it once had views of storages.
        pickle.op(if is_legacy { b"NtQ".as_slice() } else { b"tQ" }).int(self.offset);
        pickle.sizes(&self.shape).sizes(&self.strides).op(b"\x89ccollections\nOrderedDict\n)RtR");
    }
}

/// `{"epoch": 7, "model_state": OrderedDict(…) with attributes, "optimizer_state": {"state": {}}}`, as PySlowFast saves.
pub fn checkpoint_pickle(tensors: &[TorchTensor], is_legacy: bool) -> Vec<u8> {
    let mut pickle = Pickle::protocol(2);
    pickle.op(b"}q\x00(").text("epoch").op(b"K\x07").text("model_state").op(b"ccollections\nOrderedDict\nq\x01)R(");
    tensors.iter().for_each(|tensor| tensor.write(&mut pickle, is_legacy));
    pickle.op(b"u}").text("_metadata").op(b"h\x01)Rsb");
    pickle.text("optimizer_state").op(b"}").text("state").op(b"}s").op(b"u").stop()
}

/// The state dict alone, as `torch.save(model.state_dict())` writes it.
pub fn plain_pickle(tensors: &[TorchTensor]) -> Vec<u8> {
    let mut pickle = Pickle::protocol(2);
    pickle.op(b"ccollections\nOrderedDict\n)R(");
    tensors.iter().for_each(|tensor| tensor.write(&mut pickle, false));
    pickle.op(b"u").stop()
}

/// A zip file of PyTorch with these arrays, as floats.
pub fn floats_file(state: &[vcycle::model::NamedArray]) -> Vec<u8> {
    let keys: Vec<String> = (0..state.len()).map(|key| key.to_string()).collect();
    let tensors: Vec<_> = state.iter().zip(&keys).map(|(a, key)| TorchTensor::whole(&a.name, key, &a.shape)).collect();
    let storages: Vec<_> = state.iter().zip(&keys).map(|(a, key)| (key.as_str(), le_bytes(&a.values))).collect();
    zip_file(&checkpoint_pickle(&tensors, false), &storages)
}

/// PyTorch's zip file.
pub fn zip_file(pickle: &[u8], storages: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(vec![]));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    let mut entry = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("weights/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    entry("data.pkl", pickle);
    entry("byteorder", b"little");
    storages.iter().for_each(|(key, bytes)| entry(&format!("data/{key}"), bytes));
    entry("version", b"3\n");
    zip.finish().unwrap().into_inner()
}

/// PyTorch's file before 1.6: magic number, version, facts of the machine, pickle, keys, storages. A storage is (key,
/// elements, bytes).
pub fn legacy_file(pickle: &[u8], storages: &[(&str, usize, Vec<u8>)]) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.".to_vec();
    let mut machine = Pickle::protocol(2);
    file.extend(machine.op(b"}(").text("protocol_version").op(b"M\xe9\x03").text("little_endian").op(b"\x88u").stop());
    file.extend_from_slice(pickle);
    let mut keys = Pickle::protocol(2);
    keys.op(b"](");
    for (key, _, _) in storages {
        keys.text(key);
    }
    file.extend(keys.op(b"e").stop());
    for (_, elements, bytes) in storages {
        file.extend((*elements as u64).to_le_bytes());
        file.extend_from_slice(bytes);
    }
    file
}

/// Who wrote a file of caffe2's blobs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Flavour {
    /// Python 2, protocol 0: all is text.
    Text,
    /// Python 2, protocol 2: 8-bit strings.
    Python2,
    /// Python 3, protocol 2: bytes as encoded text.
    Python3,
    /// Python 3, protocol 4, NumPy 2.
    Protocol4,
    /// Python 3, protocol 5: arrays from buffers.
    Protocol5,
}

pub const FLAVOURS: [Flavour; 5] =
    [Flavour::Text, Flavour::Python2, Flavour::Python3, Flavour::Protocol4, Flavour::Protocol5];

/// `{"blobs": {name: array of f32}}`.
pub fn caffe2_file(flavour: Flavour, blobs: &[(&str, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let mut pickle = match flavour {
        Flavour::Text => Pickle::default(),
        Flavour::Protocol4 => Pickle::protocol(4),
        Flavour::Protocol5 => Pickle::protocol(5),
        _ => Pickle::protocol(2),
    };
    let dict = if flavour == Flavour::Text { b"(d".as_slice() } else { b"}" };
    string(pickle.op(dict), flavour, b"blobs");
    pickle.op(dict);
    for (name, shape, values) in blobs {
        string(&mut pickle, flavour, name.as_bytes());
        array(&mut pickle, flavour, shape, values);
        pickle.op(b"s");
    }
    pickle.op(b"s").stop()
}

fn string(pickle: &mut Pickle, flavour: Flavour, bytes: &[u8]) {
    match flavour {
        Flavour::Text => {
            pickle.op(b"S'");
            for &byte in bytes {
                match byte {
                    b'\\' | b'\'' => pickle.op([b'\\', byte]),
                    b'\n' => pickle.op(b"\\n"),
                    b' '..=b'~' => pickle.op([byte]),
                    _ => pickle.op(format!("\\x{byte:02x}")),
                };
            }
            pickle.op(b"'\n");
        }
        Flavour::Python2 => drop(pickle.op(b"T").op((bytes.len() as u32).to_le_bytes()).op(bytes)),
        _ => drop(pickle.text(std::str::from_utf8(bytes).unwrap())),
    }
}

/// The bytes of an array, as each writer has them.
fn content(pickle: &mut Pickle, flavour: Flavour, bytes: &[u8]) {
    match flavour {
        Flavour::Text | Flavour::Python2 => string(pickle, flavour, bytes),
        Flavour::Python3 => {
            let text: String = bytes.iter().map(|&b| char::from(b)).collect();
            pickle.op(b"c_codecs\nencode\n(").text(&text).text("latin1").op(b"tR");
        }
        Flavour::Protocol4 => drop(pickle.op(b"B").op((bytes.len() as u32).to_le_bytes()).op(bytes)),
        Flavour::Protocol5 => drop(pickle.op([0x96]).op((bytes.len() as u64).to_le_bytes()).op(bytes)),
    }
}

fn array(pickle: &mut Pickle, flavour: Flavour, shape: &[usize], values: &[f32]) {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    match flavour {
        Flavour::Protocol5 => {
            pickle.text("numpy._core.numeric").text("_frombuffer").op([0x93]).op(b"(");
            content(pickle, flavour, &bytes);
            dtype(pickle, flavour);
            tuple(pickle, flavour, shape);
            pickle.text("C").op(b"tR");
        }
        Flavour::Protocol4 => {
            pickle.text("numpy._core.multiarray").text("_reconstruct").op([0x93]);
            pickle.text("numpy").text("ndarray").op([0x93]).op(b"K\x00\x85C\x01b\x87R(K\x01");
            tuple(pickle, flavour, shape);
            dtype(pickle, flavour);
            content(pickle.op([0x89]), flavour, &bytes);
            pickle.op(b"tb");
        }
        _ => {
            pickle.op(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n");
            tuple(pickle, flavour, &[0]);
            string(pickle, flavour, b"b");
            pickle.op(b"tR(I1\n");
            tuple(pickle, flavour, shape);
            dtype(pickle, flavour);
            content(pickle.op(b"I00\n"), flavour, &bytes);
            pickle.op(b"tb");
        }
    }
}

fn tuple(pickle: &mut Pickle, flavour: Flavour, sizes: &[usize]) {
    if flavour != Flavour::Text {
        pickle.sizes(sizes);
        return;
    }
    pickle.op(b"(");
    for size in sizes {
        pickle.op(format!("L{size}L\n"));
    }
    pickle.op(b"t");
}

/// `dtype('<f4')`.
fn dtype(pickle: &mut Pickle, flavour: Flavour) {
    pickle.op(b"cnumpy\ndtype\n(");
    string(pickle, flavour, b"f4");
    pickle.op(b"I0\nI1\ntR(I3\n");
    string(pickle, flavour, b"<");
    pickle.op(b"NNNI-1\nI-1\nI0\ntb");
}

/// Writes `bytes` to a file in `folder`.
pub fn put(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// `values` as little-endian bytes.
pub fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
