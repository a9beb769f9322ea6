//! The naive merger that the real one is compared with.
//!
//! It shares no code with the library: whole models in memory as f64, every formula as it stands in
//! the paper, on whole vectors instead of Gram matrices, sums compensated. Slow and plain on
//! purpose.

pub mod files;
pub mod float;
mod random;
mod rule;
pub mod selecting;
mod vector;

use std::collections::BTreeMap;

use safetensors::Dtype;

pub use float::{Format, round_to, widen};
pub use random::Random;
pub use rule::{Rule, karcher_gradient};
pub use vector::{combine, distance, dot, norm};

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its type in the file.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its elements as they lie in the file.
    pub bytes: Vec<u8>,
    /// Its elements widened; empty when the type is not a floating point one.
    pub values: Vec<f64>,
}

/// Tensors by name.
pub type Model = BTreeMap<String, Tensor>;

impl Tensor {
    /// A tensor of `values`, each rounded to `dtype`.
    pub fn rounded(dtype: Dtype, shape: &[usize], values: &[f64]) -> Self {
        assert_eq!(
            shape.iter().product::<usize>(),
            values.len(),
            "a value per element"
        );
        let width = Format::of(dtype).expect("a floating point type").bytes();
        let bytes = values
            .iter()
            .flat_map(|v| round_to(dtype, *v).to_le_bytes().into_iter().take(width))
            .collect();
        Self::from_bytes(dtype, shape, bytes)
    }

    /// A tensor of any type with these bytes.
    pub fn from_bytes(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        let widened = |format: Format| {
            bytes
                .chunks(format.bytes())
                .map(|chunk| widen(dtype, float::bits(chunk)))
                .collect()
        };
        let values = Format::of(dtype).map(widened).unwrap_or_default();
        Self {
            dtype,
            shape: shape.to_vec(),
            bytes,
            values,
        }
    }

    /// The element bits.
    pub fn bits(&self) -> Vec<u64> {
        self.bytes
            .chunks(
                Format::of(self.dtype)
                    .expect("a floating point type")
                    .bytes(),
            )
            .map(float::bits)
            .collect()
    }

    /// How many rows there are along the first axis; vectors and scalars are one.
    pub fn rows(&self) -> usize {
        if self.shape.len() < 2 {
            1
        } else {
            self.shape[0]
        }
    }
}

/// What one mean is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// Each tensor.
    Tensor,
    /// Each row along a tensor's first axis.
    Row,
    /// All tensors together.
    Model,
}

/// The merge of `models`, not rounded: the values of every floating point tensor of the first
/// model.
pub fn merge(
    models: &[Model],
    rule: &Rule,
    granularity: Granularity,
) -> BTreeMap<String, Vec<f64>> {
    let names: Vec<&String> = models[0]
        .iter()
        .filter(|(_, t)| Format::of(t.dtype).is_some())
        .map(|(n, _)| n)
        .collect();
    let values = |model: usize, name: &String| models[model][name].values.as_slice();
    if granularity == Granularity::Model {
        let whole: Vec<Vec<f64>> = (0..models.len())
            .map(|m| {
                names
                    .iter()
                    .flat_map(|name| values(m, name))
                    .copied()
                    .collect()
            })
            .collect();
        let merged = rule.apply(&whole.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let mut rest = merged.as_slice();
        let cut = |name: &&String| {
            let (own, after) = rest.split_at(values(0, name).len());
            rest = after;
            (name.to_string(), own.to_vec())
        };
        return names.iter().map(cut).collect();
    }
    let merged = |name: &&String| {
        let rows = if granularity == Granularity::Row {
            models[0][*name].rows()
        } else {
            1
        };
        let length = values(0, name).len() / rows.max(1);
        let row = |r: usize| -> Vec<f64> {
            rule.apply(
                &(0..models.len())
                    .map(|m| &values(m, name)[r * length..(r + 1) * length])
                    .collect::<Vec<_>>(),
            )
        };
        (name.to_string(), (0..rows).flat_map(row).collect())
    };
    names.iter().map(merged).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(tensors: &[(&str, &[usize], &[f64])]) -> Model {
        let tensor = |shape: &[usize], values: &[f64]| Tensor::rounded(Dtype::F32, shape, values);
        tensors
            .iter()
            .map(|(name, shape, values)| (name.to_string(), tensor(shape, values)))
            .collect()
    }

    #[test]
    fn granularity_decides_what_one_mean_is_taken_over() {
        let models = [
            model(&[
                ("a", &[2, 2], &[1.0, 0.0, 0.0, 2.0]),
                ("b", &[2], &[3.0, 0.0]),
            ]),
            model(&[
                ("a", &[2, 2], &[0.0, 1.0, 2.0, 0.0]),
                ("b", &[2], &[0.0, 3.0]),
            ]),
        ];
        let rule = Rule::Karcher {
            weights: vec![1.0, 1.0],
            max_iter: 100,
        };
        let half = 0.5f64.sqrt();
        for granularity in [Granularity::Tensor, Granularity::Row, Granularity::Model] {
            // All rows are orthogonal and of equal norm in both models, so that every granularity
            // agrees.
            let merged = merge(&models, &rule, granularity);
            let wanted = [half, half, 2.0 * half, 2.0 * half, 3.0 * half, 3.0 * half];
            let got: Vec<f64> = merged["a"].iter().chain(&merged["b"]).copied().collect();
            assert!(distance(&got, &wanted) < 1e-14, "{granularity:?}: {got:?}");
        }
        let scaled = [
            models[0].clone(),
            model(&[
                ("a", &[2, 2], &[0.0, 4.0, 2.0, 0.0]),
                ("b", &[2], &[0.0, 3.0]),
            ]),
        ];
        let rows = merge(&scaled, &rule, Granularity::Row);
        let tensors = merge(&scaled, &rule, Granularity::Tensor);
        let whole = merge(&scaled, &rule, Granularity::Model);
        assert!(
            distance(
                &rows["a"],
                &[2.5 * half, 2.5 * half, 2.0 * half, 2.0 * half]
            ) < 1e-14
        );
        assert!(
            distance(&rows["a"], &tensors["a"]) > 0.1 && distance(&tensors["a"], &whole["a"]) > 0.1
        );
        assert!(
            distance(&rows["b"], &tensors["b"]) < 1e-14
                && distance(&tensors["b"], &whole["b"]) > 0.1
        );
    }

    #[test]
    fn scalars_and_empty_tensors_are_one_row_and_integers_are_left_out() {
        let mut first = model(&[("empty", &[0, 3], &[]), ("scalar", &[], &[2.0])]);
        first.insert(
            "ids".into(),
            Tensor::from_bytes(Dtype::I64, &[1], vec![7; 8]),
        );
        for granularity in [Granularity::Tensor, Granularity::Row, Granularity::Model] {
            let rule = Rule::Linear {
                weights: vec![1.0, 1.0],
                normalize: true,
            };
            let merged = merge(&[first.clone(), first.clone()], &rule, granularity);
            assert_eq!(merged.keys().collect::<Vec<_>>(), ["empty", "scalar"]);
            assert_eq!(
                (merged["empty"].len(), merged["scalar"].as_slice()),
                (0, [2.0].as_slice())
            );
        }
    }
}
