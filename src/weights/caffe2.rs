//! caffe2's blobs: a pickle of a dict whose entry `blobs` maps names to NumPy arrays, as the model zoo's first files are.

use super::pickle::{self, Object, Outcome, Source, Value};
use super::tensor::StoredTensor;
use super::view::{Budget, View, num_elements, strides};

/// Reads all arrays. What is no array (a number, a text) is left out.
pub fn read(source: &mut Source) -> Outcome<Vec<StoredTensor>> {
    let mut budget = Budget::new(source.end());
    let pickle = pickle::load(source)?;
    let blobs = pickle.get(pickle.root, "blobs").unwrap_or(pickle.root);
    let entries = pickle.dict(blobs).ok_or("expected a dict of arrays, or one with an entry `blobs`")?;
    let mut tensors = vec![];
    for &(key, value) in entries {
        let Some(Object::Array(array)) = pickle.object(value) else { continue };
        let name = pickle.text(key).ok_or("an array whose name is no text of at most 1024 bytes")?;
        let stored = array.bytes.and_then(|place| pickle.object(Value::Object(place)));
        let Some(Object::Bytes(stored)) = stored else { return Err(format!("{name}: an array without content")) };
        let size = array.element.num_bytes();
        let count = num_elements(&array.shape, (stored.len() / size) as u64).map_err(|e| format!("{name}: {e}"))?;
        let num_bytes = count * size as u64;
        if num_bytes != stored.len() as u64 {
            return Err(format!("{name}: expected {num_bytes} bytes for {:?}, got {}", array.shape, stored.len()));
        }
        budget.take(num_bytes)?;
        let strides = strides(&array.shape, array.is_fortran);
        let view = View { shape: &array.shape, strides: &strides, offset: 0, element_bytes: size };
        let bytes = view.gather(stored).map_err(|e| format!("{name}: {e}"))?;
        let shape = array.shape.iter().map(|&n| n as usize).collect();
        tensors.push(StoredTensor { name, element: array.element, shape, bytes });
    }
    if tensors.is_empty() {
        return Err("it holds no arrays, neither under `blobs` nor at the top".into());
    }
    Ok(tensors)
}
