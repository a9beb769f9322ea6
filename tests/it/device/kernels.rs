//! The CUDA kernels against the portable ones, bit for bit, through the lanes: lengths around every
//! boundary, every type, every bit pattern where there are few enough.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use thalweg::device::{Choice, Driver, Kernel, LEAST_SEGMENT, LaneLayout, Lanes, Mix, open};
use thalweg::dtype::Dtype;
use thalweg::kernel::{CHUNK, Elements, GramOptions, Kernels, Level, Scratch, pair_count};

use super::fake::Fake;

const LANES: usize = 16;
const TILE: usize = 512;
const BLOCK: usize = Kernel::BLOCK as usize;

/// 0, 1, and one to either side of every lane, tile, block and chunk boundary.
fn lengths() -> Vec<usize> {
    let mut lengths = vec![0, 1];
    for boundary in [
        LANES,
        2 * LANES,
        BLOCK,
        TILE,
        2 * TILE,
        8 * BLOCK,
        16 * BLOCK,
        CHUNK - TILE,
        CHUNK,
    ] {
        lengths.extend([boundary - 1, boundary]);
        lengths.extend((boundary < CHUNK).then_some(boundary + 1));
    }
    lengths
}

/// Types of inputs: all alike, three of each, and all together.
fn mixtures() -> Vec<Vec<Dtype>> {
    let alike = Dtype::MERGEABLE.iter().map(|dtype| vec![*dtype; 3]);
    alike
        .chain([Dtype::MERGEABLE.to_vec(), vec![Dtype::BF16, Dtype::F16]])
        .collect()
}

/// A step of the SplitMix64 generator.
pub fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Bit patterns of the whole range of the type, NaN, infinities and subnormals included.
fn noise(dtype: Dtype, len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    (0..len * dtype.bytes())
        .map(|_| split_mix(&mut state).to_le_bytes()[7])
        .collect()
}

/// Values below one in magnitude, of many binades, subnormals and both zeros among them.
fn tame(dtype: Dtype, len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let value = |bits: u64| {
        let unit =
            f64::from(u32::try_from(bits >> 32).expect("32 bits")) / f64::from(u32::MAX) - 0.5;
        unit * 2f64.powi(-i32::from(bits.to_le_bytes()[0] % 24))
    };
    let wide: Vec<u8> = (0..len)
        .flat_map(|_| value(split_mix(&mut state)).to_le_bytes())
        .collect();
    converted(&wide, dtype)
}

fn converted(wide: &[u8], dtype: Dtype) -> Vec<u8> {
    let mut bytes = vec![0; wide.len() / 8 * dtype.bytes()];
    portable().convert(
        Elements {
            dtype: Dtype::F64,
            bytes: wide,
        },
        dtype,
        &mut bytes,
    );
    bytes
}

fn portable() -> Kernels {
    Kernels::at(Level::Portable).expect("every machine has the portable level")
}

/// The host's build, or the device that `THALWEG_DEVICE` names.
pub fn driver() -> Arc<dyn Driver> {
    static DRIVER: OnceLock<Arc<dyn Driver>> = OnceLock::new();
    let driver = DRIVER.get_or_init(|| match std::env::var("THALWEG_DEVICE") {
        Ok(name) => {
            let choice = Choice::parse(&name).expect("cuda or cuda:N");
            open(choice)
                .expect("a usable device")
                .driver
                .expect("a device, not the processor")
        }
        Err(_) => Fake::new(),
    });
    Arc::clone(driver)
}

/// A lane that holds `len` elements of these inputs.
fn lanes(dtypes: &[Dtype], out: Dtype, len: usize) -> Lanes {
    Lanes::new(driver(), 1, LaneLayout::new(dtypes, out, len).bytes()).expect("memory")
}

fn elements<'a>(dtypes: &[Dtype], bytes: &'a [Vec<u8>]) -> Vec<Elements<'a>> {
    dtypes
        .iter()
        .zip(bytes)
        .map(|(dtype, bytes)| Elements {
            dtype: *dtype,
            bytes,
        })
        .collect()
}

fn slice<'a>(inputs: &[Elements<'a>], range: &Range<usize>) -> Vec<Elements<'a>> {
    inputs
        .iter()
        .map(|input| input.slice(range.clone()))
        .collect()
}

/// Gram sums of `pieces` on both sides; every bit must agree.
fn compare_gram(
    dtypes: &[Dtype],
    bytes: &[Vec<u8>],
    pieces: &[Range<usize>],
    options: GramOptions,
    about: &str,
) {
    let inputs = elements(dtypes, bytes);
    let pairs = pair_count(dtypes.len());
    let wanted: Vec<u64> = pieces
        .iter()
        .flat_map(|piece| {
            let mut sums = vec![0.0; pairs];
            portable().gram(
                &slice(&inputs, piece),
                options,
                &mut Scratch::default(),
                &mut sums,
            );
            sums.into_iter().map(f64::to_bits)
        })
        .collect();
    let lanes = lanes(dtypes, Dtype::F32, inputs[0].len());
    let mut lane = lanes.take().expect("a lane");
    let mut sums = vec![0.0; pieces.len() * pairs];
    lane.load(&inputs, Dtype::F32)
        .expect("room")
        .gram(pieces, options, &mut sums)
        .expect("no failure");
    let got: Vec<u64> = sums.into_iter().map(f64::to_bits).collect();
    assert!(
        got == wanted,
        "{about}: {dtypes:?}, {pieces:?}, {options:?}: {got:x?} for {wanted:x?}"
    );
}

#[test]
fn gram_sums_agree_at_every_boundary_for_every_type() {
    for dtypes in mixtures() {
        for len in lengths() {
            let whole = vec![Range { start: 0, end: len }];
            let of = |make: fn(Dtype, usize, u64) -> Vec<u8>| {
                (10..)
                    .zip(&dtypes)
                    .map(|(seed, dtype)| make(*dtype, len, seed))
                    .collect::<Vec<_>>()
            };
            let (tame, noise) = (of(tame), of(noise));
            for center in [None, Some(1)] {
                compare_gram(
                    &dtypes,
                    &tame,
                    &whole,
                    GramOptions {
                        center,
                        skip_nonfinite: false,
                    },
                    "tame",
                );
                for skip_nonfinite in [false, true] {
                    compare_gram(
                        &dtypes,
                        &noise,
                        &whole,
                        GramOptions {
                            center,
                            skip_nonfinite,
                        },
                        "noise",
                    );
                }
            }
        }
    }
}

#[test]
fn gram_sums_agree_for_any_number_of_inputs() {
    for count in [1, 2, 3, 4, 5, 7, 8, 9, 13, 40] {
        let dtypes: Vec<Dtype> = Dtype::MERGEABLE
            .iter()
            .copied()
            .cycle()
            .take(count)
            .collect();
        let bytes: Vec<_> = (0..)
            .zip(&dtypes)
            .map(|(seed, dtype)| tame(*dtype, 700, seed))
            .collect();
        let center = Some(count - 1);
        for center in [None, center] {
            compare_gram(
                &dtypes,
                &bytes,
                &[Range { start: 0, end: 700 }],
                GramOptions {
                    center,
                    skip_nonfinite: false,
                },
                "many inputs",
            );
        }
    }
}

#[test]
fn pieces_are_measured_wherever_they_lie() {
    let dtypes = [Dtype::BF16, Dtype::F8E4M3, Dtype::F64];
    let len = 2 * CHUNK + 17;
    let bytes: Vec<_> = (0..)
        .zip(dtypes)
        .map(|(seed, dtype)| tame(dtype, len, seed))
        .collect();
    let chunks = [0..CHUNK, CHUNK..2 * CHUNK, 2 * CHUNK..len];
    compare_gram(&dtypes, &bytes, &chunks, GramOptions::default(), "chunks");
    let segment = LEAST_SEGMENT + 1;
    let segments: Vec<_> = (0..len)
        .step_by(segment)
        .map(|start| start..len.min(start + segment))
        .collect();
    compare_gram(
        &dtypes,
        &bytes,
        &segments,
        GramOptions::default(),
        "segments",
    );
    compare_gram(
        &dtypes,
        &bytes,
        &[len - 1..len, 3..3, 1..CHUNK],
        GramOptions::default(),
        "odd pieces",
    );
}

/// One combination on both sides; every bit and the count of overflows must agree.
fn compare_combine(dtypes: &[Dtype], bytes: &[Vec<u8>], mix: Mix<'_>, out: Dtype, about: &str) {
    let inputs = elements(dtypes, bytes);
    let len = inputs[0].len();
    let mut wanted = vec![0; len * out.bytes()];
    let counted = match mix {
        Mix::Only(input) => portable().convert(inputs[input], out, &mut wanted),
        Mix::Weights(weights, divisor) => {
            let terms: Vec<_> = weights
                .iter()
                .copied()
                .zip(inputs.iter().copied())
                .filter(|(weight, _)| *weight != 0.0)
                .collect();
            portable()
                .combine(&terms, divisor, out, &mut Scratch::default(), &mut wanted)
                .overflows
        }
    };
    let lanes = lanes(dtypes, out, len);
    let mut lane = lanes.take().expect("a lane");
    let mut got = vec![0x77; wanted.len()];
    let pieces: Vec<_> = (0..len)
        .step_by(CHUNK)
        .map(|start| (start..len.min(start + CHUNK), mix))
        .collect();
    let overflows = lane
        .load(&inputs, out)
        .expect("room")
        .combine(&pieces, &mut got)
        .expect("no failure");
    let first = got
        .chunks(out.bytes())
        .zip(wanted.chunks(out.bytes()))
        .position(|(got, wanted)| got != wanted);
    assert_eq!(
        first, None,
        "{about}: {dtypes:?} to {out}, {len} elements, {mix:?}: first differing element"
    );
    assert_eq!(
        overflows, counted,
        "{about}: {dtypes:?} to {out}, {len} elements, {mix:?}: overflows"
    );
}

#[test]
fn combinations_agree_at_every_boundary_for_every_type() {
    let weights: [&[f64]; 5] = [
        &[0.5, 0.3, 0.2],
        &[-0.0, 1.7e3, 0.0],
        &[0.0; 3],
        &[1e300, -1e300, 1.0],
        &[f64::NAN, f64::INFINITY, -1.0],
    ];
    for out in Dtype::MERGEABLE {
        for dtype in Dtype::MERGEABLE {
            let dtypes = [dtype, Dtype::BF16, dtype];
            for (turn, len) in lengths().into_iter().enumerate() {
                let bytes: Vec<_> = (20..)
                    .zip(dtypes)
                    .map(|(seed, dtype)| noise(dtype, len, seed))
                    .collect();
                let (weights, divisor) =
                    (weights[turn % weights.len()], [1.0, 3.0, 49.0][turn % 3]);
                compare_combine(
                    &dtypes,
                    &bytes,
                    Mix::Weights(weights, divisor),
                    out,
                    "noise",
                );
                if turn % 3 == 0 {
                    compare_combine(&dtypes, &bytes, Mix::Only(2), out, "one of several");
                }
            }
        }
    }
}

#[test]
fn every_weight_pattern_agrees_on_one_length() {
    let dtypes = Dtype::MERGEABLE;
    let bytes: Vec<_> = (30..)
        .zip(dtypes)
        .map(|(seed, dtype)| noise(dtype, CHUNK + 3, seed))
        .collect();
    for out in Dtype::MERGEABLE {
        for weights in [
            [0.1, 0.2, 0.3, 0.1, 0.2, 0.1],
            [0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
            [1e-320, 0.0, -3.5, 0.0, 2.0, -0.0],
        ] {
            for divisor in [1.0, 7.0] {
                compare_combine(
                    &dtypes,
                    &bytes,
                    Mix::Weights(&weights, divisor),
                    out,
                    "all types",
                );
            }
        }
    }
}

/// The f64 values of codes of a type: all of them, or many of the wide ones.
fn values(dtype: Dtype) -> Vec<f64> {
    let codes: Vec<u8> = match dtype.bytes() {
        1 => (0..=u8::MAX).collect(),
        2 => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
        _ => noise(dtype, 30_000, 77),
    };
    let mut wide = vec![0; codes.len() / dtype.bytes() * 8];
    portable().convert(
        Elements {
            dtype,
            bytes: &codes,
        },
        Dtype::F64,
        &mut wide,
    );
    wide.chunks_exact(8)
        .map(|bytes| f64::from_le_bytes(bytes.try_into().expect("eight bytes")))
        .collect()
}

#[test]
fn halfway_cases_and_their_neighbours_round_alike() {
    for out in [
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::F8E4M3,
        Dtype::F8E5M2,
    ] {
        let mut values = values(out);
        values.retain(|value| value.is_finite());
        values.sort_by(f64::total_cmp);
        let mut inputs: Vec<f64> = Vec::new();
        for pair in values.windows(2) {
            let middle = pair[0] / 2.0 + pair[1] / 2.0;
            inputs.extend([pair[0], middle.next_down(), middle, middle.next_up()]);
        }
        // Around the limits of the type, and beyond all of them.
        let most = values.last().copied().expect("some values");
        let limits = [
            most,
            464.0,
            480.0,
            61440.0,
            65520.0,
            65536.0,
            2f64.powi(128) - 2f64.powi(103),
            f64::MAX,
        ];
        let around = |limit: f64| {
            [
                limit.next_down(),
                limit,
                limit.next_up(),
                -limit,
                -limit.next_down(),
            ]
        };
        inputs.extend(limits.into_iter().flat_map(around));
        inputs.extend([
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
            -f64::NAN,
            f64::from_bits(1),
            -f64::from_bits(1),
        ]);
        inputs.extend([
            0.0,
            -0.0,
            f64::MIN_POSITIVE,
            f64::from_bits(0x7ff0_0000_0000_0001),
        ]);
        for run in inputs.chunks(2 * CHUNK) {
            let bytes: Vec<u8> = run.iter().flat_map(|value| value.to_le_bytes()).collect();
            compare_combine(&[Dtype::F64], &[bytes], Mix::Only(0), out, "halfway");
        }
    }
}

#[test]
fn every_code_of_the_short_types_widens_alike() {
    for dtype in [Dtype::F16, Dtype::BF16, Dtype::F8E4M3, Dtype::F8E5M2] {
        let codes: Vec<u8> = match dtype.bytes() {
            1 => (0..=u8::MAX).collect(),
            _ => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
        };
        for out in Dtype::MERGEABLE {
            compare_combine(
                &[dtype],
                std::slice::from_ref(&codes),
                Mix::Only(0),
                out,
                "every code",
            );
        }
    }
}

#[test]
fn the_first_element_that_is_not_finite_is_found_wherever_it_is() {
    for dtype in Dtype::MERGEABLE {
        let nan = converted(&f64::NAN.to_le_bytes(), dtype);
        let len = CHUNK + 5;
        let pieces = [0..CHUNK, CHUNK..len];
        for at in [
            0,
            1,
            LANES - 1,
            BLOCK,
            BLOCK + 1,
            TILE - 1,
            CHUNK - 1,
            CHUNK,
            len - 1,
            len,
        ] {
            let mut bytes = [tame(dtype, len, 1), tame(dtype, len, 2)];
            for place in [at, at + 300].into_iter().filter(|place| *place < len) {
                bytes[1][place * dtype.bytes()..][..dtype.bytes()].copy_from_slice(&nan);
            }
            let inputs = elements(&[dtype; 2], &bytes);
            let first = |piece| {
                slice(&inputs, piece)
                    .into_iter()
                    .map(|input| portable().first_nonfinite(input))
            };
            let wanted: Vec<Option<usize>> = pieces.iter().flat_map(first).collect();
            let lanes = lanes(&[dtype; 2], dtype, len);
            let mut lane = lanes.take().expect("a lane");
            let mut resident = lane.load(&inputs, dtype).expect("room");
            assert_eq!(
                resident.first_nonfinite(&pieces).expect("no failure"),
                wanted,
                "{dtype} at {at}"
            );
            let odd: Vec<bool> = wanted
                .chunks(2)
                .map(|piece| piece.iter().any(Option::is_some))
                .collect();
            assert_eq!(resident.nonfinite(&pieces).expect("no failure"), odd);
        }
    }
}
