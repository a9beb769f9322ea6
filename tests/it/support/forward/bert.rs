//! BERT with the heads of pre-training: masked words, and the order of sentences.

use serde_json::json;

use super::{Family, Net, Random, TOKENS, VOCABULARY, add_to, attend, gelu, head, map, row};

pub struct Bert;

const WIDTH: usize = 12;
const HEADS: usize = 3;
const DIM: usize = WIDTH / HEADS;
const MLP: usize = 16;
const LAYERS: usize = 2;

/// Attention of blocks that are named alike; `names` are those of queries, keys and values.
pub fn attention(net: &Net, names: [String; 3], heads: usize, xs: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let dim = xs[0].len() / heads;
    let [q, k, v] = names.map(|name| xs.iter().map(|x| net.linear(&name, x)).collect::<Vec<_>>());
    let mut mixed = vec![Vec::new(); xs.len()];
    for h in 0..heads {
        let rows = attend(
            &head(&q, h, dim),
            &head(&k, h, dim),
            &head(&v, h, dim),
            |_| xs.len(),
        );
        mixed
            .iter_mut()
            .zip(rows)
            .for_each(|(mixed, row)| mixed.extend(row));
    }
    mixed
}

impl Family for Bert {
    fn random(&self, seed: u64) -> Net {
        let random = &mut Random::new(seed);
        let mut net = Net::new(
            json!({ "model_type": "bert", "hidden_size": WIDTH, "num_attention_heads": HEADS, "head": DIM }),
        );
        let tables = [
            ("word", VOCABULARY),
            ("position", TOKENS.len()),
            ("token_type", 2),
        ];
        for (name, rows) in tables {
            net.add(
                random,
                &format!("bert.embeddings.{name}_embeddings.weight"),
                &[rows, WIDTH],
            );
        }
        let mut norms = vec![
            "bert.embeddings.LayerNorm".to_owned(),
            "cls.predictions.transform.LayerNorm".to_owned(),
        ];
        let mut layers = vec![
            ("bert.pooler.dense".to_owned(), WIDTH, WIDTH),
            ("cls.predictions.transform.dense".to_owned(), WIDTH, WIDTH),
            ("cls.seq_relationship".to_owned(), 2, WIDTH),
        ];
        for l in 0..LAYERS {
            let at = format!("bert.encoder.layer.{l}.");
            norms.extend([
                format!("{at}attention.output.LayerNorm"),
                format!("{at}output.LayerNorm"),
            ]);
            for name in [
                "attention.self.query",
                "attention.self.key",
                "attention.self.value",
                "attention.output.dense",
            ] {
                layers.push((format!("{at}{name}"), WIDTH, WIDTH));
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
        net.add(random, "cls.predictions.bias", &[VOCABULARY]);
        net
    }

    fn outputs(&self, net: &Net) -> Vec<f64> {
        let table = |name: &str| net.get(&format!("bert.embeddings.{name}_embeddings.weight"));
        let embed = |(i, token): (usize, &usize)| {
            let mut x = row(table("word"), *token, WIDTH).to_vec();
            add_to(&mut x, row(table("position"), i, WIDTH));
            add_to(&mut x, row(table("token_type"), usize::from(i > 3), WIDTH));
            net.layer_norm("bert.embeddings.LayerNorm", &x)
        };
        let mut xs: Vec<Vec<f64>> = TOKENS.iter().enumerate().map(embed).collect();
        for l in 0..LAYERS {
            let at = format!("bert.encoder.layer.{l}.");
            let names = ["query", "key", "value"].map(|name| format!("{at}attention.self.{name}"));
            let mixed = attention(net, names, HEADS, &xs);
            for (x, mixed) in xs.iter_mut().zip(&mixed) {
                add_to(
                    x,
                    &net.linear(&format!("{at}attention.output.dense"), mixed),
                );
                *x = net.layer_norm(&format!("{at}attention.output.LayerNorm"), x);
                let inner = map(&net.linear(&format!("{at}intermediate.dense"), x), gelu);
                add_to(x, &net.linear(&format!("{at}output.dense"), &inner));
                *x = net.layer_norm(&format!("{at}output.LayerNorm"), x);
            }
        }
        let pooled = map(&net.linear("bert.pooler.dense", &xs[0]), f64::tanh);
        let mut outputs = net.linear("cls.seq_relationship", &pooled);
        for x in &xs {
            let inner = map(&net.linear("cls.predictions.transform.dense", x), gelu);
            let inner = net.layer_norm("cls.predictions.transform.LayerNorm", &inner);
            let mut words = net.linear("bert.embeddings.word_embeddings", &inner);
            add_to(&mut words, net.get("cls.predictions.bias"));
            outputs.extend(words);
        }
        outputs
    }
}
