//! Recipes: a corpus of good and bad ones, values worked out by hand, hostile text, round trips.

mod hostile;
mod planning;
mod resolving;
mod round_trip;
mod stacking;
mod tolerance;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use thalweg::Kind;
use thalweg::dtype::Dtype;
use thalweg::recipe::{
    ChatTemplate, Granularity, KEYS, METHODS, Mismatch, ModelRef, Recipe, Setting, Sources,
    Tokenizer,
};

/// The recipes of a folder, in the order of their names.
fn corpus(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/recipes")
        .join(folder);
    let mut paths: Vec<_> = fs::read_dir(root)
        .expect("the corpus is there")
        .map(|entry| entry.expect("readable").path())
        .collect();
    paths.sort();
    paths
}

fn text_of(path: &Path) -> String {
    fs::read_to_string(path).expect("recipes of the corpus are text")
}

fn stem(path: &Path) -> &str {
    path.file_stem()
        .and_then(|stem| stem.to_str())
        .expect("plain file names")
}

fn good(name: &str) -> Recipe {
    let path = corpus("good")
        .into_iter()
        .find(|path| stem(path) == name)
        .expect("named in the corpus");
    Recipe::read(&path).expect("good recipes are read")
}

fn model(path: &str, revision: Option<&str>) -> ModelRef {
    ModelRef {
        path: path.into(),
        revision: revision.map(str::to_owned),
    }
}

#[test]
fn every_good_recipe_is_read_and_reads_back_equal_from_its_resolved_form() {
    let paths = corpus("good");
    assert!(paths.len() >= 30, "only {} recipes", paths.len());
    for path in paths {
        let recipe = Recipe::read(&path)
            .unwrap_or_else(|error| panic!("{error}\n{}", error.hint().unwrap_or("")));
        let resolved: Vec<String> = recipe
            .documents
            .iter()
            .map(|document| serde_json::to_string(document).expect("plain values"))
            .collect();
        let again = Recipe::parse(&resolved.join("\n---\n"), "resolved")
            .expect("resolved recipes are recipes");
        assert_eq!(again.documents, recipe.documents, "{}", path.display());
    }
}

#[test]
fn every_bad_recipe_is_refused_with_its_place_and_reason() {
    let mut all = String::new();
    for path in corpus("bad") {
        let name = stem(&path);
        let error = Recipe::parse(&text_of(&path), &format!("{name}.yml")).expect_err(name);
        assert_eq!(error.kind(), Kind::Recipe, "{name}");
        assert!(
            name == "empty" || error.subject().starts_with(&format!("{name}.yml:")),
            "{name}: {error}"
        );
        for error in [&error].into_iter().chain(error.others()) {
            writeln!(all, "{error}\n{}\n", error.hint().unwrap_or(""))
                .expect("strings take everything");
        }
    }
    insta::assert_snapshot!("bad_recipes", all);
}

#[test]
fn the_good_recipes_use_every_key_and_every_parameter_of_every_method() {
    let all: String = corpus("good").iter().map(|path| text_of(path)).collect();
    let used = |word: &str| {
        all.match_indices(word).any(|(at, _)| {
            let before = all[..at]
                .chars()
                .next_back()
                .is_none_or(|c| !c.is_alphanumeric() && c != '_');
            before
                && all[at + word.len()..]
                    .trim_start_matches('"')
                    .starts_with(':')
        })
    };
    let refused = ["lora", "override_architecture", "tokens"];
    for info in KEYS.iter().filter(|info| !refused.contains(&info.key)) {
        assert!(used(info.key), "no good recipe uses the key {}", info.key);
    }
    for info in &METHODS {
        assert!(
            all.contains(&format!("merge_method: {}\n", info.name)),
            "no good recipe uses {}",
            info.name
        );
        for parameter in info.parameters {
            assert!(
                used(parameter.name),
                "no good recipe uses the parameter {}",
                parameter.name
            );
        }
    }
}

#[test]
fn weights_in_short_are_weights_of_the_models() {
    let short = good("karcher-short");
    let Sources::Models(models) = &short.documents[0].sources else {
        panic!("models were given")
    };
    let weights: Vec<_> = models
        .iter()
        .map(|entry| entry.parameters.get("weight"))
        .collect();
    assert_eq!(
        weights,
        [0.5, 0.25, 0.25].map(Setting::Number).each_ref().map(Some)
    );
    assert_eq!(models[2].model, model("~/models/c", None));
    assert_eq!(short.documents[0].granularity(), Granularity::Row);
}

#[test]
fn references_keep_their_revision_and_their_odd_characters() {
    let recipe = good("references");
    let document = &recipe.documents[0];
    let expected = [
        model("org/name", Some("refs/pr/3")),
        model("org/name", Some("0123456789abcdef0123456789abcdef01234567")),
        model("org/name", Some("1234567")),
        model("./odd+name@home", None),
        model("/abs/path/model.safetensors", None),
        model("gpt2", None),
        model("../up/one", None),
    ];
    assert_eq!(document.models(), expected.iter().collect::<Vec<_>>());
    assert_eq!(
        document.tokenizer,
        Some(Tokenizer::Model(model("base", None)))
    );
}

#[test]
fn an_existing_path_wins_over_taking_its_name_apart() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let odd = dir.path().join("base+lora@v1");
    fs::create_dir(&odd).expect("a folder");
    let odd = odd.to_str().expect("temporary paths are UTF-8");
    let recipe = Recipe::parse(&format!("merge_method: karcher\nmodels: [\"{odd}\"]"), "r")
        .expect("is there");
    assert_eq!(recipe.documents[0].models(), [&model(odd, None)]);
    let error = Recipe::parse(&format!("merge_method: karcher\nmodels: [\"{odd}x\"]"), "r")
        .expect_err("is not");
    assert!(error.to_string().contains("LoRA"), "{error}");
}

#[test]
fn every_key_ends_where_it_belongs() {
    let recipe = good("own-keys");
    let own = &recipe.documents[0].own;
    assert_eq!(
        (own.out_shard_size, own.memory),
        (Some(2 << 30), Some(3 << 29))
    );
    assert_eq!(
        (own.threads, own.zstd, own.mismatch),
        (Some(8), Some(3), Some(Mismatch::Crop))
    );
    assert_eq!(own.state_dict_key.as_deref(), Some("module.state_dict"));
    assert_eq!(
        good("passthrough-one-model").documents[0]
            .own
            .out_shard_size,
        Some(5_000_000_000)
    );

    let mapping = good("tokenizer-mapping").documents.remove(0);
    assert_eq!(
        mapping.tokenizer,
        Some(Tokenizer::Model(model("org/b", None)))
    );
    assert_eq!(mapping.pad_to_multiple_of, Some(64));
    assert_eq!(mapping.chat_template, Some(ChatTemplate::Preset("chatml")));
    let top = good("tokenizer-base").documents.remove(0);
    assert_eq!(
        (top.tokenizer, top.pad_to_multiple_of),
        (Some(Tokenizer::Base), Some(128))
    );
    let jinja = good("chat-template-jinja")
        .documents
        .remove(0)
        .chat_template;
    assert!(matches!(jinja, Some(ChatTemplate::Jinja(text)) if text.ends_with("{% endfor %}\n")));

    let linear = &good("linear-unnormalised").documents[0];
    assert_eq!(
        (linear.dtype, linear.output_dtype()),
        (Some(Dtype::F32), Some(Dtype::BF16))
    );
    assert_eq!(
        good("task-arithmetic").documents[0].output_dtype(),
        Some(Dtype::BF16)
    );
    assert_eq!(
        good("frechet").documents[0].granularity(),
        Granularity::Model
    );
}

#[test]
fn stages_are_taken_by_their_names() {
    let recipe = good("stages");
    assert_eq!(recipe.documents.len(), 3);
    assert_eq!(recipe.stage(&model("first", None)), Some(0));
    assert_eq!(recipe.stage(&model("second", None)), Some(1));
    assert_eq!(recipe.stage(&model("first", Some("main"))), None);
    assert_eq!(recipe.stage(&model("org/c", None)), None);
}

#[test]
fn a_recipe_that_is_not_there_or_not_text_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("absent.yml");
    assert_eq!(
        Recipe::read(&path).expect_err("absent").kind(),
        Kind::Recipe
    );
    fs::write(&path, b"merge_method: \xff").expect("written");
    let error = Recipe::read(&path).expect_err("not UTF-8");
    assert!(
        error.to_string().contains("absent.yml: is not UTF-8 text"),
        "{error}"
    );
}
