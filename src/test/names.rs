//! Names of classes, for people.

use std::path::Path;

use crate::error::{Error, Result};

/// Reads the names of `classes` classes: a JSON object from name to number (PySlowFast's DEMO.LABEL_FILE_PATH, and the labels file of
/// Something-Something V2, whose numbers are texts), a JSON list of names, or a text with a name a line, the first for class 0.
///
/// # Errors
/// [`Error::Data`]: a file of another form, a class without or with two names, more or fewer names than classes.
pub fn class_names(path: &Path, classes: usize) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, &e))?;
    let refuse = |why: String| Error::Data(format!("{}: {why}", path.display()));
    let text = text.trim_start_matches('\u{feff}').trim();
    if !text.starts_with(['{', '[']) {
        return complete(text.lines().map(|line| line.trim().to_string()).collect(), classes).map_err(refuse);
    }
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| refuse(format!("is no JSON: {e}")))?;
    of_json(value, classes).map_err(refuse)
}

fn of_json(value: serde_json::Value, classes: usize) -> Result<Vec<String>, String> {
    use serde_json::Value;
    let object = match value {
        Value::Object(object) => object,
        Value::Array(list) => {
            let names: Option<Vec<String>> = list.iter().map(|name| name.as_str().map(str::to_string)).collect();
            return complete(names.ok_or("expected a list of names")?, classes);
        }
        _ => return Err("expected an object from name to class, or a list of names".into()),
    };
    let mut names = vec![String::new(); classes];
    for (name, number) in &object {
        let class = match number {
            Value::Number(n) => n.as_u64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        let class = class.ok_or_else(|| format!("`{name}` has no class: expected an integer, got {number}"))?;
        let slot = usize::try_from(class).ok().and_then(|class| names.get_mut(class));
        let slot = slot.ok_or_else(|| format!("`{name}` is class {class}, but there are {classes} classes"))?;
        if !slot.is_empty() {
            return Err(format!("class {class} is both `{slot}` and `{name}`"));
        }
        name.clone_into(slot);
    }
    complete(names, classes)
}

fn complete(names: Vec<String>, classes: usize) -> Result<Vec<String>, String> {
    if names.len() != classes {
        return Err(format!("{} names, but there are {classes} classes (MODEL.NUM_CLASSES)", names.len()));
    }
    match names.iter().position(String::is_empty) {
        Some(class) => Err(format!("class {class} has no name")),
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, classes: usize) -> Result<Vec<String>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        class_names(file.path(), classes).map_err(|e| e.to_string().replace(&file.path().display().to_string(), "FILE"))
    }

    #[test]
    fn every_form_is_read() {
        let names = Ok(vec!["a b".to_string(), "c".to_string()]);
        for text in
            ["{\"c\": 1, \"a b\": 0}", "{\"c\": \"1\", \"a b\": \"0\"}", "[\"a b\", \"c\"]", "\u{feff}a b\r\nc\n"]
        {
            assert_eq!(read(text, 2), names, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, words) in [
            ("{\"a\": 0}", "class 1 has no name"),
            ("{\"a\": 0, \"b\": 0}", "class 0 is both `a` and `b`"),
            ("{\"a\": 0, \"b\": 2}", "`b` is class 2, but there are 2 classes"),
            ("{\"a\": 0, \"b\": -1}", "`b` has no class: expected an integer, got -1"),
            ("[\"a\", 1]", "expected a list of names"),
            ("{\"a\": 0,", "is no JSON"),
            ("a\nb\nc", "3 names, but there are 2 classes"),
            ("a\n\nc", "3 names, but there are 2 classes"),
            ("", "0 names, but there are 2 classes"),
        ] {
            let error = read(text, 2).unwrap_err();
            assert!(error.starts_with("data: FILE: ") && error.contains(words), "{text}: {error}");
        }
    }
}
