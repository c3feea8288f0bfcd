//! A GPU's cache with keys and values in the host's memory: the device has the sketch, and of the rows those that steps choose
//! again and again.
//!
//! In a sparse step of a layer the device scores the sketch and chooses. Where it can read the host's memory, it goes on by itself:
//! it keeps a book of the rows that it has, brings those that it lacks and attends. Elsewhere the host keeps the book and sends the
//! missing rows in one transfer. Everything else (prompts, layers that attend to everything, making the sketch) streams through the
//! device block by block.

mod kept;
mod whole;

use super::sketch::{SketchLayer, SketchTensors, Sketched};
use super::{HostOptions, Layout, TierPlace, TierUse, Traffic};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::cube::hosted::{self, Reach};
use crate::ops::cube::refused;
use crate::ops::{AttentionOptions, FasaStep};
use crate::rope::Angles;
use burn::tensor::Tensor;
use fasa_core::policy::OwnedPlan;
use fasa_cube::tier::{BLOCK, Book, HostRows, HostShape, Mapped, Packet, place};
use fasa_cube::{Format, Gpu};
use kept::{Kept, add};
use std::sync::Arc;

/// Host memory that a cache leaves to everything else.
const SPARE: u64 = 256 << 20;

pub(super) struct Hosted {
    layout: Layout,
    options: HostOptions,
    gpu: Gpu,
    rows: HostRows,
    sketched: Option<Sketched>,
    /// Per layer.
    kept: Vec<Option<Kept>>,
    pending: Option<Pending>,
    /// How the device reads the host's rows of each layer, once it was asked.
    mapped: Vec<Option<Mapped>>,
    /// Rows of each layer that were written so far.
    written: Vec<usize>,
    scratch: u64,
    traffic: Traffic,
    /// Rows at hand and rows fetched by books that are no more.
    retired: [u64; 2],
}

/// Rows that were computed and are not with the host yet.
struct Pending {
    layer: usize,
    position: usize,
    /// `[kv_heads, new, dim]` each.
    rows: [Tensor<3>; 2],
}

impl std::fmt::Debug for Hosted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hosted")
            .field("rows", &self.rows.shape())
            .field("traffic", &self.traffic)
            .finish_non_exhaustive()
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        // Steps that the device goes on with read and write this memory; one that failed does no longer.
        if self.mapped.iter().any(Option::is_some) {
            let _ = hosted::wait(&self.gpu);
        }
    }
}

impl Hosted {
    pub(super) fn new(layout: &Layout, options: HostOptions) -> Result<Self> {
        let Layout { layers, kv_heads: heads, dim, dtype, ref device, .. } = *layout;
        let format = match dtype {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::Bf16 => Format::Bf16,
        };
        let mut rows = HostRows::new(HostShape { layers, heads, dim, format });
        if let Some(bytes) = options.shared_beyond {
            rows.share_beyond(bytes);
        }
        let (mut kept, mut mapped) = (Vec::new(), Vec::new());
        kept.resize_with(layers, || None);
        mapped.resize_with(layers, || None);
        let (gpu, traffic) = (hosted::open(device)?, Traffic::default());
        Ok(Self {
            layout: layout.clone(),
            options,
            gpu,
            rows,
            sketched: None,
            kept,
            pending: None,
            mapped,
            written: vec![0; layers],
            scratch: 0,
            traffic,
            retired: [0; 2],
        })
    }

    /// Other options, but for what rows share; the rows that are on the device leave it.
    pub(super) fn set(&mut self, options: HostOptions) {
        self.options = options;
        (0..self.layout.layers).for_each(|layer| self.forget_kept(layer));
    }

    pub(super) fn host_bytes(&self) -> u64 {
        self.rows.bytes()
    }

    /// Bytes of sketches, kept rows, what choosing takes, and two blocks on their way.
    pub(super) fn device_bytes(&self) -> u64 {
        let sketches: u64 = self.sketched.iter().flat_map(|s| s.layers.iter().flatten()).map(SketchLayer::bytes).sum();
        let row = 2 * self.rows.shape().row() * self.layout.kv_heads;
        let kept = |kept: &Kept| (kept.rows.capacity * row) as u64 + kept.book.as_ref().map_or(0, Book::bytes);
        sketches
            + self.kept.iter().flatten().map(kept).sum::<u64>()
            + self.scratch
            + 2 * self.rows.shape().block() as u64
    }

    pub(super) fn used(&self) -> TierUse<'_> {
        let place = TierPlace::Host { pinned: self.rows.is_pinned().unwrap_or(false) };
        let books = self.kept.iter().flatten().map(|kept| kept.totals(&self.gpu));
        let [at_hand, fetched] = books.fold(self.retired, add);
        let mut traffic = self.traffic;
        traffic.rows_at_hand += at_hand;
        traffic.rows_fetched += fetched;
        traffic.bytes_read += fetched * 2 * self.rows.shape().row() as u64;
        TierUse { place, bytes: self.rows.bytes(), traffic }
    }

    /// Rows that are the host's own: see [`HostOptions::shared_beyond`].
    pub(super) fn own_rows(&self) -> usize {
        self.rows.own()
    }

    /// Room for `rows` tokens; returns for how many there is room now.
    pub(super) fn reserve(&mut self, rows: usize) -> Result<usize> {
        let shape = self.rows.shape();
        let wanted = shape.bytes(rows.min(self.rows.own()));
        let more = wanted.saturating_sub(self.rows.bytes());
        let lacking = |left: u64| {
            Err(Error::Device {
                problem: format!(
                    "leaves keys and values to the host's memory, where {rows} tokens take {wanted} bytes and {left} are left"
                ),
                mend: "shorten the context, use `--dtype f16`, or end what else takes memory".into(),
            })
        };
        match fasa_cpu::machine::available_memory() {
            Some(left) if more > 0 && more + SPARE > left => return lacking(left),
            _ => {}
        }
        let before = self.rows.capacity();
        if self.rows.reserve(&self.gpu.client, rows).is_err() {
            return lacking(0);
        }
        if self.rows.capacity() != before {
            self.mapped.fill_with(|| None);
        }
        Ok(self.rows.capacity())
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.pending = None;
        for sketch in self.sketched.iter_mut().flat_map(|sketched| sketched.layers.iter_mut().flatten()) {
            sketch.len = sketch.len.min(len);
        }
        for slots in self.kept.iter_mut().flatten().flat_map(|kept| &mut kept.slots) {
            slots.truncate(len as u32);
        }
    }

    /// See [`KvCache::append`](super::KvCache::append): the rows stay on the device until the layer has attended.
    pub(super) fn append(&mut self, layer: usize, position: usize, qkv: Tensor<2>, angles: &Angles) -> Tensor<3> {
        let Layout { kv_heads, dim, dtype, .. } = self.layout;
        let (queries, rows) = hosted::append(qkv, angles, kv_heads, dim, dtype);
        self.pending = Some(Pending { layer, position, rows });
        queries
    }

    /// The rows that were appended to `layer` last, from `position` on.
    fn appended(&mut self, layer: usize, position: usize) -> [Tensor<3>; 2] {
        match self.pending.take() {
            Some(pending) if (pending.layer, pending.position) == (layer, position) => pending.rows,
            _ => unreachable!("a layer attends after its rows were appended"),
        }
    }

    /// Writes rows from `position` on, `[kv_heads, new, dim]` each.
    pub(super) fn write(&mut self, layer: usize, position: usize, keys: Tensor<3>, values: Tensor<3>) -> Result<()> {
        let [keys, values] = hosted::bytes([keys, values])?;
        self.put(layer, position, &keys, &values)
    }

    /// No row of `layer` is on the device any more.
    fn forget_kept(&mut self, layer: usize) {
        if let Some(old) = self.kept[layer].take() {
            self.retired = add(self.retired, old.totals(&self.gpu));
        }
    }

    fn put(&mut self, layer: usize, position: usize, keys: &[u8], values: &[u8]) -> Result<()> {
        let new = keys.len() / self.layout.kv_heads / self.rows.shape().row();
        // A book on the device knows of rows that were cut off and came again only if they came one by one, in steps of its own.
        if self.kept[layer].as_ref().is_some_and(|kept| kept.book.is_some()) && position < self.written[layer] {
            self.forget_kept(layer);
        }
        self.written[layer] = self.written[layer].max(position + new);
        self.rows.write(layer, position, keys, values).map_err(refused)?;
        self.traffic.bytes_written += (keys.len() + values.len()) as u64;
        Ok(())
    }

    /// Several tokens, or one that attends to all rows: `[new, query_heads, head_dim]`, the last of the first `len` rows.
    pub(super) fn causal_attention(
        &mut self,
        layer: usize,
        queries: Tensor<3>,
        len: usize,
        options: AttentionOptions,
    ) -> Result<Tensor<3>> {
        let position = len - queries.dims()[0];
        let own = self.appended(layer, position);
        let out = hosted::causal_attention(queries, &self.rows, layer, position, own.clone(), options)?;
        self.traffic.bytes_read += (position.div_ceil(BLOCK) * self.rows.shape().block()) as u64;
        let [keys, values] = own;
        self.write(layer, position, keys, values)?;
        Ok(out)
    }

    pub(super) fn fasa_decode(&mut self, queries: Tensor<3>, step: &FasaStep) -> Result<Tensor<3>> {
        let (layer, position, heads) = (step.layer, step.len - 1, self.layout.kv_heads);
        let new = self.appended(layer, position);
        self.complete(layer, position, &step.plan)?;
        let tables = self.note_sketch(layer, step.len);
        hosted::write_sketch_row(new[0].clone(), tables.clone(), &step.plan, layer, step.len)?;
        let chosen = hosted::choose_rows(queries.clone(), heads, tables, step)?;
        self.scratch = chosen.scratch;
        self.make_kept(layer, chosen.lists, chosen.budget);
        if let Some(rows) = self.mapped(layer) {
            let kept = self.kept[layer].as_ref().and_then(|kept| kept.book.as_ref().map(|book| (&kept.rows, book)));
            let out = hosted::attend_reached(queries, Reach { rows: &rows, kept }, &chosen, new, step)?;
            self.note_reached(layer, step.len);
            return Ok(out);
        }
        let (positions, new) = hosted::read_choice(&self.gpu, &chosen, new, step)?;
        self.put(layer, position, &new[0], &new[1])?;
        let packet = self.gather(layer, &positions)?;
        let Some(kept) = &self.kept[layer] else { unreachable!("made above") };
        let slots = place(&self.gpu, packet, &kept.rows).map_err(refused)?;
        hosted::attend_slots(queries, &kept.rows, &slots, chosen.budget, chosen.lists)
    }

    /// How the device reads the host's rows of `layer` by itself, where it can and keeps a book of them.
    fn mapped(&mut self, layer: usize) -> Option<Mapped> {
        let book = self.kept[layer].as_ref().is_some_and(|kept| kept.book.is_some());
        if self.options.host_gathers || (!book && self.options.kept_per_chosen > 0) {
            return None;
        }
        if self.mapped[layer].is_none() {
            self.mapped[layer] = Mapped::new(&self.gpu, &self.rows, layer);
        }
        self.mapped[layer].clone()
    }

    /// Rows that stay on the device, and the book of them, with room for a step that chooses `lists` times `budget` rows.
    fn make_kept(&mut self, layer: usize, lists: usize, budget: usize) {
        let (gpu, per_head) = (&self.gpu, lists / self.layout.kv_heads * budget);
        let slots = self.options.slots(per_head, budget);
        match &self.kept[layer] {
            Some(kept) if kept.rows.capacity >= per_head => {}
            _ => {
                if let Some(old) = self.kept[layer].take() {
                    self.retired = add(self.retired, old.totals(gpu));
                }
                let on_device = self.options.kept_per_chosen > 0
                    && !self.options.host_gathers
                    && Mapped::new(gpu, &self.rows, layer).is_some()
                    && Book::fits(gpu, slots, per_head);
                self.kept[layer] = Some(Kept::new(gpu, &self.layout, self.rows.shape().format, slots, on_device));
            }
        }
        if let Some(kept) = &mut self.kept[layer] {
            kept.per_step = [lists * budget, lists].map(|n| n as u64);
        }
    }

    /// The device went on by itself: `layer` has rows of `tokens`.
    fn note_reached(&mut self, layer: usize, tokens: usize) {
        self.written[layer] = self.written[layer].max(tokens);
        // A step that is recorded goes through here twice.
        if let Some(kept) = &mut self.kept[layer]
            && kept.last != tokens
        {
            (kept.last, kept.chosen) = (tokens, add(kept.chosen, kept.per_step));
            self.traffic.bytes_written += (2 * self.rows.shape().row() * self.layout.kv_heads) as u64;
        }
    }

    /// Finds slots for the chosen rows, `[lists, budget]`, and gathers those that the device lacks.
    fn gather(&mut self, layer: usize, positions: &[u32]) -> Result<Packet> {
        let per_head = positions.len() / self.layout.kv_heads;
        let Some(kept) = &mut self.kept[layer] else { unreachable!("made before rows were chosen") };
        let (mut slots, mut missing, mut of_head) = (Vec::with_capacity(positions.len()), vec![], vec![]);
        for (head, (book, positions)) in kept.slots.iter_mut().zip(positions.chunks_exact(per_head)).enumerate() {
            if self.options.kept_per_chosen == 0 {
                book.clear();
            }
            book.place(positions, &mut slots, &mut of_head);
            // The new token's row is among the missing ones, and was at hand.
            let fetched = of_head.len() - 1;
            self.traffic.rows_at_hand += (per_head - fetched) as u64;
            self.traffic.rows_fetched += fetched as u64;
            missing.extend(of_head.drain(..).map(|(position, slot)| [head as u32, position, slot]));
        }
        let packet = Packet::gather(&self.rows, layer, &slots, &missing, kept.rows.capacity);
        let packet = packet.map_err(refused)?;
        self.traffic.bytes_read += packet.bytes() as u64;
        Ok(packet)
    }

    /// Makes the rows that the sketch of `layer` lacks of the first `seen` tokens, which the host has.
    pub(super) fn complete(&mut self, layer: usize, seen: usize, plan: &Arc<OwnedPlan>) -> Result<()> {
        if self.sketched.as_ref().is_none_or(|s| !Arc::ptr_eq(&s.plan, plan)) {
            let layers = (0..self.layout.layers).map(|_| None).collect();
            self.sketched = Some(Sketched { plan: plan.clone(), layers });
        }
        let Some(sketched) = &mut self.sketched else { unreachable!("set above") };
        let (slot, room, device) = (&mut sketched.layers[layer], self.rows.capacity(), &self.layout.device);
        // Each table has memory of its own: in the pages of a pool, sketches of long contexts would leave as much again unused.
        let alone = |make: &mut (dyn FnMut() + Send)| self.gpu.client.memory_dedicated_allocation((), |()| make());
        if slot.is_none() {
            alone(&mut || *slot = Some(SketchLayer::new(plan, room, device)));
        }
        let Some(sketch) = slot else { unreachable!("made above") };
        // Room for the new token, and for those that a recorded step may be taken with.
        if sketch.capacity() < room.max(seen + 1) {
            alone(&mut || sketch.grow(plan, room.max(sketch.capacity() * 9 / 8), device));
        }
        while sketch.len < seen {
            let index = sketch.len / BLOCK;
            let rows = sketch.len..seen.min((index + 1) * BLOCK);
            let (tables, end) = (sketch.tensors.get(), rows.end);
            hosted::write_sketch(&self.rows, index, tables, plan, layer, rows)?;
            self.traffic.bytes_read += self.rows.shape().block() as u64 / 2;
            sketch.len = end;
        }
        Ok(())
    }

    /// The sketch of `layer`, of which `len` rows are going to be written.
    fn note_sketch(&mut self, layer: usize, len: usize) -> SketchTensors {
        let slot = self.sketched.as_mut().and_then(|sketched| sketched.layers[layer].as_mut());
        let Some(sketch) = slot else { unreachable!("completed before") };
        sketch.len = sketch.len.max(len);
        sketch.tensors.get()
    }

    /// Whether steps by `plan` never wait for the host, so that they can be recorded.
    pub(super) fn stays_on_device(&self, plan: &OwnedPlan) -> bool {
        plan.view().config().dense_layers == 0
            && !self.options.host_gathers
            && self.mapped.iter().all(Option::is_some)
            && self.kept.iter().flatten().all(|kept| kept.book.is_some() || self.options.kept_per_chosen == 0)
    }

    /// Tokens that have a sketch row under `plan` in every layer that has a sketch.
    pub(super) fn sketched_tokens(&self, plan: &Arc<OwnedPlan>) -> Option<usize> {
        let sketched = self.sketched.as_ref().filter(|sketched| Arc::ptr_eq(&sketched.plan, plan))?;
        sketched.layers.iter().flatten().map(|layer| layer.len).min()
    }

    /// A recorded step has gone through all layers, the last of `tokens`.
    pub(super) fn note_step(&mut self, tokens: usize) {
        for layer in 0..self.layout.layers {
            self.note_sketch(layer, tokens);
            self.note_reached(layer, tokens);
        }
    }
}
