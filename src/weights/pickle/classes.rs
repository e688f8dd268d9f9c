//! The classes and functions that a pickle of weights may name. Nothing of them is run: each becomes an [`Object`].

use super::Outcome;
use super::machine::Machine;
use super::value::{Array, Object, StorageRef, TensorRef, Value, short_text, sizes_of};
use crate::weights::tensor::ElementType;

/// A class or function that may be named.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Class {
    OrderedDict,
    Set,
    /// `_codecs.encode`: how Python 3 writes bytes in protocols 0 to 2.
    Encode,
    TorchStorage(ElementType),
    TorchTensor,
    TorchParameter,
    NumpyArray,
    /// An array without content, to be filled by its state.
    NumpyReconstruct,
    NumpyFromBuffer,
    NumpyScalar,
    NumpyDType,
}

impl Class {
    /// The class of this name.
    ///
    /// # Errors
    /// The full name of any other.
    pub fn find(module: &str, name: &str) -> Outcome<Class> {
        let class = match (module, name) {
            ("collections", "OrderedDict") => Some(Class::OrderedDict),
            ("builtins" | "__builtin__", "set") => Some(Class::Set),
            ("_codecs", "encode") => Some(Class::Encode),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Class::TorchTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Class::TorchParameter),
            ("torch", storage) => ElementType::from_storage_class(storage).map(Class::TorchStorage),
            ("numpy", "ndarray") => Some(Class::NumpyArray),
            ("numpy", "dtype") => Some(Class::NumpyDType),
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Some(Class::NumpyReconstruct),
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Some(Class::NumpyScalar),
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Some(Class::NumpyFromBuffer),
            _ => None,
        };
        class.ok_or_else(|| {
            let short = |text: &str| text.chars().take(100).collect::<String>();
            format!(
                "it names {}.{}, which is no part of weights: nothing of the file is executed",
                short(module),
                short(name)
            )
        })
    }
}

/// Most axes of a tensor.
const MAX_AXES: usize = 16;

/// What calling `class` with `arguments` makes.
pub fn call(machine: &mut Machine, class: Class, arguments: &[Value]) -> Outcome<Value> {
    let wrong = || format!("{class:?} is called with other arguments than files of weights have");
    let object = match (class, arguments) {
        (Class::OrderedDict, []) => Object::Dict(vec![]),
        (Class::OrderedDict, [items]) => dict_of_pairs(machine, *items)?,
        (Class::Set, []) => Object::List(vec![]),
        (Class::Set | Class::TorchParameter, [inner, ..]) => return Ok(*inner),
        (Class::Encode, [text, ..]) => latin1(machine, *text)?,
        (Class::TorchTensor, [storage, offset, shape, strides, ..]) => {
            let Some(Object::Storage(storage)) = find(&machine.objects, *storage) else { return Err(wrong()) };
            let Value::Int(offset) = *offset else { return Err(wrong()) };
            let axes = |value: &Value, what: &str| axes_of(&machine.objects, *value, what);
            Object::Tensor(TensorRef {
                storage: storage.clone(),
                offset: u64::try_from(offset).map_err(|_| wrong())?,
                shape: axes(shape, "shape")?,
                strides: axes(strides, "strides")?,
            })
        }
        (Class::NumpyReconstruct, [_array_class, ..]) => {
            Object::Array(Array { element: ElementType::U8, shape: vec![], is_fortran: false, bytes: None })
        }
        (Class::NumpyDType, [code, ..]) => Object::DType(element_type(&machine.objects, *code)?),
        (Class::NumpyFromBuffer, [bytes, dtype, shape, order]) => {
            let is_fortran = short_text(&machine.objects, *order).as_deref() == Some("F");
            array(&machine.objects, *bytes, *dtype, axes_of(&machine.objects, *shape, "shape")?, is_fortran)?
        }
        (Class::NumpyScalar, [dtype, bytes]) => array(&machine.objects, *bytes, *dtype, vec![], false)?,
        _ => return Err(wrong()),
    };
    Ok(machine.add(object))
}

/// Gives `object` its state, as the BUILD instruction asks.
pub fn build(machine: &mut Machine, object: Value, state: Value) -> Outcome<()> {
    let state_items = match find(&machine.objects, state) {
        // Attributes of an OrderedDict: PyTorch hangs versions of modules on it, which weights do not need.
        Some(Object::Dict(_)) if matches!(find(&machine.objects, object), Some(Object::Dict(_))) => return Ok(()),
        Some(Object::List(_)) => machine.take_list(state)?,
        _ => return Err("an object gets a state that weights do not have".into()),
    };
    let built = match (find(&machine.objects, object), state_items.as_slice()) {
        (Some(Object::DType(element)), [_version, order, ..]) => {
            if short_text(&machine.objects, *order).as_deref() == Some(">") {
                return Err("it holds big-endian numbers: save it again on a little-endian machine".into());
            }
            Object::DType(*element)
        }
        (Some(Object::Array(_)), [_version, shape, dtype, is_fortran, bytes]) => {
            // Python 2 wrote 0 and 1 where Python 3 writes booleans.
            let is_fortran = matches!(is_fortran, Value::Bool(true) | Value::Int(1));
            array(&machine.objects, *bytes, *dtype, axes_of(&machine.objects, *shape, "shape")?, is_fortran)?
        }
        _ => return Err("an object gets a state that weights do not have".into()),
    };
    if let Value::Object(place) = object {
        machine.objects[place] = built;
    }
    Ok(())
}

/// The storage that PyTorch's persistent id `('storage', class, key, location, elements)` names.
pub fn storage(objects: &[Object], id: &[Value]) -> Outcome<StorageRef> {
    let wrong = || "a persistent id that names no PyTorch storage".to_string();
    let (word, class, key, len) = match id {
        [word, class, key, _location, len] => (word, class, key, len),
        // The old format has views of storages here; PyTorch wrote none since 0.4.
        [word, class, key, _location, len, Value::None] => (word, class, key, len),
        _ => return Err(wrong()),
    };
    let (Some(Object::Class(Class::TorchStorage(element))), Value::Int(len)) = (find(objects, *class), len) else {
        return Err(wrong());
    };
    if short_text(objects, *word).as_deref() != Some("storage") {
        return Err(wrong());
    }
    let key = short_text(objects, *key).ok_or_else(wrong)?;
    Ok(StorageRef { key, element: *element, len: u64::try_from(*len).map_err(|_| wrong())? })
}

fn find(objects: &[Object], value: Value) -> Option<&Object> {
    match value {
        Value::Object(place) => objects.get(place),
        _ => None,
    }
}

fn axes_of(objects: &[Object], value: Value, what: &str) -> Outcome<Vec<u64>> {
    match find(objects, value) {
        Some(Object::List(items)) if items.len() > MAX_AXES => Err(format!("a tensor of {} axes", items.len())),
        _ => sizes_of(objects, value, what),
    }
}

fn element_type(objects: &[Object], code: Value) -> Outcome<ElementType> {
    let code = short_text(objects, code).ok_or("a NumPy type that is not named by text")?;
    ElementType::from_numpy(&code).ok_or_else(|| format!("NumPy's type {code:?} holds no weights"))
}

fn array(objects: &[Object], bytes: Value, dtype: Value, shape: Vec<u64>, is_fortran: bool) -> Outcome<Object> {
    let Some(Object::DType(element)) = find(objects, dtype) else { return Err("an array without a type".into()) };
    match (find(objects, bytes), bytes) {
        (Some(Object::Bytes(_)), Value::Object(place)) => {
            Ok(Object::Array(Array { element: *element, shape, is_fortran, bytes: Some(place) }))
        }
        _ => Err("an array whose content is not bytes".into()),
    }
}

/// `OrderedDict([(key, value), …])`, as Python 2 writes it.
fn dict_of_pairs(machine: &mut Machine, items: Value) -> Outcome<Object> {
    let items = machine.take_list(items)?;
    let mut pairs = Vec::with_capacity(items.len());
    for item in items {
        match machine.take_list(item)?.as_slice() {
            [key, value] => pairs.push((*key, *value)),
            _ => return Err("an OrderedDict of something else than pairs".into()),
        }
    }
    Ok(Object::Dict(pairs))
}

/// The bytes that a text of Latin-1 characters stands for.
fn latin1(machine: &mut Machine, text: Value) -> Outcome<Object> {
    let Some(Object::Text(text)) = find(&machine.objects, text) else {
        return Err("bytes made from something else than text".into());
    };
    let byte = |c| u8::try_from(u32::from(c)).map_err(|_| "bytes made from text that is not Latin-1".to_string());
    let bytes = text.chars().map(byte).collect::<Outcome<Vec<u8>>>()?;
    machine.charge_bytes(bytes.len())?;
    Ok(Object::Bytes(bytes))
}
