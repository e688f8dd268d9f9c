//! What the clips of a batch are labelled with, from the loader to the loss.

/// The labels of a batch: the loader makes them, the loss and the metrics read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Labels {
    /// One class a clip.
    Classes(Vec<u32>),
    /// The classes of each clip, any number of them, ascending (`DATA.MULTI_LABEL`).
    Sets(Vec<Vec<u32>>),
}

impl Labels {
    /// Clips.
    pub fn len(&self) -> usize {
        match self {
            Labels::Classes(classes) => classes.len(),
            Labels::Sets(sets) => sets.len(),
        }
    }

    /// Whether there is no clip.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The classes of clip `clip`, which must be below [`Labels::len`].
    pub fn of(&self, clip: usize) -> &[u32] {
        match self {
            Labels::Classes(classes) => &classes[clip..=clip],
            Labels::Sets(sets) => &sets[clip],
        }
    }

    /// The first clip with a label that is not below `num_classes`, and that label.
    pub fn out_of_range(&self, num_classes: usize) -> Option<(usize, u32)> {
        let bad = |clip: usize| self.of(clip).iter().find(|&&label| label as usize >= num_classes);
        (0..self.len()).find_map(|clip| Some((clip, *bad(clip)?)))
    }

    /// 1 for every class that a clip has, otherwise 0: `[clips][num_classes]`. Labels out of range are left out.
    pub fn multi_hot(&self, num_classes: usize) -> Vec<f32> {
        let mut targets = vec![0.0; self.len() * num_classes];
        for (clip, row) in targets.chunks_exact_mut(num_classes.max(1)).enumerate() {
            for &label in self.of(clip) {
                if let Some(target) = row.get_mut(label as usize) {
                    *target = 1.0;
                }
            }
        }
        targets
    }
}

impl From<Vec<u32>> for Labels {
    fn from(classes: Vec<u32>) -> Labels {
        Labels::Classes(classes)
    }
}

impl From<&[u32]> for Labels {
    fn from(classes: &[u32]) -> Labels {
        Labels::Classes(classes.to_vec())
    }
}

impl<const N: usize> From<&[u32; N]> for Labels {
    fn from(classes: &[u32; N]) -> Labels {
        Labels::Classes(classes.to_vec())
    }
}

impl From<&Vec<u32>> for Labels {
    fn from(classes: &Vec<u32>) -> Labels {
        Labels::Classes(classes.clone())
    }
}

impl From<&Labels> for Labels {
    fn from(labels: &Labels) -> Labels {
        labels.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_labels_and_sets_become_rows() {
        assert_eq!(Labels::from(vec![2, 0]).multi_hot(3), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
        let sets = Labels::Sets(vec![vec![0, 2], vec![], vec![1, 3]]);
        assert_eq!((sets.len(), sets.of(0)), (3, &[0, 2][..]));
        assert_eq!(sets.multi_hot(4), [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]);
        assert_eq!((sets.out_of_range(4), sets.out_of_range(3)), (None, Some((2, 3))));
    }
}
