//! Residual networks of basic blocks or bottlenecks, as torchvision or transformers names them.

use super::super::graph::{Builder, Network, unfit};
use crate::error::Result;

/// Names of convolutions and norms.
struct Names {
    prefix: String,
    transformers: bool,
}

/// Builds a stem, stages of blocks, means over places, a matrix.
///
/// The kernel of the stem gives away the size of image that a network is for: a kernel of 7 has a
/// stride of two and pooling behind it, as for ImageNet; a smaller one has neither, as for CIFAR.
pub fn resnet(mut build: Builder<'_>, transformers: bool) -> Result<Network> {
    let names = Names::find(&build, transformers)?;
    let [stem, norm] = names.stem(&build);
    let wide = build
        .sizes(&format!("{stem}.weight"))?
        .get(2)
        .is_some_and(|kernel| *kernel >= 7);
    let mut value = build.convolution(&stem, 0, if wide { 2 } else { 1 })?;
    value = build.norm(&norm, value)?;
    value = build.relu(value);
    build.units(&format!("{stem}.weight"), 0, value);
    if wide {
        value = build.max_pool(value, 3, 2, 1)?;
    }
    for stage in 0.. {
        if !names.has(&build, stage, 0, 0) {
            break;
        }
        let blocks = (0..)
            .take_while(|block| names.has(&build, stage, *block, 0))
            .count();
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            value = names.block(&mut build, stage, block, value, stride)?;
        }
    }
    value = build.average_pool(value, 1);
    let head = names.head(&build);
    build.linear(
        &format!("{head}.weight"),
        &format!("{head}.bias"),
        value,
        false,
    )?;
    build.finish()
}

impl Names {
    fn find(build: &Builder<'_>, transformers: bool) -> Result<Self> {
        let first = if transformers {
            "embedder.embedder.convolution.weight"
        } else {
            "layer1.0.conv1.weight"
        };
        let prefix = build
            .tensors
            .keys()
            .find_map(|name| name.strip_suffix(first))
            .ok_or_else(|| {
                unfit(
                    "tensors",
                    format!(
                        "none of them is called `{first}`, with something before it or without"
                    ),
                )
            })?;
        Ok(Self {
            prefix: prefix.to_owned(),
            transformers,
        })
    }

    /// Returns the first of two names whose tensors exist.
    fn either(build: &Builder<'_>, first: String, second: String) -> String {
        if build.tensors.contains_key(&format!("{first}.weight")) {
            first
        } else {
            second
        }
    }

    fn stem(&self, build: &Builder<'_>) -> [String; 2] {
        let prefix = &self.prefix;
        if self.transformers {
            return ["convolution", "normalization"]
                .map(|part| format!("{prefix}embedder.embedder.{part}"));
        }
        [
            format!("{prefix}conv1"),
            Self::either(build, format!("{prefix}bn1"), format!("{prefix}norm1")),
        ]
    }

    fn head(&self, build: &Builder<'_>) -> String {
        if self.transformers {
            return "classifier.1".into();
        }
        Self::either(
            build,
            format!("{}fc", self.prefix),
            format!("{}linear", self.prefix),
        )
    }

    fn of_block(&self, stage: usize, block: usize) -> String {
        let prefix = &self.prefix;
        if self.transformers {
            return format!("{prefix}encoder.stages.{stage}.layers.{block}");
        }
        format!("{prefix}layer{}.{block}", stage + 1)
    }

    /// Names convolution `at` of a block and its norm.
    fn inside(&self, build: &Builder<'_>, stage: usize, block: usize, at: usize) -> [String; 2] {
        let name = self.of_block(stage, block);
        if self.transformers {
            return ["convolution", "normalization"]
                .map(|part| format!("{name}.layer.{at}.{part}"));
        }
        let number = at + 1;
        [
            format!("{name}.conv{number}"),
            Self::either(
                build,
                format!("{name}.bn{number}"),
                format!("{name}.norm{number}"),
            ),
        ]
    }

    fn shortcut(&self, build: &Builder<'_>, stage: usize, block: usize) -> [String; 2] {
        let name = self.of_block(stage, block);
        if self.transformers {
            return ["convolution", "normalization"].map(|part| format!("{name}.shortcut.{part}"));
        }
        let name = Self::either(
            build,
            format!("{name}.shortcut.0"),
            format!("{name}.downsample.0"),
        );
        let norm = format!("{}1", name.trim_end_matches('0'));
        [name, norm]
    }

    fn has(&self, build: &Builder<'_>, stage: usize, block: usize, at: usize) -> bool {
        build.tensors.contains_key(&format!(
            "{}.weight",
            self.inside(build, stage, block, at)[0]
        ))
    }

    /// Adds convolutions with norms and ReLU between them, then the shortcut, then ReLU again. The
    /// stride is on the second of three convolutions (torchvision's version of the bottleneck), or
    /// on the first of two.
    fn block(
        &self,
        build: &mut Builder<'_>,
        stage: usize,
        block: usize,
        from: usize,
        stride: usize,
    ) -> Result<usize> {
        let count = (0..3)
            .take_while(|at| self.has(build, stage, block, *at))
            .count();
        let strided = usize::from(count == 3);
        let mut value = from;
        let mut last = String::new();
        for at in 0..count {
            let [convolution, norm] = self.inside(build, stage, block, at);
            value =
                build.convolution(&convolution, value, if at == strided { stride } else { 1 })?;
            value = build.norm(&norm, value)?;
            last = format!("{convolution}.weight");
            if at + 1 < count {
                value = build.relu(value);
                build.units(&last, 0, value);
            }
        }
        let [convolution, norm] = self.shortcut(build, stage, block);
        let mut other = from;
        if build.tensors.contains_key(&format!("{convolution}.weight")) {
            other = build.convolution(&convolution, from, stride)?;
            other = build.norm(&norm, other)?;
        }
        value = build.add(value, other, &self.of_block(stage, block))?;
        value = build.relu(value);
        build.units(&last, 0, value);
        Ok(value)
    }
}
