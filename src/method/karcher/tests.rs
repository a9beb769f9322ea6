use super::super::testing::{assert_close, combine, gram};
use super::*;

fn solve(weights: &[f64], inputs: &[Vec<f64>]) -> Solution {
    let karcher = Karcher::new(weights, Karcher::MAX_ITER, Karcher::TOL).expect("valid weights");
    karcher.solve(&gram(inputs)).expect("finite inputs")
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// A unit vector of the plane.
fn at(degrees: f64) -> Vec<f64> {
    vec![degrees.to_radians().cos(), degrees.to_radians().sin()]
}

#[test]
fn two_inputs_are_slerp_in_closed_form_for_any_weight() {
    for angle in [1e-3, 1.0, 30.0, 90.0, 150.0, 179.0] {
        for weight in [0.0, 0.1, 0.5, 0.7, 1.0] {
            let inputs = [at(20.0), at(20.0 + angle)];
            let solution = solve(&[1.0 - weight, weight], &inputs);
            // Cosines of rounded products know an angle near 0 or 180 degrees only to about 1e-16
            // over its sine.
            let tolerance = 1e-12 + 1e-15 / angle.to_radians().sin();
            assert_close(
                &combine(&solution.coefficients, &inputs),
                &at(20.0 + weight * angle),
                tolerance,
            );
        }
    }
}

#[test]
fn two_equal_weights_are_solved_by_the_start() {
    let inputs = [vec![3.0, 0.0, 1.0], vec![1.0, 2.0, -1.0]];
    let solution = solve(&[1.0, 1.0], &inputs);
    let (n0, n1) = (norm(&inputs[0]), norm(&inputs[1]));
    let middle = combine(&[1.0 / n0, 1.0 / n1], &inputs);
    let wanted: Vec<f64> = middle
        .iter()
        .map(|x| x / norm(&middle) * (n0 + n1) / 2.0)
        .collect();
    assert_close(
        &combine(&solution.coefficients, &inputs),
        &wanted,
        1e-15 * (n0 + n1),
    );
    assert_eq!(
        (solution.facts.iterations, solution.facts.stop),
        (0, Stop::Converged)
    );
}

#[test]
fn a_hundred_orthogonal_inputs_converge_with_any_weights() {
    let inputs: Vec<Vec<f64>> = (0..100)
        .map(|i| (0..100).map(|k| f64::from(u8::from(i == k))).collect())
        .collect();
    let even = solve(&[1.0; 100], &inputs);
    assert_eq!(even.facts.stop, Stop::Converged);
    assert_close(&even.coefficients, &[0.1; 100], 1e-15);
    let weights: Vec<f64> = (0..100).map(|i| 1.0 + f64::from(i % 7)).collect();
    let uneven = solve(&weights, &inputs).facts;
    assert_eq!(uneven.stop, Stop::Converged);
    assert!(uneven.residual <= Karcher::TOL);
    assert!((uneven.merged_norm.expect("measured") - 1.0).abs() < 1e-14);
}

#[test]
fn the_limit_of_steps_is_kept_and_zero_gives_the_normalised_mean() {
    let inputs = [at(0.0), at(10.0), at(80.0)];
    let solution = Karcher::new(&[1.0; 3], 0, 1e-12)
        .expect("valid")
        .solve(&gram(&inputs))
        .expect("finite");
    let mean = combine(&[1.0; 3], &inputs);
    let wanted: Vec<f64> = mean.iter().map(|x| x / norm(&mean)).collect();
    assert_close(&combine(&solution.coefficients, &inputs), &wanted, 1e-15);
    assert_eq!(
        (solution.facts.iterations, solution.facts.stop),
        (0, Stop::MaxIterations)
    );
    assert!(solution.facts.flags.not_converged && solution.facts.residual > 1e-3);
    // On a circle the mean angle is the mean of the angles.
    assert_close(
        &combine(&solve(&[1.0; 3], &inputs).coefficients, &inputs),
        &at(30.0),
        1e-14,
    );
}

#[test]
fn a_tolerance_of_zero_ends_at_the_rounding_floor() {
    let inputs = [
        vec![1.0, 0.2, 0.0],
        vec![0.9, -0.1, 0.4],
        vec![1.1, 0.3, 0.2],
    ];
    let karcher = Karcher::new(&[0.5, 0.2, 0.3], 1000, 0.0).expect("valid");
    let facts = karcher.solve(&gram(&inputs)).expect("finite").facts;
    assert!(facts.residual < 1e-15, "got {}", facts.residual);
    assert!(
        facts.stop == Stop::Floor || facts.residual == 0.0,
        "{facts:?}"
    );
    assert!(facts.iterations < 100 && !facts.flags.not_converged);
}

#[test]
fn nearly_parallel_inputs_converge_below_the_root_of_epsilon() {
    let inputs: Vec<Vec<f64>> = (0..3u16)
        .map(|i| {
            (0..50u16)
                .map(|k| f64::from(k) + 1.0 + 1e-3 * f64::from((k * 7 + i * 13) % 11))
                .collect()
        })
        .collect();
    let facts = solve(&[0.6, 0.3, 0.1], &inputs).facts;
    assert_eq!(facts.stop, Stop::Converged);
    assert!(facts.iterations < 10, "{facts:?}");
}

#[test]
fn one_input_keeps_its_bits() {
    let solution = solve(&[0.3], &[vec![0.1, 0.7]]);
    assert_eq!(solution.coefficients, [1.0]);
    assert_eq!(solution.facts.stop, Stop::Exact);
    assert_eq!(
        solve(&[0.0, 0.3], &[vec![1.0, 5.0], vec![0.1, 0.7]]).coefficients,
        [0.0, 1.0]
    );
}

#[test]
fn equal_inputs_get_their_weights_and_a_flag() {
    let input = vec![0.1, 0.7, -0.3];
    let solution = solve(
        &[1.0, 1.0, 2.0],
        &[input.clone(), input.clone(), input.clone()],
    );
    assert_eq!(solution.coefficients, [0.25, 0.25, 0.5]);
    assert!(solution.facts.flags.equal_inputs);
    let ignored = solve(
        &[1.0, 1.0, 0.0],
        &[input.clone(), input, vec![9.0, 9.0, 9.0]],
    );
    assert_eq!(ignored.coefficients, [0.5, 0.5, 0.0]);
    assert!(ignored.facts.flags.equal_inputs);
}

#[test]
fn a_zero_input_has_no_direction_but_counts_for_the_norm() {
    let inputs = [vec![2.0, 0.0], vec![0.0, 0.0], vec![0.0, 2.0]];
    let solution = solve(&[0.25, 0.5, 0.25], &inputs);
    let half = 0.5f64.sqrt();
    assert_close(
        &combine(&solution.coefficients, &inputs),
        &[half, half],
        1e-15,
    );
    assert_eq!(solution.coefficients[1], 0.0);
    assert!(solution.facts.flags.zero_inputs && !solution.facts.flags.all_zero);
    assert_eq!(solution.facts.angles[1], None);
    let single = solve(&[0.25, 0.75], &[vec![0.0], vec![3.0]]);
    assert_eq!(single.coefficients, [0.0, 0.75]);
}

#[test]
fn zero_inputs_only_give_zero() {
    let solution = solve(&[1.0, 1.0], &[vec![0.0; 3], vec![0.0; 3]]);
    // The weights, so that zeros keep their signs.
    assert_eq!(solution.coefficients, [0.5, 0.5]);
    assert!(solution.facts.flags.all_zero);
    assert_eq!(solution.facts.merged_norm, Some(0.0));
    let unweighted = solve(&[1.0, 0.0], &[vec![0.0], vec![3.0]]);
    assert_eq!(unweighted.coefficients, [1.0, 0.0]);
    assert!(unweighted.facts.flags.all_zero);
}

#[test]
fn opposite_inputs_end_at_the_largest_weight_the_first_of_equals() {
    let inputs = [vec![1.0, 2.0, 3.0], vec![-1.0, -2.0, -3.0]];
    let even = solve(&[1.0, 1.0], &inputs);
    assert!(
        even.facts.flags.mean_vanishes
            && even.facts.flags.opposite
            && even.facts.flags.beyond_right_angle
    );
    assert_close(&even.coefficients, &[1.0, 0.0], 1e-15);
    let uneven = solve(&[0.3, 0.7], &inputs);
    assert!(!uneven.facts.flags.mean_vanishes && uneven.facts.flags.opposite);
    assert_close(&combine(&uneven.coefficients, &inputs), &inputs[1], 1e-14);
}

#[test]
fn directions_that_cancel_go_on_from_the_largest_weight() {
    // Three directions at 120 degrees: every one of them is a local minimum of the circle.
    let solution = solve(&[1.0; 3], &[at(0.0), at(120.0), at(240.0)]);
    assert!(solution.facts.flags.mean_vanishes && solution.facts.flags.beyond_right_angle);
    assert_eq!(solution.facts.stop, Stop::Converged);
    assert_close(
        &combine(&solution.coefficients, &[at(0.0), at(120.0), at(240.0)]),
        &at(0.0),
        1e-12,
    );
}

#[test]
fn right_angles_are_not_flagged_and_wider_ones_are() {
    let flagged = |angle: f64| {
        solve(&[0.5, 0.5], &[at(0.0), at(angle)])
            .facts
            .flags
            .beyond_right_angle
    };
    assert!(!flagged(179.0));
    let wide = solve(&[0.9, 0.1], &[at(0.0), at(120.0)]).facts;
    assert!(wide.flags.beyond_right_angle, "{wide:?}");
}

#[test]
fn scalars_of_one_sign_average_and_of_two_signs_take_the_heavier() {
    assert_close(
        &combine(
            &solve(&[0.5, 0.5], &[vec![2.0], vec![4.0]]).coefficients,
            &[vec![2.0], vec![4.0]],
        ),
        &[3.0],
        1e-15,
    );
    let inputs = [vec![2.0], vec![4.0], vec![-3.0]];
    assert_close(
        &combine(&solve(&[0.3, 0.3, 0.4], &inputs).coefficients, &inputs),
        &[3.0],
        1e-14,
    );
}

#[test]
fn dependent_inputs_converge_although_their_coefficients_are_not_unique() {
    // Seven vectors of a plane.
    let inputs: Vec<Vec<f64>> = (0..7).map(|i| at(f64::from(i * i))).collect();
    let weights = [0.3, 0.1, 0.1, 0.1, 0.1, 0.2, 0.1];
    let mean = (0..7)
        .map(|i| weights[i] * f64::from(u8::try_from(i * i).expect("small")))
        .sum();
    let solution = solve(&weights, &inputs);
    assert_eq!(solution.facts.stop, Stop::Converged);
    assert_close(&combine(&solution.coefficients, &inputs), &at(mean), 1e-13);
}

#[test]
fn infinite_products_and_wrong_counts_are_errors() {
    let karcher = Karcher::new(&[1.0, 1.0], 10, 1e-12).expect("valid");
    assert!(
        karcher
            .solve(&Gram::from_sums(2, vec![f64::INFINITY, 1.0, 1.0]))
            .is_err()
    );
    assert!(
        karcher
            .solve(&Gram::from_sums(2, vec![1.0, f64::NAN, 1.0]))
            .is_err()
    );
    assert!(karcher.solve(&Gram::new(3)).is_err());
    assert!(Karcher::new(&[1.0, -1.0], 10, 1e-12).is_err());
    assert!(Karcher::new(&[1.0], 10, -1.0).is_err());
    assert!(Karcher::new(&[1.0], 10, f64::NAN).is_err());
}
