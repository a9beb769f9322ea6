use super::*;
use crate::kernel::CHUNK;
use crate::kernel::lanes::TILE;

/// Numbers of the type from a seed, NaN and infinity among them if `odd`.
fn elements(dtype: Dtype, len: usize, seed: u64, odd: bool) -> Vec<u8> {
    let mut state = seed;
    let mut wide = Vec::with_capacity(len * 8);
    for at in 0..len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(seed | 1);
        let step = f64::from(u32::try_from(state >> 40).expect("24 bits")) / 16_777_216.0 - 0.5;
        let value = match at % 97 {
            13 if odd => f64::NAN,
            29 if odd => f64::INFINITY,
            // Ties and zeros.
            5..=40 => (step * 8.0).round() / 8.0,
            _ => step,
        };
        wide.extend_from_slice(&value.to_le_bytes());
    }
    let mut bytes = vec![0; len * dtype.bytes()];
    let wide = Elements {
        dtype: Dtype::F64,
        bytes: &wide,
    };
    Kernels::available()[0].convert(wide, dtype, &mut bytes);
    bytes
}

fn shares(models: usize) -> Vec<Share> {
    let share = |at: usize| Share {
        weight: [0.5, -0.25, 1.5][at % 3],
        scale: [1.0, 1.75, 1.0][at % 3],
        by_probability: false,
    };
    (0..models).map(share).collect()
}

fn mixes(models: usize) -> Vec<Mix> {
    let kinds = [
        MixKind::Sum { divisor: 1.0 },
        MixKind::Sum { divisor: 3.0 },
        MixKind::Elect {
            normalize: true,
            sign_tie: SignTie::Plus,
        },
        MixKind::Elect {
            normalize: false,
            sign_tie: SignTie::Zero,
        },
        MixKind::Agreeing {
            sign_tie: SignTie::Plus,
        },
        MixKind::Unique {
            epsilon: 0.1,
            factors: vec![1.02; models],
        },
        MixKind::Near { t: 0.05 },
        MixKind::Replace,
    ];
    let consensus = Consensus {
        agree: 2,
        tall: vec![0.4; models],
    };
    let mix = |kind: &MixKind, consensus: Option<&Consensus>| Mix {
        shares: shares(models),
        lambda: 0.75,
        kind: kind.clone(),
        consensus: consensus.cloned(),
    };
    let mut all: Vec<Mix> = kinds.iter().map(|kind| mix(kind, None)).collect();
    all.push(mix(&kinds[0], Some(&consensus)));
    all.push(mix(&kinds[2], Some(&consensus)));
    all
}

fn picks(limits: &[u32]) -> Vec<Vec<Pick<'_>>> {
    let words = Words { key: 7, row: 1 };
    let edge = |key: f64, of, kept| {
        Chooser::new(
            Edge {
                key: key_of(key),
                of,
                kept,
            },
            Ties::Spread,
            words,
            3,
        )
    };
    let draws = Draws::new(1, 2, "w");
    let each = [
        Pick::All,
        Pick::Nothing,
        Pick::Band(Band {
            low: Some(edge(0.125, 5000, 1717)),
            high: Some(edge(0.375, 4000, 999)),
        }),
        Pick::Band(Band {
            low: Some(edge(0.25, 10, 10)),
            high: None,
        }),
        Pick::Draw {
            draws,
            start: 5,
            below: 1 << 31,
        },
        Pick::DrawBelow {
            draws,
            start: 4,
            below: limits,
        },
        Pick::Above {
            factor: 0.5,
            least: 0.1,
        },
    ];
    each.iter().map(|pick| vec![pick.clone(); 3]).collect()
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let (len, models) = (3 * TILE + 77, 3);
    let limits: Vec<u32> = (0..len)
        .map(|at| u32::try_from(at).expect("few") << 20)
        .collect();
    for (dtype, out, odd) in [
        (Dtype::BF16, Dtype::BF16, false),
        (Dtype::F16, Dtype::F32, true),
        (Dtype::F32, Dtype::BF16, true),
        (Dtype::F64, Dtype::F64, false),
        (Dtype::F8E4M3, Dtype::F16, false),
    ] {
        let held: Vec<Vec<u8>> = (0..=models)
            .map(|at| elements(dtype, len, at as u64 + 3, odd))
            .collect();
        let inputs: Vec<Elements<'_>> =
            held.iter().map(|bytes| Elements { dtype, bytes }).collect();
        let deltas = Deltas {
            base: inputs[0],
            models: &inputs[1..],
        };
        let results = Kernels::available().into_iter().map(|kernels| {
            let mut scratch = Scratch::default();
            let mut keys = vec![0; len];
            let mut all: Vec<u8> = Vec::new();
            let of = [
                KeyOf::Magnitude {
                    model: 1,
                    factor: 0.7,
                },
                KeyOf::Deviation,
            ];
            for of in of {
                kernels.keys(deltas, of, &mut scratch, &mut keys);
                all.extend(keys.iter().flat_map(|key| key.to_le_bytes()));
            }
            let mut shared = vec![[0; 2]; models];
            kernels.count_shared(deltas, 0.1, &mut scratch, &mut shared);
            all.extend(
                shared
                    .iter()
                    .flatten()
                    .flat_map(|count| count.to_le_bytes()),
            );
            for mut picks in picks(&limits) {
                let mut sums = vec![[0.0; 2]; models];
                let each = Picks::Each(&mut picks.clone());
                kernels.kept_sums(deltas, each, Power::Two, &mut scratch, &mut sums);
                // The payload of a NaN is not part of a sum.
                all.extend(
                    sums.iter()
                        .flatten()
                        .flat_map(|sum| (sum + 0.0).max(-1.0).to_le_bytes()),
                );
                for mix in mixes(models) {
                    let mut dst = vec![0; len * out.bytes()];
                    let mut counts = MixCounts::new(models);
                    let mixing = Mixing {
                        deltas,
                        picks: Picks::Each(&mut picks),
                        mix: &mix,
                        output: Output {
                            dtype: out,
                            bytes: &mut dst,
                        },
                    };
                    let combined = kernels.mix(mixing, &mut scratch, &mut counts);
                    assert_eq!(counts.finite, !odd);
                    all.extend(dst);
                    all.extend(format!("{combined:?} {counts:?}").bytes());
                }
            }
            all
        });
        let results: Vec<Vec<u8>> = results.collect();
        for other in &results[1..] {
            assert!(*other == results[0], "{dtype} to {out}");
        }
    }
}

#[test]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the nearest f32 is the oracle"
)]
fn keys_of_a_chunk_are_those_of_its_elements() {
    let held = [
        elements(Dtype::BF16, CHUNK, 1, false),
        elements(Dtype::F32, CHUNK, 2, true),
    ];
    let [base, model] = [
        Elements {
            dtype: Dtype::BF16,
            bytes: &held[0],
        },
        Elements {
            dtype: Dtype::F32,
            bytes: &held[1],
        },
    ];
    let mut wide = [vec![0; CHUNK * 8], vec![0; CHUNK * 8]];
    let kernels = Kernels::detect();
    kernels.convert(base, Dtype::F64, &mut wide[0]);
    kernels.convert(model, Dtype::F64, &mut wide[1]);
    let value = |bytes: &[u8], at: usize| {
        f64::from_le_bytes(bytes[at * 8..][..8].try_into().expect("eight bytes"))
    };
    let mut keys = vec![0; CHUNK];
    let deltas = Deltas {
        base,
        models: &[model],
    };
    let of = KeyOf::Magnitude {
        model: 0,
        factor: 1.0,
    };
    kernels.keys(deltas, of, &mut Scratch::default(), &mut keys);
    for (at, key) in keys.iter().enumerate() {
        let delta = (value(&wide[1], at) - value(&wide[0], at)).abs();
        match delta.is_nan() {
            true => assert!(*key > key_of(f64::INFINITY)),
            false => assert_eq!(value_of(*key), f64::from(delta as f32), "element {at}"),
        }
    }
}
