//! Opens the device that the user names, and plans the work on it.

use crate::budget::{format_bytes, resident_bytes};
use crate::device::{self, Choice, Driver, Opened, Products};
use crate::error::{Error, Kind, Result};
use crate::plan::memory::{DeviceWish, Wish};
use crate::plan::{Job, Plan};
use crate::recipe::{AlignFrom, Document};

use super::args::JobArgs;

/// The default share of a device's free memory that is used, in percent.
const SHARE: u64 = 80;
/// The least number of threads with a device: while one task copies, another computes.
const FEWEST_THREADS: usize = 2;

/// The device that was asked for, opened.
pub struct OpenedDevice {
    choice: Choice,
    opened: Opened,
    /// Host memory that the driver keeps resident, in bytes.
    host: u64,
    /// The limit on device memory in bytes, if one was given.
    memory: Option<u64>,
}

impl OpenedDevice {
    /// Opens the device of a merge: that of the command line, else that of the recipe.
    ///
    /// # Errors
    ///
    /// As [`OpenedDevice::open`].
    pub fn of(document: &Document, args: &JobArgs) -> Result<Self> {
        let choice = args.device.or(document.own.device);
        let align = document.own.align.as_ref();
        let multiplies = align.is_some_and(|align| matches!(align.from, AlignFrom::Weights(_)));
        Self::open(choice, args.device_memory, multiplies)
    }

    /// Opens the chosen device; if it `multiplies` matrices, loads the library for that too.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`] when a device was named that cannot be used, [`Kind::Usage`] when a memory
    /// limit is given without a device.
    pub fn open(choice: Option<Choice>, memory: Option<u64>, multiplies: bool) -> Result<Self> {
        let choice = choice.unwrap_or_default();
        if choice == Choice::Cpu && memory.is_some() {
            let cause = "there is no device to use it on";
            return Err(Error::new(
                Kind::Usage,
                "cannot use the command line",
                "--device-memory",
                cause,
            )
            .with_hint("give --device cuda too"));
        }
        // The driver keeps memory of its own, which counts against the user's limit.
        let before = resident_bytes();
        let opened = device::open(choice)?;
        if let Some(driver) = opened.driver.as_ref().filter(|_| multiplies) {
            driver.multiplier();
        }
        let host = match &opened.driver {
            Some(_) => resident_bytes()
                .zip(before)
                .map_or(0, |(now, before)| now.saturating_sub(before)),
            None => 0,
        };
        Ok(Self {
            choice,
            opened,
            host,
            memory,
        })
    }

    /// The device, or the reason for which the processor is used instead.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Returns the share of the device that an alignment may use; `None` without a device. With
    /// `auto`, a device that is too small is replaced by the processor from then on.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`] when its memory is too small.
    pub fn for_products(&mut self, wish: &Wish) -> Result<Option<DeviceWish>> {
        let Some(found) = self.wish() else {
            return Ok(None);
        };
        let fits = found
            .and_then(|found| Products::pinned_bytes(wish.memory, found.memory).map(|_| found));
        match fits {
            Err(error) if self.falls_back(&error) => {
                self.opened = Opened::instead_for(&error);
                Ok(None)
            }
            fits => fits.map(Some),
        }
    }

    /// Plans `job` and returns the plan with the device that carries it out.
    ///
    /// # Errors
    ///
    /// Any failure of planning. With `auto`, a device failure is none: the processor is
    /// used, and [`Opened::instead`] gives the reason.
    pub fn planned(self, job: &Job, wish: &Wish) -> Result<(Plan, Opened)> {
        let Some(found) = self.wish() else {
            return Ok((Plan::new(job, wish)?, self.opened));
        };
        let wish_here = Wish {
            threads: wish.threads.max(FEWEST_THREADS),
            ..*wish
        };
        match found.and_then(|found| Plan::with_device(job, &wish_here, Some(&found))) {
            Err(error) if self.falls_back(&error) => {
                Ok((Plan::new(job, wish)?, Opened::instead_for(&error)))
            }
            planned => Ok((planned?, self.opened)),
        }
    }

    fn wish(&self) -> Option<Result<DeviceWish>> {
        let driver = self.opened.driver.as_ref()?;
        Some(memory(&**driver, self.memory).map(|memory| DeviceWish {
            memory,
            host: self.host,
        }))
    }

    fn falls_back(&self, error: &Error) -> bool {
        self.choice == Choice::Auto && error.kind() == Kind::Device
    }
}

/// Returns the bytes of device memory to use.
fn memory(driver: &dyn Driver, wanted: Option<u64>) -> Result<u64> {
    let free = driver.free_bytes()?;
    match wanted {
        None => Ok(free / 100 * SHARE),
        Some(wanted) if wanted <= free => Ok(wanted),
        Some(wanted) => {
            let cause = format!(
                "wanted {}, {} are free",
                format_bytes(wanted),
                format_bytes(free)
            );
            Err(Error::new(
                Kind::Device,
                "not enough device memory",
                driver.name(),
                cause,
            )
            .with_hint("give a smaller --device-memory, or end other programs on the device"))
        }
    }
}
