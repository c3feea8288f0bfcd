//! Which tokens a step attended to.

/// Ascending lists of positions, one per KV head or per query head of a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selected {
    positions: Vec<u32>,
    /// Where each list ends in `positions`.
    ends: Vec<usize>,
}

impl Selected {
    /// Lists of `kept` positions each, one after the other.
    pub fn of_equal_lists(positions: Vec<u32>, kept: usize) -> Self {
        let ends = (1..=positions.len() / kept.max(1)).map(|i| i * kept).collect();
        Self { positions, ends }
    }

    /// Adds a list.
    pub(crate) fn push(&mut self, list: &[u32]) {
        self.positions.extend_from_slice(list);
        self.ends.push(self.positions.len());
    }

    /// The lists.
    pub fn lists(&self) -> impl ExactSizeIterator<Item = &[u32]> + '_ {
        (0..self.ends.len()).map(|i| {
            let start = if i == 0 { 0 } else { self.ends[i - 1] };
            &self.positions[start..self.ends[i]]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_any_length() {
        let mut selected = Selected::default();
        for list in [&[1, 2][..], &[], &[7]] {
            selected.push(list);
        }
        assert_eq!(selected.lists().collect::<Vec<_>>(), [&[1, 2][..], &[], &[7]]);
        assert_eq!(Selected::of_equal_lists(vec![1, 2, 3, 4], 2).lists().len(), 2);
    }
}
