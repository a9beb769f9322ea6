//! Every recipe of the corpus and every recipe that can be generated plans, and its plan says what
//! it was made from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;
use thalweg::plan::memory::Wish;
use thalweg::plan::{Job, Plan};
use thalweg::recipe::{Document, Recipe, Sources};

use super::round_trip::document;
use super::{corpus, text_of};

/// Layers of the stand-in model: as many as any recipe here asks for.
const LAYERS: u32 = 40;

/// A folder with a tiny decoder that stands in for every model that a recipe names.
fn stand_in() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (name, shape) in [
        ("model.embed_tokens.weight", vec![8, 2]),
        ("model.norm.weight", vec![2]),
    ] {
        shapes.insert(name.into(), shape);
    }
    shapes.insert("lm_head.weight".into(), vec![8, 2]);
    for layer in 0..LAYERS {
        shapes.insert(
            format!("model.layers.{layer}.self_attn.q_proj.weight"),
            vec![2, 2],
        );
        shapes.insert(
            format!("model.layers.{layer}.mlp.up_proj.weight"),
            vec![3, 2],
        );
    }
    let zeros = [0_u8; 64];
    let views = shapes.iter().map(|(name, shape)| {
        let bytes = &zeros[..shape.iter().product::<usize>() * 4];
        (
            name.as_str(),
            TensorView::new(Dtype::F32, shape.clone(), bytes).expect("shapes fit"),
        )
    });
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors"))
        .expect("written");
    fs::write(
        folder.path().join("config.json"),
        r#"{"vocab_size": 8, "num_hidden_layers": 40}"#,
    )
    .expect("written");
    folder
}

/// The plan of `document` when every model it names is the one at `path`.
fn planned(document: &Document, path: &Path) -> thalweg::Result<Plan> {
    let paths: Vec<PathBuf> = vec![path.to_owned(); document.models().len()];
    let wish = Wish {
        memory: 1 << 30,
        threads: 2,
        block_bytes: None,
    };
    Plan::new(&Job::new(document.clone(), paths)?, &wish)
}

/// What a plan says it was made from, read as a recipe, is the same request.
fn assert_says_its_recipe(plan: &Plan, document: &Document) {
    let said = plan.identity["recipe"].to_string();
    let again = Recipe::parse(&said, "plan").unwrap_or_else(|error| panic!("{error}\n{said}"));
    let models = again.documents[0].models().len();
    assert_eq!(models, document.models().len());
    let described = |document: &Document| {
        Job::new(document.clone(), vec![PathBuf::new(); models])
            .expect("as many models as before")
            .describe()
    };
    assert_eq!(
        described(&again.documents[0]),
        described(document),
        "{said}"
    );
}

#[test]
fn every_recipe_of_the_corpus_plans_and_its_plan_reads_back() {
    let folder = stand_in();
    for path in corpus("good") {
        for document in &Recipe::parse(&text_of(&path), "r")
            .expect("good recipes are read")
            .documents
        {
            let plan = planned(document, folder.path())
                .unwrap_or_else(|error| panic!("{}: {error}: {:?}", path.display(), error.hint()));
            assert!(!plan.tensors.is_empty(), "{}", path.display());
            assert_says_its_recipe(&plan, document);
        }
    }
}

/// Generated slices ask for any layers; those of the stand-in are enough for the first few.
fn asks_for_layers_that_are_there(document: &Document) -> bool {
    match &document.sources {
        Sources::Models(_) => true,
        Sources::Slices(slices) => slices
            .iter()
            .flat_map(|slice| &slice.sources)
            .all(|source| source.layer_range.is_none_or(|range| range.end <= LAYERS)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_recipe_that_plans_reads_back_from_its_plan(document in document()) {
        prop_assume!(asks_for_layers_that_are_there(&document));
        let folder = stand_in();
        // What cannot be planned (a mean over the model with weights by tensor, a sum of weights of
        // zero) is refused in words that name it, and never in another way.
        match planned(&document, folder.path()) {
            Ok(plan) => assert_says_its_recipe(&plan, &document),
            Err(error) => prop_assert_eq!(error.exit_code(), if error.kind() == thalweg::Kind::Mismatch { 1 } else { 2 }),
        }
    }
}
