//! `json_stats.log`: the lines by which scripts around PySlowFast follow a run (`slowfast/utils/logging.py`, `log_json_stats`).

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// What every line begins with.
const PREFIX: &str = "json_stats: ";
const FILE: &str = "json_stats.log";

/// A value of a line.
#[derive(Clone, Debug, PartialEq)]
pub enum Stat {
    /// Written with five digits after the point; a number that is not finite as PySlowFast's JSON has it, `NaN` or `Infinity`.
    Number(f64),
    /// Text.
    Text(String),
}

/// `json_stats: {…}` with its keys in order of the alphabet.
pub fn line(stats: &[(&str, Stat)]) -> String {
    let sorted: BTreeMap<&str, &Stat> = stats.iter().map(|(key, stat)| (*key, stat)).collect();
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let value = |stat: &Stat| match stat {
        Stat::Text(value) => text(value),
        Stat::Number(value) if value.is_nan() => "NaN".into(),
        Stat::Number(value) if value.is_infinite() => if *value > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        Stat::Number(value) => format!("{value:.5}"),
    };
    let pairs: Vec<String> = sorted.iter().map(|(key, stat)| format!("{}: {}", text(key), value(stat))).collect();
    format!("{PREFIX}{{{}}}", pairs.join(", "))
}

/// Appends a line to `json_stats.log` in `folder`.
///
/// # Errors
/// [`Error::Io`].
pub fn append(folder: &Path, line: &str) -> Result<()> {
    let path = folder.join(FILE);
    let open = OpenOptions::new().create(true).append(true).open(&path);
    open.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())).map_err(|e| Error::io(&path, &e))
}

/// Drops the lines of `json_stats.log` in `folder` that a run which goes on after `epochs` epochs and `iterations` steps of the next
/// one will write again. Lines without an epoch (those of tests) stay.
///
/// # Errors
/// [`Error::Io`].
pub fn rewind(folder: &Path, epochs: u64, iterations: u64) -> Result<()> {
    let path = folder.join(FILE);
    if !path.exists() {
        return Ok(());
    }
    let text = fs::read(&path).map_err(|e| Error::io(&path, &e))?;
    let text = String::from_utf8_lossy(&text);
    let stays = |line: &&str| {
        let Some(stats) = line.strip_prefix(PREFIX) else { return false };
        // A line that was cut off has no end.
        if !stats.ends_with('}') {
            return false;
        }
        match (counter(stats, "epoch"), counter(stats, "iter")) {
            (None, _) => true,
            (Some(epoch), _) if epoch <= epochs => true,
            (Some(epoch), Some(iteration)) => epoch == epochs + 1 && iteration <= iterations,
            _ => false,
        }
    };
    let kept: String = text.lines().filter(stays).map(|line| format!("{line}\n")).collect();
    crate::train::replace(&path, kept.as_bytes())
}

/// 3 of `"key": "3/10"`.
fn counter(stats: &str, key: &str) -> Option<u64> {
    let (_, value) = stats.split_once(&format!("\"{key}\": \""))?;
    value.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_form_of_the_original() {
        let stats = [("split", Stat::Text("test_final".into())), ("a", Stat::Number(0.1)), ("b", Stat::Number(1e5))];
        assert_eq!(line(&stats), "json_stats: {\"a\": 0.10000, \"b\": 100000.00000, \"split\": \"test_final\"}");
        let bad =
            [("x", Stat::Number(f64::NAN)), ("y", Stat::Number(f64::NEG_INFINITY)), ("z", Stat::Text("\"".into()))];
        assert_eq!(line(&bad), "json_stats: {\"x\": NaN, \"y\": -Infinity, \"z\": \"\\\"\"}");
    }

    #[test]
    fn a_run_that_goes_on_rewinds_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        rewind(folder.path(), 0, 0).unwrap();
        let at = |epoch: &str, iteration: Option<&str>| {
            let mut stats = vec![("epoch", Stat::Text(epoch.into()))];
            stats.extend(iteration.map(|i| ("iter", Stat::Text(i.into()))));
            line(&stats)
        };
        let test = line(&[("split", Stat::Text("test_final".into()))]);
        let lines = [
            at("1/9", Some("10/10")),
            at("1/9", None),
            at("2/9", Some("5/10")),
            test,
            at("2/9", Some("6/10")),
            at("2/9", None),
        ];
        lines.iter().for_each(|line| append(folder.path(), line).unwrap());
        append(folder.path(), "json_stats: {\"epoch\": \"1/").unwrap();
        rewind(folder.path(), 1, 5).unwrap();
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert_eq!(text.lines().collect::<Vec<_>>(), lines[..4]);
        rewind(folder.path(), 0, 0).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join(FILE)).unwrap().lines().count(), 1);
    }
}
