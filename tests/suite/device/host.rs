//! What CPU ops rely on: slices, views and `with_host`.

use vcycle::device::{Buffer, DType, Device, Element, Slice, Tensor, with_host};
use vcycle::shape::ActivationShape;

fn slice<T: Element>(values: &[T]) -> Slice {
    Buffer::from_host(&Device::Cpu, values).unwrap()
}

fn counting(len: usize) -> Vec<f32> {
    (0..len).map(|i| i as f32).collect()
}

/// Opens `reads` and `writes`; the message where that is refused.
fn opened<const R: usize, const W: usize>(reads: [&Slice; R], writes: [&Slice; W]) -> String {
    with_host(reads, writes, |_, _| Ok(())).map_or_else(|e| e.to_string(), |()| "opened".into())
}

#[test]
fn memory_is_zeroed_aligned_and_shared_by_clones() {
    let buffer = Buffer::zeroed(&Device::Cpu, 1000).unwrap();
    let all = buffer.slice::<u8>(0, 1000).unwrap();
    assert_eq!(all.read::<u8>().unwrap(), vec![0; 1000]);
    with_host([&all], [], |[a], []| {
        assert!(a.get::<u8>()?.as_ptr().addr().is_multiple_of(256));
        Ok(())
    })
    .unwrap();
    let clone = buffer.clone();
    assert!(clone.is_same(&buffer) && !clone.is_same(&Buffer::zeroed(&Device::Cpu, 1000).unwrap()));
    clone.slice::<u8>(7, 2).unwrap().write(&[1u8, 2]).unwrap();
    assert_eq!(all.part(6, 4).unwrap().read::<u8>().unwrap(), [0, 1, 2, 0]);
    drop((buffer, clone));
    assert_eq!(all.len(), 1000, "a slice keeps its buffer");
    assert_eq!(all.read::<u8>().unwrap()[8], 2);
}

#[test]
fn slices_are_checked() {
    let buffer = Buffer::zeroed(&Device::Cpu, 64).unwrap();
    let refused = |offset, len| buffer.slice::<f32>(offset, len).unwrap_err().to_string();
    assert_eq!(refused(4, 16), "slice: 16 x F32 at byte 4 do not fit a buffer of 64 bytes");
    assert!(refused(2, 1).contains("at byte 2"), "not a multiple of the element's size");
    assert!(refused(0, usize::MAX).contains("do not fit"), "the size in bytes overflows");
    assert!(buffer.slice::<f32>(64, 0).unwrap().is_empty());
    let slice = buffer.slice::<f32>(8, 10).unwrap();
    assert_eq!((slice.len(), slice.dtype(), slice.offset_bytes()), (10, DType::F32, 8));
    assert_eq!(slice.part(3, 7).unwrap().offset_bytes(), 20);
    assert!(slice.part(3, 8).is_err() && slice.part(usize::MAX, 2).is_err());
    assert_eq!(slice.write(&[1f32; 9]).unwrap_err().to_string(), "write: expected 10 elements, got 9");
}

#[test]
fn another_element_type_is_refused() {
    let floats = slice(&[1f32; 4]);
    let want = "host access: expected elements of type U32, got F32";
    assert_eq!(floats.read::<u32>().unwrap_err().to_string(), want);
    assert_eq!(floats.write(&[1u32; 4]).unwrap_err().to_string(), want);
    let result = with_host([], [&floats], |[], [w]| w.into_mut::<half::bf16>().map(|_| ()));
    assert_eq!(result.unwrap_err().to_string(), "host access: expected elements of type Bf16, got F32");
    assert_eq!(floats.read::<f32>().unwrap(), [1.0; 4]);
}

#[test]
fn written_ranges_overlap_nothing() {
    let all = slice(&counting(16));
    let part = |start, len| all.part(start, len).unwrap();
    let (low, high, middle) = (part(0, 8), part(8, 8), part(4, 8));
    assert_eq!(opened([&low], [&high]), "opened");
    assert_eq!(opened([], [&low, &high]), "opened");
    assert_eq!(opened([&low, &middle, &all], []), "opened", "what is only read may overlap");
    let overlap = "host access: bytes 16..48 are written and overlap 0..32 of the same buffer";
    assert_eq!(opened([&low], [&middle]), overlap);
    assert_eq!(opened([], [&middle, &low]), overlap);
    assert_eq!(opened([&all], [&part(3, 0)]).as_str(), "opened", "nothing is written");
    assert!(opened([&low], [&low]).contains("overlap"), "twice the same");
    assert_eq!(opened([&slice(&[1f32; 16])], [&all]), "opened", "another buffer");
}

#[test]
fn a_panic_in_an_op_leaves_the_buffer_usable() {
    let all = slice(&counting(4));
    let op = || with_host([], [&all], |[], [_]| -> vcycle::Result<()> { panic!("an op of the test") });
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(op)).is_err());
    assert_eq!(all.read::<f32>().unwrap(), counting(4));
    all.write(&[5f32; 4]).unwrap();
}

/// Four threads add to one buffer and check another part of it: no addition is lost, and two ops that name the buffers
/// in another order do not wait for each other for ever.
#[test]
fn threads_take_turns() {
    let (a, b) = (slice(&[0f32; 1000]), slice(&[0f32; 1000]));
    let add = |from: &Slice, to: &Slice| {
        with_host([from], [to], |[_], [to]| {
            to.into_mut::<f32>()?.iter_mut().for_each(|v| *v += 1.0);
            Ok(())
        })
        .unwrap();
    };
    std::thread::scope(|scope| {
        for i in 0..4 {
            let (a, b) = (a.clone(), b.clone());
            scope.spawn(move || {
                for _ in 0..250 {
                    if i % 2 == 0 {
                        add(&a, &b)
                    } else {
                        add(&b, &a)
                    }
                    let seen = a.read::<f32>().unwrap();
                    assert!(seen.iter().all(|v| *v == seen[0]), "a read sees no half-done write");
                }
            });
        }
    });
    assert_eq!(a.read::<f32>().unwrap(), [500.0; 1000]);
    assert_eq!(b.read::<f32>().unwrap(), [500.0; 1000]);
}

#[test]
fn views_of_channels_and_clips() {
    let shape = ActivationShape::new(3, 1, 2, 2, 5);
    let wide = Tensor::from_host(&Device::Cpu, shape, &counting(60)).unwrap();
    let view = wide.channels(1, 3).unwrap().clips(1, 2).unwrap();
    assert_eq!(view.shape(), ActivationShape::new(2, 1, 2, 2, 3));
    assert_eq!(view.pitch_c(), 5);
    let want: Vec<f32> = (4..12).flat_map(|p| [1, 2, 3].map(|c| (p * 5 + c) as f32)).collect();
    assert_eq!(view.read::<f32>().unwrap(), want);
    assert_eq!(view.memory().len(), 7 * 5 + 3, "from the first to the last element, no further");
    // Two views of the same positions share the gaps: an op cannot write one while it reads the other.
    let other = wide.channels(4, 1).unwrap();
    assert!(opened([wide.channels(0, 2).unwrap().memory()], [other.memory()]).contains("overlap"));
    assert!(wide.channels(3, 3).is_err() && wide.clips(2, 2).is_err());
    assert!(wide.channels(usize::MAX, 2).is_err() && wide.clips(usize::MAX, 2).is_err());
    let narrow = wide.channels(0, 2).unwrap();
    assert!(narrow.clips(3, 0).unwrap().memory().is_empty() && narrow.channels(2, 0).is_ok(), "a view of nothing");
}

#[test]
fn tensors_must_fit_their_memory() {
    let shape = ActivationShape::new(1, 2, 1, 2, 3);
    let message =
        |len, pitch| Tensor::new(slice(&counting(len)), shape, pitch).map_or_else(|e| e.to_string(), |_| "fits".into());
    assert_eq!(message(12, 3), "fits");
    assert_eq!(message(18, 5), "fits", "the last position needs no gap");
    assert_eq!(message(17, 5), "tensor: [1,2,1,2,3] with channel pitch 5 needs 18 elements, got 17");
    assert!(message(12, 2).contains("pitch 2"), "channels would overlap");
    assert!(message(12, usize::MAX).contains("too many"), "the size overflows");
}

/// Wrapped around, these sizes would be small or none.
#[test]
fn sizes_too_large_to_count_are_refused() {
    let slice = slice(&counting(16));
    for shape in [
        ActivationShape::new(1 << 32, 1 << 32, 1, 1, 1),
        ActivationShape::new(1 << 33, 1 << 31, 1, 1, 2),
        ActivationShape::new(3, 1 << 62, 1, 4, 1),
        ActivationShape::new(1, 1, 1, 2, usize::MAX),
    ] {
        assert!(Tensor::new(slice.clone(), shape, shape.c).is_err(), "{shape}");
        assert!(Tensor::zeroed(&Device::Cpu, DType::F32, shape).is_err(), "{shape}");
    }
    assert!(Tensor::new(slice, ActivationShape::new(usize::MAX, 2, 0, 1, 1), 1).unwrap().memory().is_empty());
}
