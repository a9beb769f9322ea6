//! Moves that gain less than the rounding of products in f32 are not made.

use super::*;

/// Hidden units, in pairs whose two units differ by a share of their size.
const UNITS: usize = 64;

/// Makes a network whose hidden units 2k and 2k + 1 differ by `share`.
fn in_pairs(share: f32) -> (Case, Tensors) {
    let case = Case::mlp(&[24, UNITS as u64, 24]);
    let mut tensors = random(&case.shapes, 6);
    let mut bells = Bells(77);
    for (name, step, runs) in [
        ("fc0.weight", 1, 24),
        ("fc0.bias", 1, 1),
        ("fc1.weight", UNITS, 24),
    ] {
        let values = &mut tensors[name].1;
        let unit = if step == 1 { runs } else { 1 };
        for pair in 0..UNITS / 2 {
            for k in 0..runs {
                let [one, other] = [2 * pair, 2 * pair + 1].map(|at| at * unit + k * step);
                values[other] = values[one] * (1.0 + share * bells.next());
            }
        }
    }
    (case, tensors)
}

/// Matches the network with a copy in which the units of each pair are exchanged.
fn exchanged(share: f32) -> Matched {
    let (case, tensors) = in_pairs(share);
    let symmetries = symmetries(case.spec, &tensors, &case.config);
    let permutation: Vec<u32> = (0..).take(UNITS).map(|unit: u32| unit ^ 1).collect();
    let element = |group: &crate::symmetry::Group| match group.units == UNITS {
        true => Element {
            permutation: permutation.clone(),
            ..Element::default()
        },
        false => Element::default(),
    };
    let planted =
        Transform::new(&symmetries, symmetries.groups.iter().map(element).collect()).expect("fits");
    let moving = store(&applied(&tensors, &symmetries, &planted));
    let start = Transform::identity(&symmetries);
    let reference = store(&tensors);
    let options = MatchOptions::default();
    match_weights(
        reference.as_ref(),
        &moving,
        &symmetries,
        Start {
            transform: &start,
            steps: &[],
        },
        &options,
        &Unwatched,
    )
    .expect("matched")
}

#[test]
fn units_that_differ_by_less_than_their_products_are_rounded_stay() {
    for share in [1e-6, 1e-5, 5e-5] {
        let matched = exchanged(share);
        assert!(
            matched
                .steps
                .iter()
                .all(|step| step.moved == 0 && step.elements.is_empty()),
            "{share}: {matched:?}"
        );
        assert!(
            matched.steps.iter().all(|step| step.before == step.after),
            "{share}"
        );
    }
}

#[test]
fn units_that_differ_by_more_are_found() {
    for share in [1e-2, 0.1] {
        let moved: usize = exchanged(share).steps.iter().map(|step| step.moved).sum();
        assert_eq!(moved, UNITS, "{share}");
    }
}
