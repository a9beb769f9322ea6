//! From the name of a device to a plan that it carries out.

use crate::budget::{format_bytes, resident_bytes};
use crate::device::{self, Choice, Driver, Opened};
use crate::error::{Error, Kind, Result};
use crate::plan::memory::{DeviceWish, Wish};
use crate::plan::{Job, Plan};
use crate::recipe::Document;

use super::args::JobArgs;

/// The part of a device's free memory that is taken when nobody says otherwise, in percent.
const SHARE: u64 = 80;
/// While one task copies, another computes.
const FEWEST_THREADS: usize = 2;

/// The plan of `job`, and the device that is to carry it out; by the command line, else by the recipe.
///
/// # Errors
///
/// What planning fails with; [`Kind::Device`] when a device was named that cannot be used. Where it was left to us,
/// [`Opened::instead`] says why it is the processor.
pub fn planned(job: &Job, document: &Document, wish: &Wish, args: &JobArgs) -> Result<(Plan, Opened)> {
    let choice = args.device.or(document.own.device).unwrap_or_default();
    if choice == Choice::Cpu && args.device_memory.is_some() {
        let cause = "there is no device to use it on";
        return Err(Error::new(Kind::Usage, "cannot use the command line", "--device-memory", cause)
            .with_hint("give --device cuda too"));
    }
    // The driver keeps memory of its own, which is part of what the user has allowed.
    let before = resident_bytes();
    let opened = device::open(choice)?;
    let Some(driver) = &opened.driver else { return Ok((Plan::new(job, wish)?, opened)) };
    let host = resident_bytes().zip(before).map_or(0, |(now, before)| now.saturating_sub(before));
    let wish_here = Wish { threads: wish.threads.max(FEWEST_THREADS), ..*wish };
    let planned = memory(&**driver, args.device_memory)
        .and_then(|memory| Plan::with_device(job, &wish_here, Some(&DeviceWish { memory, host })));
    match planned {
        Err(error) if choice == Choice::Auto && error.kind() == Kind::Device => {
            let opened = Opened { driver: None, instead: Some(error.to_string()) };
            Ok((Plan::new(job, wish)?, opened))
        }
        planned => Ok((planned?, opened)),
    }
}

/// How much of the device's memory is used.
fn memory(driver: &dyn Driver, wanted: Option<u64>) -> Result<u64> {
    let free = driver.free_bytes()?;
    match wanted {
        None => Ok(free / 100 * SHARE),
        Some(wanted) if wanted <= free => Ok(wanted),
        Some(wanted) => {
            let cause = format!("wanted {}, {} are free", format_bytes(wanted), format_bytes(free));
            Err(Error::new(Kind::Device, "not enough device memory", driver.name(), cause)
                .with_hint("give a smaller --device-memory, or end other programs on the device"))
        }
    }
}
