//! Bounds and defaults that flags, recipe keys, help and README share.

use std::ops::RangeInclusive;

/// The number of threads that may compute.
pub const THREADS: RangeInclusive<u64> = 1..=1024;

/// The levels at which shards are compressed. Those above need windows that the memory budget does
/// not count.
pub const ZSTD_LEVELS: RangeInclusive<u64> = 1..=19;

/// The number of sweeps over all groups that an alignment may be allowed.
pub const SWEEPS: RangeInclusive<u64> = 1..=1_000_000;

/// The seeds of random numbers: whole numbers that JSON keeps.
pub const SEEDS: RangeInclusive<u64> = 0..=(1 << 53) - 1;
