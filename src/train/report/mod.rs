//! `report.html`: a run on one self-contained page, from what lies in its folder. No scripts, no other files.

mod curves;

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use super::log;
use crate::chart;
use crate::config::Config;
use crate::error::Result;
use crate::multigrid::Schedule;
use curves::Record;

/// Writes `report.html` into the folder of a run, from its config.yaml, log.jsonl and summary.json.
///
/// A killed run has no summary and a log whose last line may be cut off: the report shows what is there.
///
/// # Errors
/// [`crate::Error::Io`] when the log cannot be read or the page cannot be written.
pub fn write(output_dir: &Path) -> Result<()> {
    super::output::replace(&output_dir.join("report.html"), html(output_dir)?.as_bytes())
}

/// The page that [`write()`] writes.
///
/// # Errors
/// [`crate::Error::Io`] when the log cannot be read.
pub fn html(output_dir: &Path) -> Result<String> {
    let record = Record::of(log::read(&output_dir.join("log.jsonl"))?);
    let read = |name: &str| std::fs::read_to_string(output_dir.join(name)).ok();
    let config = read("config.yaml");
    let summary: Option<Value> = read("summary.json").and_then(|text| serde_json::from_str(&text).ok());
    let folder = output_dir.canonicalize().unwrap_or_else(|_| output_dir.to_path_buf());
    let name = folder.file_name().map_or("run".into(), |n| n.to_string_lossy().into_owned());

    let mut body = format!("<h1>{}</h1>\n", escape(&name));
    body += &headline(&record, summary.as_ref());
    body += &chart::draw(&record.panels(), "epoch")?;
    body += &chart::draw(&record.panels_over_time(), "minutes")?;
    body += &shapes_table(&record);
    body += &config.as_deref().map_or(String::new(), schedule_table);
    body += &skipped_list(&record);
    body +=
        &config.map_or(String::new(), |yaml| format!("<h2>Configuration as run</h2>\n<pre>{}</pre>\n", escape(&yaml)));
    Ok(page(&name, &body))
}

fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n\
         </head>\n<body>\n{body}</body>\n</html>\n"
    )
}

const STYLE: &str = "\
body { font: 15px/1.45 sans-serif; color: #333; max-width: 960px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
dl { display: flex; flex-wrap: wrap; gap: 0.6em 2em; } dt { font-size: 0.8em; color: #777; } dd { margin: 0; font-size: 1.25em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15em 0.9em 0.15em 0; text-align: right; border-bottom: 1px solid #e2e2e2; } th { font-weight: normal; color: #777; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 0.85em; }
svg { max-width: 100%; height: auto; display: block; }
";

/// The numbers of the summary; of a run without one, what its log tells.
fn headline(record: &Record, summary: Option<&Value>) -> String {
    let mut items: Vec<(&str, String)> = vec![];
    let number = |key: &str| summary.and_then(|s| s.get(key)).and_then(Value::as_f64);
    let last_val = record.epochs.iter().rev().find_map(|e| e.val_top1);
    if let Some(top1) = number("val_top1").or(last_val) {
        items.push(("validation top-1", format!("{top1:.2} %")));
    }
    if let Some(best) = number("best_val_top1") {
        items.push(("best", format!("{best:.2} %")));
    }
    for (key, name) in [("val_map", "validation mAP"), ("best_val_map", "best mAP")] {
        if let Some(map) = number(key) {
            items.push((name, format!("{map:.2} %")));
        }
    }
    let last_wall = record.iterations.last().map(|s| s.wall_s);
    if let Some(seconds) = number("wall_s").or(last_wall) {
        items.push(("time", duration(seconds)));
    }
    if let Some(seconds) = number("cpu_s") {
        items.push(("processor time", duration(seconds)));
    }
    let done = record.iterations.last().map_or(0, |s| s.iteration);
    let of_total = record.total_iterations.map_or(String::new(), |total| format!(" of {total}"));
    items.push(("iterations", format!("{done}{of_total}")));
    for (key, name) in
        [("clips", "clips"), ("skipped_steps", "skipped steps"), ("bad_clips", "bad clips"), ("seed", "seed")]
    {
        if let Some(value) = number(key) {
            items.push((name, format!("{value}")));
        }
    }
    let device = summary.and_then(|s| s.get("device")).and_then(Value::as_str).map(str::to_string);
    if let Some(device) = device.or_else(|| record.device.clone()) {
        items.push(("device", device));
    }
    let state = match summary {
        None => "<p>There is no summary: the run goes on, or was killed.</p>\n",
        Some(s) if s.get("finished") == Some(&Value::Bool(false)) => "<p>Stopped before the end of its schedule.</p>\n",
        Some(_) => "",
    };
    let mut out = format!("{state}<dl>\n");
    for (name, value) in items {
        let _ = writeln!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(&value));
    }
    out + "</dl>\n"
}

/// Where the iterations and the time went.
fn shapes_table(record: &Record) -> String {
    let rows = record.shapes();
    let total: f64 = rows.iter().map(|(_, row)| row.seconds).sum();
    let cells = rows.iter().map(|([b, t, s, splits], row)| {
        let percent =
            |part: f64, whole: f64| if whole > 0.0 { format!("{:.1} %", 100.0 * part / whole) } else { String::new() };
        vec![
            format!("{b} x {t} x {s}"),
            splits.to_string(),
            row.iterations.to_string(),
            format!("{:.1}", 1000.0 * row.seconds / row.iterations as f64),
            if row.seconds > 0.0 { format!("{:.1}", row.clips as f64 / row.seconds) } else { String::new() },
            percent(row.data_wait_s, row.seconds),
            row.busy_s.map_or(String::new(), |busy| percent(busy, row.seconds)),
            percent(row.seconds, total),
        ]
    });
    let head = [
        "B x T x S",
        "splits",
        "iterations",
        "ms a step",
        "clips/s",
        "waiting for data",
        "device busy",
        "share of the time",
    ];
    section("Shapes trained", &head, cells.collect())
}

/// The plan: segments of epochs, their shape and rate.
fn schedule_table(yaml: &str) -> String {
    let plan = Config::parse(yaml, "config.yaml", &[]).and_then(|config| Schedule::new(&config));
    let Ok(schedule) = plan else { return String::new() };
    let mut bounds = schedule.learning_rate().steps.clone();
    if bounds.first() != Some(&0) {
        bounds.insert(0, 0);
    }
    bounds.push(schedule.max_epoch());
    let rows = bounds.windows(2).filter(|pair| pair[0] < pair[1]).map(|pair| {
        let phase = schedule.phase(pair[0]);
        let grids: Vec<String> = phase.step_shapes().map(|s| s.to_string()).collect();
        let [low, high] = phase.sampling_rates;
        vec![
            format!("{} to {}", pair[0], pair[1]),
            grids.join(", "),
            phase.splits.to_string(),
            if low == high { low.to_string() } else { format!("{low} to {high}") },
            format!("{:.3e}", schedule.lr(pair[1] as f64 - 1e-9)),
        ]
    });
    let head = ["epochs", "B x T x S of the short cycle", "splits", "frame step", "rate at the end"];
    section("Schedule", &head, rows.collect())
}

fn skipped_list(record: &Record) -> String {
    if record.skipped.is_empty() {
        return String::new();
    }
    let row = |(iteration, clips): &(u64, Vec<String>)| vec![iteration.to_string(), clips.join(", ")];
    section(
        "Skipped steps (the loss was not finite)",
        &["iteration", "clips"],
        record.skipped.iter().map(row).collect(),
    )
}

fn section(title: &str, head: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let line = |tag: &str, cells: Vec<&str>| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let mut out = format!("<h2>{title}</h2>\n<table>\n{}", line("th", head.to_vec()));
    for row in &rows {
        out += &line("td", row.iter().map(String::as_str).collect());
    }
    out + "</table>\n"
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
