//! Seeded gaussian-like noise at memory speed: one pool per seed, cut into tiles that differ in
//! place, sign and scale.
//!
//! Only integer arithmetic and single exactly specified float operations are used, so the bytes
//! depend on the seed alone and not on the machine, the threads or the maths library.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::options::Precision;
use crate::shape::Tensor;

/// Elements that share one place in the pool, one sign and one scale.
pub const TILE: usize = 1 << 18;
const POOL: usize = 1 << 20;
const STEP: usize = 1024;

/// The values of one model: noise of its seed, or a base's noise plus a share of its own.
pub struct Content {
    main: Pool,
    tuning: Option<(Pool, f32)>,
}

impl Content {
    /// The model of `seed`; with `base = (seed, noise)` the fine-tune of that seed's model.
    pub fn new(seed: u64, base: Option<(u64, f32)>) -> Self {
        match base {
            None => Self {
                main: Pool::new(seed),
                tuning: None,
            },
            // The own noise has a stream apart, so that seed == base_seed is a fine-tune like any
            // other.
            Some((base, noise)) => Self {
                main: Pool::new(base),
                tuning: Some((Pool::new(mix(!seed)), noise)),
            },
        }
    }

    /// Writes tile number `tile` of a tensor, whole or its first `out.len()` bytes.
    pub fn fill(&self, tensor: &Tensor, tile: u64, out: &mut [u8]) {
        let main = self.main.tile(&tensor.name, tile);
        let tuning = self
            .tuning
            .as_ref()
            .map(|(pool, noise)| (pool.tile(&tensor.name, tile), *noise));
        let (center, deviation) = (tensor.spread.center, tensor.spread.deviation);
        let mut values = [0_f32; STEP];
        for (step, bytes) in out.chunks_mut(STEP * tensor.dtype.bytes()).enumerate() {
            let values = &mut values[..bytes.len() / tensor.dtype.bytes()];
            let from = step * STEP;
            let scale = main.scale * deviation;
            for (value, noise) in values.iter_mut().zip(&main.noise[from..]) {
                *value = center + scale * noise;
            }
            if let Some((tile, share)) = &tuning {
                let scale = tile.scale * deviation * share;
                for (value, noise) in values.iter_mut().zip(&tile.noise[from..]) {
                    *value += scale * noise;
                }
            }
            encode(values, tensor.dtype, bytes);
        }
    }
}

struct Tile<'a> {
    noise: &'a [f32],
    scale: f32,
}

/// Noise of mean 0 and variance 1; the first tile's worth is repeated at the end, so that any tile
/// is one slice.
struct Pool {
    seed: u64,
    noise: Vec<f32>,
}

impl Pool {
    fn new(seed: u64) -> Self {
        let mut counter = mix(seed);
        let mut noise: Vec<f32> = (0..POOL).map(|_| gaussian(&mut counter)).collect();
        noise.extend_from_within(..TILE);
        Self { seed, noise }
    }

    fn tile(&self, tensor: &str, tile: u64) -> Tile<'_> {
        let key = tensor
            .bytes()
            .fold(mix(self.seed), |key, byte| mix(key ^ u64::from(byte)));
        let key = mix(key ^ tile);
        let from = usize::try_from(key % POOL as u64).expect("below the pool's length");
        // The high bytes: the place is in the low bits.
        let [sign, scale, ..] = key.to_be_bytes();
        let scale = 0.75 + f32::from(scale) / 512.0;
        Tile {
            noise: &self.noise[from..from + TILE],
            scale: if sign & 1 == 0 { scale } else { -scale },
        }
    }
}

/// A sum of twelve uniform variables of 16 bits: variance 1, and exact in integers.
fn gaussian(counter: &mut u64) -> f32 {
    const MEAN: f32 = 12.0 * 65_535.0 / 2.0;
    let mut sum = 0_u32;
    for _ in 0..3 {
        *counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bytes = mix(*counter).to_le_bytes();
        sum += bytes
            .chunks_exact(2)
            .map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 8)
            .sum::<u32>();
    }
    (sum as f32 - MEAN) / 65_536.0
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014), a bijection that scatters neighbouring
/// values.
fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

fn encode(values: &[f32], dtype: Precision, out: &mut [u8]) {
    match dtype {
        Precision::F32 => {
            for (bytes, value) in out.chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
        Precision::Bf16 => {
            for (bytes, value) in out.chunks_exact_mut(2).zip(values) {
                // Nearest even; all values are finite and far from the largest.
                let bits = value.to_bits();
                let rounded = bits + 0x7fff + (bits >> 16 & 1);
                bytes.copy_from_slice(&rounded.to_le_bytes()[2..]);
            }
        }
        Precision::F16 => {
            let mut halves = [f16::ZERO; STEP];
            let halves = &mut halves[..values.len()];
            halves.convert_from_f32_slice(values);
            for (bytes, value) in out.chunks_exact_mut(2).zip(halves) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Spread;

    fn tensor(name: &str, dtype: Precision) -> Tensor {
        Tensor {
            name: name.into(),
            shape: vec![TILE as u64],
            dtype,
            spread: Spread {
                center: 0.0,
                deviation: 1.0,
            },
        }
    }

    fn values(content: &Content, name: &str, tile: u64) -> Vec<f32> {
        let mut bytes = vec![0; TILE * 4];
        content.fill(&tensor(name, Precision::F32), tile, &mut bytes);
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect()
    }

    fn cosine(a: &[f32], b: &[f32]) -> f64 {
        let dot = |a: &[f32], b: &[f32]| {
            a.iter()
                .zip(b)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum::<f64>()
        };
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    #[test]
    fn equal_seeds_give_equal_values_and_others_unrelated_ones() {
        let (first, second) = (Content::new(1, None), Content::new(2, None));
        let values_of = values(&first, "a", 0);
        assert_eq!(values_of, values(&Content::new(1, None), "a", 0));
        // Independent noise of 2^18 elements has a cosine of about 2^-9.
        for other in [
            values(&second, "a", 0),
            values(&first, "b", 0),
            values(&first, "a", 1),
        ] {
            assert!(cosine(&values_of, &other).abs() < 0.02);
        }
    }

    #[test]
    fn a_fine_tune_lies_near_its_base_and_apart_from_its_siblings() {
        let base = values(&Content::new(1, None), "a", 0);
        let tuned = |seed| values(&Content::new(seed, Some((1, 0.1))), "a", 0);
        for (a, b) in [
            (&base, &tuned(1)),
            (&base, &tuned(2)),
            (&tuned(1), &tuned(2)),
        ] {
            assert!(
                a != b && cosine(a, b) > 0.97 && cosine(a, b) < 0.9999,
                "{}",
                cosine(a, b)
            );
        }
    }

    #[test]
    fn noise_has_mean_zero_variance_one_and_gaussian_kurtosis() {
        let noise = Pool::new(3).noise;
        let moment = |power| {
            noise[..POOL]
                .iter()
                .map(|&x| f64::from(x).powi(power))
                .sum::<f64>()
                / POOL as f64
        };
        // Standard errors at 2^20 draws are 0.001, 0.0014 and 0.01; a sum of twelve has kurtosis
        // 2.9.
        assert!(
            moment(1).abs() < 0.005
                && (moment(2) - 1.0).abs() < 0.007
                && (moment(4) - 2.9).abs() < 0.05
        );
    }

    #[test]
    fn every_precision_rounds_the_same_values_to_nearest_even() {
        let exact = values(&Content::new(5, None), "a", 3);
        let content = Content::new(5, None);
        // A length that is no multiple of the inner step.
        let length = STEP + 77;
        for dtype in [Precision::Bf16, Precision::F16] {
            let mut bytes = vec![0; length * 2];
            content.fill(&tensor("a", dtype), 3, &mut bytes);
            for (bytes, &value) in bytes.as_chunks().0.iter().zip(&exact) {
                let wanted = match dtype {
                    Precision::Bf16 => half::bf16::from_f32(value).to_le_bytes(),
                    _ => f16::from_f32(value).to_le_bytes(),
                };
                assert_eq!(*bytes, wanted, "{value}");
            }
        }
    }
}
