//! What goes beside the weights.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use thalweg::dtype::Dtype;

use crate::support::files::files_below;
use crate::support::program::run;
use crate::support::striped::{spec, write};

/// Models `a`, `b` and `c` of four layers.
fn models() -> TempDir {
    let root = tempdir().expect("temporary folder");
    let mut tensors = vec![spec("model.embed_tokens.weight", Dtype::BF16, &[16, 8])];
    tensors.extend((0..4).map(|layer| {
        spec(
            format!("model.layers.{layer}.mlp.weight"),
            Dtype::BF16,
            &[8, 8],
        )
    }));
    tensors.push(spec("model.norm.weight", Dtype::BF16, &[8]));
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        write(
            &root.path().join(name),
            std::slice::from_ref(&tensors),
            seed,
        );
        put(
            root.path(),
            &format!("{name}/tokenizer.json"),
            &format!("{{\"of\": \"{name}\"}}"),
        );
        put(
            root.path(),
            &format!("{name}/generation_config.json"),
            &format!("{{\"of\": \"{name}\"}}"),
        );
    }
    root
}

fn put(root: &Path, name: &str, text: &str) {
    fs::write(root.join(name), text).expect("written");
}

fn text(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn json_of(root: &Path, name: &str) -> Value {
    serde_json::from_str(&text(root, name)).expect("JSON")
}

fn merged(root: &Path, recipe: &str) {
    put(root, "recipe.yml", recipe);
    run(root, ["merge", "recipe.yml", "--out", "out"]).ok();
}

#[test]
fn files_that_need_no_change_are_carried_byte_for_byte_from_the_base() {
    let root = models();
    put(
        root.path(),
        "b/config.json",
        "{ \"torch_dtype\" : \"bfloat16\",\n\n \"odd\": 1.50e0 }",
    );
    put(root.path(), "b/README.md", "somebody's own words");
    run(
        root.path(),
        ["merge", "a", "b", "--base", "2", "--out", "out"],
    )
    .ok();
    for name in ["config.json", "tokenizer.json", "generation_config.json"] {
        assert_eq!(
            text(root.path(), &format!("out/{name}")),
            text(root.path(), &format!("b/{name}")),
            "{name}"
        );
    }
    assert!(!text(root.path(), "out/README.md").contains("somebody"));
}

#[test]
fn what_python_writes_into_configs_is_accepted_and_keeps_its_bytes_where_something_changes() {
    let root = models();
    let config = "{\n    \"torch_dtype\": \"bfloat16\",\n    \"time_step_limit\": [0.0, Infinity],\n    \"low\": -Infinity,\n\
                  \t\"unset\": NaN, \"rms_norm_eps\": 1.0e-05,\n    \"most\": 1e+400,\n    \
                  \"layer_limits\": [Infinity, 1, NaN, 0.50]\n}\n";
    put(root.path(), "a/config.json", config);
    let tokenizer = "{\n  \"chat_template\": \"x\",\n  \"model_max_length\": 1000000000000000019884624838656,\n  \
                     \"tokenizer_class\": \"L\u{fc}\"\n}";
    put(root.path(), "a/tokenizer_config.json", tokenizer);
    run(root.path(), ["merge", "a", "b", "--out", "same"]).ok();
    assert_eq!(text(root.path(), "same/config.json"), config);
    run(
        root.path(),
        ["merge", "a", "b", "--dtype", "float16", "--out", "half"],
    )
    .ok();
    assert_eq!(
        text(root.path(), "half/config.json"),
        config.replace("bfloat16", "float16")
    );
    merged(
        root.path(),
        "merge_method: passthrough\nchat_template: chatml\nslices:\n- sources: [{model: a, layer_range: [0, 4]}]\n\
         - sources: [{model: a, layer_range: [0, 3]}]\n",
    );
    let stacked = text(root.path(), "out/config.json");
    assert_eq!(
        stacked,
        config.replace("NaN, 0.50]", "NaN, 0.5, Infinity, 1, NaN]")
    );
    let without = tokenizer.replace("\n  \"chat_template\": \"x\",", "");
    assert_eq!(text(root.path(), "out/tokenizer_config.json"), without);
    put(root.path(), "a/config.json", "{\n  \"a\": Infinite\n}");
    run(root.path(), ["merge", "a", "b", "--out", "bad"])
        .fails(2, &["a/config.json", "no value at line 2 column 8"]);
}

#[test]
fn weights_of_8_bits_have_a_config_that_loads_and_a_report_that_says_what_they_are() {
    let root = models();
    for dtype in ["float8_e4m3fn", "float8_e5m2"] {
        let said = run(
            root.path(),
            ["merge", "a", "b", "--dtype", dtype, "--out", dtype],
        )
        .ok()
        .stdout;
        assert!(
            said.contains(&format!("the weights are {dtype}")) && said.contains("bfloat16"),
            "{said}"
        );
        let planned = run(
            root.path(),
            ["plan", "a", "b", "--dtype", dtype, "--out", "other"],
        )
        .ok()
        .stdout;
        assert!(
            planned.contains(&format!("the weights are {dtype}")),
            "{planned}"
        );
        assert_eq!(
            json_of(root.path(), &format!("{dtype}/config.json"))["torch_dtype"],
            "bfloat16"
        );
    }
}

#[test]
fn another_model_lends_its_tokenizer_and_nothing_else() {
    let root = models();
    for name in [
        "vocab.json",
        "merges.txt",
        "sp.model",
        "added_tokens.json",
        "special_tokens_map.json",
    ] {
        put(root.path(), &format!("a/{name}"), "a");
        put(root.path(), &format!("b/{name}"), "b");
    }
    put(root.path(), "a/tokenizer_config.json", "{}");
    put(root.path(), "b/only_of_b.json", "{}");
    merged(
        root.path(),
        "merge_method: karcher\nmodels: [{model: a}, {model: b}]\ntokenizer_source: b\n",
    );
    for name in [
        "vocab.json",
        "merges.txt",
        "sp.model",
        "added_tokens.json",
        "special_tokens_map.json",
    ] {
        assert_eq!(text(root.path(), &format!("out/{name}")), "b", "{name}");
    }
    assert_eq!(json_of(root.path(), "out/tokenizer.json")["of"], "b");
    assert_eq!(
        json_of(root.path(), "out/generation_config.json")["of"],
        "a"
    );
    for name in ["tokenizer_config.json", "only_of_b.json"] {
        assert!(!root.path().join("out").join(name).exists(), "{name}");
    }
}

#[test]
fn stacked_layers_are_counted_and_take_their_lists_along() {
    let root = models();
    for name in ["a", "b"] {
        let kinds: Vec<String> = (0..4).map(|layer| format!("{name}{layer}")).collect();
        let config = json!({
            "torch_dtype": "bfloat16", "num_hidden_layers": 4, "layer_types": kinds,
            "text_config": { "n_layer": 4 }, "eos_token_id": [1, 2, 3, 4],
        });
        put(
            root.path(),
            &format!("{name}/config.json"),
            &config.to_string(),
        );
    }
    merged(
        root.path(),
        "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 3]}]\n\
         - sources: [{model: b, layer_range: [1, 4]}]\n",
    );
    let config = json_of(root.path(), "out/config.json");
    assert_eq!(config["num_hidden_layers"], 6);
    assert_eq!(config["text_config"]["n_layer"], 6);
    assert_eq!(
        config["layer_types"],
        json!(["a0", "a1", "a2", "b1", "b2", "b3"])
    );
    assert_eq!(config["eos_token_id"], json!([1, 2, 3, 4]));
    assert_eq!(config["torch_dtype"], "bfloat16");
    let card = text(root.path(), "out/README.md");
    assert!(card.contains("| `b` | `layers 1 to 3` |"), "{card}");
}

#[test]
fn whole_layers_in_their_order_leave_the_config_as_it_is() {
    let root = models();
    put(
        root.path(),
        "a/config.json",
        "{ \"torch_dtype\": \"bfloat16\", \"num_hidden_layers\":   4 }",
    );
    merged(
        root.path(),
        "merge_method: linear\nslices:\n- sources: [{model: a, layer_range: [0, 4], parameters: {weight: 1}}, \
         {model: b, layer_range: [0, 4], parameters: {weight: 1}}]\n",
    );
    assert_eq!(
        text(root.path(), "out/config.json"),
        text(root.path(), "a/config.json")
    );
}

#[test]
fn one_chat_template_remains_where_one_was_asked_for() {
    let root = models();
    let keep = json!({ "model_max_length": 5, "chat_template": "of a", "pad_token": "x" });
    put(root.path(), "a/tokenizer_config.json", &keep.to_string());
    let several = json!({ "chat_template": [
        { "name": "tool", "template": "no" }, { "name": "default", "template": "common" },
    ] });
    put(root.path(), "b/tokenizer_config.json", &several.to_string());
    put(root.path(), "c/chat_template.jinja", "common");
    let recipe = |template: &str| {
        format!(
            "merge_method: karcher\nmodels: [{{model: a}}, {{model: b}}, {{model: c}}]\nchat_template: {template}\n"
        )
    };
    for (template, wanted) in [
        ("auto", "common"),
        ("'{{ messages }}'", "{{ messages }}"),
        ("chatml", "<|im_start|>"),
    ] {
        merged(root.path(), &recipe(template));
        assert!(
            text(root.path(), "out/chat_template.jinja").contains(wanted),
            "{template}"
        );
        let config = json_of(root.path(), "out/tokenizer_config.json");
        assert_eq!(
            config,
            json!({ "model_max_length": 5, "pad_token": "x" }),
            "{template}"
        );
        fs::remove_dir_all(root.path().join("out")).expect("there");
    }
    // Each template once: that of whoever lends the tokenizer.
    put(root.path(), "c/chat_template.jinja", "of c");
    merged(root.path(), &recipe("auto"));
    assert_eq!(text(root.path(), "out/chat_template.jinja"), "of a");
    fs::remove_dir_all(root.path().join("out")).expect("there");
    // Nobody asked: all stays as it was lent.
    merged(
        root.path(),
        "merge_method: karcher\nmodels: [{model: a}, {model: b}]\n",
    );
    assert_eq!(json_of(root.path(), "out/tokenizer_config.json"), keep);
    assert!(!root.path().join("out/chat_template.jinja").exists());
}

#[test]
fn the_card_names_models_weights_and_a_common_licence_but_no_path() {
    let root = models();
    for name in ["a", "b"] {
        put(
            root.path(),
            &format!("{name}/README.md"),
            "---\nlicense: apache-2.0\n---\n# own\n",
        );
    }
    let absolute = root.path().join("a");
    let args = [
        "merge",
        absolute.to_str().expect("UTF-8"),
        "b",
        "--weights",
        "0.7,0.3",
        "--out",
        "out",
    ];
    run(root.path(), args).ok();
    let card = text(root.path(), "out/README.md");
    // Folders are no models of the hub: named there, they would be dead links.
    assert!(
        card.starts_with("---\nlibrary_name: transformers\n") && !card.contains("base_model"),
        "{card}"
    );
    assert!(
        card.contains("```yaml\nmerge_method: karcher\nmodels:\n  - model: a\n"),
        "{card}"
    );
    for wanted in [
        "license: apache-2.0\n",
        "| `a` | `weight 0.7` |",
        "| `b` | `weight 0.3` |",
        "`karcher`",
    ] {
        assert!(card.contains(wanted), "{wanted}: {card}");
    }
    assert!(
        !card.contains(root.path().to_str().expect("UTF-8")),
        "{card}"
    );
    put(root.path(), "b/README.md", "---\nlicense: mit\n---\n");
    run(root.path(), ["merge", "a", "b", "--out", "other"]).ok();
    assert!(!text(root.path(), "other/README.md").contains("license"));
}

#[test]
fn the_card_links_models_of_the_hub_by_id_and_commit() {
    let root = models();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshots = root.path().join("hub/models--org--name/snapshots");
    fs::create_dir_all(&snapshots).expect("made");
    fs::rename(root.path().join("b"), snapshots.join(commit)).expect("moved");
    std::os::unix::fs::symlink(snapshots.join(commit), root.path().join("b")).expect("linked");
    put(
        root.path(),
        "a/config.json",
        "{\"_name_or_path\": \"org/wrong\"}",
    );
    let recipe = "# word for word\nmerge_method: karcher\nmodels: [{model: a}, {model: b}]\n";
    put(root.path(), "recipe.yml", recipe);
    run(root.path(), ["merge", "recipe.yml", "--out", "out"]).ok();
    let card = text(root.path(), "out/README.md");
    let front = "---\nbase_model:\n  - org/name\nbase_model_relation: merge\n";
    assert!(
        card.starts_with(front) && !card.contains("org/wrong"),
        "{card}"
    );
    assert!(
        card.contains(&format!("https://huggingface.co/org/name/tree/{commit}")),
        "{card}"
    );
    assert!(
        card.contains(&format!(
            "models:\n  - model: a\n  - model: \"org/name@{commit}\"\n"
        )),
        "{card}"
    );
    run(root.path(), ["merge", "a", "c", "--out", "local"]).ok();
    assert!(!text(root.path(), "local/README.md").contains("base_model"));
}

#[test]
fn nothing_of_a_training_run_or_of_other_weights_goes_along_and_the_report_names_it() {
    let root = models();
    let left = [
        "adapter_config.json",
        "all_results.json",
        "events.out.tfevents.1700000000.host.1.0",
        "global_step10/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "latest",
        "model.gguf",
        "model.safetensors.sha256",
        "onnx/model.onnx",
        "openvino_model.xml",
        "optimizer.pt",
        "pytorch_model_fsdp_0/__0_0.distcp",
        "quantize_config.json",
        "rng_state_0.pth",
        "runs/May05_host/events.out.tfevents.1",
        "scheduler.pt",
        "trainer_state.json",
        "training_args.bin",
        "wandb/latest-run/logs.json",
        "zero_to_fp32.py",
    ];
    let stay = [
        "LICENSE",
        "modeling_x.py",
        "1_Pooling/config.json",
        "scheduler/scheduler_config.json",
        "modules.json",
    ];
    for name in left
        .iter()
        .chain(&stay)
        .chain(&[".git/config", ".cache/x", "README_zh.md"])
    {
        let path = root.path().join("a").join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, "{}").expect("written");
    }
    let plan = run(root.path(), ["plan", "a", "b", "--out", "out", "--json"])
        .ok()
        .json();
    let report = run(root.path(), ["merge", "a", "b", "--out", "out", "--json"])
        .ok()
        .json();
    for name in &stay {
        assert!(root.path().join("out").join(name).exists(), "{name}");
    }
    for name in &left {
        assert!(!root.path().join("out").join(name).exists(), "{name}");
        let top = name
            .split_once('/')
            .map_or((*name).to_owned(), |(folder, _)| format!("{folder}/"));
        for said in [&plan["left_beside"], &report["left_beside"]] {
            assert!(
                said.as_array().expect("a list").contains(&json!(top)),
                "{top}: {said}"
            );
        }
    }
    assert!(!root.path().join("out/README_zh.md").exists());
    let text = run(root.path(), ["merge", "a", "b", "--out", "again"])
        .ok()
        .stdout;
    assert!(
        text.contains("not taken along: adapter_config.json, all_results.json"),
        "{text}"
    );
    let clean = run(root.path(), ["merge", "b", "c", "--out", "clean"])
        .ok()
        .stdout;
    assert!(!clean.contains("not taken along"), "{clean}");
}

#[test]
fn the_recipe_goes_along_and_merges_to_the_same_weights() {
    let root = models();
    let recipe = "# kept word for word\nmerge_method: karcher\nmodels: [{model: a}, {model: b}]\n";
    merged(root.path(), recipe);
    assert_eq!(text(root.path(), "out/mergekit_config.yml"), recipe);
    let flags = [
        "merge",
        "a",
        "b",
        "c",
        "--weights",
        "1,2,0.5",
        "--tol",
        "1e-9",
        "--dtype",
        "float32",
        "--base",
        "2",
    ];
    run(
        root.path(),
        flags
            .iter()
            .chain(&["--granularity", "row", "--out", "flags"]),
    )
    .ok();
    fs::copy(
        root.path().join("flags/mergekit_config.yml"),
        root.path().join("again.yml"),
    )
    .expect("there");
    run(root.path(), ["merge", "again.yml", "--out", "again"]).ok();
    let weights =
        |out: &str| fs::read(root.path().join(out).join("model.safetensors")).expect("it");
    assert!(weights("flags") == weights("again"));
}

#[test]
fn a_single_file_stands_alone_and_is_resumed_verified_and_replaced_like_a_folder() {
    let root = models();
    run(root.path(), ["merge", "a", "b", "--out", "folder"]).ok();
    let before = files_below(root.path()).len();
    run(root.path(), ["merge", "a", "b", "--out", "x.safetensors"]).ok();
    assert_eq!(
        files_below(root.path()).len(),
        before + 2,
        "the file and its manifest"
    );
    let bytes = fs::read(root.path().join("x.safetensors")).expect("it");
    assert!(bytes == fs::read(root.path().join("folder/model.safetensors")).expect("it"));
    let again = run(
        root.path(),
        ["merge", "a", "b", "--out", "x.safetensors", "--json"],
    )
    .ok()
    .json();
    assert_eq!(again["status"], "complete already");
    run(root.path(), ["merge", "a", "c", "--out", "x.safetensors"])
        .fails(2, &["another merge is finished there"]);
    run(
        root.path(),
        ["merge", "a", "c", "--out", "x.safetensors", "--overwrite"],
    )
    .ok();
    assert!(bytes != fs::read(root.path().join("x.safetensors")).expect("it"));
    run(root.path(), ["verify", "x.safetensors"]).ok();
    crate::support::files::flip(&root.path().join("x.safetensors"), 700);
    run(root.path(), ["verify", "x.safetensors"]).fails(1, &["x.safetensors"]);
    put(root.path(), "y.safetensors", "somebody's own");
    run(root.path(), ["merge", "a", "b", "--out", "y.safetensors"])
        .fails(2, &["which this run did not write"]);
    run(
        root.path(),
        [
            "merge",
            "a",
            "b",
            "--out",
            "z.safetensors",
            "--shard-size",
            "1MB",
        ],
    )
    .fails(2, &["--shard-size"]);
    let without_checksums = run(root.path(), ["verify", "a/model.safetensors"])
        .ok()
        .stdout;
    assert!(
        without_checksums.contains("no checksums"),
        "{without_checksums}"
    );
}

#[test]
fn plan_says_what_will_be_written_and_what_is_there() {
    let root = models();
    let plan = |out: &str| run(root.path(), ["plan", "a", "b", "--out", out, "--json"]);
    let fresh = plan("out").ok().json();
    let names = [
        "README.md",
        "config.json",
        "generation_config.json",
        "mergekit_config.yml",
        "tokenizer.json",
    ];
    assert_eq!(fresh["side_files"], json!(names));
    assert_eq!(fresh["outlook"], "a new run begins");
    assert_eq!(plan("x.safetensors").ok().json()["side_files"], json!([]));
    run(root.path(), ["merge", "a", "c", "--out", "out"]).ok();
    let refused = plan("out")
        .fails(2, &["another merge is finished there"])
        .json();
    let there = refused["outlook"].as_str().expect("text");
    assert!(
        there.starts_with("refused: ") && there.contains("another merge is finished"),
        "{there}"
    );
}

#[test]
fn reference_lists_every_method_and_key() {
    let root = tempdir().expect("temporary folder");
    let text = run(root.path(), ["reference"]).ok().stdout;
    let json = run(root.path(), ["reference", "--json"]).ok().json();
    for method in &thalweg::recipe::METHODS {
        assert!(
            text.contains(&format!("\n{}: ", method.name)),
            "{}",
            method.name
        );
    }
    for key in thalweg::recipe::KEYS {
        assert!(
            text.contains(key.key) && text.contains(key.meaning),
            "{}",
            key.key
        );
    }
    assert_eq!(
        json["methods"].as_array().map(Vec::len),
        Some(thalweg::recipe::METHODS.len())
    );
    assert_eq!(
        json["keys"].as_array().map(Vec::len),
        Some(thalweg::recipe::KEYS.len())
    );
    assert!(text.lines().all(|line| line == line.trim_end()));
}
