//! GPT-NeoX, attention and MLP side by side.

use serde_json::json;

use super::{Family, Net, Random, TOKENS, VOCABULARY, add_to, attend, gelu, map, rotate, row};

pub struct Neox;

const WIDTH: usize = 24;
const HEADS: usize = 3;
const DIM: usize = WIDTH / HEADS;
/// Half of a head is turned, in two pairs.
const ROTARY: usize = 4;
const MLP: usize = 16;
const LAYERS: usize = 2;

impl Family for Neox {
    fn random(&self, seed: u64) -> Net {
        let random = &mut Random::new(seed);
        let mut net = Net::new(json!({
            "model_type": "gpt_neox", "hidden_size": WIDTH, "num_attention_heads": HEADS, "rotary_pct": 0.5,
        }));
        net.add(random, "gpt_neox.embed_in.weight", &[VOCABULARY, WIDTH]);
        net.add(random, "embed_out.weight", &[VOCABULARY, WIDTH]);
        let mut norm = |net: &mut Net, name: &str| {
            net.add_scale(random, &format!("{name}.weight"), &[WIDTH]);
            net.add(random, &format!("{name}.bias"), &[WIDTH]);
        };
        norm(&mut net, "gpt_neox.final_layer_norm");
        for l in 0..LAYERS {
            norm(&mut net, &format!("gpt_neox.layers.{l}.input_layernorm"));
            norm(
                &mut net,
                &format!("gpt_neox.layers.{l}.post_attention_layernorm"),
            );
        }
        for l in 0..LAYERS {
            let layers = [
                ("attention.query_key_value", 3 * WIDTH, WIDTH),
                ("attention.dense", WIDTH, WIDTH),
                ("mlp.dense_h_to_4h", MLP, WIDTH),
                ("mlp.dense_4h_to_h", WIDTH, MLP),
            ];
            for (name, to, from) in layers {
                net.add(
                    random,
                    &format!("gpt_neox.layers.{l}.{name}.weight"),
                    &[to, from],
                );
                net.add(random, &format!("gpt_neox.layers.{l}.{name}.bias"), &[to]);
            }
        }
        net
    }

    fn outputs(&self, net: &Net) -> Vec<f64> {
        let table = net.get("gpt_neox.embed_in.weight");
        let mut xs: Vec<Vec<f64>> = TOKENS
            .iter()
            .map(|token| row(table, *token, WIDTH).to_vec())
            .collect();
        for l in 0..LAYERS {
            let at = format!("gpt_neox.layers.{l}.");
            let fused: Vec<Vec<f64>> = xs
                .iter()
                .map(|x| {
                    let normed = net.layer_norm(&format!("{at}input_layernorm"), x);
                    net.linear(&format!("{at}attention.query_key_value"), &normed)
                })
                .collect();
            let mut mixed = vec![Vec::new(); xs.len()];
            for h in 0..HEADS {
                let part = |slice: usize| -> Vec<Vec<f64>> {
                    let of = |(i, row): (usize, &Vec<f64>)| {
                        let mut part =
                            row[(3 * h + slice) * DIM..(3 * h + slice + 1) * DIM].to_vec();
                        if slice < 2 {
                            rotate(&mut part, ROTARY, i);
                        }
                        part
                    };
                    fused.iter().enumerate().map(of).collect()
                };
                let rows = attend(&part(0), &part(1), &part(2), |i| i + 1);
                mixed
                    .iter_mut()
                    .zip(rows)
                    .for_each(|(mixed, row)| mixed.extend(row));
            }
            for (x, mixed) in xs.iter_mut().zip(&mixed) {
                let normed = net.layer_norm(&format!("{at}post_attention_layernorm"), x);
                let inner = map(
                    &net.linear(&format!("{at}mlp.dense_h_to_4h"), &normed),
                    gelu,
                );
                add_to(x, &net.linear(&format!("{at}attention.dense"), mixed));
                add_to(x, &net.linear(&format!("{at}mlp.dense_4h_to_h"), &inner));
            }
        }
        xs.iter()
            .flat_map(|x| net.linear("embed_out", &net.layer_norm("gpt_neox.final_layer_norm", x)))
            .collect()
    }
}
