//! Softmax and cross-entropy.

use crate::data::narrow;

/// The cross-entropy of some samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    /// The sum over samples, in nats.
    pub sum: f64,
    /// The number of samples whose largest logit, the first of equal ones, is that of their class.
    pub correct: usize,
    /// The gradient of the mean over samples by the logits, [samples, classes].
    pub gradient: Vec<f32>,
}

/// Computes -ln softmax(logits)\[label\] of each row of logits, summed in f64.
///
/// # Panics
///
/// Panics unless there are `classes` logits for each label and every label is a class.
pub fn cross_entropy(logits: &[f32], labels: &[usize], classes: usize) -> Loss {
    assert_eq!(
        logits.len(),
        labels.len() * classes,
        "as many logits as classes for each label"
    );
    let mut loss = Loss {
        sum: 0.0,
        correct: 0,
        gradient: vec![0.0; logits.len()],
    };
    let count = labels.len() as f64;
    let rows = logits
        .chunks(classes.max(1))
        .zip(loss.gradient.chunks_mut(classes.max(1)));
    for ((logits, gradient), label) in rows.zip(labels) {
        let best = (1..classes).fold(0, |best, class| {
            if logits[class] > logits[best] {
                class
            } else {
                best
            }
        });
        let largest = f64::from(logits[best]);
        let powers = logits.iter();
        let powers = powers.map(|logit| (f64::from(*logit) - largest).exp());
        let total: f64 = powers.clone().sum();
        loss.sum += total.ln() - (f64::from(logits[*label]) - largest);
        loss.correct += usize::from(best == *label);
        for (class, (gradient, power)) in gradient.iter_mut().zip(powers).enumerate() {
            let wanted = if class == *label { 1.0 } else { 0.0 };
            *gradient = narrow((power / total - wanted) / count);
        }
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certain_even_and_wrong_answers_cost_what_they_should() {
        let loss = cross_entropy(&[50.0, 0.0, 0.0, 0.0, 0.0, 30.0], &[0, 0], 3);
        assert!((loss.sum - 30.0).abs() < 1e-9, "{loss:?}");
        assert_eq!(loss.correct, 1);
        let even = cross_entropy(&[2.0; 4], &[3], 4);
        assert!((even.sum - 4_f64.ln()).abs() < 1e-12 && even.correct == 0);
        assert_eq!(even.gradient, [0.25, 0.25, 0.25, -0.75]);
    }
}
