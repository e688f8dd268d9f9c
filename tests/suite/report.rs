//! `report.html`: what a run's folder holds is on the page, whatever state the folder is in.

use std::path::Path;

use vcycle::train::log::{self, Epoch, Iteration, Line, Run};
use vcycle::train::report;

/// A run of `iterations` steps through a short cycle of three shapes, two epochs.
fn lines(iterations: u64) -> Vec<Line> {
    let mut lines = vec![Line::Run(Run {
        version: "0".into(),
        device: "cpu <2 threads>".into(),
        seed: 1,
        iteration: 0,
        total_iterations: iterations,
    })];
    for i in 1..=iterations {
        let shape = [[64, 4, 32], [32, 4, 45], [16, 8, 64]][i as usize % 3];
        lines.push(Line::Iteration(Iteration {
            iteration: i,
            epoch: 2.0 * (i - 1) as f64 / iterations as f64,
            shape,
            splits: 2,
            loss: (i != 5).then_some(3.0 / i as f64),
            grad_norm: None,
            lr: 0.1,
            clips_per_s: 50.0,
            data_wait_s: 0.1,
            busy: (i != 2).then_some(0.75),
            upload_bytes_per_s: None,
            wall_s: i as f64,
            cpu_s: 2.0 * i as f64,
            skipped: i == 5,
        }));
    }
    lines.push(Line::Skipped { iteration: 5, clips: vec!["a&b.mp4".into(), "größe.mp4".into()] });
    for epoch in 1..=2 {
        let val = (epoch == 2).then_some(61.25);
        let (train_loss, val_loss) = (Some(1.0), val.map(|_| 1.5));
        lines.push(Line::Epoch(Epoch {
            epoch,
            train_loss,
            train_top1: Some(50.0),
            val_top1: val,
            val_map: None,
            val_loss,
            wall_s: 70.0 * epoch as f64,
            cpu_s: 140.0 * epoch as f64,
        }));
    }
    lines
}

fn folder(lines: &[Line]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text: Vec<String> = lines.iter().map(|l| serde_json::to_string(l).unwrap() + "\n").collect();
    std::fs::write(folder.path().join("log.jsonl"), text.concat()).unwrap();
    folder
}

fn put(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

/// As a browser would insist: one document, charts in it, nothing from elsewhere, every tag that is opened closed.
fn assert_whole(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    for forbidden in ["<script", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    for tag in ["html", "head", "body", "svg", "table", "dl", "div", "pre", "h1", "h2", "tr", "td", "th", "text"] {
        let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

#[test]
fn a_finished_run_is_on_the_page() {
    let folder = folder(&lines(30));
    let yaml = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/moving_shapes_multigrid.yaml");
    put(folder.path(), "config.yaml", &std::fs::read_to_string(yaml).unwrap());
    let summary = r#"{"val_top1": 61.25, "wall_s": 3700, "cpu_s": 90, "clips": 1120, "iterations": 30, "skipped_steps": 1, "device": "cpu", "finished": true}"#;
    put(folder.path(), "summary.json", summary);
    report::write(folder.path()).unwrap();
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert_whole(&page);
    assert_eq!(page.matches("<svg").count(), 2);
    for part in [
        "61.25 %",
        "1 h 01 min",
        "1 min 30 s",
        "30 of 30",
        "learning rate",
        "crop, S (px)",
        "clips per second",
        "accuracy over time",
        "<td>64 x 4 x 32</td><td>2</td><td>10</td><td>1280.0</td><td>50.0</td><td>7.8 %</td><td>75.0 %</td><td>57.1 %</td>",
        "<td>5</td><td>a&amp;b.mp4, größe.mp4</td>",
        "128x4x24, 64x4x34, 64x4x34",
        "LONG_CYCLE: True",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    assert!(!page.contains("was killed"));
    assert_eq!(report::html(folder.path()).unwrap(), page, "the same bytes again");
}

#[test]
fn a_killed_run_shows_what_it_has() {
    let whole = lines(7);
    let folder = folder(&whole);
    let log = folder.path().join("log.jsonl");
    let bytes = std::fs::read(&log).unwrap();
    for cut in (0..bytes.len()).rev().step_by(7).chain([0]) {
        std::fs::write(&log, &bytes[..cut]).unwrap();
        let page = report::html(folder.path()).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
        assert_whole(&page);
        assert!(page.contains("was killed"));
    }
    // Cut inside a character of a clip's name.
    let inside = String::from_utf8_lossy(&bytes).find('ö').unwrap() + 1;
    std::fs::write(&log, &bytes[..inside]).unwrap();
    assert_eq!(log::read(&log).unwrap(), &whole[..8]);
    assert!(report::html(folder.path()).unwrap().contains("cpu &lt;2 threads&gt;"));

    put(folder.path(), "summary.json", "{\"val_to");
    put(folder.path(), "config.yaml", "MODEL: {ARCH: <unknown>}");
    assert!(report::html(folder.path()).unwrap().contains("{ARCH: &lt;unknown&gt;}"));
}

#[test]
fn a_long_run_gives_a_small_page() {
    let folder = folder(&lines(60_000));
    let page = report::html(folder.path()).unwrap();
    assert_whole(&page);
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
}

#[test]
fn a_folder_without_a_log_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = report::write(folder.path()).unwrap_err().to_string();
    assert!(error.contains("log.jsonl"), "{error}");
    assert!(!folder.path().join("report.html").exists());
}
