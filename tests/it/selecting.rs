//! Methods that choose among the elements of differences, against their definitions.

mod draws;
mod edges;
mod methods;
mod nonfinite;
mod numbers;
mod parameters;
mod random;
mod refusals;
mod reported;
mod resuming;
mod same_bytes;
mod shapes;
mod tied;
mod trial;

use safetensors::Dtype;

use crate::support::reference::selecting::Part;
use crate::support::reference::{Model, Random, Tensor};

pub use trial::{Choice, Trial};

/// The methods that add weighted differences.
const FAMILY: [&str; 7] = [
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
];

/// The other methods of any number of models.
const OTHERS: [&str; 5] = ["sce", "ram", "ramplus_tl", "consensus_ta", "consensus_ties"];

/// Floating point types of a base and its fine-tunes.
const DTYPES: [[Dtype; 6]; 5] = [
    [Dtype::F32; 6],
    [Dtype::BF16; 6],
    [Dtype::F16; 6],
    [Dtype::F64; 6],
    [
        Dtype::F32,
        Dtype::BF16,
        Dtype::F16,
        Dtype::F32,
        Dtype::F64,
        Dtype::F8_E4M3,
    ],
];

/// The base is the first of `dtypes`; the others differ from it by a step of a hundredth of its
/// elements, as they are stored.
fn fine_tunes(random: &mut Random, dtypes: &[Dtype], shapes: &[&[usize]]) -> Vec<Model> {
    let mut models = vec![Model::new(); dtypes.len()];
    for shape in shapes {
        let count = shape.iter().product();
        let base = Tensor::rounded(dtypes[0], shape, &random.gaussian(count)).values;
        for (at, (model, dtype)) in models.iter_mut().zip(dtypes).enumerate() {
            let step = if at == 0 { 0.0 } else { 0.01 };
            let noise = random.gaussian(count);
            let values: Vec<f64> = base.iter().zip(noise).map(|(b, z)| b + step * z).collect();
            let tensor = Tensor::rounded(*dtype, shape, &values);
            assert!(model.insert(format!("t{shape:?}"), tensor).is_none());
        }
    }
    models
}

/// Models of one tensor, `w`, the base first.
fn vectors(dtype: Dtype, values: &[&[f64]]) -> Vec<Model> {
    shaped(dtype, &[values[0].len()], values)
}

/// Models of one tensor of this shape, `w`, the base first.
fn shaped(dtype: Dtype, shape: &[usize], values: &[&[f64]]) -> Vec<Model> {
    let model =
        |values: &&[f64]| Model::from([("w".to_owned(), Tensor::rounded(dtype, shape, values))]);
    values.iter().map(model).collect()
}

/// Parts of weight 1 and this density.
fn dense(density: f64, count: usize) -> Vec<Part> {
    let part = Part {
        density,
        epsilon: 0.5 * density.min(1.0 - density).max(0.0),
        ..Part::weighing(1.0)
    };
    vec![part; count]
}
