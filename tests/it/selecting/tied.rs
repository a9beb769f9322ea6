//! Equal differences at a threshold, and magnitudes that are hardly apart.

use safetensors::Dtype;

use super::edges::{changed, count};
use super::{Choice, Trial, dense, shaped, vectors};
use crate::merge::Place;
use crate::support::reference::selecting::{Keys, Part, Ties, choose};
use crate::support::reference::{Granularity, Random};

#[test]
fn equal_differences_are_kept_in_the_number_asked_for_and_no_column_is_special() {
    let (rows, columns) = (128, 64);
    let n = rows * columns;
    let base = vec![1.0; n];
    // Steps of one size and random sign, as some optimisers make them.
    let mut random = Random::new(711);
    let input: Vec<f64> = (0..n)
        .map(|_| if random.uniform() < 0.5 { 0.5 } else { 1.5 })
        .collect();
    for name in ["ties", "breadcrumbs"] {
        let part = Part {
            gamma: 0.0,
            ..dense(0.5, 1)[0]
        };
        let models = shaped(Dtype::BF16, &[rows, columns], &[&base, &input]);
        let trial = Trial::new(models, Choice::of(name, &[part]));
        let kept = changed(&trial);
        assert_eq!(count(&kept), n / 2, "{name}");
        for column in 0..columns {
            let own = (0..rows).filter(|row| kept[row * columns + column]).count();
            // Half of 128, and five standard deviations.
            assert!(
                own.abs_diff(rows / 2) < 29,
                "{name}: {own} of column {column}"
            );
        }
        for row in kept.chunks(columns) {
            assert_eq!(
                count(row),
                columns / 2,
                "{name}: every stretch has its share"
            );
        }
        let by_row = trial.clone().by(Keys {
            granularity: Granularity::Row,
            ..Keys::USUAL
        });
        let kept = changed(&by_row);
        for column in 0..columns {
            let own = (0..rows).filter(|row| kept[row * columns + column]).count();
            assert!(
                own.abs_diff(rows / 2) < 29,
                "{name} by row: {own} of column {column}"
            );
        }
        let first = trial.by(Keys {
            ties: Ties::First,
            ..Keys::USUAL
        });
        let kept = changed(&first);
        assert!(
            kept[..n / 2].iter().all(|kept| *kept) && count(&kept) == n / 2,
            "{name}"
        );
    }
}

#[test]
fn equal_ones_among_others_are_kept_in_the_number_that_is_left() {
    // Three sizes, as differences of bf16 have them, and thresholds within each.
    let mut random = Random::new(712);
    for n in [65, 1000] {
        let base = vec![0.0; n];
        let input: Vec<f64> = (0..n)
            .map(|_| [0.25, -0.5, 1.0, 0.0][usize::from(random.bits().to_le_bytes()[0] % 4)])
            .collect();
        for density in [0.05, 0.2, 0.4, 0.6, 0.7, 0.8, 0.95] {
            for ties in [Ties::Spread, Ties::First] {
                for (dtype, name) in [
                    (Dtype::BF16, "ties"),
                    (Dtype::F32, "ties"),
                    (Dtype::F16, "breadcrumbs"),
                    (Dtype::F64, "breadcrumbs_ties"),
                    (Dtype::BF16, "della"),
                ] {
                    let mut part = dense(density, 1)[0];
                    part.gamma = 0.15;
                    let keys = Keys {
                        ties,
                        ..Keys::USUAL
                    };
                    let choice = Choice::of(name, &[part]);
                    let trial = Trial::new(vectors(dtype, &[&base, &input]), choice).by(keys);
                    let kept = changed(&trial);
                    if name == "ties" {
                        let nonzero = input.iter().filter(|x| **x != 0.0).count();
                        let k = usize::try_from(choose::floor(density * choose::number(n)));
                        assert_eq!(count(&kept), nonzero.min(k.expect("small")));
                    }
                }
            }
        }
    }
}

#[test]
fn differences_too_small_for_f32_are_equal_to_zero_for_the_selection() {
    let base = vec![0.0; 8];
    let input = [1e-50, 0.0, -2e-50, 1e-30, 0.0, 3e-46, 1e-45, 1e-300];
    for density in [0.25, 0.375, 0.5, 0.625, 0.75] {
        for ties in [Ties::Spread, Ties::First] {
            let keys = Keys {
                ties,
                ..Keys::USUAL
            };
            let choice = Choice::of("ties", &dense(density, 1));
            let trial = Trial::new(vectors(Dtype::F64, &[&base, &input]), choice).by(keys);
            let place = Place::in_memory();
            let got = place.merged(&trial.run(&place))["w"].values.clone();
            assert_eq!(got, trial.wanted()["w"], "{}", trial.about());
        }
    }
}

#[test]
fn keys_of_every_size_are_told_apart() {
    // Subnormal f32, their border, one digit apart around powers of two, the largest.
    let around = |x: f32| [x.next_down(), x, x.next_up()];
    let sizes = [1e-45f32, 1e-40, f32::MIN_POSITIVE, 0.5, 1.0, 8192.0, 1e30];
    let mut input: Vec<f64> = sizes
        .iter()
        .flat_map(|x| around(*x))
        .map(f64::from)
        .collect();
    input.extend(
        (0..64u16).map(|at| f64::from(f32::from_bits(0x3f80_0000 + 128 * u32::from(at) + 1))),
    );
    input.push(f64::from(f32::MAX));
    let n = input.len();
    let base = vec![0.0; n];
    for k in 1..n {
        let density = (choose::number(k) + 0.5) / choose::number(n);
        let choice = Choice::of("ties", &dense(density, 1));
        let trial = Trial::new(vectors(Dtype::F32, &[&base, &input]), choice);
        if k % 3 == 0 {
            // 1e-45 has a smaller neighbour that is 0.
            let kept = changed(&trial);
            assert_eq!(count(&kept), k, "{k} of {n}");
        }
    }
}
