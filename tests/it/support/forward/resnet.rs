//! Residual networks of basic blocks or bottlenecks, as torchvision or transformers writes them.

use serde_json::json;

use super::chain::{add_norm, batch_norm, convolve, halve};
use super::{Family, Net, Random, add_to, map};

/// Which network.
#[derive(Debug, Clone, Copy)]
pub struct ResNet {
    /// Three convolutions a block, not two.
    pub bottleneck: bool,
    /// Norms over the channels, not batch norms.
    pub layer_norms: bool,
    /// Names as transformers has them.
    pub transformers: bool,
}

const SIDE: usize = 8;
const STEM: usize = 4;
const STAGES: [usize; 3] = [4, 6, 8];
const BLOCKS: usize = 2;
const NARROW: usize = 3;

impl ResNet {
    fn norm_word(&self) -> &'static str {
        if self.layer_norms { "norm" } else { "bn" }
    }

    fn add_norm(&self, net: &mut Net, random: &mut Random, name: &str, channels: usize) {
        if self.layer_norms {
            net.add_scale(random, &format!("{name}.weight"), &[channels]);
            net.add(random, &format!("{name}.bias"), &[channels]);
        } else {
            add_norm(net, random, name, channels);
        }
    }

    /// Names of the first convolution and its norm.
    fn stem(&self) -> [String; 2] {
        if self.transformers {
            return ["convolution", "normalization"]
                .map(|part| format!("resnet.embedder.embedder.{part}"));
        }
        ["conv1".into(), format!("{}1", self.norm_word())]
    }

    /// Names of convolution `at` of a block and its norm.
    fn inside(&self, stage: usize, block: usize, at: usize) -> [String; 2] {
        if self.transformers {
            let layer = format!("resnet.encoder.stages.{stage}.layers.{block}.layer.{at}");
            return ["convolution", "normalization"].map(|part| format!("{layer}.{part}"));
        }
        let layer = format!("layer{}.{block}", stage + 1);
        [
            format!("{layer}.conv{}", at + 1),
            format!("{layer}.{}{}", self.norm_word(), at + 1),
        ]
    }

    /// Names of a shortcut's convolution and its norm.
    fn shortcut(&self, stage: usize, block: usize) -> [String; 2] {
        if self.transformers {
            let layer = format!("resnet.encoder.stages.{stage}.layers.{block}.shortcut");
            return ["convolution", "normalization"].map(|part| format!("{layer}.{part}"));
        }
        [0, 1].map(|part| format!("layer{}.{block}.downsample.{part}", stage + 1))
    }

    fn has_shortcut(&self, stage: usize, block: usize) -> bool {
        block == 0 && (stage > 0 || self.bottleneck)
    }

    /// Channels and kernel of each convolution of a block.
    fn plan(&self, from: usize, to: usize) -> Vec<(usize, usize, usize)> {
        if self.bottleneck {
            return vec![
                (NARROW, from, 1),
                (NARROW + 2, NARROW, 3),
                (to, NARROW + 2, 1),
            ];
        }
        vec![(to + 1, from, 3), (to, to + 1, 3)]
    }
}

impl Family for ResNet {
    fn random(&self, seed: u64) -> Net {
        let random = &mut Random::new(seed);
        let model_type = match (self.transformers, self.bottleneck) {
            (true, _) => "resnet",
            (false, true) => "resnet50",
            (false, false) => "resnet20",
        };
        let mut net = Net::new(json!({ "model_type": model_type }));
        let [convolution, norm] = self.stem();
        net.add(random, &format!("{convolution}.weight"), &[STEM, 3, 3, 3]);
        self.add_norm(&mut net, random, &norm, STEM);
        let mut from = STEM;
        for (stage, to) in STAGES.into_iter().enumerate() {
            for block in 0..BLOCKS {
                for (at, (to, from, kernel)) in self.plan(from, to).into_iter().enumerate() {
                    let [convolution, norm] = self.inside(stage, block, at);
                    net.add(
                        random,
                        &format!("{convolution}.weight"),
                        &[to, from, kernel, kernel],
                    );
                    self.add_norm(&mut net, random, &norm, to);
                }
                if self.has_shortcut(stage, block) {
                    let [convolution, norm] = self.shortcut(stage, block);
                    net.add(random, &format!("{convolution}.weight"), &[to, from, 1, 1]);
                    self.add_norm(&mut net, random, &norm, to);
                }
                from = to;
            }
        }
        let head = if self.transformers {
            "classifier.1"
        } else {
            "fc"
        };
        net.add(random, &format!("{head}.weight"), &[5, from]);
        net.add(random, &format!("{head}.bias"), &[5]);
        net
    }

    fn outputs(&self, net: &Net) -> Vec<f64> {
        let mut side = SIDE;
        let layer = |[convolution, norm]: [String; 2], x: &[f64], side: usize, stride: usize| {
            let x = convolve(net, &convolution, x, side);
            let x = if stride == 2 { halve(&x, side) } else { x };
            batch_norm(net, &norm, &x, side * side / (stride * stride))
        };
        let relu = |x: &[f64]| map(x, |x| x.max(0.0));
        let mut x = relu(&layer(
            self.stem(),
            &Random::new(7).vector(3 * side * side),
            side,
            1,
        ));
        for stage in 0..STAGES.len() {
            for block in 0..BLOCKS {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                // The first convolution of two and the second of three have the stride.
                let (count, strided) = if self.bottleneck { (3, 1) } else { (2, 0) };
                let (mut inner, mut inner_side) = (x.clone(), side);
                for at in 0..count {
                    let stride = if at == strided { stride } else { 1 };
                    inner = layer(self.inside(stage, block, at), &inner, inner_side, stride);
                    inner_side /= stride;
                    if at + 1 < count {
                        inner = relu(&inner);
                    }
                }
                if self.has_shortcut(stage, block) {
                    x = layer(self.shortcut(stage, block), &x, side, stride);
                }
                side = inner_side;
                add_to(&mut inner, &x);
                x = relu(&inner);
            }
        }
        let means: Vec<f64> = x
            .chunks(side * side)
            .map(|channel| channel.iter().sum::<f64>() / (side * side) as f64)
            .collect();
        net.linear(
            if self.transformers {
                "classifier.1"
            } else {
                "fc"
            },
            &means,
        )
    }
}
