//! The device that a user asks for, and opening it.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

use super::Driver;

/// The device to compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Choice {
    /// On the processor.
    #[default]
    Cpu,
    /// On the CUDA device of this number.
    Cuda(u32),
    /// On the first CUDA device if there is a usable one, else on the processor.
    Auto,
}

impl Choice {
    /// Parses `cpu`, `cuda`, `cuda:N` or `auto`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            "auto" => Some(Self::Auto),
            _ => {
                let number = text
                    .strip_prefix("cuda:")
                    .filter(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))?;
                Some(Self::Cuda(number.parse().ok()?))
            }
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl Serialize for Choice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The outcome of opening a choice.
#[derive(Default)]
pub struct Opened {
    /// The device; `None` for the processor.
    pub driver: Option<Arc<dyn Driver>>,
    /// The reason for which the processor is used instead of a device.
    pub instead: Option<String>,
}

impl Opened {
    /// The warning for a user when the processor computes instead of a device.
    pub fn instead_notice(&self) -> Option<String> {
        self.instead
            .as_ref()
            .map(|reason| format!("computed on the cpu: {reason}"))
    }

    /// The processor, instead of a device that fails with `error`.
    pub fn instead_for(error: &Error) -> Self {
        Self {
            driver: None,
            instead: Some(error.to_string()),
        }
    }
}

/// Opens what `choice` names.
///
/// # Errors
///
/// [`Kind::Device`](crate::error::Kind::Device) when a device was named and cannot be used: the
/// driver is missing or too old, there is no such device, or it is too old. [`Choice::Auto`] takes
/// the processor then, and gives the reason.
pub fn open(choice: Choice) -> Result<Opened> {
    match choice {
        Choice::Cpu => Ok(Opened::default()),
        Choice::Cuda(number) => Ok(Opened {
            driver: Some(cuda(number)?),
            instead: None,
        }),
        Choice::Auto => Ok(match cuda(0) {
            Ok(driver) => Opened {
                driver: Some(driver),
                instead: None,
            },
            Err(error) => Opened::instead_for(&error),
        }),
    }
}

#[cfg(feature = "cuda")]
fn cuda(number: u32) -> Result<Arc<dyn Driver>> {
    Ok(Arc::new(super::cuda::Cuda::open(number)?))
}

#[cfg(not(feature = "cuda"))]
fn cuda(number: u32) -> Result<Arc<dyn Driver>> {
    use crate::error::Kind;
    Err(Error::new(
        Kind::Device,
        "cannot use device",
        Choice::Cuda(number),
        "this program was built without cuda",
    )
    .with_hint("build it with the feature cuda, which is on by default, or leave out --device"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_understood_and_nothing_else() {
        let known = [
            ("cpu", Choice::Cpu),
            ("cuda:0", Choice::Cuda(0)),
            ("cuda:17", Choice::Cuda(17)),
        ];
        for (text, choice) in known.into_iter().chain([("auto", Choice::Auto)]) {
            assert_eq!(Choice::parse(text), Some(choice));
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!(Choice::parse("cuda"), Some(Choice::Cuda(0)));
        for odd in [
            "",
            "CUDA",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:1x",
            "cuda:99999999999",
            "gpu",
            "rocm",
        ] {
            assert_eq!(Choice::parse(odd), None, "{odd}");
        }
    }
}
