//! A profile as rows of a table and as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{OpProfile, Peaks, StepProfile};
use crate::model::Mode;

/// Sums of some ops.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    pub num_ops: usize,
    pub seconds: f64,
    flops: u64,
    bytes: u64,
    /// Seconds that the ops take at least, each for itself.
    floor_s: f64,
}

impl Sum {
    fn add(self, op: &OpProfile, peaks: &Peaks) -> Sum {
        Sum {
            num_ops: self.num_ops + 1,
            seconds: self.seconds + op.seconds,
            flops: self.flops + op.flops,
            bytes: self.bytes + op.bytes,
            floor_s: self.floor_s + peaks.floor_s(op.flops, op.bytes),
        }
    }

    /// Milliseconds, share of `whole_s`, TFLOP/s, GB/s, side, floor over time.
    fn cells(&self, peaks: &Peaks, whole_s: f64) -> Vec<String> {
        let s = self.seconds.max(1e-12);
        vec![
            format!("{:.3}", self.seconds * 1e3),
            format!("{:.1} %", 100.0 * self.seconds / whole_s.max(1e-12)),
            if self.flops > 0 { format!("{:.4}", self.flops as f64 / s / 1e12) } else { "-".into() },
            format!("{:.2}", self.bytes as f64 / s / 1e9),
            peaks.side(self.flops, self.bytes).into(),
            format!("{:.0} %", 100.0 * self.floor_s / s),
        ]
    }
}

impl StepProfile {
    /// Sums by kind of op.
    pub(super) fn by_kind(&self, peaks: &Peaks) -> BTreeMap<&str, Sum> {
        let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
        for op in &self.ops {
            let sum = sums.entry(&op.kind).or_default();
            *sum = sum.add(op, peaks);
        }
        sums
    }

    /// A table of the kinds, the whole step last; the first row has the titles.
    pub fn kind_rows(&self, peaks: &Peaks) -> Vec<Vec<String>> {
        let head = ["kind", "ops", "ms", "share", "TFLOP/s", "GB/s", "side", "of the roofline"];
        let mut rows = vec![head.map(String::from).to_vec()];
        let mut whole = Sum::default();
        self.ops.iter().for_each(|op| whole = whole.add(op, peaks));
        for (kind, sum) in self.by_kind(peaks).into_iter().chain([("step", whole)]) {
            let cells = sum.cells(peaks, whole.seconds);
            rows.push([kind.to_string(), sum.num_ops.to_string()].into_iter().chain(cells).collect());
        }
        rows
    }

    /// A table of the `count` ops that take longest.
    pub fn op_rows(&self, peaks: &Peaks, count: usize) -> Vec<Vec<String>> {
        let head = ["op", "kernel", "ms", "share", "TFLOP/s", "GB/s", "side", "of the roofline"];
        let mut rows = vec![head.map(String::from).to_vec()];
        let mut ops: Vec<&OpProfile> = self.ops.iter().collect();
        ops.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        for op in ops.into_iter().take(count) {
            let kernel = op.kernels.first().map_or("-", String::as_str);
            let more = op.kernels.len().saturating_sub(1);
            let kernel = if more > 0 { format!("{kernel} and {more} more") } else { kernel.to_string() };
            let cells = Sum::default().add(op, peaks).cells(peaks, self.seconds());
            rows.push([format!("{} {}", op.kind, op.name), kernel].into_iter().chain(cells).collect());
        }
        rows
    }

    /// Everything, with all ops in order.
    pub fn to_json(&self, peaks: &Peaks) -> Value {
        let whole_s = self.seconds();
        let op = |op: &OpProfile| {
            let s = op.seconds.max(1e-12);
            json!({
                "kind": op.kind, "name": op.name, "kernels": op.kernels, "ms": op.seconds * 1e3, "share": op.seconds / whole_s,
                "flops": op.flops, "bytes": op.bytes, "tflops": op.flops as f64 / s / 1e12, "gbs": op.bytes as f64 / s / 1e9,
                "side": peaks.side(op.flops, op.bytes), "of_roofline": peaks.floor_s(op.flops, op.bytes) / s,
            })
        };
        let shape = self.shape;
        json!({
            "mode": if self.mode == Mode::Train { "train" } else { "eval" },
            "clips": shape.clips, "frames": shape.frames, "height_px": shape.height_px, "width_px": shape.width_px,
            "splits": shape.splits, "repeats": self.num_repeats, "ms": whole_s * 1e3,
            "ops": self.ops.iter().map(op).collect::<Vec<_>>(),
        })
    }
}
