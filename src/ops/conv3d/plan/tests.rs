use super::*;

fn conv(input: [usize; 5], c_out: usize, filter: [usize; 3], stride: [usize; 3]) -> Conv3d {
    let [n, t, h, w, c] = input;
    let input = ActivationShape::new(n, t, h, w, c);
    Conv3d { input, c_out, filter, stride, padding: filter.map(|f| f / 2), dilation: [1; 3], groups: 1, part: None }
}

fn request(op: Conv3d, direction: Direction, on_load: OnLoad) -> Request {
    Request {
        op,
        output: op.output(),
        direction,
        dtype: DType::Bf16,
        on_load,
        splits: 1,
        sums: 3,
        extra_tensors: 0,
        launches_before: 0,
        is_aligned: true,
        num_sms: 132,
        method: Method::Mma,
    }
}

const ONE: [usize; 3] = [1; 3];
const S122: [usize; 3] = [1, 2, 2];
use Direction::{Forward, GradInput};
use OnLoad::{Affine, Join, Plain};

/// Layers of SlowFast-8x8-R50 with 8 clips of 32 x 224 x 224 -> kernel, tiles of rows, columns, slices.
#[test]
#[rustfmt::skip]
fn layers_of_slowfast() {
    let table = [
        ("slow s2 a", conv([8, 8, 56, 56, 256], 64, ONE, ONE), Forward, Join, "forward_join_mma128x64", 1568, 1, 1),
        ("slow s2 b", conv([8, 8, 56, 56, 64], 64, [1, 3, 3], ONE), Forward, Affine, "forward_affine_mma128x64", 1568, 1, 1),
        ("slow s2 c", conv([8, 8, 56, 56, 64], 256, ONE, ONE), Forward, Affine, "forward_affine_mma128x128", 1568, 2, 1),
        ("slow s2 c", conv([8, 8, 56, 56, 64], 256, ONE, ONE), GradInput, Join, "grad_input_table_mma128x64", 1568, 1, 1),
        ("slow s3 b first", conv([8, 8, 56, 56, 128], 128, [1, 3, 3], S122), GradInput, Join,
         "grad_input_table_mma128x128", 4 * 392, 1, 1),
        ("slow s5 b", conv([8, 8, 7, 7, 512], 512, [1, 3, 3], ONE), Forward, Affine, "forward_affine_mma128x128", 25, 4, 1),
        ("slow s5 b, one clip", conv([1, 8, 7, 7, 512], 512, [1, 3, 3], ONE), Forward, Affine,
         "forward_affine_mma128x128", 4, 4, 8),
        ("lateral s2", conv([8, 32, 56, 56, 32], 64, [7, 1, 1], [4, 1, 1]), Forward, Plain, "forward_mma128x64", 1568, 1, 1),
        ("fast s2 b", conv([8, 32, 56, 56, 8], 8, [1, 3, 3], ONE), Forward, Affine, "forward_affine_halo512x8", 1792, 1, 1),
        ("fast s2 a", conv([8, 32, 56, 56, 32], 8, [3, 1, 1], ONE), Forward, Join, "forward_join_halo512x8", 3136, 1, 1),
        ("fast s2 c", conv([8, 32, 56, 56, 8], 32, ONE, ONE), Forward, Affine, "forward_affine_mma128x32", 6272, 1, 1),
        ("fast s3 b first", conv([8, 32, 56, 56, 16], 16, [1, 3, 3], S122), GradInput, Join,
         "grad_input_table_halo256x16", 4 * 896, 1, 1),
    ];
    for (name, op, direction, on_load, kernel, tiles, columns, slices) in table {
        let plan = plan("conv3d", &request(op, direction, on_load)).expect(name);
        println!("{name}: {plan}");
        assert_eq!(plan.kernel, format!("conv3d_{kernel}_bf16"), "{name}: {plan}");
        assert_eq!((plan.tiles, plan.columns, plan.slices), (tiles, columns, slices), "{name}: {plan} {:?}", plan.boxes);
        assert!(plan.group_partials_at > TICKET_BYTES && plan.shared_bytes <= MAX_SHARED_BYTES, "{name}: {plan}");
    }
}

#[test]
fn what_the_vector_kernels_do_not_take() {
    let op = conv([1, 1, 5, 5, 64], 64, ONE, ONE);
    let why = |request: &Request| plan("conv3d", request).map(|plan| (plan.kernel, plan.why)).expect("a plan");
    let checked = |why: &'static str| ("conv3d_gather_checked128x64_bf16".to_string(), why);
    let good = request(op, Forward, Plain);
    let none = Request { is_aligned: false, ..good };
    assert_eq!(why(&none), checked("an address or a pitch is no multiple of 8 elements"));
    let odd = Request { op: Conv3d { c_out: 20, ..op }, output: op.output().with_channels(20), ..good };
    assert_eq!(why(&odd), checked("channels are no multiple of 8"));
    assert_eq!(why(&Request { op: Conv3d { groups: 8, ..op }, ..good }), checked("groups"));
}

#[test]
fn columns_waste_no_more_than_a_fourth() {
    for (channels, want) in
        [(8, 32), (32, 32), (40, 64), (64, 64), (80, 128), (128, 128), (192, 64), (320, 128), (512, 128)]
    {
        assert_eq!(tile_n(channels), want, "{channels}");
    }
}

#[test]
fn a_position_is_read_once_as_its_own() {
    let yes = |op: Conv3d| reads_each_position_once(&op);
    assert!(yes(conv([1, 4, 5, 5, 8], 8, ONE, ONE)) && yes(conv([1, 4, 5, 5, 8], 8, [3, 1, 1], ONE)));
    assert!(!yes(conv([1, 4, 5, 5, 8], 8, ONE, S122)));
    assert!(!yes(Conv3d { padding: [0; 3], ..conv([1, 4, 5, 5, 8], 8, [1, 3, 3], ONE) }));
}

#[test]
fn stems_read_pixels_in_pairs() {
    let stem = conv([8, 32, 224, 224, 4], 8, [5, 7, 7], S122);
    let got = pairs(&stem).expect("pairs");
    assert_eq!((got.op.input.w, got.op.input.c, got.op.filter, got.first_tap), (112, 8, [5, 7, 4], -1));
    assert_eq!((got.op.stride, got.op.padding), ([1, 2, 1], [2, 3, 2]));
    assert!(pairs(&conv([8, 32, 224, 223, 4], 8, [5, 7, 7], S122)).is_none());
    assert!(pairs(&conv([8, 32, 224, 224, 3], 8, [5, 7, 7], S122)).is_none());
}

#[test]
fn sizes_beyond_the_kernels_are_refused() {
    let refused = |op: Conv3d, words: &str| {
        let error = plan("conv3d forward", &request(op, Forward, Plain)).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(conv([1, 1, 1, 20000, 8], 8, ONE, ONE), "must be below 16384");
    refused(conv([4096, 1, 1024, 1024, 8], 8, ONE, ONE), "less than 2^31 positions");
    refused(conv([1, 40, 40, 40, 8], 64, [39, 39, 39], ONE), "bytes of shared memory");
}

/// Layers of SlowFast-8x8-R50 on a GPU with wgmma -> kernel, halo rows, stages of source and filter, blocks; "mma": as without.
#[test]
#[rustfmt::skip]
fn what_wgmma_is_chosen_for() {
    const MIDDLE: [usize; 3] = [1, 3, 3];
    let table = [
        ("slow s2 b", conv([8, 8, 56, 56, 64], 64, MIDDLE, ONE), Forward, Affine, "forward_affine_wgmma128x64", 248, 2, 6, 132),
        ("slow s2 c", conv([8, 8, 56, 56, 64], 256, ONE, ONE), Forward, Affine, "mma", 0, 0, 0, 0),
        ("slow s2 a, with lateral", conv([8, 8, 56, 56, 80], 64, ONE, ONE), Forward, Plain, "mma", 0, 0, 0, 0),
        ("slow s3 a", conv([8, 8, 28, 28, 512], 128, ONE, ONE), Forward, Join, "forward_join_wgmma128x128", 128, 3, 3, 132),
        ("slow s3 b", conv([8, 8, 28, 28, 128], 128, MIDDLE, ONE), GradInput, Join, "grad_input_table_wgmma128x128", 192, 2, 3, 132),
        ("slow s3 b first", conv([8, 8, 56, 56, 128], 128, MIDDLE, S122), Forward, Affine, "mma", 0, 0, 0, 0),
        ("slow s4 a", conv([8, 8, 14, 14, 1024], 256, [3, 1, 1], ONE), Forward, Plain, "forward_wgmma128x256", 128, 3, 3, 98),
        ("slow s4 b", conv([8, 8, 14, 14, 256], 256, MIDDLE, ONE), Forward, Affine, "forward_affine_wgmma128x256", 160, 2, 3, 98),
        ("slow s4 b", conv([8, 8, 14, 14, 256], 256, MIDDLE, ONE), GradInput, Join, "grad_input_table_wgmma128x128", 160, 2, 4, 132),
        ("slow s4 shortcut", conv([8, 8, 28, 28, 640], 1024, ONE, S122), Forward, Plain, "forward_wgmma128x256", 128, 3, 3, 132),
        ("slow s4 shortcut", conv([8, 8, 28, 28, 640], 1024, ONE, S122), GradInput, Plain, "mma", 0, 0, 0, 0),
        ("slow s4 c", conv([8, 8, 14, 14, 256], 1024, ONE, ONE), Forward, Affine, "forward_affine_wgmma128x256", 128, 3, 3, 132),
        ("slow s5 b", conv([8, 8, 7, 7, 512], 512, MIDDLE, ONE), Forward, Affine, "forward_affine_wgmma128x128", 144, 2, 6, 100),
        ("slow s5 b, one clip", conv([1, 8, 7, 7, 512], 512, MIDDLE, ONE), GradInput, Plain, "grad_input_wgmma128x128", 144, 2, 6, 128),
        ("fast s5 b", conv([8, 32, 7, 7, 64], 64, MIDDLE, ONE), Forward, Affine, "forward_affine_wgmma128x64", 144, 2, 6, 98),
    ];
    for (name, op, direction, on_load, kernel, halo_rows, source_stages, filter_stages, blocks) in table {
        let request = Request { method: Method::Auto, ..request(op, direction, on_load) };
        let got = plan("conv3d", &request).expect(name);
        println!("{name}: {got}");
        let Some(form) = got.wgmma else {
            assert_eq!((kernel, got), ("mma", plan("conv3d", &Request { method: Method::Mma, ..request }).expect(name)), "{name}");
            continue;
        };
        assert_eq!(got.kernel, format!("conv3d_{kernel}_bf16"), "{name}: {got}");
        let cut = (form.halo_rows, form.source_stages, form.filter_stages, got.grid()[0]);
        assert_eq!(cut, (halo_rows, source_stages, filter_stages, blocks), "{name}: {got}");
        assert!(got.shared_bytes <= 227 << 10, "{name}: {got}");
    }
}

#[test]
fn what_wgmma_does_not_take() {
    let wgmma = Method::Wgmma { tile_n: None };
    let op = conv([1, 1, 5, 5, 64], 64, ONE, ONE);
    let good = Request { method: wgmma, ..request(op, Forward, Plain) };
    assert_eq!(plan("conv3d", &good).expect("a plan").kernel, "conv3d_forward_wgmma128x64_bf16");
    let of = |op: Conv3d| Request { op, output: op.output(), ..good };
    let refused = |request: Request, words: &str| {
        let error = plan("conv3d forward", &request).expect_err(words).to_string();
        assert!(error.contains("wgmma does not take") && error.contains(words), "{error}");
        let auto = plan("conv3d", &Request { method: Method::Auto, ..request }).expect("another kernel");
        assert!(auto.wgmma.is_none(), "{auto}");
    };
    refused(of(Conv3d { groups: 8, ..op }), "groups");
    refused(Request { is_aligned: false, ..good }, "no multiples of 8");
    refused(of(conv([1, 1, 5, 5, 64], 20, ONE, ONE)), "no multiples of 8");
    refused(of(conv([1, 1, 5, 5, 64], 64, [1, 3, 3], S122)), "a stride");
    refused(Request { direction: GradInput, ..of(conv([1, 1, 5, 5, 64], 64, ONE, S122)) }, "a stride");
    refused(of(Conv3d { padding: [0; 3], ..conv([1, 1, 5, 5, 64], 64, [1, 3, 3], ONE) }), "an output unlike the input");
    refused(of(conv([1, 5, 5, 5, 64], 64, [3, 3, 5], ONE)), "more than 32 taps");
    refused(of(conv([1, 1, 9, 400, 64], 64, [1, 5, 3], ONE)), "a halo too large");
    refused(Request { method: Method::Wgmma { tile_n: Some(96) }, ..good }, "no tile of that width");
}
