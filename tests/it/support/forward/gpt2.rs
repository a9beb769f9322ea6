//! GPT-2.

use serde_json::json;

use super::{Family, Net, Random, TOKENS, VOCABULARY, add_to, attend, gelu, head, map, row};

pub struct Gpt2;

const WIDTH: usize = 12;
const HEADS: usize = 3;
const DIM: usize = WIDTH / HEADS;
const MLP: usize = 16;
const LAYERS: usize = 2;

impl Family for Gpt2 {
    fn random(&self, seed: u64) -> Net {
        let mut random = Random::new(seed);
        let mut net = Net::new(json!({ "model_type": "gpt2", "n_embd": WIDTH, "n_head": HEADS }));
        let random = &mut random;
        net.add(random, "transformer.wte.weight", &[VOCABULARY, WIDTH]);
        net.add(random, "transformer.wpe.weight", &[TOKENS.len(), WIDTH]);
        net.add_scale(random, "transformer.ln_f.weight", &[WIDTH]);
        net.add(random, "transformer.ln_f.bias", &[WIDTH]);
        for l in 0..LAYERS {
            let at = format!("transformer.h.{l}.");
            for norm in ["ln_1", "ln_2"] {
                net.add_scale(random, &format!("{at}{norm}.weight"), &[WIDTH]);
                net.add(random, &format!("{at}{norm}.bias"), &[WIDTH]);
            }
            let layers = [
                ("attn.c_attn", WIDTH, 3 * WIDTH),
                ("attn.c_proj", WIDTH, WIDTH),
                ("mlp.c_fc", WIDTH, MLP),
                ("mlp.c_proj", MLP, WIDTH),
            ];
            for (name, from, to) in layers {
                net.add(random, &format!("{at}{name}.weight"), &[from, to]);
                net.add(random, &format!("{at}{name}.bias"), &[to]);
            }
            net.add(random, &format!("{at}attn.bias"), &[1, 1, 2, 2]);
        }
        net
    }

    fn outputs(&self, net: &Net) -> Vec<f64> {
        let (tokens, places) = (
            net.get("transformer.wte.weight"),
            net.get("transformer.wpe.weight"),
        );
        let embed = |(i, token): (usize, &usize)| {
            let mut x = row(tokens, *token, WIDTH).to_vec();
            add_to(&mut x, row(places, i, WIDTH));
            x
        };
        let mut xs: Vec<Vec<f64>> = TOKENS.iter().enumerate().map(embed).collect();
        for l in 0..LAYERS {
            let at = format!("transformer.h.{l}.");
            let layer = |name: &str, x: &[f64]| {
                net.linear_in_out(
                    &format!("{at}{name}.weight"),
                    &format!("{at}{name}.bias"),
                    x,
                )
            };
            let fused: Vec<Vec<f64>> = xs
                .iter()
                .map(|x| layer("attn.c_attn", &net.layer_norm(&format!("{at}ln_1"), x)))
                .collect();
            let mut mixed = vec![Vec::new(); xs.len()];
            for h in 0..HEADS {
                let part = |slice: usize| head(&fused, slice * HEADS + h, DIM);
                let rows = attend(&part(0), &part(1), &part(2), |i| i + 1);
                mixed
                    .iter_mut()
                    .zip(rows)
                    .for_each(|(mixed, row)| mixed.extend(row));
            }
            for (x, mixed) in xs.iter_mut().zip(&mixed) {
                add_to(x, &layer("attn.c_proj", mixed));
                let inner = map(
                    &layer("mlp.c_fc", &net.layer_norm(&format!("{at}ln_2"), x)),
                    gelu,
                );
                add_to(x, &layer("mlp.c_proj", &inner));
            }
        }
        xs.iter()
            .flat_map(|x| net.linear("transformer.wte", &net.layer_norm("transformer.ln_f", x)))
            .collect()
    }
}
