//! Llama and its kin: rotary embeddings, grouped queries, gated MLPs; with biases, normalised
//! queries and keys, norms behind the blocks, fused projections, or experts, as asked.

use serde_json::json;

use super::{
    Family, Net, Random, TOKENS, VOCABULARY, add_to, attend, dot, gelu, head, map, rotate, row,
    silu, softmax,
};

/// What is different from a plain Llama.
#[derive(Debug, Clone, Copy, Default)]
pub struct Llama {
    pub model_type: &'static str,
    pub biases: bool,
    pub normed_keys: bool,
    pub post_norms: bool,
    pub fused: bool,
    pub tied: bool,
    pub experts: Experts,
    /// How many units of each head are turned; all of them when zero.
    pub rotary: usize,
}

/// How experts are written, if there are any.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Experts {
    #[default]
    None,
    Mixtral,
    Qwen {
        shared: bool,
    },
}

const WIDTH: usize = 12;
const HEADS: usize = 6;
const KV: usize = 3;
const DIM: usize = 8;
const MLP: usize = 10;
const LAYERS: usize = 2;
const EXPERTS: usize = 4;
/// Experts that are asked.
const ASKED: usize = 2;

impl Llama {
    fn rotary(&self) -> usize {
        if self.rotary == 0 { DIM } else { self.rotary }
    }

    /// Gemma adds one to the weights of its norms and multiplies embeddings.
    fn is_gemma(&self) -> bool {
        self.model_type.starts_with("gemma")
    }

    fn norm(&self, net: &Net, name: &str, x: &[f64]) -> Vec<f64> {
        let scale = (dot(x, x) / x.len() as f64 + 1e-6).sqrt().recip();
        let more = if self.is_gemma() { 1.0 } else { 0.0 };
        x.iter()
            .zip(net.get(name))
            .map(|(x, w)| x * scale * (w + more))
            .collect()
    }

    fn gate(&self, x: f64) -> f64 {
        if self.is_gemma() { gelu(x) } else { silu(x) }
    }

    fn add_attention(&self, net: &mut Net, random: &mut Random, at: &str) {
        let at = format!("{at}self_attn.");
        if self.fused {
            net.add(
                random,
                &format!("{at}qkv_proj.weight"),
                &[(HEADS + 2 * KV) * DIM, WIDTH],
            );
        } else {
            for (name, heads) in [("q_proj", HEADS), ("k_proj", KV), ("v_proj", KV)] {
                net.add(random, &format!("{at}{name}.weight"), &[heads * DIM, WIDTH]);
                if self.biases {
                    net.add(random, &format!("{at}{name}.bias"), &[heads * DIM]);
                }
            }
        }
        if self.normed_keys {
            net.add_scale(random, &format!("{at}q_norm.weight"), &[DIM]);
            net.add_scale(random, &format!("{at}k_norm.weight"), &[DIM]);
        }
        net.add(random, &format!("{at}o_proj.weight"), &[WIDTH, HEADS * DIM]);
    }

    fn add_mlp(&self, net: &mut Net, random: &mut Random, at: &str) {
        let three = |net: &mut Net, random: &mut Random, at: &str, names: [&str; 3]| {
            net.add(random, &format!("{at}{}.weight", names[0]), &[MLP, WIDTH]);
            net.add(random, &format!("{at}{}.weight", names[1]), &[MLP, WIDTH]);
            net.add(random, &format!("{at}{}.weight", names[2]), &[WIDTH, MLP]);
        };
        let usual = ["gate_proj", "up_proj", "down_proj"];
        match self.experts {
            Experts::None if self.fused => {
                net.add(
                    random,
                    &format!("{at}mlp.gate_up_proj.weight"),
                    &[2 * MLP, WIDTH],
                );
                net.add(random, &format!("{at}mlp.down_proj.weight"), &[WIDTH, MLP]);
            }
            Experts::None => three(net, random, &format!("{at}mlp."), usual),
            Experts::Mixtral => {
                net.add(
                    random,
                    &format!("{at}block_sparse_moe.gate.weight"),
                    &[EXPERTS, WIDTH],
                );
                for e in 0..EXPERTS {
                    three(
                        net,
                        random,
                        &format!("{at}block_sparse_moe.experts.{e}."),
                        ["w1", "w3", "w2"],
                    );
                }
            }
            Experts::Qwen { shared } => {
                net.add(random, &format!("{at}mlp.gate.weight"), &[EXPERTS, WIDTH]);
                for e in 0..EXPERTS {
                    three(net, random, &format!("{at}mlp.experts.{e}."), usual);
                }
                if shared {
                    three(net, random, &format!("{at}mlp.shared_expert."), usual);
                    net.add(
                        random,
                        &format!("{at}mlp.shared_expert_gate.weight"),
                        &[1, WIDTH],
                    );
                }
            }
        }
    }

    fn attention(&self, net: &Net, at: &str, xs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let at = format!("{at}self_attn.");
        let split = |x: &Vec<f64>| -> [Vec<f64>; 3] {
            if self.fused {
                let all = net.linear(&format!("{at}qkv_proj"), x);
                let (q, kv) = all.split_at(HEADS * DIM);
                let (k, v) = kv.split_at(KV * DIM);
                return [q.to_vec(), k.to_vec(), v.to_vec()];
            }
            ["q_proj", "k_proj", "v_proj"].map(|name| net.linear(&format!("{at}{name}"), x))
        };
        let mut all: [Vec<Vec<f64>>; 3] = Default::default();
        for (position, x) in xs.iter().enumerate() {
            let [mut q, mut k, v] = split(x);
            for (heads, norm) in [(&mut q, "q_norm"), (&mut k, "k_norm")] {
                for head in heads.chunks_mut(DIM) {
                    if self.normed_keys {
                        let normed = self.norm(net, &format!("{at}{norm}.weight"), head);
                        head.copy_from_slice(&normed);
                    }
                    rotate(head, self.rotary(), position);
                }
            }
            [q, k, v]
                .into_iter()
                .zip(&mut all)
                .for_each(|(row, rows)| rows.push(row));
        }
        let [q, k, v] = all;
        let mut mixed = vec![Vec::new(); xs.len()];
        for h in 0..HEADS {
            let of = h / (HEADS / KV);
            let rows = attend(
                &head(&q, h, DIM),
                &head(&k, of, DIM),
                &head(&v, of, DIM),
                |i| i + 1,
            );
            mixed
                .iter_mut()
                .zip(rows)
                .for_each(|(mixed, row)| mixed.extend(row));
        }
        mixed
            .iter()
            .map(|mixed| net.linear(&format!("{at}o_proj"), mixed))
            .collect()
    }

    fn gated(&self, net: &Net, at: &str, names: [&str; 3], x: &[f64]) -> Vec<f64> {
        let gate = net.linear(&format!("{at}{}", names[0]), x);
        let up = net.linear(&format!("{at}{}", names[1]), x);
        let inner: Vec<f64> = gate
            .iter()
            .zip(&up)
            .map(|(gate, up)| self.gate(*gate) * up)
            .collect();
        net.linear(&format!("{at}{}", names[2]), &inner)
    }

    fn experts(
        &self,
        net: &Net,
        router: &str,
        x: &[f64],
        expert: impl Fn(usize) -> Vec<f64>,
    ) -> Vec<f64> {
        let shares = softmax(&net.linear(router, x));
        let mut order: Vec<usize> = (0..EXPERTS).collect();
        order.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]));
        let asked = &order[..ASKED];
        let all: f64 = asked.iter().map(|e| shares[*e]).sum();
        let mut sum = vec![0.0; WIDTH];
        asked
            .iter()
            .for_each(|&e| add_to(&mut sum, &map(&expert(e), |y| y * shares[e] / all)));
        sum
    }

    fn mlp(&self, net: &Net, at: &str, x: &[f64]) -> Vec<f64> {
        let usual = ["gate_proj", "up_proj", "down_proj"];
        match self.experts {
            Experts::None if self.fused => {
                let both = net.linear(&format!("{at}mlp.gate_up_proj"), x);
                let (gate, up) = both.split_at(MLP);
                let inner: Vec<f64> = gate
                    .iter()
                    .zip(up)
                    .map(|(gate, up)| self.gate(*gate) * up)
                    .collect();
                net.linear(&format!("{at}mlp.down_proj"), &inner)
            }
            Experts::None => self.gated(net, &format!("{at}mlp."), usual, x),
            Experts::Mixtral => self.experts(net, &format!("{at}block_sparse_moe.gate"), x, |e| {
                self.gated(
                    net,
                    &format!("{at}block_sparse_moe.experts.{e}."),
                    ["w1", "w3", "w2"],
                    x,
                )
            }),
            Experts::Qwen { shared } => {
                let expert = |e| self.gated(net, &format!("{at}mlp.experts.{e}."), usual, x);
                let mut sum = self.experts(net, &format!("{at}mlp.gate"), x, expert);
                if shared {
                    let share = 1.0
                        / (1.0 + (-net.linear(&format!("{at}mlp.shared_expert_gate"), x)[0]).exp());
                    add_to(
                        &mut sum,
                        &map(
                            &self.gated(net, &format!("{at}mlp.shared_expert."), usual, x),
                            |y| y * share,
                        ),
                    );
                }
                sum
            }
        }
    }
}

impl Family for Llama {
    fn random(&self, seed: u64) -> Net {
        let mut random = Random::new(seed);
        let mut config = json!({
            "model_type": self.model_type, "hidden_size": WIDTH, "num_attention_heads": HEADS,
            "num_key_value_heads": KV, "head_dim": DIM, "intermediate_size": MLP,
        });
        if self.rotary != 0 {
            config["partial_rotary_factor"] = (self.rotary as f64 / DIM as f64).into();
        }
        let mut net = Net::new(config);
        net.add(
            &mut random,
            "model.embed_tokens.weight",
            &[VOCABULARY, WIDTH],
        );
        net.add_scale(&mut random, "model.norm.weight", &[WIDTH]);
        if !self.tied {
            net.add(&mut random, "lm_head.weight", &[VOCABULARY, WIDTH]);
        }
        for l in 0..LAYERS {
            let at = format!("model.layers.{l}.");
            net.add_scale(
                &mut random,
                &format!("{at}input_layernorm.weight"),
                &[WIDTH],
            );
            net.add_scale(
                &mut random,
                &format!("{at}post_attention_layernorm.weight"),
                &[WIDTH],
            );
            if self.post_norms {
                net.add_scale(
                    &mut random,
                    &format!("{at}pre_feedforward_layernorm.weight"),
                    &[WIDTH],
                );
                net.add_scale(
                    &mut random,
                    &format!("{at}post_feedforward_layernorm.weight"),
                    &[WIDTH],
                );
            }
            self.add_attention(&mut net, &mut random, &at);
            self.add_mlp(&mut net, &mut random, &at);
        }
        net
    }

    fn outputs(&self, net: &Net) -> Vec<f64> {
        let table = net.get("model.embed_tokens.weight");
        let mut xs: Vec<Vec<f64>> = TOKENS
            .iter()
            .map(|token| row(table, *token, WIDTH).to_vec())
            .collect();
        for l in 0..LAYERS {
            let at = format!("model.layers.{l}.");
            let norm = |name: &str, x: &Vec<f64>| self.norm(net, &format!("{at}{name}.weight"), x);
            let inputs: Vec<Vec<f64>> = xs.iter().map(|x| norm("input_layernorm", x)).collect();
            for (x, mixed) in xs.iter_mut().zip(self.attention(net, &at, &inputs)) {
                if self.post_norms {
                    add_to(x, &norm("post_attention_layernorm", &mixed));
                    let mixed = self.mlp(net, &at, &norm("pre_feedforward_layernorm", x));
                    add_to(x, &norm("post_feedforward_layernorm", &mixed));
                } else {
                    add_to(x, &mixed);
                    let mixed = self.mlp(net, &at, &norm("post_attention_layernorm", x));
                    add_to(x, &mixed);
                }
            }
        }
        // A tied head may have been untied.
        let head = if net.has("lm_head.weight") {
            "lm_head"
        } else {
            "model.embed_tokens"
        };
        xs.iter()
            .flat_map(|x| net.linear(head, &self.norm(net, "model.norm.weight", x)))
            .collect()
    }
}
