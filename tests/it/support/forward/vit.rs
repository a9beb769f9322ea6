//! A vision transformer.

use serde_json::json;

use super::bert::attention;
use super::{Family, Net, Random, add_to, dot, gelu, map, row};

pub struct Vit;

const WIDTH: usize = 12;
const HEADS: usize = 2;
const MLP: usize = 16;
const LAYERS: usize = 2;
const CHANNELS: usize = 3;
const PATCH: usize = 2;
const PATCHES: usize = 4;

impl Family for Vit {
    fn random(&self, seed: u64) -> Net {
        let random = &mut Random::new(seed);
        let mut net = Net::new(
            json!({ "model_type": "vit", "hidden_size": WIDTH, "num_attention_heads": HEADS }),
        );
        net.add(random, "vit.embeddings.cls_token", &[1, 1, WIDTH]);
        net.add(
            random,
            "vit.embeddings.position_embeddings",
            &[1, PATCHES + 1, WIDTH],
        );
        net.add(
            random,
            "vit.embeddings.patch_embeddings.projection.weight",
            &[WIDTH, CHANNELS, PATCH, PATCH],
        );
        net.add(
            random,
            "vit.embeddings.patch_embeddings.projection.bias",
            &[WIDTH],
        );
        let mut norms = vec!["vit.layernorm".to_owned()];
        let mut layers = vec![("classifier".to_owned(), 5, WIDTH)];
        for l in 0..LAYERS {
            let at = format!("vit.encoder.layer.{l}.");
            norms.extend([
                format!("{at}layernorm_before"),
                format!("{at}layernorm_after"),
            ]);
            for name in [
                "attention.query",
                "attention.key",
                "attention.value",
                "output.dense",
            ] {
                layers.push((format!("{at}attention.{name}"), WIDTH, WIDTH));
            }
            layers.push((format!("{at}intermediate.dense"), MLP, WIDTH));
            layers.push((format!("{at}output.dense"), WIDTH, MLP));
        }
        for (name, to, from) in layers {
            net.add(random, &format!("{name}.weight"), &[to, from]);
            net.add(random, &format!("{name}.bias"), &[to]);
        }
        for name in norms {
            net.add_scale(random, &format!("{name}.weight"), &[WIDTH]);
            net.add(random, &format!("{name}.bias"), &[WIDTH]);
        }
        net
    }

    fn outputs(&self, net: &Net) -> Vec<f64> {
        let mut image = Random::new(77);
        let filters = net.get("vit.embeddings.patch_embeddings.projection.weight");
        let mut xs = vec![net.get("vit.embeddings.cls_token").to_vec()];
        for _ in 0..PATCHES {
            let patch = image.vector(CHANNELS * PATCH * PATCH);
            let mut x: Vec<f64> = filters
                .chunks(patch.len())
                .map(|filter| dot(filter, &patch))
                .collect();
            add_to(
                &mut x,
                net.get("vit.embeddings.patch_embeddings.projection.bias"),
            );
            xs.push(x);
        }
        let places = net.get("vit.embeddings.position_embeddings");
        xs.iter_mut()
            .enumerate()
            .for_each(|(i, x)| add_to(x, row(places, i, WIDTH)));
        for l in 0..LAYERS {
            let at = format!("vit.encoder.layer.{l}.");
            let names =
                ["query", "key", "value"].map(|name| format!("{at}attention.attention.{name}"));
            let inputs: Vec<Vec<f64>> = xs
                .iter()
                .map(|x| net.layer_norm(&format!("{at}layernorm_before"), x))
                .collect();
            for (x, mixed) in xs.iter_mut().zip(attention(net, names, HEADS, &inputs)) {
                add_to(
                    x,
                    &net.linear(&format!("{at}attention.output.dense"), &mixed),
                );
                let normed = net.layer_norm(&format!("{at}layernorm_after"), x);
                let inner = map(
                    &net.linear(&format!("{at}intermediate.dense"), &normed),
                    gelu,
                );
                add_to(x, &net.linear(&format!("{at}output.dense"), &inner));
            }
        }
        net.linear("classifier", &net.layer_norm("vit.layernorm", &xs[0]))
    }
}
