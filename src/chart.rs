//! Charts as SVG text: panels of step or line series below each other over one shared horizontal axis.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::{Error, Result};

/// How the points of a series are joined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Join {
    /// Straight lines.
    Line,
    /// The value holds until the next point.
    Step,
    /// Straight lines with a mark at each point.
    Marks,
    /// Not at all: a dot at each point.
    Dots,
}

/// Points with a name.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// Shown beside the chart, unless empty.
    pub name: String,
    /// (x, y), x not decreasing.
    pub points: Vec<(f64, f64)>,
    /// How they are joined.
    pub join: Join,
}

/// One chart.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    /// Above the chart.
    pub title: String,
    /// Its series; those without points are left out.
    pub series: Vec<Series>,
    /// Powers of two instead of equal steps on the vertical axis; values must be > 0.
    pub log2: bool,
}

const WIDTH_PX: u32 = 960;
const PANEL_HEIGHT_PX: u32 = 190;
const LEGEND_WIDTH_PX: u32 = 140;
const COLORS: [RGBColor; 4] =
    [RGBColor(31, 102, 173), RGBColor(204, 102, 26), RGBColor(46, 133, 84), RGBColor(128, 84, 158)];
const INK: RGBColor = RGBColor(68, 68, 68);
const GRID: RGBColor = RGBColor(226, 226, 226);

/// Draws the panels that have points. The SVG needs no fonts and no other file.
///
/// # Errors
/// [`Error::Unsupported`] when the drawing library refuses; it writes to memory only.
pub(crate) fn draw(panels: &[Panel], x_label: &str) -> Result<String> {
    let shown: Vec<&Panel> = panels.iter().filter(|p| p.series.iter().any(|s| !s.points.is_empty())).collect();
    let mut svg = String::new();
    if shown.is_empty() {
        return Ok(svg);
    }
    let xs = || shown.iter().flat_map(|p| &p.series).flat_map(|s| &s.points).map(|p| p.0);
    let x_range = padded(xs(), 0.0);
    {
        let size = (WIDTH_PX, PANEL_HEIGHT_PX * shown.len() as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let drawn = root.fill(&WHITE).map_err(|e| e.to_string()).and_then(|()| {
            let areas = root.split_evenly((shown.len(), 1));
            for (index, (area, panel)) in areas.iter().zip(&shown).enumerate() {
                // The axis is shared: its name stands once, at the bottom.
                let label = if index + 1 == shown.len() { x_label } else { "" };
                draw_panel(area, panel, x_range.clone(), label).map_err(|e| e.to_string())?;
            }
            root.present().map_err(|e| e.to_string())
        });
        drawn.map_err(|message| Error::unsupported("chart", message))?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw_panel(
    area: &Area<'_>,
    panel: &Panel,
    x_range: std::ops::Range<f64>,
    x_label: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let (area, legend) = area.split_horizontally(WIDTH_PX - LEGEND_WIDTH_PX);
    let log2 = panel.log2;
    let place = |y: f64| if log2 { y.log2() } else { y };
    let ys = panel.series.iter().flat_map(|s| &s.points).map(|p| place(p.1));
    let text = |size: u32| ("sans-serif", size).into_font().color(&INK);
    let mut chart = ChartBuilder::on(&area)
        .caption(&panel.title, text(15))
        .margin(8)
        .x_label_area_size(30)
        .y_label_area_size(64)
        .build_cartesian_2d(x_range, padded(ys, 0.06))?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(text(12))
        .y_labels(5)
        .y_label_formatter(&|y| short_number(if log2 { y.exp2() } else { *y }))
        .x_label_formatter(&|x| short_number(*x))
        .x_desc(x_label)
        .draw()?;
    let shown = panel.series.iter().filter(|s| !s.points.is_empty());
    for (row, (series, color)) in shown.zip(COLORS.iter().cycle()).enumerate() {
        let points = series.points.iter().map(|&(x, y)| (x, place(y)));
        let style = ShapeStyle::from(color).stroke_width(2);
        let radius = match series.join {
            Join::Marks => 3,
            Join::Dots => 2,
            Join::Line | Join::Step => 0,
        };
        if radius > 0 {
            chart.draw_series(points.clone().map(|p| Circle::new(p, radius, color.filled())))?;
        }
        match series.join {
            Join::Dots => {}
            Join::Step => drop(chart.draw_series(LineSeries::new(steps(points), style))?),
            Join::Line | Join::Marks => drop(chart.draw_series(LineSeries::new(points, style))?),
        }
        if !series.name.is_empty() {
            let y = 44 + 20 * row as i32;
            legend.draw(&PathElement::new([(4, y), (24, y)], style))?;
            legend.draw(&Text::new(series.name.clone(), (30, y - 6), text(12)))?;
        }
    }
    Ok(())
}

/// Corners of a staircase.
fn steps(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut corners: Vec<(f64, f64)> = vec![];
    for (x, y) in points {
        if let Some(&(_, before)) = corners.last() {
            corners.push((x, before));
        }
        corners.push((x, y));
    }
    corners
}

/// The range of finite values, widened by a part of itself, never empty: a constant stands half-way up.
fn padded(values: impl Iterator<Item = f64>, part: f64) -> std::ops::Range<f64> {
    let finite = values.filter(|v| v.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    let margin = if high > low { (high - low) * part } else { high.abs().max(1.0) };
    low - margin..high + margin
}

/// At most four digits, with thousands as k.
fn short_number(value: f64) -> String {
    let size = value.abs();
    if size >= 10_000.0 {
        format!("{:.0}k", value / 1000.0)
    } else if size >= 100.0 || (value - value.round()).abs() < 1e-9 {
        format!("{value:.0}")
    } else if size >= 1.0 {
        format!("{value:.1}")
    } else if size >= 0.01 {
        format!("{value:.2}")
    } else {
        format!("{value:.0e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(points: Vec<(f64, f64)>, join: Join) -> Panel {
        Panel { title: "loss <&>".into(), series: vec![Series { name: "train".into(), points, join }], log2: false }
    }

    #[test]
    fn a_staircase_holds_each_value_until_the_next() {
        let corners = steps([(0.0, 1.0), (2.0, 5.0)].into_iter());
        assert_eq!(corners, [(0.0, 1.0), (2.0, 1.0), (2.0, 5.0)]);
    }

    #[test]
    fn odd_data_still_draw() {
        assert_eq!(draw(&[panel(vec![], Join::Line)], "epoch").unwrap(), "");
        for points in [vec![(0.0, 0.0)], vec![(1.0, f64::NAN), (2.0, f64::INFINITY)], vec![(0.0, -3.0), (9.0, -3.0)]] {
            let svg = draw(&[panel(points.clone(), Join::Step), panel(points, Join::Marks)], "epoch").unwrap();
            assert!(svg.starts_with("<svg") && svg.contains("loss &lt;&amp;&gt;"), "{svg}");
        }
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.002, 0.05, 2.5, 224.0, 12_345.0].map(short_number);
        assert_eq!(shown, ["0", "2e-3", "0.05", "2.5", "224", "12k"]);
    }
}
