//! Devices, memory, streams, copies.

use vcycle::device::{Buffer, Device, Pinned};
use vcycle::error::Error;

#[test]
fn selects_by_name_and_says_what() {
    let (device, reason) = Device::select("cpu").unwrap();
    assert_eq!(device, Device::Cpu);
    assert!(reason.starts_with("device: cpu, "), "{reason}");
    let (device, reason) = Device::select("auto").unwrap();
    match device {
        Device::Cpu => assert!(reason.contains("no usable device"), "why there is no GPU: {reason}"),
        _ => assert!(reason.starts_with("device: cuda:0, "), "{reason}"),
    }
    assert!(matches!(Device::select("tpu"), Err(Error::Config(m)) if m.contains("auto, cpu, cuda")));
    assert!(matches!(Device::select("cuda:123"), Err(Error::NoDevice(_))));
    if !cfg!(feature = "simt") {
        assert!(matches!(Device::select("simt"), Err(Error::NoDevice(m)) if m.contains("feature `simt`")));
    }
}

#[test]
fn copies_through_pinned_memory_keep_every_byte() {
    for device in crate::executors::all() {
        let stream = device.stream().unwrap();
        let values: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        let mut pinned = Pinned::zeroed(&device, 1000).unwrap();
        pinned.bytes_mut().unwrap().copy_from_slice(&values);
        let buffer = Buffer::zeroed(&device, 1024).unwrap();
        let slice = buffer.slice::<u8>(24, 1000).unwrap();
        let start = stream.record().unwrap();
        stream.upload(&mut pinned, &slice).unwrap();
        pinned.bytes_mut().unwrap().fill(0);
        stream.download(&slice, &mut pinned).unwrap();
        let end = stream.record().unwrap();
        assert_eq!(pinned.bytes().unwrap(), values);
        assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
        assert_eq!(buffer.slice::<u8>(0, 24).unwrap().read::<u8>().unwrap(), [0; 24]);
        stream.write_small(&[9; 8], &slice).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(slice.read::<u8>().unwrap()[..9], [9, 9, 9, 9, 9, 9, 9, 9, values[8]]);
    }
}

#[test]
fn copies_refuse_what_does_not_fit() {
    let device = Device::Cpu;
    let stream = device.stream().unwrap();
    let slice = Buffer::zeroed(&device, 64).unwrap().slice::<f32>(0, 16).unwrap();
    let mut small = Pinned::zeroed(&device, 63).unwrap();
    assert!(stream.upload(&mut small, &slice).unwrap_err().to_string().contains("63 bytes"));
    assert!(stream.write_small(&[0; 63], &slice).unwrap_err().to_string().contains("no multiple of 4"));
    assert!(stream.write_small(&[0; 68], &slice).is_err());
    assert!(slice.write(&[0u32; 16]).is_err(), "other element type");
    assert!(slice.write(&[0f32; 15]).is_err(), "other length");
}
