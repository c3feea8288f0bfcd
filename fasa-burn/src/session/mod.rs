//! Saved sessions: a text once read, with its keys, values and sketch, so that it need not be read again.
//!
//! A file holds, in this order:
//!
//! | bytes | content |
//! |---|---|
//! | 8 | `FASASESS` |
//! | 4 | version, 1 |
//! | 4 | length of the header |
//! | 4 | CRC-32 of the header |
//! | ... | the header, JSON: model, number format, count of tokens, sketch, messages |
//! | 4 each | the token ids |
//! | ... | per layer the keys, then the values, `[kv_heads, tokens, head_dim]` |
//! | ... | per sketched layer the codes, then the row scales, `[sketch_heads, tokens, bytes]` |
//!
//! The token ids and every table are followed by their CRC-32. All numbers are little-endian. The size of everything
//! follows from the header and the model at hand; a file of another size is refused before anything is allocated.

mod file;
mod header;

use crate::chat::Message;
use crate::error::{Error, Result};
use crate::method::Method;
use crate::model::Decoder;
use crate::sequence::Sequence;
use file::{Reader, Writer};
use header::Header;
use std::path::Path;

/// A text as it was saved.
#[derive(Debug)]
pub struct Session {
    /// The tokens and their cache.
    pub sequence: Sequence,
    /// The conversation that the text is, if it is one.
    pub messages: Vec<Message>,
}

/// Writes what `sequence` holds to `path`, with the sketch that `method` reads. The file is complete or not there: it is
/// written under another name and renamed. Returns its size in bytes; takes the memory of one layer.
///
/// # Errors
/// [`Error::Io`] if it cannot be written, [`Error::Session`] for an empty sequence.
pub fn save(
    path: &Path,
    decoder: &Decoder,
    method: &Method,
    sequence: &mut Sequence,
    messages: &[Message],
) -> Result<u64> {
    if sequence.tokens.is_empty() {
        return Err(Error::session(path, "would hold no token", "read a prompt before saving"));
    }
    sequence.cache.complete_sketch(method, decoder.config())?;
    let (cache, tokens) = (&sequence.cache, &sequence.tokens);
    let sketch = cache.sketched();
    let header = Header::new(decoder, cache.len(), cache.expected(), sketch.as_ref(), messages);
    let mut file = Writer::create(path, &header.to_json(path)?)?;
    let ids: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
    file.table(&ids)?;
    for layer in 0..decoder.config().num_hidden_layers {
        for table in cache.layer_data(layer)? {
            file.table(table.as_bytes())?;
        }
    }
    for layer in sketch.iter().flat_map(|(_, layers)| layers) {
        for table in cache.sketch_data(*layer)? {
            file.table(table.as_bytes())?;
        }
    }
    file.finish()
}

/// Reads a session of this model. Its sketch is taken over if `method` reads one; one that was saved without is
/// made when it is first read. `room` more tokens fit before the cache grows.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Session`] if it is damaged, or was saved with another model,
/// number format or profile.
pub fn load(path: &Path, decoder: &Decoder, method: &Method, room: usize) -> Result<Session> {
    let (mut file, json) = Reader::open(path)?;
    let header = Header::from_json(&json, path)?;
    header.check(decoder, path)?;
    let plan = match method {
        Method::Fasa { plan, .. } => Some(plan),
        _ => None,
    };
    header.check_plan(plan.map(AsRef::as_ref), path)?;
    let config = decoder.config();
    let layer = config.num_key_value_heads * header.tokens * config.head_dim * decoder.dtype().bytes();
    file.expect(header.tables(layer, config.num_hidden_layers))?;
    let mut cache = decoder.new_cache(header.tokens + room);
    cache.reserve(header.tokens + room)?;
    let mut ids = vec![0; 4 * header.tokens];
    file.table(&mut ids)?;
    let tokens: Vec<u32> = ids.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
    if let Some(id) = tokens.iter().find(|id| **id as usize >= decoder.config().vocab_size) {
        return Err(Error::session(path, format!("holds the token {id}, which the model has not"), SAVE_AGAIN));
    }
    for layer in 0..decoder.config().num_hidden_layers {
        cache.restore_layer(layer, header.tokens, &mut |bytes| file.table(bytes))?;
    }
    cache.advance(header.tokens);
    cache.expect(header.context);
    if let (Some(plan), Some(sketch)) = (plan, &header.sketch) {
        cache.restore_sketch(plan, &sketch.layers, &mut |bytes| file.table(bytes))?;
    }
    Ok(Session { sequence: Sequence { cache, tokens }, messages: header.messages })
}

const SAVE_AGAIN: &str = "save the session again with `--save-session`";
