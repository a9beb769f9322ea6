//! The tensors that families of models tie, and the defaults of configs that do not say.
//!
//! Taken from the tables of tied weights in transformers' models and the defaults of their configs.

use serde_json::Value;

/// Keys of the language model's config in models that have other parts too.
pub const TEXT_CONFIGS: [&str; 3] = ["text_config", "llm_config", "language_config"];

/// A head that may be tied to the embeddings.
pub struct Head {
    /// The end of its name.
    pub end: &'static str,
    /// Prefix of other tensors that a model must have before it is believed to have this head
    /// without storing it; empty for a head that stands alone.
    pub beside: &'static str,
    /// True if the whole name must match: inside a model these words mean other things.
    pub whole: bool,
}

const fn head(end: &'static str, beside: &'static str) -> Head {
    Head {
        end,
        beside,
        whole: false,
    }
}

const fn outermost(end: &'static str, beside: &'static str) -> Head {
    Head {
        end,
        beside,
        whole: true,
    }
}

/// Heads that may be the input embeddings, the longest ends first.
pub const HEADS: [Head; 16] = [
    head("cls.predictions.decoder.weight", "cls.predictions."),
    head("predictions.decoder.weight", "predictions."),
    head("lm_head.decoder.weight", "lm_head."),
    head("mlm_score.decoder.weight", "mlm_score."),
    head("lm_head.out_proj.weight", ""),
    head("generator_lm_head.weight", "generator_"),
    head("generator.lm_head.weight", "generator."),
    head("vocab_projector.weight", "vocab_"),
    head("pred_layer.proj.weight", "pred_layer."),
    head("lm_loss.weight", "lm_loss."),
    head("lm_head.weight", ""),
    outermost("embed_out.weight", ""),
    outermost("proj_out.weight", ""),
    outermost("output_projection.weight", ""),
    outermost("decoder.weight", "head."),
    outermost("output.weight", ""),
];

/// Ends of the names of input embeddings; the first one counts where a model has several.
pub const EMBEDDINGS: [&str; 13] = [
    "shared.weight",
    "decoder.embed_tokens.weight",
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "tokens_embed.weight",
    "embed_in.weight",
    "word_embedding.weight",
    "input_embedding.weight",
    "backbone.embeddings.weight",
    "transformer.embeddings.weight",
    "transformer.w.weight",
];

/// Words in the names of embeddings of other things than the tokens that a head predicts.
pub const FOREIGN: [&str; 8] = [
    "vision", "visual", "audio", "image", "speech", "encoder", "patch", "entity",
];

/// Two names of one tensor, whatever the config says.
pub struct Alias {
    /// The end of a name.
    pub end: &'static str,
    /// The end of the other name.
    pub of: &'static str,
    /// True if both are written: readers differ in which of the two they read.
    pub both: bool,
}

const fn one(end: &'static str, of: &'static str) -> Alias {
    Alias {
        end,
        of,
        both: false,
    }
}

const fn both(end: &'static str, of: &'static str) -> Alias {
    Alias {
        end,
        of,
        both: true,
    }
}

/// Pairs of names of one tensor.
pub const ALIASES: [Alias; 19] = [
    one("text_encoder.embed_tokens.weight", "shared.weight"),
    one("text_decoder.embed_tokens.weight", "shared.weight"),
    one("encoder.embed_tokens.weight", "shared.weight"),
    one("decoder.embed_tokens.weight", "shared.weight"),
    one(
        "prophetnet.encoder.word_embeddings.weight",
        "prophetnet.word_embeddings.weight",
    ),
    one(
        "prophetnet.decoder.word_embeddings.weight",
        "prophetnet.word_embeddings.weight",
    ),
    one(
        "decoder.output_projection.weight",
        "decoder.embed_tokens.weight",
    ),
    one(
        "prompt_encoder.shared_embedding.positional_embedding",
        "shared_image_embedding.positional_embedding",
    ),
    one(
        "encoder.embed_patches.proj.weight",
        "patch_embed.proj.weight",
    ),
    one("encoder.embed_patches.proj.bias", "patch_embed.proj.bias"),
    one(
        "encoder.relative_bias.biases.0.relative_attention_bias.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    one(
        "decoder.relative_bias.biases.0.relative_attention_bias.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    both("predictions.decoder.bias", "predictions.bias"),
    both("lm_head.decoder.bias", "lm_head.bias"),
    both("mlm_score.decoder.bias", "mlm_score.bias"),
    both("mlm_head.decoder.bias", "mlm_head.bias"),
    both("mim_head.decoder.bias", "mim_head.bias"),
    both("mmm_text_head.decoder.bias", "mmm_text_head.bias"),
    both("mmm_image_head.decoder.bias", "mmm_image_head.bias"),
];

/// The key that is false where encoder and decoder have embeddings of their own.
const SHARED_KEY: &str = "share_encoder_decoder_embeddings";

/// Model types that tie nothing unless their config says so.
const UNTIED: &str = include_str!("untied.txt");

/// Model types that tie unless their config says no.
const TIED: &str = include_str!("tied.txt");

/// Model types whose tied heads read scaled inputs, so that tied and untied heads are different
/// functions.
const SCALED: [&str; 7] = [
    "t5",
    "mt5",
    "umt5",
    "longt5",
    "switch_transformers",
    "pop2piano",
    "udop",
];

/// Ends of the names of classes without an output head.
const HEADLESS: [&str; 8] = [
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForRewardModel",
    "ForImageClassification",
    "Encoder",
    "Model",
];

/// Ends of names that end like those, of classes with an output head.
const HEADED: [&str; 3] = ["LMHeadModel", "DoubleHeadsModel", "MTModel"];

/// Tells if `config` ties the head to the embeddings; `None` when it does not say and its family is
/// unknown.
///
/// A model of several parts states it at the top or in the config of its language model. Newer
/// versions of transformers read both: it is tied when either says so.
pub fn is_tied(config: &Value) -> Option<bool> {
    let text = TEXT_CONFIGS
        .iter()
        .find_map(|key| config.get(key))
        .filter(|inner| inner.is_object());
    let stated = |part: &Value| part.get("tie_word_embeddings").and_then(Value::as_bool);
    let stated = [text.and_then(stated), stated(config)];
    if stated.iter().flatten().next().is_some() {
        return Some(stated.contains(&Some(true)));
    }
    text.and_then(is_tied_by_family)
        .or_else(|| is_tied_by_family(config))
}

/// Tells if the family in a config ties the head to the embeddings; `None` when it is unknown.
fn is_tied_by_family(config: &Value) -> Option<bool> {
    let family = config.get("model_type").and_then(Value::as_str)?;
    let listed = |list: &str| list.split_whitespace().any(|known| known == family);
    match (listed(TIED), listed(UNTIED)) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    }
}

/// Tells if `config` gives encoder and decoder embeddings of their own.
pub fn is_apart(config: &Value) -> bool {
    config.get(SHARED_KEY) == Some(&Value::Bool(false))
}

/// Tells if the model scales the inputs of a tied head.
pub fn scales_tied(config: &Value) -> bool {
    config
        .get("model_type")
        .and_then(Value::as_str)
        .is_some_and(|name| SCALED.contains(&name))
}

/// Tells if `config` describes a model without an output head.
pub fn is_headless(config: &Value) -> bool {
    let classes: Vec<&str> = config["architectures"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let ends_in = |class: &str, ends: &[&str]| ends.iter().any(|end| class.ends_with(end));
    !classes.is_empty()
        && classes
            .iter()
            .all(|class| ends_in(class, &HEADLESS) && !ends_in(class, &HEADED))
}
