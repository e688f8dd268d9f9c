//! The steps as stacked bars, one a shape.

use std::collections::BTreeSet;

use plotters::prelude::*;

use super::{Peaks, StepProfile};
use crate::error::{Error, Result};

const SIZE_PX: (u32, u32) = (960, 420);
const LEGEND_WIDTH_PX: u32 = 190;

/// Milliseconds of each kind of op at each shape. The SVG needs no fonts and no other file.
///
/// # Errors
/// [`Error::Unsupported`] when the drawing library refuses; it writes to memory only.
pub fn to_svg(steps: &[StepProfile], peaks: &Peaks) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, steps, peaks).map_err(|e| Error::unsupported("picture", e.to_string()))?;
    Ok(svg)
}

fn draw(svg: &mut String, steps: &[StepProfile], peaks: &Peaks) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE_PX).into_drawing_area();
    root.fill(&WHITE)?;
    let (area, legend) = root.split_horizontally(SIZE_PX.0 - LEGEND_WIDTH_PX);
    let sums: Vec<_> = steps.iter().map(|step| step.by_kind(peaks)).collect();
    let kinds: BTreeSet<&str> = sums.iter().flat_map(|s| s.keys().copied()).collect();
    let most_ms = steps.iter().map(|s| s.seconds() * 1e3).fold(1e-9, f64::max);
    let font = |size: u32| ("sans-serif", size).into_font();
    let mut chart = ChartBuilder::on(&area)
        .caption("time of a step by kind of op", font(15))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..steps.len().max(1) as f64, 0.0..most_ms * 1.06)?;
    let name = |x: &f64| {
        let step = (x.fract() - 0.5).abs() < 1e-6;
        steps.get(*x as usize).filter(|_| step).map_or(String::new(), |s| s.shape.to_string())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * steps.len() + 1)
        .x_label_formatter(&name)
        .x_desc("clips x frames x crop")
        .y_desc("ms")
        .label_style(font(12))
        .draw()?;
    for (i, sums) in sums.iter().enumerate() {
        let (x, mut bottom) = (i as f64, 0.0);
        for (k, kind) in kinds.iter().enumerate() {
            let Some(sum) = sums.get(kind) else { continue };
            let top = bottom + sum.seconds * 1e3;
            let bar = Rectangle::new([(x + 0.2, bottom), (x + 0.8, top)], Palette99::pick(k).filled());
            chart.draw_series([bar])?;
            bottom = top;
        }
    }
    for (k, kind) in kinds.iter().enumerate() {
        let y = 40 + 20 * k as i32;
        legend.draw(&Rectangle::new([(4, y), (18, y + 12)], Palette99::pick(k).filled()))?;
        legend.draw(&Text::new(kind.to_string(), (24, y), font(12)))?;
    }
    root.present()?;
    Ok(())
}
