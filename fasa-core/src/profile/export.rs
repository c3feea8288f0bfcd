//! A profile for people: the same content, ready for any serde format.

use super::{Model, ProfileView};
use crate::config::Scope;
use crate::criterion::CriterionKind;
use alloc::vec::Vec;

/// Everything a profile says about its chunks, as plain numbers. `fasa inspect --format json` prints it.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Export<'a> {
    /// The model it was calibrated for.
    pub model: Model<'a>,
    /// The criterion that ranked the chunks.
    pub criterion: CriterionKind,
    /// K of the agreement criterion, 0 for others.
    pub agreement_k: u32,
    /// Whether chunks are ranked per KV head or per query head.
    pub scope: Scope,
    /// Decode steps observed.
    pub steps: u64,
    /// What was read to calibrate.
    pub text: &'a str,
    /// The rankings, layer by layer.
    pub heads: Vec<ExportedHead>,
}

/// The chunks of one head.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ExportedHead {
    /// Layer, from 0.
    pub layer: usize,
    /// KV head or query head within the layer, from 0.
    pub head: usize,
    /// Chunks, best first.
    pub ranking: Vec<u16>,
    /// Their scores, in the same order.
    pub scores: Vec<f32>,
}

impl<'a> ProfileView<'a> {
    /// The profile as plain numbers.
    pub fn export(&self) -> Export<'a> {
        let layers = self.model().layers as usize;
        let heads = (0..layers).flat_map(|layer| (0..self.rows()).map(move |head| (layer, head)));
        Export {
            model: *self.model(),
            criterion: self.criterion(),
            agreement_k: self.agreement_k(),
            scope: self.scope(),
            steps: self.steps(),
            text: self.text(),
            heads: heads
                .map(|(layer, head)| ExportedHead {
                    layer,
                    head,
                    ranking: self.ranking(layer, head).collect(),
                    scores: self.scores(layer, head).collect(),
                })
                .collect(),
        }
    }
}
