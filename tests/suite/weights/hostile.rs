//! Files that are cut off, lie about sizes, or would run something: one clear error each, and no memory beyond the file's.

use std::fs;
use std::path::Path;

use vcycle::Error;
use vcycle::weights;

use super::writer::{FLAVOURS, Flavour, Pickle, TorchTensor, caffe2_file, checkpoint_pickle, le_bytes, legacy_file};
use super::writer::{plain_pickle, put, zip_file};

/// The error of a file, which must name it.
pub fn refused(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = put(folder, name, bytes);
    match weights::load(&path).map(drop).unwrap_err() {
        Error::Checkpoint(message) => {
            assert!(message.starts_with(&path.display().to_string()), "{message}");
            message
        }
        other => panic!("{name}: {other}"),
    }
}

/// A pickle of one dict `{"blobs": …}` whose value is made by `instructions`.
fn blobs(instructions: &[u8]) -> Vec<u8> {
    Pickle::protocol(2).op(b"}").text("blobs").op(instructions).op(b"s").stop()
}

fn one_tensor() -> Vec<TorchTensor<'static>> {
    vec![TorchTensor::whole("a", "0", &[4])]
}

#[test]
fn classes_are_refused_by_their_full_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, instructions) in [
        ("os.system", b"cos\nsystem\n(U\x02idtR".as_slice()),
        ("posix.system", b"cposix\nsystem\n(U\x02idtR"),
        ("builtins.eval", b"X\x08\x00\x00\x00builtinsX\x04\x00\x00\x00eval\x93(U\x011tR"),
        ("__builtin__.getattr", b"c__builtin__\ngetattr\n"),
        ("torch.load", b"ctorch\nload\n"),
        ("torch._utils._rebuild_xla_tensor", b"ctorch._utils\n_rebuild_xla_tensor\n"),
        ("subprocess.Popen", b"(U\x02idisubprocess\nPopen\n"),
        ("numpy.core.multiarray.fromstring", b"cnumpy.core.multiarray\nfromstring\n"),
        ("argparse.Namespace", b"cargparse\nNamespace\n)\x81}b"),
    ] {
        let expected = format!("it names {name}, which is no part of weights: nothing of the file is executed");
        let message = refused(folder.path(), "evil.pkl", &blobs(instructions));
        assert!(message.contains(&expected), "{message}");
        // The same beside a good model in a file of PyTorch, behind which nobody would look.
        let mut pickle = checkpoint_pickle(&one_tensor(), false);
        pickle.truncate(pickle.len() - 1);
        pickle.extend(Pickle::default().text("more").op(instructions).op(b"s").stop());
        let message = refused(folder.path(), "evil.pyth", &zip_file(&pickle, &[("0", le_bytes(&[0.0; 4]))]));
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn every_cut_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let storages = [("0", 4, le_bytes(&[1.0, 2.0, 3.0, 4.0]))];
    let legacy = legacy_file(&checkpoint_pickle(&one_tensor(), true), &storages);
    let zip = zip_file(&checkpoint_pickle(&one_tensor(), false), &[("0", le_bytes(&[1.0, 2.0, 3.0, 4.0]))]);
    let mut files = vec![("old.pyth".to_string(), legacy), ("new.pyth".to_string(), zip)];
    for flavour in FLAVOURS {
        files.push((format!("{flavour:?}.pkl"), caffe2_file(flavour, &[("conv1_w", vec![2], vec![1.0, 2.0])])));
    }
    for (name, whole) in &files {
        for len in 0..whole.len() {
            refused(folder.path(), name, &whole[..len]);
        }
        weights::load(&put(folder.path(), name, whole)).unwrap();
    }
}

#[test]
fn lengths_beyond_the_file_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (name, instructions) in [
        ("BINUNICODE", b"X\xff\xff\xff\x7fab".as_slice()),
        ("BINBYTES", b"B\xff\xff\xff\xffab"),
        ("BINBYTES8", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab"),
        ("BYTEARRAY8", b"\x96\xff\xff\xff\xff\xff\xff\xff\xffab"),
        ("LONG4", b"\x8b\xff\xff\xff\x7fab"),
        ("BINSTRING", b"T\xff\xff\xff\xffab"),
    ] {
        let message = refused(folder.path(), name, &blobs(instructions));
        assert!(message.contains("bytes are announced") && message.contains("are left"), "{name}: {message}");
    }
    let long = usize::MAX >> 1;
    let big = |shape: &[usize], strides: &[usize], stored: usize| {
        let (shape, strides) = (shape.to_vec(), strides.to_vec());
        TorchTensor { shape, strides, stored, ..TorchTensor::whole("a", "0", &[4]) }
    };
    for (tensor, expected) in [
        (
            big(&[1 << 30, 1 << 30], &[0, 0], 4),
            "a: shape [1073741824, 1073741824] is larger than its storage of 4 elements",
        ),
        (big(&[5], &[1], 4), "a: shape [5] is larger than its storage"),
        (big(&[2], &[4], 4), "reaches beyond its storage of 4"),
        (TorchTensor { offset: 3, ..big(&[2], &[1], 4) }, "from element 3 reaches beyond its storage of 4"),
        (big(&[2, 2], &[1], 4), "has other axes than strides"),
        (big(&[1 << 30], &[1], 1 << 30), "storage 0: expected 4294967296 bytes, got 16"),
        (big(&[long], &[1], 4), "expected sizes >= 0"),
    ] {
        let file = zip_file(&plain_pickle(&[tensor]), &[("0", le_bytes(&[0.0; 4]))]);
        let message = refused(folder.path(), "big.pth", &file);
        assert!(message.contains(expected), "{message}");
    }
    let storages = [("0", usize::MAX >> 8, le_bytes(&[0.0; 4]))];
    let file = legacy_file(&checkpoint_pickle(&one_tensor(), true), &storages);
    let message = refused(folder.path(), "old.pth", &file);
    assert!(message.contains("storage 0: it ends before its"), "{message}");
}

/// Many tensors of one storage: each is honest, all together would fill the memory.
#[test]
fn many_views_of_one_storage_are_bounded_by_the_file() {
    let folder = tempfile::tempdir().unwrap();
    const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let tensors = NAMES.map(|name| TorchTensor::whole(name, "0", &[4096]));
    let file = zip_file(&plain_pickle(&tensors), &[("0", vec![0; 4 * 4096])]);
    let message = refused(folder.path(), "shared.pth", &file);
    assert!(message.contains("its tensors hold more than 4 times the"), "{message}");
}

#[test]
fn loops_depth_and_endless_pickles_end() {
    let folder = tempfile::tempdir().unwrap();
    // A list that holds itself, a dict that is its own blobs, and lists in lists, far deeper than any stack.
    refused(folder.path(), "loop.pkl", &blobs(b"]q\x00h\x00a"));
    refused(folder.path(), "itself.pkl", &Pickle::protocol(2).op(b"}q\x00").text("blobs").op(b"h\x00s").stop());
    let deep = [vec![b']'; 400_000], vec![b'a'; 399_999]].concat();
    refused(folder.path(), "deep.pkl", &blobs(&deep));
    let doubled: Vec<u8> = [b"]q\x00".to_vec(), b"(h\x00h\x00lq\x00".repeat(60)].concat();
    refused(folder.path(), "doubled.pkl", &blobs(&doubled));
    let endless = refused(folder.path(), "endless.pkl", &blobs(&b"N0".repeat(600_000)));
    assert!(endless.contains("a pickle of more than 1000000 instructions"), "{endless}");
    let copied = refused(
        folder.path(),
        "copied.pkl",
        &blobs(
            &[
                b"c_codecs\nencode\nq\x00".as_slice(),
                b"X\x00\x10\x00\x00",
                &[b'a'; 4096],
                b"U\x06latin1\x86q\x01",
                &b"0h\x00h\x01R".repeat(1000),
            ]
            .concat(),
        ),
    );
    assert!(copied.contains("more bytes are made than the file has"), "{copied}");
}

#[test]
fn instructions_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (instructions, expected) in [
        (b"R".as_slice(), "a class is named"),
        (b"K\x01K\x02R", "something is called that is no class"),
        (b"\x82\x01", "no pickle of weights has the instruction 0x82"),
        (b"\x97", "no pickle of weights has the instruction 0x97"),
        (b"Pstorage\n", "no pickle of weights has the instruction 0x50"),
        (b"t", "no mark is on the stack"),
        (b"(1t", "no mark is on the stack"),
        (b"h\x07", "nothing was remembered under 7"),
        (b"K\x01a", "items are added to something that is no list"),
        (b"](K\x01u", "a dict with a key that has no value"),
        (b"00000", "nothing is"),
        (b"I12x\n", "is no integer"),
        (b"S'ab\n", "not quoted"),
        (b"K\x01Q", "expected a tuple of arguments"),
        (b"K\x01\x85Q", "a persistent id that names no PyTorch storage"),
        (b"ccollections\nOrderedDict\nK\x01\x85R", "expected a tuple of arguments"),
        (b"cnumpy\ndtype\nU\x02O8\x85R", "NumPy's type \"O8\" holds no weights"),
        (b"cnumpy\ndtype\nU\x02f4\x85R(K\x03U\x01>tb", "big-endian"),
    ] {
        let message = refused(folder.path(), "odd.pkl", &blobs(instructions));
        assert!(
            message.contains(expected) || expected == "a class is named" && message.contains("is called"),
            "{instructions:?}: {message}"
        );
    }
}

#[test]
fn foreign_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let unknown = "expected weights of PyTorch (.pyth, .pth), of caffe2 (.pkl) or safetensors";
    for bytes in [b"".as_slice(), b"GIF89a", b"<html>", &[0; 64], b"{\"a\": 1}"] {
        let message = refused(folder.path(), "foreign", bytes);
        assert!(message.contains(unknown), "{message}");
    }
    let nothing = refused(folder.path(), "empty.pkl", &Pickle::protocol(2).op(b"}").stop());
    assert!(nothing.contains("it holds no arrays"), "{nothing}");
    let nothing = refused(folder.path(), "empty.pth", &zip_file(&plain_pickle(&[]), &[]));
    assert!(nothing.contains("it holds no tensors"), "{nothing}");
    let lost = refused(folder.path(), "lost.pth", &zip_file(&plain_pickle(&one_tensor()), &[]));
    assert!(lost.contains("storage 0:"), "{lost}");
    let storages = [("0", 4, le_bytes(&[0.0; 4])), ("9", 4, le_bytes(&[0.0; 4]))];
    let stray = refused(folder.path(), "stray.pth", &legacy_file(&checkpoint_pickle(&one_tensor(), true), &storages));
    assert!(stray.contains("storage 9 belongs to no tensor"), "{stray}");
    let swapped = caffe2_file(Flavour::Python2, &[("a", vec![3], vec![1.0, 2.0])]);
    let message = refused(folder.path(), "swapped.pkl", &swapped);
    assert!(message.contains("a: shape [3] is larger than its storage of 2 elements"), "{message}");
    let flipped = zip_file(&plain_pickle(&one_tensor()), &[("0", le_bytes(&[1.0, 2.0, 3.0, 4.0]))]);
    let at = flipped.windows(8).position(|w| w == le_bytes(&[1.0, 2.0])).unwrap();
    let mut flipped = flipped;
    flipped[at] ^= 1;
    let message = refused(folder.path(), "flipped.pth", &flipped);
    assert!(message.contains("storage 0:"), "{message}");
    assert!(weights::load(&folder.path().join("absent.pth")).unwrap_err().to_string().contains("absent.pth"));
    fs::create_dir(folder.path().join("runs")).unwrap();
    let message = weights::load(&folder.path().join("runs")).unwrap_err().to_string();
    assert!(message.contains("expected a file of weights, or the folder of a run"), "{message}");
}
