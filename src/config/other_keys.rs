//! Keys of PySlowFast that are known and not read (`other_keys.txt`).

use super::literal;
use super::value::Value;

/// A key of PySlowFast that nothing reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherKey {
    /// Full name, such as `NUM_SHARDS`.
    pub name: &'static str,
    /// PySlowFast's default, as Python writes it.
    pub default: &'static str,
    /// Why only the default is accepted; `None` when any value is.
    pub reason: Option<&'static str>,
}

/// Every line.
pub(super) fn all() -> impl Iterator<Item = OtherKey> {
    include_str!("other_keys.txt").lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, rest) = line.split_once(" = ")?;
        let (default, reason) = match rest.split_once(" | ") {
            Some((default, reason)) => (default, Some(reason)),
            None => (rest, None),
        };
        Some(OtherKey { name, default, reason })
    })
}

/// The key of this name.
pub(super) fn find(name: &str) -> Option<OtherKey> {
    all().find(|key| key.name == name)
}

/// Values of keys of the table that ask for what this project will not do: key, values, why.
const OUT_OF_SCOPE: [(&str, &[&str], &str); 10] = [
    ("MODEL.ARCH", &["x3d"], "X3D is out of scope"),
    ("MODEL.ARCH", &["mvit", "maskmvit"], "MViT is out of scope"),
    ("MODEL.MODEL_NAME", &["X3D"], "X3D is out of scope"),
    ("MODEL.MODEL_NAME", &["MViT", "MaskMViT"], "MViT is out of scope"),
    ("MODEL.MODEL_NAME", &["ContrastiveModel"], "contrastive training is out of scope"),
    (
        "MODEL.MODEL_NAME",
        &["PTVResNet", "PTVSlowFast", "PTVX3D", "PTVCSN", "PTVR2plus1D", "PTVMViT"],
        "networks of pytorchvideo are out of scope; ResNet and SlowFast are PySlowFast's own",
    ),
    ("RESNET.TRANS_FUNC", &["x3d_transform"], "X3D is out of scope"),
    ("DATASET", &["ava"], "detection (AVA) is out of scope"),
    ("DATASET", &["imagenet", "imagenetprefetch"], "images are out of scope"),
    (
        "DATASET",
        &["ptvkinetics", "ptvssv2", "ptvcharades"],
        "loaders of pytorchvideo are out of scope; use the name without ptv",
    ),
];

/// Why `key` will not take `value`, if that is a word of PySlowFast.
pub(super) fn out_of_scope(key: &str, value: &Value) -> Option<&'static str> {
    let Value::Text(value) = value else { return None };
    let is_key = |of: &str| key == of || key.strip_suffix(of).is_some_and(|section| section.ends_with('.'));
    let found = OUT_OF_SCOPE.iter().find(|(of, values, _)| is_key(of) && values.contains(&value.as_str()));
    found.map(|(.., why)| *why)
}

impl OtherKey {
    /// Whether the value may stand in a configuration. `raw` is the value before its text was read as a literal.
    pub(super) fn accept(&self, value: &Value, raw: &Value) -> Result<(), String> {
        let default = literal::parse(self.default).unwrap_or(Value::None);
        let kind_fits = match (&default, value) {
            (Value::None, _) | (_, Value::None) => true,
            (Value::Float(_), Value::Int(_)) => true,
            (Value::Text(_), _) if matches!(raw, Value::Text(_)) => true,
            (a, b) => a.kind() == b.kind(),
        };
        if !kind_fits {
            return Err(format!("expected {}, got {} ({raw})", default.kind(), raw.kind()));
        }
        let same = match (&default, value) {
            (Value::Float(a), Value::Int(b)) => *a == *b as f64,
            (a, b) => a == b || a == raw,
        };
        match self.reason {
            Some(reason) if !same => Err(format!("only {} is supported: {reason}; got {raw}", self.default)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_a_default_that_reads_back() {
        assert!(all().count() > 200);
        for key in all() {
            let default = literal::parse(key.default).unwrap_or_else(|| panic!("{}: {}", key.name, key.default));
            key.accept(&default, &default).unwrap_or_else(|m| panic!("{}: {m}", key.name));
        }
    }

    #[test]
    fn no_key_is_also_in_the_table() {
        let table = super::super::Config::keys();
        for key in all() {
            assert!(table.iter().all(|t| t.name != key.name), "{}", key.name);
        }
    }
}
