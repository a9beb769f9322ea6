//! The keys that mergekit does not have.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::align::Align;
use super::choices::{RescaleBy, SignRule, TieRule, choice};
use super::rename::Rename;
use super::write::entry;
use crate::device::Choice;

/// The values of keys that mergekit does not have; `None` leaves them to the command line and the
/// defaults.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OwnKeys {
    /// The part of a model over which one mean is taken.
    pub granularity: Option<Granularity>,
    /// The seed of random draws and of choices among tied elements.
    pub seed: Option<u64>,
    /// The choice among elements that are tied at a threshold.
    pub ties: Option<TieRule>,
    /// The sign that is elected where weighted differences cancel.
    pub sign_tie: Option<SignRule>,
    /// The divisor that makes up for what is dropped.
    pub rescale_by: Option<RescaleBy>,
    /// The treatment of shapes that differ.
    pub mismatch: Option<Mismatch>,
    /// The treatment of a tensor that is not in every model.
    pub missing: Option<Missing>,
    /// The treatment of NaN and infinity in an input.
    pub nan: Option<NanPolicy>,
    /// The largest shard in bytes.
    pub out_shard_size: Option<u64>,
    /// The most memory in bytes.
    pub memory: Option<u64>,
    /// The number of threads that compute.
    pub threads: Option<u32>,
    /// The zstd level at which shards are compressed.
    pub zstd: Option<i32>,
    /// The treatment of quantised weights.
    pub quantised: Option<Quantised>,
    /// The key of a PyTorch file under which the tensors are.
    pub state_dict_key: Option<String>,
    /// The device to compute on.
    pub device: Option<Choice>,
    /// True if models are merged although their tokenizers number their tokens in other ways.
    pub any_vocabulary: Option<bool>,
    /// True if models are merged although, by their configs, equal shapes mean different things.
    pub any_config: Option<bool>,
    /// The alignment of models before they are merged.
    pub align: Option<Align>,
    /// The rules by which tensors are renamed as they are read, those of single models first.
    pub rename: Vec<Rename>,
}

impl OwnKeys {
    pub(super) fn write<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        entry(map, "granularity", self.granularity)?;
        entry(map, "seed", self.seed)?;
        entry(map, "ties", self.ties)?;
        entry(map, "sign_tie", self.sign_tie)?;
        entry(map, "rescale_by", self.rescale_by)?;
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

choice! {
    /// The part of a model over which one mean is taken.
    Granularity {
        /// Every tensor is a point of its own sphere.
        Tensor = "tensor",
        /// Every row of a tensor is a point of its own sphere.
        Row = "row",
        /// The whole network is one point.
        Model = "model",
    }
}

choice! {
    /// The treatment of a tensor whose shapes differ between models.
    Mismatch {
        /// Stop.
        Error = "error",
        /// Fill the smaller ones up, with zeros or with the base's elements.
        Pad = "pad",
        /// Cut all to their common size.
        Crop = "crop",
        /// Take the tensor from the base.
        Skip = "skip",
    }
}

choice! {
    /// The treatment of a tensor that is not in every model.
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
    /// The treatment of weights that are stored as codes with scales beside them.
    Quantised {
        /// Stop.
        Error = "error",
        /// Take codes and scales as plain numbers.
        Raw = "raw",
    }
}

choice! {
    /// The treatment of NaN and infinity in an input.
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
