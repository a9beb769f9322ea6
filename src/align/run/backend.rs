//! The backend for an alignment's products: the device of its options, if some of it may be used,
//! else memory.

use std::sync::Arc;

use crate::device::{Choice, Products};
use crate::engine::Options;
use crate::error::{Error, Kind, Result};
use crate::linalg::Backend;
use crate::plan::memory::DeviceWish;

/// Returns the bytes of the process's `memory` that a device takes: the driver's own, and those
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

/// Builds the backend for products.
///
/// # Errors
///
/// [`Kind::Device`] when the device has too little memory.
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

/// Names the backend for a report.
pub fn name(options: &Options, wish: Option<DeviceWish>) -> String {
    match options.device.as_ref().filter(|_| wish.is_some()) {
        Some(driver) => format!("{}, products by {}", driver.name(), driver.multiplier()),
        None => Choice::Cpu.to_string(),
    }
}

/// Marks a device's failure as resumable if steps are kept; returns other errors unchanged.
pub fn resumable(error: Error, kept: bool) -> Error {
    if kept && error.kind() == Kind::Device {
        error.resumable()
    } else {
        error
    }
}
