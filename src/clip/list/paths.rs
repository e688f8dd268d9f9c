//! Paths of a video's frames. Lists hold tens of millions; nearly all are one name that counts up.

/// The paths of one video's frames as its list has them, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FramePaths {
    runs: Vec<Run>,
    len: usize,
}

/// `prefix`, `first + k` with at least `digits` digits, `suffix`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    prefix: Box<str>,
    suffix: Box<str>,
    first: u64,
    digits: usize,
    count: usize,
}

impl FramePaths {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn push(&mut self, path: &str) {
        self.len += 1;
        let (prefix, number, suffix) = split(path);
        if let Some(last) = self.runs.last_mut()
            && last.path(last.count) == path
        {
            last.count += 1;
            return;
        }
        let (first, digits) = (number.parse().unwrap_or(0), number.len());
        self.runs.push(Run { prefix: prefix.into(), suffix: suffix.into(), first, digits, count: 1 });
    }

    /// Path of frame `index`, which must be below [`FramePaths::len`].
    pub fn get(&self, index: usize) -> String {
        let mut rest = index;
        for run in &self.runs {
            if rest < run.count {
                return run.path(rest);
            }
            rest -= run.count;
        }
        String::new()
    }
}

impl Run {
    fn path(&self, k: usize) -> String {
        let (prefix, suffix, digits) = (&self.prefix, &self.suffix, self.digits);
        match digits {
            0 => format!("{prefix}{suffix}"),
            _ => format!("{prefix}{:0digits$}{suffix}", self.first.saturating_add(k as u64)),
        }
    }
}

/// The last number of `path` (of a length that fits an integer), and what stands before and behind it.
fn split(path: &str) -> (&str, &str, &str) {
    let is_digit = |c: char| c.is_ascii_digit();
    let end = path.rfind(is_digit).map_or(0, |at| at + 1);
    let start = path[..end].trim_end_matches(is_digit).len().max(end.saturating_sub(18));
    (&path[..start], &path[start..end], &path[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_comes_back() {
        let paths = [
            "a/v1_000009.jpg",
            "a/v1_000010.jpg",
            "a/v1_000011.jpg",
            "a/v1_000013.jpg",
            "b/v1_000014.jpg",
            "x.jpg",
            "x.jpg",
            "",
            "9",
            "10",
            "010",
            "a/v2/99.jpg",
            "a/v2/100.jpg",
            "7/img.jpg",
            "8/img.jpg",
            "00000000000000000000000000000001.jpg",
            "99999999999999999999999999999999.jpg",
            "n/18446744073709551615",
        ];
        let mut list = FramePaths::default();
        paths.iter().for_each(|path| list.push(path));
        assert_eq!(list.len(), paths.len());
        assert_eq!((0..paths.len()).map(|i| list.get(i)).collect::<Vec<_>>(), paths);
    }

    #[test]
    fn a_name_that_counts_up_is_one_run() {
        let mut list = FramePaths::default();
        (1..=20_000).for_each(|k| list.push(&format!("videos/7/img_{k:05}.jpg")));
        assert_eq!((list.len(), list.runs.len()), (20_000, 1));
        assert_eq!(list.get(10_000), "videos/7/img_10001.jpg");
    }
}
