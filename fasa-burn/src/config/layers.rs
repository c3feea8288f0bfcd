//! In what the layers of one model differ: rotary positions and sliding windows.

use super::family::{Family, Windows};
use super::fields::Fields;
use super::{MAX_LAYERS, MAX_POSITIONS};
use crate::error::Result;

/// SmolLM3's layers without rotary positions: `no_rope_layers` has 1 for those that turn.
pub(super) fn unrotated(fields: &Fields<'_>, family: &Family, layers: usize) -> Result<Vec<u8>> {
    if !family.unrotated {
        return Ok(Vec::new());
    }
    let interval = fields.optional_size("no_rope_layer_interval", MAX_LAYERS)?.unwrap_or(4);
    Ok(marked(match fields.flags("no_rope_layers")? {
        None => (1..=layers).map(|number| number.is_multiple_of(interval)).collect(),
        Some(turns) if turns.len() == layers => turns.into_iter().map(|turns| !turns).collect(),
        Some(turns) => {
            let problem = format!("has {} entries for {layers} layers", turns.len());
            return Err(fields.error("no_rope_layers", problem, "it needs a 0 or 1 for each layer"));
        }
    }))
}

/// The sliding window, and which layers have it.
pub(super) fn windows(
    fields: &Fields<'_>,
    family: &Family,
    layers: usize,
    unrotated: &[u8],
) -> Result<(Option<usize>, Vec<u8>)> {
    let named = named(fields, layers)?;
    let given = fields.optional_size("sliding_window", MAX_POSITIONS)?;
    let on = fields.flag("use_sliding_window")? == Some(true);
    let (window, sliding) = match family.windows {
        Windows::None => (None, named.unwrap_or_default()),
        Windows::Every(default) => {
            let window = if fields.is_null("sliding_window") { None } else { given.or(default) };
            (window, vec![window.is_some(); layers])
        }
        Windows::AllBut(default) => {
            let pattern = fields.optional_size("sliding_window_pattern", MAX_LAYERS)?.unwrap_or(default);
            let usual = || (1..=layers).map(|number| !number.is_multiple_of(pattern)).collect();
            let window = if fields.is_null("sliding_window") { None } else { given.or(Some(4096)) };
            (window, named.unwrap_or_else(usual))
        }
        Windows::Upper => {
            let first = fields.whole("max_window_layers", MAX_LAYERS)?.unwrap_or(28);
            let window = if fields.is_null("sliding_window") { None } else { given.or(Some(4096)) }.filter(|_| on);
            let usual = || (0..layers).map(|layer| window.is_some() && layer >= first).collect();
            (window, named.unwrap_or_else(usual))
        }
        Windows::Unrotated => {
            let window = given.filter(|_| on);
            let usual = || (0..layers).map(|layer| window.is_some() && unrotated.get(layer) == Some(&1)).collect();
            (window, named.unwrap_or_else(usual))
        }
    };
    if window.is_none() && sliding.contains(&true) {
        let mend = "give a `sliding_window` as the model's author does, or make all layers \"full_attention\"";
        return Err(match family.windows {
            Windows::None => {
                fields.unsupported("`layer_types` \"sliding_attention\"", "use a model with full attention")
            }
            _ => fields.error("layer_types", "has layers with a sliding window, whose length is not given", mend),
        });
    }
    if family.windows == Windows::None && on {
        return Err(fields.unsupported("`use_sliding_window` true", "use a model without sliding windows"));
    }
    let sliding = marked(sliding);
    Ok((window.filter(|_| !sliding.is_empty()), sliding))
}

/// `layer_types`: which layers have a window.
fn named(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>> {
    let types = fields.texts("layer_types")?;
    if types.is_empty() {
        return Ok(None);
    }
    if let Some(other) = types.iter().find(|t| !["full_attention", "sliding_attention"].contains(t)) {
        let mend = "use a model with \"full_attention\" and \"sliding_attention\"";
        return Err(fields.unsupported(format!("`layer_types` \"{other}\""), mend));
    }
    if types.len() != layers {
        let problem = format!("has {} entries for {layers} layers", types.len());
        return Err(fields.error("layer_types", problem, "it needs one for each layer"));
    }
    Ok(Some(types.into_iter().map(|t| t == "sliding_attention").collect()))
}

/// One byte per layer; nothing if there is nothing to mark.
fn marked(layers: Vec<bool>) -> Vec<u8> {
    if layers.contains(&true) { layers.into_iter().map(u8::from).collect() } else { Vec::new() }
}
