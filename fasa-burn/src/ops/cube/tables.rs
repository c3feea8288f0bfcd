//! What decode steps share on a device: the channels of a plan, uploaded once, and memory that no layer needs for longer
//! than its own step.

use super::refused;
use burn_cubecl::tensor::CubeTensor;
use fasa_core::Result;
use fasa_core::policy::OwnedPlan;
use fasa_cube::step::{Choice, Scratch};
use fasa_cube::tip::Channels;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::ThreadId;

struct Table {
    plan: Weak<OwnedPlan>,
    device: cubecl::Device,
    layers: Vec<Channels>,
    scratches: Vec<(Use, Scratch)>,
}

/// Who may use a scratch. Each thread launches into a stream of its own, and steps of two would overwrite each other's.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Use {
    thread: ThreadId,
    /// Query heads, sketches, KV heads, rows.
    shape: [usize; 4],
    lists: usize,
}

/// A few: one per plan in use and device.
static TABLES: Mutex<Vec<Table>> = Mutex::new(Vec::new());

/// Scratches that a plan keeps: caches that grow leave some behind.
const SCRATCHES: usize = 4;

/// The channels of `layer` on the device of `beside`.
///
/// # Errors
/// [`fasa_core::Error::Range`] if the plan has no such layer.
pub(super) fn channels(beside: &CubeTensor, plan: &Arc<OwnedPlan>, layer: usize) -> Result<Channels> {
    let missing = fasa_cube::Error::Shape { what: "layer", problem: "the plan has fewer layers" };
    with(beside, plan, |table| table.layers.get(layer).cloned().ok_or(refused(missing)))
}

/// Memory for a step of `[query heads, sketches, KV heads, rows]`, the same for all layers of a sequence.
///
/// # Errors
/// [`fasa_core::Error::Range`] if heads do not divide.
pub(super) fn scratch(
    beside: &CubeTensor,
    plan: &Arc<OwnedPlan>,
    shape: [usize; 4],
    choice: Choice,
) -> Result<Scratch> {
    let wanted = Use { thread: std::thread::current().id(), shape, lists: choice.lists };
    with(beside, plan, |table| {
        if let Some((_, scratch)) = table.scratches.iter().find(|(known, _)| *known == wanted) {
            return Ok(scratch.clone());
        }
        let [query_heads, sketches, kv_heads, rows] = shape;
        let scratch =
            Scratch::new(&super::gpu(beside), query_heads, sketches, kv_heads, rows, choice).map_err(refused)?;
        if table.scratches.len() == SCRATCHES {
            table.scratches.remove(0);
        }
        table.scratches.push((wanted, scratch.clone()));
        Ok(scratch)
    })
}

/// What is on the device of `beside` for `plan`; put there first if it is not.
fn with<R>(beside: &CubeTensor, plan: &Arc<OwnedPlan>, read: impl FnOnce(&mut Table) -> Result<R>) -> Result<R> {
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    let weak = Arc::downgrade(plan);
    let known = tables.iter().position(|t| t.plan.ptr_eq(&weak) && t.device == beside.device);
    let index = match known {
        Some(index) => index,
        None => {
            tables.retain(|table| table.plan.strong_count() > 0);
            let layers = (0..plan.view().layers()).map(|layer| upload(beside, plan, layer)).collect::<Result<_>>()?;
            tables.push(Table { plan: weak, device: beside.device.clone(), layers, scratches: Vec::new() });
            tables.len() - 1
        }
    };
    read(&mut tables[index])
}

fn upload(beside: &CubeTensor, plan: &OwnedPlan, layer: usize) -> Result<Channels> {
    let plan = plan.view();
    let (mut channels, mut scale, mut centre) = (Vec::<u32>::new(), Vec::<f32>::new(), Vec::<f32>::new());
    for row in 0..plan.rows() {
        let head = plan.head(layer, row)?;
        channels.extend(head.channels().iter().map(|c| u32::from(*c)));
        scale.extend(head.scale());
        centre.extend(head.centre());
    }
    let client = &beside.client;
    Ok(Channels {
        channels: client.create_from_slice(bytemuck::cast_slice(&channels)),
        scale: client.create_from_slice(bytemuck::cast_slice(&scale)),
        centre: client.create_from_slice(bytemuck::cast_slice(&centre)),
    })
}
