//! The channels of plans on devices, uploaded once.

use super::refused;
use burn_cubecl::tensor::CubeTensor;
use fasa_core::Result;
use fasa_core::policy::OwnedPlan;
use fasa_cube::tip::Channels;
use std::sync::{Arc, Mutex, PoisonError, Weak};

struct Table {
    plan: Weak<OwnedPlan>,
    device: cubecl::Device,
    layers: Vec<Channels>,
}

/// A few: one per plan in use and device.
static TABLES: Mutex<Vec<Table>> = Mutex::new(Vec::new());

/// The channels of `layer` on the device of `beside`.
///
/// # Errors
/// [`fasa_core::Error::Range`] if the plan has no such layer.
pub(super) fn channels(beside: &CubeTensor, plan: &Arc<OwnedPlan>, layer: usize) -> Result<Channels> {
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    let weak = Arc::downgrade(plan);
    let known = tables.iter().position(|t| t.plan.ptr_eq(&weak) && t.device == beside.device);
    let index = match known {
        Some(index) => index,
        None => {
            tables.retain(|table| table.plan.strong_count() > 0);
            let layers = (0..plan.view().layers()).map(|layer| upload(beside, plan, layer)).collect::<Result<_>>()?;
            tables.push(Table { plan: weak, device: beside.device.clone(), layers });
            tables.len() - 1
        }
    };
    let missing = fasa_cube::Error::Shape { what: "layer", problem: "the plan has fewer layers" };
    tables[index].layers.get(layer).cloned().ok_or(refused(missing))
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
