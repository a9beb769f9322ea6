//! On what the products of an alignment are summed: on the device of its options, if some of that
//! may be used, else in memory.

use std::sync::Arc;

use crate::device::{Choice, Products};
use crate::engine::Options;
use crate::error::{Error, Kind, Result};
use crate::linalg::Backend;
use crate::plan::memory::DeviceWish;

/// Bytes that a device takes of the `memory` of the process: what its driver keeps, and what is
/// pinned for copies.
///
/// # Errors
///
/// [`Kind::Device`] when the device's memory is too small.
pub fn host_bytes(options: &Options, wish: Option<DeviceWish>, memory: u64) -> Result<u64> {
    match options.device.as_ref().and(wish) {
        Some(wish) => Ok(wish.host + Products::pinned_bytes(memory, wish.memory)?),
        None => Ok(0),
    }
}

/// The backend.
///
/// # Errors
///
/// [`Kind::Device`] when the device has not the memory.
pub fn backend(options: &Options, wish: Option<DeviceWish>, memory: u64) -> Result<Backend> {
    match options.device.as_ref().zip(wish) {
        Some((driver, wish)) => Ok(Backend::on(Arc::new(Products::new(
            Arc::clone(driver),
            memory,
            wish.memory,
        )?))),
        None => Ok(Backend::default()),
    }
}

/// What a report calls it.
pub fn name(options: &Options, wish: Option<DeviceWish>) -> String {
    match options.device.as_ref().filter(|_| wish.is_some()) {
        Some(driver) => format!("{}, products by {}", driver.name(), driver.multiplier()),
        None => Choice::Cpu.to_string(),
    }
}

/// The same error; where steps are kept and a device has failed, one after which the run can be
/// gone on with.
pub fn resumable(error: Error, kept: bool) -> Error {
    if kept && error.kind() == Kind::Device {
        error.resumable()
    } else {
        error
    }
}
