//! Every executor draws the same mask, for every stored type.

use vcycle::device::{Buffer, DType, Device};
use vcycle::ops::dropout::{self, Dropout, reference};
use vcycle::shape::ActivationShape;

use super::OP;
use crate::compare::as_f64;
use crate::executors;
use crate::golden::fill;
use crate::stored::{self, SHORT};

fn dtypes(device: &Device) -> Vec<DType> {
    if *device == Device::Cpu { vec![DType::F32] } else { [&[DType::F32], &SHORT[..]].concat() }
}

#[test]
fn the_mask_is_the_same_on_every_executor() {
    // Vectors of 8, none, several rows a clip, more threads than a block has, gaps around the channels.
    let shapes = [[2, 1, 1, 1, 1], [3, 2, 3, 2, 37], [2, 1, 2, 2, 40], [1, 1, 3, 3, 264]];
    for device in executors::all() {
        let stream = device.stream().unwrap();
        for (i, [n, t, h, w, c]) in shapes.into_iter().enumerate() {
            let shape = ActivationShape::new(n, t, h, w, c);
            let op = Dropout { rate: 0.4, step: 1 << 40 | 5, first_clip: 11, ..OP };
            let gaps = [[0, 0], [3, 2], [8, 16], [0, 0]][i];
            for dtype in dtypes(&device) {
                let x: Vec<f32> = fill::f32("dropout/x", shape.num_elements(), 1.0, 0.0)
                    .into_iter()
                    .map(|v| stored::round(dtype, f64::from(v)) as f32)
                    .collect();
                let want: Vec<f32> = reference::apply(&op, t * h * w * c, &as_f64(&x))
                    .into_iter()
                    .map(|v| stored::round(dtype, f64::from(v as f32)) as f32)
                    .collect();
                let test = |mode: &str| {
                    let y = stored::tensor(&device, dtype, shape, &vec![f32::NAN; x.len()], gaps);
                    let from = stored::tensor(&device, dtype, shape, &x, [gaps[1], gaps[0]]);
                    dropout::apply(&stream, &op, &from, &y).unwrap();
                    assert!(stored::read_tensor(&y, gaps) == want, "{mode} {dtype:?} {shape}");
                    // The step on the device takes the place of the op's; in place.
                    let words = Buffer::from_host(&device, &[5u32, 1 << 8]).unwrap();
                    dropout::apply_step(&stream, &Dropout { step: 0, ..op }, &words, &from, &from).unwrap();
                    let got = stored::read_tensor(&from, [gaps[1], gaps[0]]);
                    assert!(got == want, "{mode} {dtype:?} {shape}: step on the device, in place");
                };
                if i == 1 { executors::in_all_modes(&device, test) } else { test(&device.to_string()) }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_everywhere() {
    for device in executors::all() {
        let stream = device.stream().unwrap();
        let tensor =
            |dtype, n| stored::tensor(&device, dtype, ActivationShape::new(n, 1, 1, 1, 3), &vec![0.0; 3 * n], [0, 0]);
        let refused = |x, y, words: &str| {
            let error = dropout::apply(&stream, &OP, &x, &y).unwrap_err().to_string();
            assert!(error.contains(words), "{device}: {error}");
        };
        refused(tensor(DType::F32, 2), tensor(DType::F32, 3), "input must be [3,1,1,1,3], got [2,1,1,1,3]");
        refused(tensor(DType::F32, 2), tensor(DType::F16, 2), "output must hold F32, got F16");
        let words = Buffer::from_host(&device, &[5u32]).unwrap();
        let x = tensor(DType::F32, 2);
        let error = dropout::apply_step(&stream, &OP, &words, &x, &x).unwrap_err().to_string();
        assert_eq!(error, "dropout: step must have 2 elements, got 1");
    }
}
