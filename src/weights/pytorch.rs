//! PyTorch's files: a pickle that says which tensors there are, and storages with their elements.
//!
//! | format | pickle | storages |
//! |---|---|---|
//! | zip (1.6 and later) | entry `NAME/data.pkl` | entries `NAME/data/KEY`, stored |
//! | legacy | behind a magic number, a version and facts of the machine | at the end, each behind its length |
//!
//! Only the storages of the model's tensors are read; those of an optimizer stay in the file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use zip::ZipArchive;

use super::momenta;
use super::pickle::{self, Object, Outcome, Pickle, Source, TensorRef, Value};
use super::tensor::StoredTensor;
use super::view::{Budget, View, num_elements};

/// Which tensors of a file are read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Part {
    /// The model's.
    Model,
    /// The momenta of its optimizer, named `GROUP.PLACE`.
    Momenta,
}

/// What a file of PyTorch holds.
pub struct Contents {
    pub tensors: Vec<StoredTensor>,
    pub epoch: Option<u64>,
    /// Parameters of each group of the optimizer; empty for [`Part::Model`].
    pub groups: Vec<usize>,
}

/// First bytes of the legacy format: a pickle of the magic number, whose second byte is the protocol.
const LEGACY_MAGIC: [u8; 14] = [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Tensors of a pickle with their names.
pub type Named<'a> = Vec<(String, &'a TensorRef)>;

/// Whether `head` begins a file of the legacy format.
pub fn is_legacy(head: &[u8]) -> bool {
    head.len() >= LEGACY_MAGIC.len() && head[0] == LEGACY_MAGIC[0] && head[2..14] == LEGACY_MAGIC[2..]
}

/// Keys under which programs put the state dict of a model beside other things.
const STATE_KEYS: [&str; 3] = ["model_state", "state_dict", "model"];

/// Reads a zip archive of `file_bytes`.
pub fn read_zip(file: File, file_bytes: u64, part: Part) -> Outcome<Contents> {
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| format!("not a whole zip archive: {e}"))?;
    let prefixes = archive.file_names().filter_map(|name| Some(name.ok()?.strip_suffix("data.pkl")?.to_string()));
    let prefixes: Vec<String> = prefixes.filter(|prefix| prefix.ends_with('/')).collect();
    let [prefix] = &prefixes[..] else {
        return Err(format!("expected one entry NAME/data.pkl as PyTorch writes it, got {}", prefixes.len()));
    };
    check_byte_order(&mut archive, prefix)?;
    let pickle = {
        let entry = archive.by_name(&format!("{prefix}data.pkl")).map_err(|e| format!("data.pkl: {e}"))?;
        let size = entry.size().min(file_bytes);
        let mut reader = BufReader::new(entry);
        let pickle = pickle::load(&mut Source::new(&mut reader, 0, size)).map_err(|e| format!("data.pkl: {e}"))?;
        // The checksum is compared at the entry's end.
        std::io::copy(&mut reader, &mut std::io::sink()).map_err(|e| format!("data.pkl: {e}"))?;
        pickle
    };
    let mut filled = Filling::new(&pickle, file_bytes, part)?;
    for key in filled.keys() {
        let entry = archive.by_name(&format!("{prefix}data/{key}")).map_err(|e| format!("storage {key}: {e}"))?;
        let expected = filled.storage_bytes(&key)?;
        if entry.size() != expected {
            return Err(format!("storage {key}: expected {expected} bytes, got {}", entry.size()));
        }
        let mut bytes = Vec::with_capacity(expected.min(file_bytes) as usize);
        // One byte more than there is: the checksum is compared at the entry's end.
        entry.take(expected.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| format!("storage {key}: {e}"))?;
        filled.fill(&key, &bytes)?;
    }
    filled.finish()
}

fn check_byte_order(archive: &mut ZipArchive<BufReader<File>>, prefix: &str) -> Outcome<()> {
    let mut order = String::new();
    if let Ok(entry) = archive.by_name(&format!("{prefix}byteorder")) {
        entry.take(16).read_to_string(&mut order).map_err(|e| format!("byteorder: {e}"))?;
    }
    match order.as_str() {
        "" | "little" => Ok(()),
        other => Err(format!("expected little-endian numbers, got byteorder {other:?}")),
    }
}

/// Reads a file of `file_bytes` in the legacy format.
pub fn read_legacy(file: File, file_bytes: u64, part: Part) -> Outcome<Contents> {
    let mut reader = BufReader::new(file);
    let mut source = Source::new(&mut reader, 0, file_bytes);
    let (_magic, _version) = (pickle::load(&mut source)?, pickle::load(&mut source)?);
    let machine = pickle::load(&mut source)?;
    if machine.get(machine.root, "little_endian") == Some(Value::Bool(false)) {
        return Err("expected little-endian numbers, got a file of a big-endian machine".into());
    }
    let pickle = pickle::load(&mut source)?;
    let keys = pickle::load(&mut source)?;
    let mut at = source.position();
    let keys = keys.list(keys.root).unwrap_or_default().iter().map(|&key| keys.text(key)).collect::<Option<Vec<_>>>();
    let keys = keys.ok_or("the list of its storages holds something else than text")?;
    let (mut filled, storages) = (Filling::new(&pickle, file_bytes, part)?, all_storages(&pickle));
    for key in keys {
        let mut source = Source::new(&mut reader, at, file_bytes);
        let len = u64::from_le_bytes(source.array()?);
        let Some(&element_bytes) = storages.get(key.as_str()) else {
            return Err(format!("storage {key} belongs to no tensor"));
        };
        let num_bytes = len.checked_mul(element_bytes).filter(|&n| n <= file_bytes.saturating_sub(source.position()));
        let num_bytes = num_bytes.ok_or_else(|| format!("storage {key}: it ends before its {len} elements"))?;
        at = source.position() + num_bytes;
        if filled.wants(&key) {
            let bytes = source.bytes(num_bytes)?;
            filled.fill(&key, &bytes)?;
        } else {
            reader.seek(SeekFrom::Start(at)).map_err(|e| e.to_string())?;
        }
    }
    filled.finish()
}

/// Bytes of an element of every storage, by key.
fn all_storages(pickle: &Pickle) -> HashMap<&str, u64> {
    let storages = pickle.objects.iter().filter_map(|object| match object {
        Object::Storage(storage) => Some((storage.key.as_str(), storage.element.num_bytes() as u64)),
        _ => None,
    });
    storages.collect()
}

/// The model's tensors of a pickle.
fn of_model(pickle: &Pickle) -> Outcome<Named<'_>> {
    let state = STATE_KEYS.iter().find_map(|key| pickle.get(pickle.root, key)).unwrap_or(pickle.root);
    let entries = pickle.dict(state).ok_or("expected a dict of tensors, or of a model_state")?;
    let mut wanted = vec![];
    for (key, value) in entries {
        if let Some(Object::Tensor(tensor)) = pickle.object(*value) {
            let name = pickle.text(*key).ok_or("a tensor whose name is no text of at most 1024 bytes")?;
            wanted.push((name, tensor));
        }
    }
    if wanted.is_empty() {
        let keys: Vec<String> = entries.iter().filter_map(|(key, _)| pickle.text(*key)).take(5).collect();
        return Err(format!("it holds no tensors, neither under model_state nor at the top; its keys: {keys:?}"));
    }
    Ok(wanted)
}

/// Tensors of a pickle, to be filled storage by storage.
struct Filling<'a> {
    wanted: Named<'a>,
    groups: Vec<usize>,
    filled: Vec<Option<StoredTensor>>,
    /// Which of `wanted` lie in a storage.
    by_key: HashMap<&'a str, Vec<usize>>,
    budget: Budget,
    epoch: Option<u64>,
}

impl<'a> Filling<'a> {
    fn new(pickle: &'a Pickle, file_bytes: u64, part: Part) -> Outcome<Filling<'a>> {
        let (wanted, groups) = match part {
            Part::Model => (of_model(pickle)?, vec![]),
            Part::Momenta => momenta::wanted(pickle)?,
        };
        let mut by_key: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, (_, tensor)) in wanted.iter().enumerate() {
            by_key.entry(&tensor.storage.key).or_default().push(i);
        }
        let epoch = ["epoch", "vcycle_epoch"].iter().find_map(|key| match pickle.get(pickle.root, key) {
            Some(Value::Int(epoch)) => u64::try_from(epoch).ok(),
            _ => None,
        });
        let (filled, budget) = (vec![None; wanted.len()], Budget::new(file_bytes));
        Ok(Filling { wanted, groups, filled, by_key, budget, epoch })
    }

    /// Keys of the storages, in the order in which the tensors need them.
    fn keys(&self) -> Vec<String> {
        let first =
            |&(i, (_, tensor)): &(usize, &(String, &TensorRef))| self.by_key[tensor.storage.key.as_str()][0] == i;
        self.wanted.iter().enumerate().filter(first).map(|(_, (_, tensor))| tensor.storage.key.clone()).collect()
    }

    fn wants(&self, key: &str) -> bool {
        self.by_key.contains_key(key)
    }

    /// Bytes of a storage, as its tensors say.
    fn storage_bytes(&self, key: &str) -> Outcome<u64> {
        let tensor = self.by_key.get(key).map(|tensors| self.wanted[tensors[0]].1);
        let bytes = tensor.and_then(|t| t.storage.len.checked_mul(t.storage.element.num_bytes() as u64));
        bytes.ok_or_else(|| format!("storage {key} has no size"))
    }

    /// Fills the tensors that lie in a storage.
    fn fill(&mut self, key: &str, stored: &[u8]) -> Outcome<()> {
        for &i in self.by_key.get(key).map_or(&[][..], Vec::as_slice) {
            let (name, tensor) = &self.wanted[i];
            let named = |e: String| format!("{name}: {e}");
            let element = tensor.storage.element;
            let count = num_elements(&tensor.shape, (stored.len() / element.num_bytes()) as u64).map_err(named)?;
            self.budget.take(count * element.num_bytes() as u64)?;
            let (shape, strides) = (tensor.shape.as_slice(), tensor.strides.as_slice());
            let view = View { shape, strides, offset: tensor.offset, element_bytes: element.num_bytes() };
            let bytes = view.gather(stored).map_err(named)?;
            let shape = tensor.shape.iter().map(|&n| n as usize).collect();
            self.filled[i] = Some(StoredTensor { name: name.clone(), element, shape, bytes });
        }
        Ok(())
    }

    fn finish(self) -> Outcome<Contents> {
        let mut tensors = Vec::with_capacity(self.wanted.len());
        for (tensor, (name, view)) in self.filled.into_iter().zip(self.wanted) {
            tensors.push(tensor.ok_or_else(|| format!("{name}: its storage {} is not in the file", view.storage.key))?);
        }
        Ok(Contents { tensors, epoch: self.epoch, groups: self.groups })
    }
}
