//! safetensors files, in and out.

use std::collections::HashMap;

use safetensors::tensor::{SafeTensors, TensorView};

use super::pickle::Outcome;
use super::tensor::{ElementType, StoredTensor};

/// Under which the metadata holds the epoch.
const EPOCH: &str = "epoch";

/// Whether `head` begins such a file of `file_bytes`: the length of the header, then JSON.
pub fn is_safetensors(head: &[u8], file_bytes: u64) -> bool {
    let Some((length, [b'{', ..])) = head.split_first_chunk::<8>() else { return false };
    u64::from_le_bytes(*length) <= file_bytes.saturating_sub(8)
}

/// All tensors, in the order of the file, and the epoch of its metadata.
pub fn read(bytes: &[u8]) -> Outcome<(Vec<StoredTensor>, Option<u64>)> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let epoch = header.metadata().as_ref().and_then(|m| m.get(EPOCH)).and_then(|epoch| epoch.parse().ok());
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let mut tensors = vec![];
    for name in header.offset_keys() {
        let view = file.tensor(&name).map_err(|e| e.to_string())?;
        let dtype = view.dtype();
        let element =
            ElementType::from_safetensors(dtype).ok_or_else(|| format!("{name}: {dtype:?} holds no weights"))?;
        tensors.push(StoredTensor { name, element, shape: view.shape().to_vec(), bytes: view.data().to_vec() });
    }
    Ok((tensors, epoch))
}

/// The file of `tensors`.
pub fn write(tensors: &[StoredTensor], epoch: Option<u64>) -> Outcome<Vec<u8>> {
    let mut metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    metadata.extend(epoch.map(|epoch| (EPOCH.to_string(), epoch.to_string())));
    let mut views = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let view = TensorView::new(tensor.element.safetensors(), tensor.shape.clone(), &tensor.bytes);
        views.push((&tensor.name, view.map_err(|e| e.to_string())?));
    }
    safetensors::serialize(views, Some(metadata)).map_err(|e| e.to_string())
}
