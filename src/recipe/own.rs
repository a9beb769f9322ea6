//! The keys that mergekit does not have.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::align::Align;
use super::rename::Rename;
use super::write::entry;
use crate::device::Choice;

/// What a recipe says beyond mergekit's keys; what it does not say is left to the command line and
/// the defaults.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OwnKeys {
    /// What a mean is taken over.
    pub granularity: Option<Granularity>,
    /// What to do when shapes differ.
    pub mismatch: Option<Mismatch>,
    /// What to do when a tensor is not in every model.
    pub missing: Option<Missing>,
    /// What to do with NaN and infinity in an input.
    pub nan: Option<NanPolicy>,
    /// The largest shard in bytes.
    pub out_shard_size: Option<u64>,
    /// The most memory in bytes.
    pub memory: Option<u64>,
    /// How many threads compute.
    pub threads: Option<u32>,
    /// The zstd level at which shards are compressed.
    pub zstd: Option<i32>,
    /// What to do with quantised weights.
    pub quantised: Option<Quantised>,
    /// The key of a PyTorch file under which the tensors are.
    pub state_dict_key: Option<String>,
    /// Where to compute.
    pub device: Option<Choice>,
    /// Whether models are merged whose tokenizers number their tokens in other ways.
    pub any_vocabulary: Option<bool>,
    /// Whether models are merged by whose configs equal shapes mean different things.
    pub any_config: Option<bool>,
    /// How models are aligned before they are merged.
    pub align: Option<Align>,
    /// By which rules tensors are renamed as they are read, those of single models first.
    pub rename: Vec<Rename>,
}

impl OwnKeys {
    pub(super) fn write<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        entry(map, "granularity", self.granularity)?;
        entry(map, "mismatch", self.mismatch)?;
        entry(map, "missing", self.missing)?;
        entry(map, "nan", self.nan)?;
        entry(map, "out_shard_size", self.out_shard_size)?;
        entry(map, "memory", self.memory)?;
        entry(map, "threads", self.threads)?;
        entry(map, "zstd", self.zstd)?;
        entry(map, "quantised", self.quantised)?;
        entry(map, "state_dict_key", self.state_dict_key.as_ref())?;
        entry(map, "device", self.device)?;
        entry(map, "any_vocabulary", self.any_vocabulary)?;
        entry(map, "any_config", self.any_config)?;
        entry(map, "align", self.align.as_ref())?;
        entry(
            map,
            "rename",
            Some(&self.rename).filter(|rules| !rules.is_empty()),
        )
    }
}

/// Declares an enum whose variants have names in a recipe; the first one is the default.
macro_rules! choice {
    ($(#[$about:meta])* $name:ident { $(#[$first_about:meta])* $first:ident = $first_text:literal
        $(, $(#[$more_about:meta])* $more:ident = $more_text:literal)* $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub enum $name {
            $(#[$first_about])*
            #[default]
            $first,
            $($(#[$more_about])* $more,)*
        }

        impl $name {
            /// Every choice and its name.
            pub const CHOICES: &'static [(&'static str, Self)] =
                &[($first_text, Self::$first), $(($more_text, Self::$more)),*];

            /// The choice of this name.
            pub fn parse(text: &str) -> Option<Self> {
                Self::CHOICES.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice)
            }

            /// The name of the choice.
            pub fn name(self) -> &'static str {
                match self {
                    Self::$first => $first_text,
                    $(Self::$more => $more_text,)*
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }
    };
}

choice! {
    /// What a mean is taken over.
    Granularity {
        /// Every tensor is a point of its own sphere.
        Tensor = "tensor",
        /// Every row of a tensor is.
        Row = "row",
        /// The whole network is one point.
        Model = "model",
    }
}

choice! {
    /// What to do when the shapes of a tensor differ between models.
    Mismatch {
        /// Stop.
        Error = "error",
        /// Fill the smaller ones up, with zeros or with the base's elements.
        Pad = "pad",
        /// Cut all to what they have in common.
        Crop = "crop",
        /// Take the tensor from the base.
        Skip = "skip",
    }
}

choice! {
    /// What to do when a tensor is not in every model.
    Missing {
        /// Stop.
        Error = "error",
        /// Merge it over the models that have it.
        Common = "common",
        /// Take it from the base.
        Base = "base",
    }
}

choice! {
    /// What to do with weights that are stored as codes with scales beside them.
    Quantised {
        /// Stop.
        Error = "error",
        /// Take codes and scales as the numbers that they are stored as.
        Raw = "raw",
    }
}

choice! {
    /// What to do with NaN and infinity in an input.
    NanPolicy {
        /// Stop.
        Error = "error",
        /// Calculate with it.
        Propagate = "propagate",
        /// Take the tensor from the base.
        Base = "base",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_has_its_name_and_the_first_is_the_default() {
        for (name, choice) in Mismatch::CHOICES {
            assert_eq!(Mismatch::parse(name), Some(*choice));
            assert_eq!(choice.name(), *name);
        }
        assert_eq!(Granularity::default(), Granularity::Tensor);
        assert_eq!(NanPolicy::parse("Error"), None);
    }
}
