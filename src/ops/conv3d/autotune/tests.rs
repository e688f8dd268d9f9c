use super::super::plan::OnLoad;
use super::super::{Conv3d, Direction};
use super::*;
use crate::device::DType;
use crate::shape::ActivationShape;

fn request(stride: usize) -> Request {
    let input = ActivationShape::new(2, 2, 6, 5, 64);
    let (filter, stride, padding) = ([1, 3, 3], [1, stride, stride], [0, 1, 1]);
    let op = Conv3d { input, c_out: 128, filter, stride, padding, dilation: [1; 3], groups: 1, part: None };
    Request {
        op,
        output: op.output(),
        direction: Direction::Forward,
        dtype: DType::Bf16,
        on_load: OnLoad::Affine,
        splits: 1,
        sums: 3,
        extra_tensors: 0,
        launches_before: 0,
        is_aligned: true,
        num_sms: 132,
        method: Method::Auto,
    }
}

fn machine() -> Machine {
    Machine { device: "a GPU".into(), driver: 13000, kernels: "0123456789abcdef".into() }
}

/// Chooses among `kernels`, which take so long; returns the choice, how many were timed and what was said.
fn chosen(path: &Path, machine: &Machine, kernels: &[&str], times: &[f64]) -> Result<(usize, usize, String)> {
    let (mut timed, mut said) = (0, String::new());
    let mut time = |i: usize| {
        timed += 1;
        Ok(times[i])
    };
    let i = choose(path, machine, "a problem", kernels, &mut time, &mut |line| said += &line)?;
    Ok((i, timed, said))
}

#[test]
fn the_fastest_is_taken_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("choices.json");
    let kernels = ["mma", "wgmma64", "wgmma128"];
    let (i, timed, said) = chosen(&path, &machine(), &kernels, &[3.0, 1.25, 2.0]).unwrap();
    assert_eq!((i, timed), (1, 3));
    assert_eq!(said, "a problem: wgmma64 of mma 3.0 us, wgmma128 2.0 us, wgmma64 1.2 us");
    // In another order, and with other times: they are not asked.
    let (i, timed, said) = chosen(&path, &machine(), &["wgmma64", "mma"], &[]).unwrap();
    assert_eq!((i, timed), (0, 0));
    assert!(said.starts_with("a problem: wgmma64, from ") && said.ends_with("choices.json"), "{said}");
    // Nothing is left beside the file.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn other_drivers_kernels_and_gpus_choose_for_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("choices.json");
    let others = [
        Machine { driver: 13010, ..machine() },
        Machine { kernels: "f".into(), ..machine() },
        Machine { device: "another GPU".into(), ..machine() },
    ];
    chosen(&path, &machine(), &["a", "b"], &[1.0, 2.0]).unwrap();
    for other in &others {
        let (i, timed, _) = chosen(&path, other, &["a", "b"], &[2.0, 1.0]).unwrap();
        assert_eq!((i, timed), (1, 2), "{other:?}");
    }
    assert_eq!(chosen(&path, &machine(), &["a", "b"], &[]).unwrap().0, 0);
    assert!(others.iter().all(|other| chosen(&path, other, &["a", "b"], &[]).unwrap().0 == 1));
}

#[test]
fn a_kernel_that_is_no_candidate_any_more_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("choices.json");
    chosen(&path, &machine(), &["a", "b"], &[1.0, 2.0]).unwrap();
    let (i, timed, said) = chosen(&path, &machine(), &["b", "c"], &[2.0, 1.0]).unwrap();
    assert_eq!((i, timed), (1, 2));
    assert!(said.contains("a in ") && said.contains("no candidate any more"), "{said}");
    assert_eq!(chosen(&path, &machine(), &["b", "c"], &[]).unwrap().0, 1);
}

#[test]
fn damaged_files_are_named_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("choices.json");
    chosen(&path, &machine(), &["a", "b"], &[1.0, 2.0]).unwrap();
    let good = std::fs::read_to_string(&path).unwrap();
    for (text, word) in [
        (good[..good.len() / 2].to_string(), "EOF"),
        (String::new(), "EOF"),
        ("these are no choices".into(), "expected"),
        (good.replace("autotune 1", "autotune 9"), "vcycle autotune 9"),
        (good.replace("\"kernel\":", "\"colonel\":"), "colonel"),
        (good.replace("13000", "\"new\""), "new"),
    ] {
        std::fs::write(&path, &text).unwrap();
        let message = chosen(&path, &machine(), &["a", "b"], &[]).unwrap_err().to_string();
        assert!(message.contains("choices.json") && message.contains("remove this one"), "{message}");
        assert!(message.contains(word), "{message}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    let message = chosen(folder.path(), &machine(), &["a", "b"], &[1.0, 2.0]).unwrap_err().to_string();
    assert!(message.contains("VCYCLE_AUTOTUNE="), "a folder: {message}");
    let nowhere = folder.path().join("no/folder/choices.json");
    let message = chosen(&nowhere, &machine(), &["a", "b"], &[1.0, 2.0]).unwrap_err().to_string();
    assert!(message.contains("no/folder/choices.json"), "{message}");
}

#[test]
fn a_time_that_is_none_is_an_error_and_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("choices.json");
    let message = chosen(&path, &machine(), &["a", "b"], &[1.0, f64::NAN]).unwrap_err().to_string();
    assert!(message.contains("NaN"), "{message}");
    let mut failing = |_| Err(Error::Driver { op: "conv3d".into(), message: "lost".into() });
    let message = choose(&path, &machine(), "p", &["a", "b"], &mut failing, &mut |_| {}).unwrap_err().to_string();
    assert!(message.contains("lost"), "{message}");
    assert!(!path.exists());
}

#[test]
fn candidates_are_what_can_run_each_kernel_once() {
    let kernels = |r: &Request| candidates("conv3d", r).into_iter().map(|(_, kernel)| kernel).collect::<Vec<_>>();
    let all = kernels(&request(1));
    assert!(all.len() >= 3 && all[0].contains("mma128") && all[1..].iter().all(|k| k.contains("wgmma")), "{all:?}");
    assert_eq!(kernels(&request(2)).len(), 1, "no kernel on wgmma takes a stride");
    // What is found is what runs.
    for (method, kernel) in candidates("conv3d", &request(1)) {
        assert_eq!(plan::plan("conv3d", &Request { method, ..request(1) }).unwrap().kernel, kernel);
    }
}

#[test]
fn problems_differ_where_times_may() {
    let r = request(1);
    let conv = |change: &dyn Fn(&mut Conv3d)| {
        let mut op = r.op;
        change(&mut op);
        Request { op, output: op.output(), ..r }
    };
    let all = [
        r,
        request(2),
        conv(&|op| op.input.n = 3),
        conv(&|op| op.c_out = 64),
        conv(&|op| op.padding = [0, 2, 2]),
        conv(&|op| (op.padding, op.dilation) = ([0, 2, 2], [1, 2, 2])),
        conv(&|op| op.groups = 2),
        Request { direction: Direction::GradInput, ..r },
        Request { dtype: DType::F16, ..r },
        Request { on_load: OnLoad::Join, ..r },
        Request { splits: 2, ..r },
        Request { sums: 0, ..r },
        Request { extra_tensors: 1, ..r },
        Request { is_aligned: false, ..r },
    ];
    let texts: std::collections::BTreeSet<String> = all.iter().map(problem).collect();
    assert_eq!(texts.len(), all.len(), "{texts:#?}");
    assert_eq!(
        problem(&r),
        "forward bf16 [2,2,6,5,64] -> [2,2,6,5,128], filter 1x3x3, stride 1x1x1, padding 0x1x1, dilation 1x1x1, groups 1, affine on \
         load, 1 splits, 3 sums, 0 more tensors, aligned"
    );
}

#[test]
fn nothing_is_asked_without_the_environment() {
    assert_eq!(asked(), None, "VCYCLE_AUTOTUNE is set");
    let stream = Device::Cpu.stream().unwrap();
    assert_eq!(method("conv3d", &stream, &request(1)).unwrap(), Method::Auto);
    assert_eq!(methods(Method::Auto), [Method::Auto, Method::Mma]);
}

/// Every candidate, whatever it does on load and on store, runs on memory of its own. The emulator's times mean nothing.
#[cfg(feature = "simt")]
#[test]
fn candidates_can_be_timed() {
    let stream = Device::Simt.stream().unwrap();
    let forward = Request { splits: 2, num_sms: 16, ..request(1) };
    let grad = Request { direction: Direction::GradInput, ..forward };
    for r in [
        forward,
        Request { on_load: OnLoad::Plain, sums: 0, ..forward },
        Request { on_load: OnLoad::Join, sums: 0, extra_tensors: 1, ..forward },
        Request { on_load: OnLoad::Plain, sums: 0, ..grad },
        Request { on_load: OnLoad::Join, sums: 3, extra_tensors: 4, ..grad },
    ] {
        let trial = Trial::new(&stream, &r).unwrap();
        let candidates = candidates("conv3d", &r);
        assert!(candidates.len() > 1, "{r:?}");
        for (method, kernel) in candidates {
            let time = trial.microseconds(method).unwrap_or_else(|e| panic!("{kernel}: {e}"));
            assert!(time > 0.0, "{kernel}");
        }
    }
}
