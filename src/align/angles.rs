//! Angles between the tensors of two models: a diagnostic of their distance, not a measure of how
//! well they merge.

use rayon::prelude::*;

use super::Weights;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernel::{CHUNK, Elements, GramOptions, Kernels, Scratch, pair_count};

/// The number of elements that are prefetched.
const AHEAD: u64 = 1 << 20;

/// Computes the cosine between tensor `name` of two models, each taken as one vector, for every
/// name; `None` if one of the two is zero or not finite. Runs on the current thread pool; the sums
/// are the same for every number of threads.
///
/// `passed` is called after every chunk with its elements, and may end the work.
///
/// # Errors
///
/// Fails if a file cannot be read or a model lacks a tensor, and passes on the errors of `passed`.
pub fn cosines(
    reference: &dyn Weights,
    model: &dyn Weights,
    names: &[&str],
    kernels: Kernels,
    passed: &(dyn Fn(u64) -> Result<()> + Sync),
) -> Result<Vec<Option<f64>>> {
    names
        .par_iter()
        .map(|name| cosine(reference, model, name, kernels, passed))
        .collect()
}

/// Returns the angle that has this cosine, in radians.
pub fn angle(cosine: f64) -> f64 {
    cosine.clamp(-1.0, 1.0).acos()
}

fn cosine(
    reference: &dyn Weights,
    model: &dyn Weights,
    name: &str,
    kernels: Kernels,
    passed: &(dyn Fn(u64) -> Result<()> + Sync),
) -> Result<Option<f64>> {
    let count: u64 = reference.shape(name).unwrap_or_default().iter().product();
    let (mut ours, mut theirs) = (reference.tensor(name)?, model.tensor(name)?);
    let mut numbers = [vec![0.0_f32; CHUNK], vec![0.0_f32; CHUNK]];
    let (mut scratch, mut sums) = (Scratch::default(), vec![0.0; pair_count(2)]);
    // |a|², <a, b>, |b|²
    let mut total = [0.0; 3];
    for at in (0..count).step_by(CHUNK) {
        if at % AHEAD == 0 {
            let soon = at..count.min(at + AHEAD);
            ours.prefetch(soon.clone());
            theirs.prefetch(soon);
        }
        let range = at..count.min(at + CHUNK as u64);
        let len = usize::try_from(range.end - range.start).expect("at most a chunk");
        let [one, other] = &mut numbers;
        ours.read(range.clone(), &mut one[..len])?;
        theirs.read(range, &mut other[..len])?;
        let pair = [&one[..len], &other[..len]].map(elements);
        kernels.gram(&pair, GramOptions::default(), &mut scratch, &mut sums);
        for (total, sum) in total.iter_mut().zip(&sums) {
            *total += sum;
        }
        passed(len as u64)?;
    }
    Ok(cosine_of(total))
}

/// Returns the cosine of two tensors by |a|², <a, b> and |b|²; `None` when one is zero or not
/// finite.
fn cosine_of(gram: [f64; 3]) -> Option<f64> {
    let [one, product, other] = gram;
    match one * other {
        // Equal tensors have exactly this cosine, regardless of the rounding of square roots.
        _ if one == product && product == other && one > 0.0 && one.is_finite() => Some(1.0),
        norms if norms > 0.0 => {
            Some(product / (one.sqrt() * other.sqrt())).filter(|cosine| cosine.is_finite())
        }
        _ => None,
    }
}

fn elements(numbers: &[f32]) -> Elements<'_> {
    Elements {
        dtype: Dtype::F32,
        bytes: bytemuck::cast_slice(numbers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::align::Store;

    #[test]
    fn cosines_are_those_of_plain_sums() {
        let count = CHUNK + 100;
        let wave = |phase: f64| {
            (0..count)
                .map(move |i| (f64::from(u32::try_from(i).expect("small")) * 0.37 + phase).sin())
        };
        let store = |phase: f64, zero: f32| {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "the test's numbers are f32"
            )]
            let wave = wave(phase).map(|x| x as f32).collect();
            let tensors = [
                ("wave".to_owned(), vec![count as u64], wave),
                ("zero".to_owned(), vec![1], vec![zero]),
                ("odd".to_owned(), vec![2], vec![f32::INFINITY, 1.0]),
            ];
            Store::in_memory(tensors, Kernels::detect())
        };
        let (one, other) = (store(0.0, 0.0), store(1.0, 1.0));
        let found = cosines(
            &one,
            &other,
            &["wave", "zero", "odd"],
            Kernels::detect(),
            &|_| Ok(()),
        )
        .expect("in memory");
        let product = |a: f64, b: f64| wave(a).zip(wave(b)).map(|(x, y)| x * y).sum::<f64>();
        let wanted = product(0.0, 1.0) / (product(0.0, 0.0) * product(1.0, 1.0)).sqrt();
        // Rounding to f32 moves each element by at most 6e-8 of itself.
        assert!(
            (found[0].expect("an angle") - wanted).abs() < 1e-7,
            "{found:?} {wanted}"
        );
        assert_eq!(found[1..], [None, None]);
        let same =
            cosines(&one, &one, &["wave"], Kernels::detect(), &|_| Ok(())).expect("in memory");
        assert_eq!(same, [Some(1.0)]);
        assert_eq!(angle(1.0), 0.0);
    }
}
