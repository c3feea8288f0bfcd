//! Keys and values in the second tier of the processor: a file, and the sketch in memory.

use super::{Layout, TierPlace, TierUse};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::model::to_host;
use crate::ops::cpu::{self, KeyRows, SketchTables};
use crate::ops::{AttentionOptions, FasaStep, SketchStep, Status, note};
use crate::rope::Angles;
use burn::tensor::{Device, Tensor, TensorCreationOptions, TensorData};
use fasa_core::policy::OwnedPlan;
use fasa_cpu::tier::{Format, Tier, TierLayer, TierShape};
use fasa_cpu::{LayerSketch, Numbers};
use half::f16;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Rows that are made into a sketch at once.
const ROWS: usize = 256;

#[derive(Debug)]
pub(super) struct Tiered {
    tier: Tier,
    device: Device,
    sketched: Option<Sketched>,
}

/// Sketches of all sparse layers for one plan.
#[derive(Debug)]
struct Sketched {
    plan: Arc<OwnedPlan>,
    layers: Vec<Option<Sketch>>,
}

/// The sketch of one layer: codes `[sketch_heads, capacity, row_bytes]`, row scales alike.
#[derive(Debug, Default)]
struct Sketch {
    codes: Vec<u8>,
    scales: Vec<u8>,
    capacity: usize,
    /// Rows that are written.
    len: usize,
}

impl Tiered {
    pub(super) fn create(folder: &Path, layout: &Layout) -> Result<Self> {
        let Layout { layers, kv_heads, dim, dtype, ref device, .. } = *layout;
        let format = match dtype {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::Bf16 => {
                return Err(Error::request(
                    "dtype",
                    "is bf16, which a tiered cache does not hold",
                    "use `--dtype f16`",
                ));
            }
        };
        let tier = Tier::create(folder, TierShape { layers, kv_heads, dim, format })?;
        Ok(Self { tier, device: device.clone(), sketched: None })
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.tier.file_bytes()
    }

    /// Bytes of sketches and of recently chosen rows.
    pub(super) fn memory_bytes(&self) -> u64 {
        let sketches = self.sketched.iter().flat_map(|sketched| sketched.layers.iter().flatten());
        let bytes: usize = sketches.map(|sketch| sketch.codes.len() + sketch.scales.len()).sum();
        bytes as u64 + self.tier.resident_bytes()
    }

    pub(super) fn used(&self) -> TierUse<'_> {
        let tier = &self.tier;
        TierUse { place: TierPlace::File(tier.folder()), bytes: tier.file_bytes(), traffic: tier.traffic() }
    }

    /// Room for `rows` tokens; returns for how many there is room now.
    pub(super) fn reserve(&mut self, rows: usize) -> Result<usize> {
        self.tier.reserve(rows)?;
        Ok(self.tier.capacity())
    }

    pub(super) fn truncate(&mut self, len: usize) {
        for sketch in self.sketched.iter_mut().flat_map(|sketched| sketched.layers.iter_mut().flatten()) {
            sketch.len = sketch.len.min(len);
        }
    }

    /// See [`KvCache::append`](super::KvCache::append).
    pub(super) fn append(&self, layer: usize, position: usize, qkv: Tensor<2>, angles: &Angles) -> Result<Tensor<3>> {
        let new = qkv.dims()[0];
        let (qkv, cos, sin) = (to_host(qkv)?, to_host(angles.cos())?, to_host(angles.sin())?);
        let TierShape { kv_heads, dim, format, .. } = self.tier.shape();
        let (size, shape, place) = (kv_heads * new * dim, [kv_heads, new, dim], [new, 0]);
        let queries = match format {
            Format::F32 => {
                let (mut keys, mut values) = (vec![0.0f32; size], vec![0.0f32; size]);
                let queries = cpu::append(&qkv, [&cos, &sin], [&mut keys, &mut values], shape, place);
                self.tier.write(layer, position, keys[..].into(), values[..].into())?;
                queries
            }
            Format::F16 => {
                let (mut keys, mut values) = (vec![f16::ZERO; size], vec![f16::ZERO; size]);
                let queries = cpu::append(&qkv, [&cos, &sin], [&mut keys, &mut values], shape, place);
                self.tier.write(layer, position, keys[..].into(), values[..].into())?;
                queries
            }
        };
        let heads = queries.len() / new / dim;
        Ok(self.tensor(queries, [new, heads, dim]))
    }

    /// Writes rows from `position` on, `[kv_heads, new, dim]` each.
    pub(super) fn write(&self, layer: usize, position: usize, keys: Tensor<3>, values: Tensor<3>) -> Result<()> {
        let [keys, values] = [data(keys)?, data(values)?];
        match self.tier.shape().format {
            Format::F32 => self.tier.write(layer, position, numbers::<f32>(&keys), numbers::<f32>(&values))?,
            Format::F16 => self.tier.write(layer, position, numbers::<f16>(&keys), numbers::<f16>(&values))?,
        }
        Ok(())
    }

    /// Writes the first `len` rows of a cache that lay on the device.
    pub(super) fn take_in(&self, layer: usize, (keys, values): (Tensor<3>, Tensor<3>), len: usize) -> Result<()> {
        for from in (0..len).step_by(4096) {
            let count = 4096.min(len - from);
            self.write(layer, from, keys.clone().narrow(1, from, count), values.clone().narrow(1, from, count))?;
        }
        Ok(())
    }

    /// Copies of the first `len` rows, `[kv_heads, len, dim]` each.
    pub(super) fn rows(&self, layer: usize, len: usize) -> Result<(Tensor<3>, Tensor<3>)> {
        let TierShape { kv_heads, dim, format, .. } = self.tier.shape();
        let shape = [kv_heads, len, dim];
        let tensor = |data: TensorData, dtype: Dtype| {
            let options = TensorCreationOptions::new(self.device.clone()).with_dtype(dtype.float().into());
            Tensor::from_data(data, options)
        };
        Ok(match format {
            Format::F32 => {
                let (keys, values) = self.read::<f32>(layer, 0..len)?;
                let [keys, values] = [keys, values].map(|rows| tensor(TensorData::new(rows, shape), Dtype::F32));
                (keys, values)
            }
            Format::F16 => {
                let (keys, values) = self.read::<f16>(layer, 0..len)?;
                let [keys, values] = [keys, values].map(|rows| tensor(TensorData::new(rows, shape), Dtype::F16));
                (keys, values)
            }
        })
    }

    fn read<E: bytemuck::Pod>(&self, layer: usize, rows: Range<usize>) -> Result<(Vec<E>, Vec<E>)> {
        let TierShape { kv_heads, dim, .. } = self.tier.shape();
        let size = kv_heads * rows.len() * dim;
        let (mut keys, mut values) = (vec![E::zeroed(); size], vec![E::zeroed(); size]);
        let bytes = (bytemuck::cast_slice_mut(&mut keys), bytemuck::cast_slice_mut(&mut values));
        self.tier.read(layer, rows, bytes.0, bytes.1)?;
        Ok((keys, values))
    }

    pub(super) fn causal_attention(
        &self,
        layer: usize,
        queries: Tensor<3>,
        len: usize,
        options: AttentionOptions,
    ) -> Result<Tensor<3>> {
        let shape = queries.dims();
        self.attend(queries, |queries, out| {
            Ok(self.layer(layer, len, options)?.causal_attention(queries, shape[1], out)?)
        })
    }

    pub(super) fn dense_decode(
        &self,
        layer: usize,
        queries: Tensor<3>,
        len: usize,
        options: AttentionOptions,
    ) -> Result<Tensor<3>> {
        self.attend(queries, |queries, out| Ok(self.layer(layer, len, options)?.dense_decode(queries, out)?))
    }

    pub(super) fn fasa_decode(&mut self, queries: Tensor<3>, step: &FasaStep) -> Result<Tensor<3>> {
        self.complete(step.layer, step.len, &step.plan)?;
        let Some(sketch) = self.sketch_of(step.layer) else { unreachable!("completed above") };
        let plan = step.plan.view();
        let (precision, chunks) = (plan.config().precision, plan.chunks());
        self.attend(queries, |queries, out| {
            let sketch =
                LayerSketch::new(&sketch.codes, &sketch.scales, precision, chunks, plan.rows(), sketch.capacity)?;
            let rows = self.layer(step.layer, step.len, AttentionOptions { window: None, softcap: step.softcap })?;
            let selected = rows.fasa_decode(queries, &sketch, &plan, step.budget, out)?;
            note(&step.recorder, step.layer, selected);
            Ok(())
        })
    }

    fn layer(&self, layer: usize, len: usize, options: AttentionOptions) -> Result<TierLayer<'_>> {
        let rows = self.tier.layer(layer, len)?;
        Ok(rows.within(options.window.unwrap_or(usize::MAX)).capped(options.softcap.unwrap_or(0.0)))
    }

    /// Runs a kernel on the numbers of `queries`, `[new, query_heads, dim]`; the result has their shape.
    fn attend(&self, queries: Tensor<3>, kernel: impl FnOnce(&[f32], &mut [f32]) -> Result<()>) -> Result<Tensor<3>> {
        let (shape, queries) = (queries.dims(), to_host(queries)?);
        let mut out = vec![0.0; queries.len()];
        kernel(&queries, &mut out)?;
        Ok(self.tensor(out, shape))
    }

    fn tensor(&self, numbers: Vec<f32>, shape: [usize; 3]) -> Tensor<3> {
        Tensor::from_data(TensorData::new(numbers, shape), &self.device)
    }

    fn sketch_of(&self, layer: usize) -> Option<&Sketch> {
        self.sketched.as_ref().and_then(|sketched| sketched.layers[layer].as_ref())
    }

    /// Makes the rows that the sketch of `layer` lacks of the first `seen` tokens: one per decode step, or all of them when
    /// FASA is turned on.
    pub(super) fn complete(&mut self, layer: usize, seen: usize, plan: &Arc<OwnedPlan>) -> Result<()> {
        if self.sketched.as_ref().is_none_or(|s| !Arc::ptr_eq(&s.plan, plan)) {
            let layers = (0..self.tier.shape().layers).map(|_| None).collect();
            self.sketched = Some(Sketched { plan: plan.clone(), layers });
        }
        // Taken out while it grows: the rows are read by `self`.
        let slot = self.sketched.as_mut().map(|sketched| &mut sketched.layers[layer]);
        let mut sketch = slot.and_then(Option::take).unwrap_or_default();
        let made = self.write_sketch(layer, seen, plan, &mut sketch);
        if let Some(sketched) = &mut self.sketched {
            sketched.layers[layer] = Some(sketch);
        }
        made
    }

    fn write_sketch(&self, layer: usize, seen: usize, plan: &Arc<OwnedPlan>, sketch: &mut Sketch) -> Result<()> {
        if sketch.len >= seen {
            return Ok(());
        }
        let (view, TierShape { kv_heads, dim, format, .. }) = (plan.view(), self.tier.shape());
        sketch.reserve(seen.max(self.tier.capacity()), &view);
        while sketch.len < seen {
            let rows = sketch.len..(sketch.len + ROWS).min(seen);
            let status = Status::default();
            let step = SketchStep { layer, rows: rows.clone(), plan: plan.clone(), status: status.clone() };
            let shape = [kv_heads, rows.len(), dim];
            let tables =
                SketchTables { codes: &mut sketch.codes, scales: &mut sketch.scales, capacity: sketch.capacity };
            match format {
                Format::F32 => {
                    let (keys, _) = self.read::<f32>(layer, rows.clone())?;
                    cpu::write_sketch(
                        KeyRows { numbers: Numbers::F32(&keys), shape, first: rows.start },
                        tables,
                        &step,
                    );
                }
                Format::F16 => {
                    let (keys, _) = self.read::<f16>(layer, rows.clone())?;
                    cpu::write_sketch(
                        KeyRows { numbers: Numbers::F16(&keys), shape, first: rows.start },
                        tables,
                        &step,
                    );
                }
            }
            status.into_result()?;
            sketch.len = rows.end;
        }
        Ok(())
    }

    /// The plan of the sketch, and the layers that have a row for each of `len` tokens.
    pub(super) fn sketched(&self, len: usize) -> Option<(&OwnedPlan, Vec<usize>)> {
        let sketched = self.sketched.as_ref()?;
        let complete = |layer: &usize| sketched.layers[*layer].as_ref().is_some_and(|sketch| sketch.len == len);
        let layers: Vec<usize> = (0..sketched.layers.len()).filter(complete).collect();
        (!layers.is_empty()).then_some((&sketched.plan, layers))
    }

    /// Codes and row scales of the first `len` rows, `[sketch_heads, len, bytes]` each.
    pub(super) fn sketch_data(&self, layer: usize, len: usize) -> Vec<TensorData> {
        let Some((sketched, sketch)) = self.sketched.as_ref().zip(self.sketch_of(layer)) else { return Vec::new() };
        let view = sketched.plan.view();
        let precision = view.config().precision;
        let tables = [(&sketch.codes, precision.row_bytes(view.chunks())), (&sketch.scales, precision.scale_bytes())];
        let data = |(table, bytes): (&Vec<u8>, usize)| {
            let heads = table.chunks_exact(sketch.capacity * bytes).flat_map(|head| &head[..len * bytes]);
            TensorData::new(heads.copied().collect::<Vec<u8>>(), [view.rows(), len, bytes])
        };
        tables.into_iter().filter(|(_, bytes)| *bytes > 0).map(data).collect()
    }

    /// Puts a stored sketch of `len` rows in place. See [`KvCache::restore_sketch`](super::KvCache::restore_sketch).
    pub(super) fn restore_sketch(
        &mut self,
        plan: &Arc<OwnedPlan>,
        layers: &[usize],
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let view = plan.view();
        let precision = view.config().precision;
        let mut all: Vec<Option<Sketch>> = (0..self.tier.shape().layers).map(|_| None).collect();
        for layer in layers {
            let mut sketch = Sketch::default();
            sketch.reserve(self.tier.capacity(), &view);
            let (row, scale, capacity) = (precision.row_bytes(view.chunks()), precision.scale_bytes(), sketch.capacity);
            for (table, bytes) in [(&mut sketch.codes, row), (&mut sketch.scales, scale)] {
                if bytes == 0 {
                    continue;
                }
                let mut rows = vec![0; view.rows() * len * bytes];
                fill(&mut rows)?;
                for (to, from) in table.chunks_exact_mut(capacity * bytes).zip(rows.chunks_exact(len * bytes)) {
                    to[..from.len()].copy_from_slice(from);
                }
            }
            sketch.len = len;
            all[*layer] = Some(sketch);
        }
        self.sketched = Some(Sketched { plan: plan.clone(), layers: all });
        Ok(())
    }
}

impl Sketch {
    /// Room for `rows` rows; doubles where it must grow.
    fn reserve(&mut self, rows: usize, plan: &fasa_core::policy::Plan<'_>) {
        if rows <= self.capacity {
            return;
        }
        let (precision, old) = (plan.config().precision, self.capacity);
        self.capacity = rows.max(2 * old);
        for (table, bytes) in
            [(&mut self.codes, precision.row_bytes(plan.chunks())), (&mut self.scales, precision.scale_bytes())]
        {
            let mut grown = vec![0; plan.rows() * self.capacity * bytes];
            if bytes > 0 && old > 0 {
                let heads = grown.chunks_exact_mut(self.capacity * bytes).zip(table.chunks_exact(old * bytes));
                heads.for_each(|(to, from)| to[..from.len()].copy_from_slice(from));
            }
            *table = grown;
        }
    }
}

fn data(tensor: Tensor<3>) -> Result<TensorData> {
    tensor.try_into_data().map_err(|e| crate::device::failure(&e.to_string()))
}

/// The numbers of a tensor of that format.
fn numbers<'a, E: burn::tensor::Element + bytemuck::Pod>(data: &'a TensorData) -> Numbers<'a>
where
    &'a [E]: Into<Numbers<'a>>,
{
    let numbers: &'a [E] = bytemuck::cast_slice(data.as_bytes());
    numbers.into()
}
