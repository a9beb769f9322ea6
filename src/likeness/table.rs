//! The config keys that decide the meaning of tensors or the function computed from them.

/// The effect of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// The key decides the meaning of elements in tensors of one shape.
    Meaning,
    /// The key decides the function that is computed.
    Function,
}

/// One setting, under the keys that families use for it.
pub(super) struct Row {
    pub names: &'static [&'static str],
    pub effect: Effect,
    pub why: &'static str,
}

const fn meaning(names: &'static [&'static str], why: &'static str) -> Row {
    Row {
        names,
        effect: Effect::Meaning,
        why,
    }
}

const fn function(names: &'static [&'static str], why: &'static str) -> Row {
    Row {
        names,
        effect: Effect::Function,
        why,
    }
}

const HEADS: &str = "it says into which heads the rows of attention projections are cut";
const ROTARY: &str = "it says which components of a head are turned, and with which partner";
const FUSED: &str = "it says in which order queries, keys and values lie in one tensor";
const EXPERTS: &str = "it says into which experts a tensor is cut";
const GROUPS: &str = "it says into which groups channels are cut";
const SCALED: &str = "weights are trained for it, so those of other scales are not of one size";
const STATES: &str = "it says into which parts the projections of a state space are cut";
const POSITIONS: &str = "it changes how positions are told apart";
const ACTIVATION: &str = "it changes the function between the layers";
const ROUTED: &str = "it changes which experts a token goes to, and with which weights";
const WINDOW: &str = "it changes how far attention reaches";
const KINDS: &str = "it changes what kind a layer is of";
const NORM: &str = "it changes what norms divide by";
const CAPPED: &str = "it changes how scores are limited";
const ORDER: &str = "it changes what a layer adds to what";

/// The usual keys of the number of attention heads.
pub(super) const HEAD_NAMES: &[&str] = &["num_attention_heads", "n_head", "n_heads", "num_heads"];
/// The usual keys of the number of key-value heads.
pub(super) const KEY_HEAD_NAMES: &[&str] = &[
    "num_key_value_heads",
    "num_kv_heads",
    "n_head_kv",
    "multi_query_group_num",
];
/// The usual keys of the size of a head.
pub(super) const HEAD_SIZE_NAMES: &[&str] = &["head_dim", "d_kv", "kv_channels"];

/// Every setting that is compared. Sizes that shapes show are omitted, and so are settings of
/// training or generation.
pub(super) const ROWS: &[Row] = &[
    meaning(HEAD_NAMES, HEADS),
    meaning(KEY_HEAD_NAMES, HEADS),
    meaning(HEAD_SIZE_NAMES, HEADS),
    meaning(&["encoder_attention_heads"], HEADS),
    meaning(&["decoder_attention_heads"], HEADS),
    meaning(&["attention_head_dim"], HEADS),
    meaning(&["qk_nope_head_dim"], HEADS),
    meaning(&["qk_rope_head_dim"], HEADS),
    meaning(&["v_head_dim"], HEADS),
    meaning(&["global_head_dim"], HEADS),
    meaning(&["num_global_key_value_heads"], HEADS),
    meaning(&["linear_num_key_heads"], HEADS),
    meaning(&["linear_num_value_heads"], HEADS),
    meaning(&["linear_key_head_dim"], HEADS),
    meaning(&["linear_value_head_dim"], HEADS),
    meaning(&["partial_rotary_factor", "rotary_pct", "rope_pct"], ROTARY),
    meaning(&["rotary_dim", "rotary_emb_dim"], ROTARY),
    meaning(
        &[
            "rope_interleave",
            "rope_interleaved",
            "rotary_emb_interleaved",
            "rotary_interleaved",
        ],
        ROTARY,
    ),
    meaning(&["multi_query"], FUSED),
    meaning(&["new_decoder_architecture"], FUSED),
    meaning(&["multi_query_attention"], FUSED),
    meaning(
        &[
            "num_experts",
            "num_local_experts",
            "n_routed_experts",
            "moe_num_experts",
        ],
        EXPERTS,
    ),
    meaning(
        &[
            "groups",
            "num_groups",
            "cardinality",
            "num_conv_pos_embedding_groups",
        ],
        GROUPS,
    ),
    meaning(&["n_groups", "mamba_n_groups"], STATES),
    meaning(&["mamba_n_heads", "mamba_num_heads"], STATES),
    meaning(&["mamba_d_head", "mamba_head_dim"], STATES),
    meaning(&["state_size", "mamba_d_state", "ssm_state_size"], STATES),
    meaning(
        &[
            "embedding_multiplier",
            "scale_emb",
            "mup_embeddings_multiplier",
            "mup_embeddings_scale",
        ],
        SCALED,
    ),
    meaning(&["residual_multiplier", "scale_depth"], SCALED),
    meaning(&["attention_multiplier", "mup_attn_multiplier"], SCALED),
    meaning(
        &[
            "logits_scaling",
            "logit_scale",
            "lm_head_multiplier",
            "mup_output_alpha",
            "mup_width_scale",
        ],
        SCALED,
    ),
    meaning(&["dim_model_base"], SCALED),
    meaning(&["ssm_multipliers"], SCALED),
    meaning(&["mlp_multipliers"], SCALED),
    meaning(&["key_multiplier"], SCALED),
    meaning(&["query_pre_attn_scalar"], SCALED),
    meaning(&["scale_attn_by_inverse_layer_idx"], SCALED),
    meaning(&["scale_attn_weights"], SCALED),
    meaning(&["scale_embedding"], SCALED),
    meaning(&["normalize_embedding"], SCALED),
    meaning(&["apply_layernorm_1p"], SCALED),
    function(
        &["rope_theta", "rotary_emb_base", "rope_base", "base_freq"],
        POSITIONS,
    ),
    function(&["rope_local_base_freq"], POSITIONS),
    function(&["rope_scaling"], POSITIONS),
    function(&["position_embedding_type"], POSITIONS),
    function(&["alibi", "use_alibi"], POSITIONS),
    function(&["relative_attention_num_buckets"], POSITIONS),
    function(&["relative_attention_max_distance"], POSITIONS),
    function(&["no_rope_layers"], POSITIONS),
    function(
        &[
            "hidden_act",
            "hidden_activation",
            "activation_function",
            "feed_forward_proj",
            "afn",
            "ffn_act_fn",
            "act_fn",
        ],
        ACTIVATION,
    ),
    function(&["mlp_hidden_act"], ACTIVATION),
    function(
        &[
            "num_experts_per_tok",
            "num_experts_per_token",
            "moe_topk",
            "moe_top_k",
            "moe_k",
            "top_k_experts",
        ],
        ROUTED,
    ),
    function(&["norm_topk_prob"], ROUTED),
    function(&["routed_scaling_factor"], ROUTED),
    function(&["scoring_func"], ROUTED),
    function(&["topk_method"], ROUTED),
    function(&["n_group"], ROUTED),
    function(&["topk_group"], ROUTED),
    function(&["sliding_window", "sliding_window_size"], WINDOW),
    function(&["use_sliding_window"], WINDOW),
    function(&["max_window_layers"], WINDOW),
    function(&["sliding_window_pattern"], WINDOW),
    function(&["attention_chunk_size"], WINDOW),
    function(&["attention_window"], WINDOW),
    function(&["layer_types"], KINDS),
    function(&["mlp_only_layers"], KINDS),
    function(&["decoder_sparse_step"], KINDS),
    function(&["first_k_dense_replace"], KINDS),
    function(
        &[
            "rms_norm_eps",
            "layer_norm_eps",
            "layer_norm_epsilon",
            "norm_eps",
            "norm_epsilon",
        ],
        NORM,
    ),
    function(&["norm_num_groups"], NORM),
    function(&["attn_logit_softcapping"], CAPPED),
    function(&["final_logit_softcapping"], CAPPED),
    function(&["clip_qkv"], CAPPED),
    function(&["use_parallel_residual", "parallel_attn"], ORDER),
    function(&["do_layer_norm_before"], ORDER),
    function(&["apply_residual_connection_post_layernorm"], ORDER),
];
