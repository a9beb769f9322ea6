//! Numbers and shapes that cannot be matched, and runs that are ended.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn attempt(
    reference: &Tensors,
    moving: &Tensors,
    symmetries: &Arc<Symmetries>,
    watch: &dyn Watch,
) -> Error {
    let start = Transform::identity(symmetries);
    let (reference, moving) = (store(reference), store(moving));
    let options = MatchOptions::default();
    let refused = match_weights(
        reference.as_ref(),
        &moving,
        symmetries,
        Start {
            transform: &start,
            steps: &[],
        },
        &options,
        watch,
    );
    refused.expect_err("refused")
}

fn pair() -> (Tensors, Tensors, Arc<Symmetries>) {
    let case = Case::mlp(&[8, 12, 4]);
    let original = random(&case.shapes, 1);
    let symmetries = symmetries(case.spec, &original, &case.config);
    (original.clone(), original, symmetries)
}

#[test]
fn numbers_that_are_none_are_named() {
    for odd in [f32::NAN, f32::INFINITY] {
        let (whole, mut broken, symmetries) = pair();
        broken["fc1.weight"].1[5] = odd;
        for (one, other, model) in [
            (&whole, &broken, "model that is moved"),
            (&broken, &whole, "reference"),
        ] {
            let error = attempt(one, other, &symmetries, &Unwatched);
            assert_eq!(
                (error.kind(), error.subject()),
                (Kind::NonFinite, "fc1.weight")
            );
            assert!(error.to_string().contains(model), "{error}");
        }
    }
}

#[test]
fn other_shapes_are_named() {
    let (whole, mut other, symmetries) = pair();
    other["fc0.bias"] = (vec![6], vec![0.0; 6]);
    let error = attempt(&whole, &other, &symmetries, &Unwatched);
    assert_eq!(
        (error.kind(), error.subject()),
        (Kind::Mismatch, "fc0.bias")
    );
    other.shift_remove("fc0.bias");
    let error = attempt(&other, &whole, &symmetries, &Unwatched);
    assert_eq!(
        (error.kind(), error.subject()),
        (Kind::Mismatch, "fc0.bias")
    );
}

#[test]
fn tensors_of_zeros_count_for_nothing() {
    let (mut whole, mut other, symmetries) = pair();
    for tensors in [&mut whole, &mut other] {
        tensors["fc0.bias"].1.fill(0.0);
        tensors["fc1.weight"].1.fill(0.0);
    }
    let start = Transform::identity(&symmetries);
    let options = MatchOptions::default();
    let found = match_weights(
        store(&whole).as_ref(),
        &store(&other),
        &symmetries,
        Start {
            transform: &start,
            steps: &[],
        },
        &options,
        &Unwatched,
    );
    let found = found.expect("matched");
    assert!(
        (found.steps[0].after - 1.0).abs() < 1e-9,
        "one tensor is left"
    );
}

/// An observer that ends a run after this many calls.
struct Ends(AtomicUsize);

impl Watch for Ends {
    fn go_on(&self) -> Result<()> {
        if self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            })
            .is_ok()
        {
            return Ok(());
        }
        Err(Error::new(Kind::Interrupted, "stopped", "run", "asked to"))
    }
}

#[test]
fn a_run_ends_when_it_is_asked_to() {
    let (whole, other, symmetries) = pair();
    for left in 0..4 {
        let error = attempt(&whole, &other, &symmetries, &Ends(AtomicUsize::new(left)));
        assert_eq!(error.kind(), Kind::Interrupted);
    }
}

#[test]
fn groups_three_levels_deep_are_refused() {
    let text = "name: deep
groups:
  a: { units: 2, allows: [permutation] }
  b: { within: a, units: 2, allows: [permutation] }
  c: { within: b, units: 2, allows: [permutation] }
tensors:
  - { name: in, axes: [a * b * c, fixed] }
  - { name: out, axes: [fixed, a * b * c] }
";
    let spec = crate::symmetry::Spec::parse(text, "deep").expect("a spec");
    let shapes: Vec<(String, Vec<u64>)> =
        vec![("in".into(), vec![8, 3]), ("out".into(), vec![3, 8])];
    let tensors = random(&shapes, 1);
    let symmetries = Arc::new(
        spec.resolve(&shapes.into_iter().collect(), None)
            .expect("fits"),
    );
    let error = attempt(&tensors, &tensors, &symmetries, &Unwatched);
    assert_eq!((error.kind(), error.subject()), (Kind::Mismatch, "c"));
}
