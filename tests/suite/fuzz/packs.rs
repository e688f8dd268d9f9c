//! Files of a packed data set.

use std::fs;

use vcycle::clip::pack::{Codec, Encoding, PackedClips};
use vcycle::clip::{ClipSource, ListFormat, Split};

use super::run;
use crate::datasets::made;
use crate::pack::{lists, packed};

/// A bent index or shard gives an error or the right frames; a bent shard is packed again.
#[test]
fn packs() {
    let folder = tempfile::tempdir().expect("folder");
    made::kinetics(folder.path(), 2);
    let (lists, to) = (lists(folder.path(), ListFormat::Kinetics), folder.path().join("pack"));
    let encoding = Encoding { codec: Codec::Jpeg { quality: 80 }, short_side_px: None };
    packed(&lists, &to, encoding, &mut |_, _, _| {}).expect("packed");
    let read = |idx: usize| {
        let pack = PackedClips::open(&to, ListFormat::Kinetics, Split::Train, 3)?;
        pack.frames(idx, &mut |info| (0..info.num_frames as u32).collect())
    };
    let good = [read(0), read(1)].map(|frames| frames.expect("good"));
    for (name, file) in [("pack_index", "index.json"), ("pack_shard", "shard-00000.safetensors")] {
        let path = to.join(file);
        let whole = fs::read(&path).expect("read");
        run(name, std::slice::from_ref(&whole), &mut |input| {
            fs::write(&path, input).expect("write");
            for (idx, good) in good.iter().enumerate() {
                assert!(read(idx).is_ok_and(|frames| frames == *good) || read(idx).is_err());
            }
        });
        fs::write(&path, &whole).expect("write");
    }
    // Whatever a header says: it is the shard, or it is packed again.
    let (index, shard) = (to.join("index.json"), to.join("shard-00000.safetensors"));
    let whole = fs::read(&shard).expect("read");
    run("pack_header", std::slice::from_ref(&whole), &mut |input| {
        let _ = fs::remove_file(&index);
        fs::write(&shard, input).expect("write");
        if packed(&lists, &to, encoding, &mut |_, _, _| {}).is_ok() {
            assert!(PackedClips::open(&to, ListFormat::Kinetics, Split::Train, 3).is_ok());
        }
    });
}
