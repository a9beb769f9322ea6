//! A finished output meets the next command: it is completed, looked after, or replaced as a whole.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::files::files_below;
use crate::support::program::run;
use crate::support::small::small;

const MERGE: [&str; 6] = ["merge", "one", "two", "--out", "out", "--quiet"];

/// Makes the last element of a model NaN.
fn spoil(root: &Path) {
    let path = root.join("two/model.safetensors");
    let file = fs::File::options().write(true).open(path).expect("there");
    let len = file.metadata().expect("open").len();
    file.write_all_at(&[0xff; 2], len - 2).expect("written");
}

#[test]
fn a_merge_that_fails_at_its_last_element_leaves_what_it_was_to_replace() {
    let root = small();
    let out = root.path().join("out");
    fs::write(root.path().join("one/tokenizer.json"), "{}").expect("written");
    run(root.path(), MERGE).ok();
    fs::write(out.join("notes.txt"), "mine").expect("written");
    let old = files_below(&out);
    spoil(root.path());
    fs::remove_file(root.path().join("one/tokenizer.json")).expect("there");
    let again = [&MERGE[..], &["--weights", "1,3", "--overwrite"]].concat();
    for _ in 0..2 {
        run(root.path(), &again).fails(1, &["input is not finite: two"]);
        let mut found = files_below(&out);
        found.retain(|name, _| !name.starts_with(".thalweg"));
        assert!(found == old, "what was there was changed");
        let verified = run(root.path(), ["verify", "out"]).ok();
        assert!(
            verified
                .stdout
                .contains("a run that is to replace this has begun"),
            "{verified:?}"
        );
    }
    run(
        root.path(),
        [&again[..], &["--nan", "propagate", "--restart"]].concat(),
    )
    .ok();
    let new = files_below(&out);
    assert!(
        !new.contains_key(Path::new("tokenizer.json")) && new.contains_key(Path::new("notes.txt"))
    );
    assert!(new.keys().all(|name| !name.starts_with(".thalweg")));
    assert_ne!(
        new[Path::new("model.safetensors")],
        old[Path::new("model.safetensors")]
    );
    run(root.path(), ["verify", "out", "--quiet"]).ok();
}

#[test]
fn a_single_file_stays_until_its_successor_is_whole() {
    let root = small();
    let merge = ["merge", "one", "two", "--out", "m.safetensors", "--quiet"];
    run(root.path(), merge).ok();
    let old = fs::read(root.path().join("m.safetensors")).expect("there");
    spoil(root.path());
    run(root.path(), [&merge[..], &["--overwrite"]].concat())
        .fails(1, &["input is not finite: two"]);
    assert!(fs::read(root.path().join("m.safetensors")).expect("still there") == old);
    run(root.path(), ["verify", "m.safetensors", "--quiet"]).ok();
    run(
        root.path(),
        [
            &merge[..],
            &["--overwrite", "--restart", "--nan", "propagate"],
        ]
        .concat(),
    )
    .ok();
    assert!(fs::read(root.path().join("m.safetensors")).expect("there") != old);
    assert!(!root.path().join(".m.safetensors.thalweg").exists());
}

#[test]
fn the_same_merge_restores_what_is_missing_and_names_what_was_changed() {
    let root = small();
    for name in ["tokenizer.json", "generation_config.json"] {
        fs::write(
            root.path().join("one").join(name),
            format!("{{\"name\": \"{name}\"}}\n"),
        )
        .expect("written");
    }
    let merge = ["merge", "one", "two", "--out", "out"];
    run(root.path(), merge).ok();
    let out = root.path().join("out");
    let wanted = files_below(&out);
    let complete = run(root.path(), merge).ok();
    assert!(
        complete.stdout.contains("complete already") && complete.stdout.contains("looked at: "),
        "{complete:?}"
    );
    assert!(
        !complete.stdout.contains("solved") && !complete.stdout.contains("angles"),
        "{complete:?}"
    );
    for name in [
        "config.json",
        "tokenizer.json",
        "README.md",
        "mergekit_config.yml",
    ] {
        fs::remove_file(out.join(name)).expect("there");
        let verified = run(root.path(), ["verify", "out"]);
        assert!(format!("{verified:?}").contains(name), "{verified:?}");
        assert_eq!(
            verified.code,
            Some(i32::from(name != "README.md")),
            "{verified:?}"
        );
        let again = run(root.path(), merge).ok();
        assert!(
            again
                .stdout
                .contains(&format!("{name} was not as it was written: written again")),
            "{again:?}"
        );
        assert!(files_below(&out) == wanted, "{name}");
    }
    for (name, code) in [
        ("config.json", 1),
        ("generation_config.json", 0),
        ("README.md", 0),
    ] {
        fs::write(out.join(name), "my own words").expect("written");
        let verified = run(root.path(), ["verify", "out"]);
        assert!(
            verified.code == Some(code) && format!("{verified:?}").contains(name),
            "{verified:?}"
        );
        let again = run(root.path(), merge).ok();
        assert!(
            again.stdout.contains(&format!(
                "{name} is not as it was written, and stays as it is"
            )),
            "{again:?}"
        );
        assert_eq!(fs::read(out.join(name)).expect("there"), b"my own words");
        run(root.path(), [&merge[..], &["--overwrite"]].concat()).ok();
        assert!(files_below(&out) == wanted, "{name}");
    }
    for cut in [false, true] {
        let shard = out.join("model.safetensors");
        if cut {
            fs::File::options()
                .write(true)
                .open(&shard)
                .and_then(|file| file.set_len(1000))
                .expect("cut");
        } else {
            fs::remove_file(&shard).expect("there");
        }
        let planned = run(root.path(), ["plan", "one", "two", "--out", "out"]).ok();
        assert!(
            planned.stdout.contains("made again: model.safetensors"),
            "{planned:?}"
        );
        let again = run(root.path(), merge).ok();
        assert!(
            again.stdout.contains("model.safetensors") && again.stdout.contains("made again"),
            "{again:?}"
        );
        assert!(files_below(&out) == wanted);
    }
}

#[test]
fn a_manifest_without_side_files_is_still_read_and_they_are_still_restored() {
    let root = small();
    run(root.path(), MERGE).ok();
    let path = root.path().join("out/thalweg.json");
    let old = crate::output_verify::unsealed(&fs::read_to_string(&path).expect("there"));
    let mut value: serde_json::Value = serde_json::from_str(&old).expect("JSON");
    value
        .as_object_mut()
        .expect("an object")
        .remove("side_files")
        .expect("recorded");
    fs::write(&path, value.to_string()).expect("written");
    run(root.path(), ["verify", "out", "--quiet"]).ok();
    fs::remove_file(root.path().join("out/config.json")).expect("there");
    run(root.path(), MERGE).ok();
    assert!(root.path().join("out/config.json").exists());
}

#[test]
fn two_runs_of_a_recipe_with_stages_write_the_same_bytes() {
    let root = small();
    let part = "  parameters: {weight: 1}\n";
    let recipe = format!(
        "name: first\nmerge_method: linear\nmodels:\n- model: one\n{part}- model: two\n{part}---\nmerge_method: linear\n\
         models:\n- model: first\n{part}- model: two\n{part}"
    );
    fs::write(root.path().join("stages.yml"), recipe).expect("written");
    let merge = |out: &'static str| ["merge", "stages.yml", "--out", out, "--quiet"];
    run(root.path(), merge("a/out")).ok();
    run(root.path(), merge("b/out")).ok();
    assert!(files_below(&root.path().join("a")) == files_below(&root.path().join("b")));
    run(
        root.path(),
        ["verify", "a/out", "--against", "stages.yml", "--quiet"],
    )
    .ok();
    // A stage that was made anew is the same stage; one that was written to is another.
    fs::remove_dir_all(root.path().join("a/out-stages")).expect("there");
    run(root.path(), merge("a/out")).ok();
    let stage = root.path().join("a/out-stages/first/model.safetensors");
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(&stage)
        .expect("there");
    let len = file.metadata().expect("open").len();
    file.write_all_at(&[0], len - 1).expect("written");
    run(root.path(), merge("a/out")).fails(2, &["another merge is finished there"]);
}
