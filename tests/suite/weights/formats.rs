//! Every format is read as its own program means it, and what is written is read back bit for bit.

use vcycle::checkpoint::{Checkpoint, State, Store};
use vcycle::model::NamedArray;
use vcycle::weights::{self, ElementType, Format, StateDict, StoredTensor};

use super::writer::{
    FLAVOURS, TorchTensor, caffe2_file, checkpoint_pickle, le_bytes, legacy_file, plain_pickle, put, zip_file,
};

/// Names, shapes and values of all tensors.
fn contents(state: &StateDict) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    state.tensors.iter().map(|t| (t.name.clone(), t.shape.clone(), t.to_f32())).collect()
}

/// A whole tensor, a transposed and shifted view of a shared storage, and a number.
fn torch_tensors() -> Vec<TorchTensor<'static>> {
    let transposed = TorchTensor {
        offset: 1,
        shape: vec![3, 2],
        strides: vec![1, 3],
        stored: 8,
        ..TorchTensor::whole("b", "1", &[8])
    };
    let row =
        TorchTensor { offset: 4, shape: vec![2], strides: vec![2], stored: 8, ..TorchTensor::whole("c", "1", &[8]) };
    let count = TorchTensor { class: "LongStorage", stored: 1, ..TorchTensor::whole("n", "2", &[]) };
    vec![TorchTensor::whole("a", "0", &[2, 1, 2]), transposed, row, count]
}

const FLAT: [f32; 8] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
const WHOLE: [f32; 4] = [0.5, -1.5, f32::MIN_POSITIVE, 3.0e38];

fn expected() -> Vec<(String, Vec<usize>, Vec<f32>)> {
    vec![
        ("a".into(), vec![2, 1, 2], WHOLE.to_vec()),
        ("b".into(), vec![3, 2], vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0]),
        ("c".into(), vec![2], vec![4.0, 6.0]),
        ("n".into(), vec![], vec![41.0]),
    ]
}

#[test]
fn the_zip_file_of_pytorch() {
    let folder = tempfile::tempdir().unwrap();
    let storages = [("0", le_bytes(&WHOLE)), ("1", le_bytes(&FLAT)), ("2", 41i64.to_le_bytes().to_vec())];
    for (name, pickle, epoch) in [
        ("checkpoint.pyth", checkpoint_pickle(&torch_tensors(), false), Some(7)),
        ("plain.pth", plain_pickle(&torch_tensors()), None),
    ] {
        let state = weights::load(&put(folder.path(), name, &zip_file(&pickle, &storages))).unwrap();
        assert_eq!((state.format, state.epoch), (Format::PyTorch, epoch), "{name}");
        assert_eq!(contents(&state), expected(), "{name}");
        assert_eq!(state.tensors[3].element, ElementType::I64);
    }
}

#[test]
fn the_legacy_file_of_pytorch() {
    let folder = tempfile::tempdir().unwrap();
    // In another order than the tensors, as PyTorch sorts them by address.
    let storages = [("2", 1, 41i64.to_le_bytes().to_vec()), ("0", 4, le_bytes(&WHOLE)), ("1", 8, le_bytes(&FLAT))];
    let file = legacy_file(&checkpoint_pickle(&torch_tensors(), true), &storages);
    let state = weights::load(&put(folder.path(), "old.pyth", &file)).unwrap();
    assert_eq!((state.format, state.epoch), (Format::PyTorchLegacy, Some(7)));
    assert_eq!(contents(&state), expected());
}

#[test]
fn every_element_type_of_pytorch() {
    let folder = tempfile::tempdir().unwrap();
    for (class, bytes, value) in [
        ("DoubleStorage", (-2.5f64).to_le_bytes().to_vec(), -2.5),
        ("FloatStorage", (-2.5f32).to_le_bytes().to_vec(), -2.5),
        ("HalfStorage", half::f16::from_f32(-2.5).to_le_bytes().to_vec(), -2.5),
        ("BFloat16Storage", half::bf16::from_f32(-2.5).to_le_bytes().to_vec(), -2.5),
        ("LongStorage", (-3i64).to_le_bytes().to_vec(), -3.0),
        ("IntStorage", (-3i32).to_le_bytes().to_vec(), -3.0),
        ("ShortStorage", (-3i16).to_le_bytes().to_vec(), -3.0),
        ("CharStorage", (-3i8).to_le_bytes().to_vec(), -3.0),
        ("ByteStorage", vec![253], 253.0),
        ("BoolStorage", vec![1], 1.0),
    ] {
        let tensor = TorchTensor { class, ..TorchTensor::whole("x", "0", &[1]) };
        let file = zip_file(&plain_pickle(&[tensor]), &[("0", bytes.clone())]);
        let state = weights::load(&put(folder.path(), class, &file)).unwrap();
        assert_eq!(contents(&state), [("x".into(), vec![1], vec![value])], "{class}");
        assert_eq!(state.tensors[0].bytes, bytes, "{class}");
    }
}

#[test]
fn caffe2_blobs_of_every_python() {
    let folder = tempfile::tempdir().unwrap();
    // Among the bytes of these values are quotes, backslashes, line feeds and bytes beyond ASCII.
    let values = [f32::from_bits(0x275c_0a22), -1.0, f32::from_bits(0xff7f_800d_u32 & 0x7f7f_ffff)];
    let blobs = [("conv1_w", vec![3, 1], values.to_vec()), ("pred_b", vec![3], vec![1.0, 2.0, 3.0])];
    for flavour in FLAVOURS {
        let path = put(folder.path(), &format!("{flavour:?}.pkl"), &caffe2_file(flavour, &blobs));
        let state = weights::load(&path).unwrap_or_else(|e| panic!("{flavour:?}: {e}"));
        assert_eq!(state.format, Format::Caffe2);
        let expected = blobs.iter().map(|(name, shape, values)| (name.to_string(), shape.clone(), values.clone()));
        assert_eq!(contents(&state), expected.collect::<Vec<_>>(), "{flavour:?}");
    }
}

/// Tensors of all types, with bits that no rounding would keep.
fn some_tensors() -> Vec<StoredTensor> {
    let tensor = |name: &str, element: ElementType, shape: &[usize]| {
        let len = shape.iter().product::<usize>() * element.num_bytes();
        let bytes = (0..len).map(|i| if element == ElementType::Bool { 1 } else { (i * 37 + 11) as u8 }).collect();
        StoredTensor { name: name.into(), element, shape: shape.to_vec(), bytes }
    };
    vec![
        tensor("double", ElementType::F64, &[2, 3]),
        tensor("float", ElementType::F32, &[2, 1, 3, 1, 2]),
        tensor("half", ElementType::F16, &[5]),
        tensor("bfloat", ElementType::Bf16, &[5]),
        tensor("long", ElementType::I64, &[]),
        tensor("bool", ElementType::Bool, &[3]),
        tensor("empty", ElementType::F32, &[0, 4]),
    ]
}

#[test]
fn what_is_written_is_read_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let sorted = |state: &StateDict| {
        let mut tensors = state.tensors.clone();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        tensors
    };
    let first = StateDict { path: "x".into(), format: Format::PyTorch, tensors: some_tensors(), epoch: Some(12) };
    let (pyth, safe, again) =
        (folder.path().join("a.pyth"), folder.path().join("b.safetensors"), folder.path().join("c.pyth"));
    weights::save(&pyth, &first).unwrap();
    weights::save(&safe, &weights::load(&pyth).unwrap()).unwrap();
    weights::save(&again, &weights::load(&safe).unwrap()).unwrap();
    for (path, format) in [(&pyth, Format::PyTorch), (&safe, Format::Safetensors), (&again, Format::PyTorch)] {
        let state = weights::load(path).unwrap();
        assert_eq!((state.format, state.epoch), (format, Some(12)));
        assert_eq!(sorted(&state), sorted(&first), "{}", path.display());
    }
    let error = weights::save(&pyth, &first).unwrap_err().to_string();
    assert!(error.contains("is there already"), "{error}");
    let error = weights::save(&folder.path().join("a.onnx"), &first).unwrap_err().to_string();
    assert!(error.contains(".safetensors, .pyth or .pth"), "{error}");
}

#[test]
fn the_checkpoint_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let array = |name: &str, shape: &[usize], values: &[f32]| NamedArray {
        name: name.into(),
        shape: shape.to_vec(),
        values: values.to_vec(),
    };
    let model = vec![array("bn.num_batches_tracked", &[], &[9.0]), array("w", &[2], &[1.0, 2.0])];
    let state = State { format: vcycle::checkpoint::FORMAT_VERSION, epoch: 4, ..State::default() };
    let store = Store::open(&folder.path().join("checkpoints"), 3).unwrap();
    let saved = store.save(&Checkpoint { state, model, momentum: vec![] }).unwrap();
    for path in [folder.path(), &saved] {
        let state = weights::load(path).unwrap();
        assert_eq!((state.format, state.epoch), (Format::RunCheckpoint, Some(3)));
        let values: Vec<_> = state.tensors.iter().map(|t| (t.name.as_str(), t.to_f32())).collect();
        assert_eq!(values, [("bn.num_batches_tracked", vec![9.0]), ("w", vec![1.0, 2.0])]);
    }
}

/// `tests/fuzz_seeds/weights` holds files that PyTorch 2.11, and NumPy under Python 2.7 and 3.11, wrote.
#[test]
fn files_that_pytorch_and_python_wrote() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz_seeds/weights");
    let rising = |n: u8| (0..n).map(f32::from).collect::<Vec<_>>();
    for (name, format) in [("torch_2_11_zip.pyth", Format::PyTorch), ("torch_2_11_legacy.pyth", Format::PyTorchLegacy)]
    {
        let state = weights::load(&folder.join(name)).unwrap();
        assert_eq!((state.format, state.epoch), (format, Some(3)), "{name}");
        let expected = [
            ("a".to_string(), vec![2, 3], vec![0.0, 2.0, 4.0, 1.0, 3.0, 5.0]),
            ("b".to_string(), vec![3], vec![2.0, 3.0, 4.0]),
            ("h".to_string(), vec![2], vec![1.5, -2.0]),
            ("bf".to_string(), vec![2], vec![1.5, -2.0]),
            ("n".to_string(), vec![], vec![41.0]),
        ];
        assert_eq!(contents(&state), expected, "{name}");
    }
    let python3 = (0..6).map(|protocol| (format!("python3_protocol{protocol}.pkl"), 0.0));
    let python2 = (0..3).map(|protocol| (format!("python2_protocol{protocol}.pkl"), -0.3));
    for (name, first) in python3.chain(python2).chain([("python2_pure.pkl".to_string(), -0.3)]) {
        let state = weights::load(&folder.join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(state.format, Format::Caffe2);
        let find =
            |blob: &str| state.tensors.iter().find(|t| t.name == blob).unwrap_or_else(|| panic!("{name}: {blob}"));
        let shifted: Vec<f32> = rising(6).iter().map(|v| v + first).collect();
        assert_eq!((find("conv1_w").shape.as_slice(), find("conv1_w").to_f32()), (&[2, 3][..], shifted), "{name}");
        // Stored by columns.
        assert_eq!((find("pred_w").shape.as_slice(), find("pred_w").to_f32()), (&[2, 3][..], rising(6)), "{name}");
        assert_eq!((find("res_conv1_bn_s").element, find("lr").shape.len()), (ElementType::F64, 0), "{name}");
    }
}
