//! A network as a list of operations, each on the values of earlier ones.

use indexmap::IndexMap;
use serde_json::Value;

use super::families;
use crate::error::{Error, Kind, Result};

/// The dimensions of one sample's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Channels, or features.
    pub channels: usize,
    /// Rows of the image; 1 for features without an image.
    pub height: usize,
    /// Columns of the image; 1 for features without an image.
    pub width: usize,
}

impl Shape {
    /// Makes the shape of features without places.
    pub fn flat(channels: usize) -> Self {
        Self {
            channels,
            height: 1,
            width: 1,
        }
    }

    /// Counts the places of one channel.
    pub fn places(&self) -> usize {
        self.height * self.width
    }

    /// Counts all numbers of the value.
    pub fn len(&self) -> usize {
        self.channels * self.places()
    }

    /// True if the value has no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A computation. Parameters and values are referred to by their numbers.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Op {
    /// x W^T + b for a weight [out, in], or x W + b for one [in, out].
    Linear {
        weight: usize,
        bias: Option<usize>,
        in_out: bool,
    },
    /// A two-dimensional convolution, its weight [out, in, height, width].
    Convolution {
        weight: usize,
        bias: Option<usize>,
        stride: usize,
        padding: usize,
    },
    /// A norm by running statistics, one mean and variance a channel.
    BatchNorm {
        weight: usize,
        bias: usize,
        mean: usize,
        variance: usize,
    },
    /// A norm over the channels of each place, or over channels and places together.
    LayerNorm {
        weight: usize,
        bias: usize,
        over_places: bool,
    },
    /// The larger of each number and zero.
    Relu,
    /// The largest number of each window; places beyond the image do not count.
    MaxPool {
        size: usize,
        stride: usize,
        padding: usize,
    },
    /// Means over windows that divide the image evenly, one for each place of the output.
    AveragePool,
    /// The sum with another value.
    Add(usize),
}

/// One operation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Operation {
    pub op: Op,
    /// The input's number: 0 is the network's input, k + 1 the output of operation k.
    pub input: usize,
    /// The shape of the output.
    pub shape: Shape,
}

/// The place of the activations of a layer's units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Units {
    /// The weight whose outputs these units are.
    pub weight: String,
    /// The axis of the weight along which the units lie.
    pub axis: usize,
    /// The value that holds the activations, behind norm and ReLU.
    pub value: usize,
}

/// A network, derived from names and shapes of tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    pub(super) input: Shape,
    pub(super) nodes: Vec<Operation>,
    pub(super) parameters: IndexMap<String, Vec<usize>>,
    pub(super) units: Vec<Units>,
}

impl Network {
    /// Builds the network of the spec called `spec` from these tensors, for samples of shape
    /// `sample`.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] when there is no forward pass for that spec; [`Kind::Mismatch`] when names,
    /// shapes, config or samples do not fit it.
    pub fn new(
        spec: &str,
        tensors: &IndexMap<String, Vec<u64>>,
        config: Option<&Value>,
        sample: &[usize],
    ) -> Result<Self> {
        families::check_activation(config)?;
        let build = Builder::new(tensors, sample);
        match spec {
            "mlp" => families::mlp(build, false),
            "mlp-flax" => families::mlp(build, true),
            "vgg16" => families::vgg(build),
            "resnet20" | "resnet50" => families::resnet(build, false),
            "resnet50-hf" => families::resnet(build, true),
            other => {
                let cause = "there are forward passes for mlp, mlp-flax, vgg16, resnet20, resnet50 and resnet50-hf only";
                Err(Error::new(
                    Kind::Usage,
                    "cannot compute the network",
                    format!("spec `{other}`"),
                    cause,
                )
                .with_hint("record activations with the framework that the model was trained in"))
            }
        }
    }

    /// Returns names and shapes of the parameters, in the order of
    /// [`Parameters`](super::Parameters).
    pub fn parameters(&self) -> &IndexMap<String, Vec<usize>> {
        &self.parameters
    }

    /// Lists the places of the activations of hidden units; a weight may occur several times.
    pub fn units(&self) -> &[Units] {
        &self.units
    }

    /// Returns the shape of a value.
    pub fn shape(&self, value: usize) -> Shape {
        value
            .checked_sub(1)
            .map_or(self.input, |node| self.nodes[node].shape)
    }

    /// Counts the classes, one for each logit.
    pub fn classes(&self) -> usize {
        self.shape(self.nodes.len()).len()
    }

    /// True if there are convolutions.
    pub(super) fn convolves(&self) -> bool {
        let mut nodes = self.nodes.iter();
        nodes.any(|node| matches!(node.op, Op::Convolution { .. }))
    }

    /// Returns the last operation that needs a value.
    pub(super) fn last_use(&self, value: usize) -> usize {
        let uses = |node: &Operation| node.input == value || node.op == Op::Add(value);
        let last = self.nodes.iter().rposition(uses);
        last.unwrap_or(self.nodes.len())
    }
}

/// Puts a network together, checking every size.
pub(super) struct Builder<'a> {
    pub tensors: &'a IndexMap<String, Vec<u64>>,
    net: Network,
}

impl<'a> Builder<'a> {
    fn new(tensors: &'a IndexMap<String, Vec<u64>>, sample: &[usize]) -> Self {
        let input = match *sample {
            [height, width] => Shape {
                channels: 1,
                height,
                width,
            },
            [channels, height, width] => Shape {
                channels,
                height,
                width,
            },
            _ => Shape::flat(sample.iter().product()),
        };
        Self {
            tensors,
            net: Network {
                input,
                nodes: Vec::new(),
                parameters: IndexMap::new(),
                units: Vec::new(),
            },
        }
    }

    /// Returns the number of the last value.
    pub fn last(&self) -> usize {
        self.net.nodes.len()
    }

    pub fn shape(&self, value: usize) -> Shape {
        self.net.shape(value)
    }

    /// Returns the shape of a tensor, which must exist.
    pub fn sizes(&self, name: &str) -> Result<Vec<usize>> {
        let Some(shape) = self.tensors.get(name) else {
            return Err(unfit(name, "the model does not have it"));
        };
        shape
            .iter()
            .map(|size| usize::try_from(*size).map_err(|error| unfit(name, error)))
            .collect()
    }

    fn push(&mut self, op: Op, input: usize, shape: Shape) -> usize {
        self.net.nodes.push(Operation { op, input, shape });
        self.last()
    }

    fn parameter(&mut self, name: &str, wanted: &[usize]) -> Result<usize> {
        let shape = self.sizes(name)?;
        if shape != wanted {
            return Err(unfit(
                name,
                format!("wanted shape {wanted:?}, got {shape:?}"),
            ));
        }
        Ok(self.net.parameters.insert_full(name.to_owned(), shape).0)
    }

    fn optional(&mut self, name: &str, wanted: &[usize]) -> Result<Option<usize>> {
        if self.tensors.contains_key(name) {
            self.parameter(name, wanted).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Adds a matrix on all numbers of value `input`.
    pub fn linear(
        &mut self,
        weight: &str,
        bias: &str,
        input: usize,
        in_out: bool,
    ) -> Result<usize> {
        let sizes = self.sizes(weight)?;
        let features = self.shape(input).len();
        let (out, from) = match (sizes.as_slice(), in_out) {
            ([out, from], false) | ([from, out], true) => (*out, *from),
            _ => {
                return Err(unfit(
                    weight,
                    format!("wanted a matrix, got shape {sizes:?}"),
                ));
            }
        };
        if from != features {
            let what = if input == 0 {
                "a sample"
            } else {
                "the layer before"
            };
            return Err(unfit(
                weight,
                format!("takes {from} numbers, {what} has {features}"),
            ));
        }
        let weight = self.parameter(weight, &sizes)?;
        let bias = self.optional(bias, &[out])?;
        Ok(self.push(
            Op::Linear {
                weight,
                bias,
                in_out,
            },
            input,
            Shape::flat(out),
        ))
    }

    /// Adds a convolution that keeps the size of the image, except for the stride.
    pub fn convolution(&mut self, layer: &str, input: usize, stride: usize) -> Result<usize> {
        let name = format!("{layer}.weight");
        let sizes = self.sizes(&name)?;
        let Shape {
            channels,
            height,
            width,
        } = self.shape(input);
        let [out, from, rows, columns] = *sizes.as_slice() else {
            return Err(unfit(
                &name,
                format!("wanted a convolution, got shape {sizes:?}"),
            ));
        };
        if from != channels {
            let what = if input == 0 {
                "a sample"
            } else {
                "the layer before"
            };
            return Err(unfit(
                &name,
                format!("takes {from} channels, {what} has {channels}"),
            ));
        }
        if rows != columns || rows % 2 == 0 {
            return Err(unfit(
                &name,
                format!("wanted a square kernel of odd size, got {rows} x {columns}"),
            ));
        }
        let weight = self.parameter(&name, &sizes)?;
        let bias = self.optional(&format!("{layer}.bias"), &[out])?;
        let padding = rows / 2;
        let after = |size: usize| (size + 2 * padding).saturating_sub(rows) / stride + 1;
        let shape = Shape {
            channels: out,
            height: after(height),
            width: after(width),
        };
        Ok(self.push(
            Op::Convolution {
                weight,
                bias,
                stride,
                padding,
            },
            input,
            shape,
        ))
    }

    /// Adds a norm, by running statistics if the model has them.
    pub fn norm(&mut self, layer: &str, input: usize) -> Result<usize> {
        let shape = self.shape(input);
        let name = |part: &str| format!("{layer}.{part}");
        let flat = [shape.channels];
        if self.tensors.contains_key(&name("running_mean")) {
            let weight = self.parameter(&name("weight"), &flat)?;
            let bias = self.parameter(&name("bias"), &flat)?;
            let mean = self.parameter(&name("running_mean"), &flat)?;
            let variance = self.parameter(&name("running_var"), &flat)?;
            return Ok(self.push(
                Op::BatchNorm {
                    weight,
                    bias,
                    mean,
                    variance,
                },
                input,
                shape,
            ));
        }
        let over_places = self.sizes(&name("weight"))?.len() == 3;
        let whole = [shape.channels, shape.height, shape.width];
        let wanted = if over_places { whole.as_slice() } else { &flat };
        let weight = self.parameter(&name("weight"), wanted)?;
        let bias = self.parameter(&name("bias"), wanted)?;
        Ok(self.push(
            Op::LayerNorm {
                weight,
                bias,
                over_places,
            },
            input,
            shape,
        ))
    }

    pub fn relu(&mut self, input: usize) -> usize {
        self.push(Op::Relu, input, self.shape(input))
    }

    pub fn max_pool(
        &mut self,
        input: usize,
        size: usize,
        stride: usize,
        padding: usize,
    ) -> Result<usize> {
        let Shape {
            channels,
            height,
            width,
        } = self.shape(input);
        if height + 2 * padding < size || width + 2 * padding < size {
            return Err(unfit(
                "inputs",
                format!("images of {height} x {width} are too small to be pooled by {size}"),
            ));
        }
        let after = |side: usize| (side + 2 * padding - size) / stride + 1;
        let shape = Shape {
            channels,
            height: after(height),
            width: after(width),
        };
        Ok(self.push(
            Op::MaxPool {
                size,
                stride,
                padding,
            },
            input,
            shape,
        ))
    }

    pub fn average_pool(&mut self, input: usize, side: usize) -> usize {
        let shape = Shape {
            height: side,
            width: side,
            ..self.shape(input)
        };
        self.push(Op::AveragePool, input, shape)
    }

    pub fn add(&mut self, input: usize, other: usize, layer: &str) -> Result<usize> {
        let (shape, added) = (self.shape(input), self.shape(other));
        if shape != added {
            let cause = format!("gives {shape:?}, what is added to it is {added:?}");
            return Err(unfit(layer, cause)
                .with_hint("shortcuts without weights fit blocks that keep their shape only"));
        }
        Ok(self.push(Op::Add(other), input, shape))
    }

    /// Records that value `value` holds the activations of the outputs of a weight.
    pub fn units(&mut self, weight: &str, axis: usize, value: usize) {
        self.net.units.push(Units {
            weight: weight.to_owned(),
            axis,
            value,
        });
    }

    pub fn finish(self) -> Result<Network> {
        if self.net.input.is_empty() {
            return Err(unfit("inputs", "a sample has no numbers"));
        }
        Ok(self.net)
    }
}

/// Builds the error for tensors or samples that do not make a network.
pub(super) fn unfit(subject: &str, cause: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::Mismatch,
        "cannot compute the network",
        subject.escape_debug(),
        cause,
    )
}
