//! What the key table is made of: typed leaves, sections of them, and the macros that define both in one place.

use super::value::Value;

/// A key of the table, for documentation and suggestions.
#[derive(Clone, Debug)]
pub struct Key {
    /// Full name, such as `DATA.TRAIN_CROP_SIZE`.
    pub name: String,
    /// What kind of value it takes.
    pub expected: String,
    /// Its default, as YAML.
    pub default: String,
    /// What it means.
    pub doc: String,
}

/// A value of one type.
pub(super) trait Leaf: Sized {
    /// Such as `an integer >= 0`.
    fn expected() -> String;
    /// The plural of it, for lists.
    fn expected_plural() -> String;
    /// `None` when the value is of another kind.
    fn read(value: &Value) -> Option<Self>;
    /// The untyped value that reads back as this one.
    fn value(&self) -> Value;
}

/// Why a key was not assigned.
#[derive(Debug, PartialEq)]
pub(super) enum Refusal {
    /// No such key below this section.
    Unknown,
    /// The key exists and takes something else.
    Expected(String),
}

/// A leaf or a section.
pub(super) trait Entry {
    /// Sets the key at `path` below this entry (empty: this entry itself).
    fn assign(&mut self, path: &[&str], value: &Value) -> Result<(), Refusal>;
    /// The value as YAML would hold it.
    fn value(&self) -> Value;
    /// Adds every key below this entry, whose own name is `name`.
    fn describe(&self, name: &str, doc: &str, keys: &mut Vec<Key>);
}

impl<T: Leaf> Entry for T {
    fn assign(&mut self, path: &[&str], value: &Value) -> Result<(), Refusal> {
        if !path.is_empty() {
            return Err(Refusal::Unknown);
        }
        *self = T::read(value).ok_or_else(|| Refusal::Expected(T::expected()))?;
        Ok(())
    }

    fn value(&self) -> Value {
        Leaf::value(self)
    }

    fn describe(&self, name: &str, doc: &str, keys: &mut Vec<Key>) {
        let default = Leaf::value(self).to_string();
        keys.push(Key { name: name.to_string(), expected: T::expected(), default, doc: doc.trim().to_string() });
    }
}

impl Leaf for bool {
    fn expected() -> String {
        "a boolean".into()
    }
    fn expected_plural() -> String {
        "booleans".into()
    }
    fn read(value: &Value) -> Option<bool> {
        match value {
            Value::Bool(b) => Some(*b),
            Value::Text(text) => match super::literal::yaml_word(text) {
                Some(Value::Bool(b)) => Some(b),
                _ => None,
            },
            _ => None,
        }
    }
    fn value(&self) -> Value {
        Value::Bool(*self)
    }
}

impl Leaf for usize {
    fn expected() -> String {
        "an integer >= 0".into()
    }
    fn expected_plural() -> String {
        "integers >= 0".into()
    }
    fn read(value: &Value) -> Option<usize> {
        match value {
            Value::Int(i) => usize::try_from(*i).ok(),
            _ => None,
        }
    }
    fn value(&self) -> Value {
        Value::Int(*self as i64)
    }
}

impl Leaf for f64 {
    fn expected() -> String {
        "a number".into()
    }
    fn expected_plural() -> String {
        "numbers".into()
    }
    fn read(value: &Value) -> Option<f64> {
        match value {
            Value::Int(i) => Some(*i as f64),
            Value::Float(x) if x.is_finite() => Some(*x),
            _ => None,
        }
    }
    fn value(&self) -> Value {
        Value::Float(*self)
    }
}

impl Leaf for String {
    fn expected() -> String {
        "text".into()
    }
    fn expected_plural() -> String {
        "texts".into()
    }
    fn read(value: &Value) -> Option<String> {
        match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
    fn value(&self) -> Value {
        Value::Text(self.clone())
    }
}

impl<T: Leaf> Leaf for Option<T> {
    fn expected() -> String {
        format!("{} or None", T::expected())
    }
    fn expected_plural() -> String {
        format!("{} or None", T::expected_plural())
    }
    fn read(value: &Value) -> Option<Option<T>> {
        match value {
            Value::None => Some(None),
            other => T::read(other).map(Some),
        }
    }
    fn value(&self) -> Value {
        self.as_ref().map_or(Value::None, Leaf::value)
    }
}

impl<T: Leaf> Leaf for Vec<T> {
    fn expected() -> String {
        format!("a list of {}", T::expected_plural())
    }
    fn expected_plural() -> String {
        format!("lists of {}", T::expected_plural())
    }
    fn read(value: &Value) -> Option<Vec<T>> {
        match value {
            Value::List(items) => items.iter().map(T::read).collect(),
            _ => None,
        }
    }
    fn value(&self) -> Value {
        Value::List(self.iter().map(Leaf::value).collect())
    }
}

impl<T: Leaf, const N: usize> Leaf for [T; N] {
    fn expected() -> String {
        format!("a list of {N} {}", T::expected_plural())
    }
    fn expected_plural() -> String {
        format!("lists of {N} {}", T::expected_plural())
    }
    fn read(value: &Value) -> Option<[T; N]> {
        Vec::<T>::read(value)?.try_into().ok()
    }
    fn value(&self) -> Value {
        Value::List(self.iter().map(Leaf::value).collect())
    }
}

/// Defines a section: the struct, its defaults, and how keys reach its fields. A key is its field's name in capitals.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $field_doc:literal])+ $field:ident: $type:ty = $default:expr;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $($(#[doc = $field_doc])+ pub $field: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                $name { $($field: $default,)+ }
            }
        }

        impl $crate::config::entry::Entry for $name {
            fn assign(
                &mut self,
                path: &[&str],
                value: &$crate::config::value::Value,
            ) -> Result<(), $crate::config::entry::Refusal> {
                use $crate::config::entry::Refusal;
                let Some((first, rest)) = path.split_first() else { return Err(Refusal::Expected("a section".into())) };
                match first.to_ascii_lowercase().as_str() {
                    $(stringify!($field) if *first == stringify!($field).to_ascii_uppercase() => self.$field.assign(rest, value),)+
                    _ => Err(Refusal::Unknown),
                }
            }

            fn value(&self) -> $crate::config::value::Value {
                use $crate::config::value::{Line, Value};
                Value::Section(vec![$((
                    stringify!($field).to_ascii_uppercase(),
                    Line(0),
                    $crate::config::entry::Entry::value(&self.$field),
                ),)+])
            }

            fn describe(&self, name: &str, _doc: &str, keys: &mut Vec<$crate::config::entry::Key>) {
                let prefix = if name.is_empty() { String::new() } else { format!("{name}.") };
                $(self.$field.describe(
                    &format!("{prefix}{}", stringify!($field).to_ascii_uppercase()),
                    concat!($($field_doc),+),
                    keys,
                );)+
            }
        }
    };
}
pub(super) use section;

/// Defines a value that is one of a few words.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])+ $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])+ $variant,)+
        }

        impl $name {
            /// The word of the configuration.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::config::entry::Leaf for $name {
            fn expected() -> String {
                format!("one of {}", [$($word),+].join(", "))
            }
            fn expected_plural() -> String {
                format!("words of {}", [$($word),+].join(", "))
            }
            fn read(value: &$crate::config::value::Value) -> Option<Self> {
                match value {
                    $($crate::config::value::Value::Text(text) if text == $word => Some($name::$variant),)+
                    _ => None,
                }
            }
            fn value(&self) -> $crate::config::value::Value {
                $crate::config::value::Value::Text(self.as_str().to_string())
            }
        }
    };
}
pub(super) use choice;
