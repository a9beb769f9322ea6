//! Where an output may go, and what may lie there: links and devices in the places of its files,
//! names of other files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::program::run;
use crate::support::small::small;

const MERGE: [&str; 6] = ["merge", "one", "two", "--out", "out", "--quiet"];

/// What lies elsewhere and must stay as it is.
fn elsewhere(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let folder = root.join("elsewhere");
    fs::create_dir_all(folder.join("deep")).expect("made");
    for name in [
        "precious",
        "journal",
        "aside.tmp",
        "model.safetensors.part",
        "deep/2.safetensors",
    ] {
        fs::write(folder.join(name), "precious").expect("written");
    }
    crate::support::files::files_below(&folder)
}

fn pipe(path: &Path) {
    assert!(
        Command::new("mkfifo")
            .arg(path)
            .status()
            .expect("mkfifo is there")
            .success()
    );
}

/// Puts something in the place of a file of the output; the merge must name it and leave everything
/// as it was.
fn is_refused(place: &str, put: impl Fn(&Path), args: &[&str]) {
    let root = small();
    let before = elsewhere(root.path());
    let path = root.path().join(place);
    fs::create_dir_all(path.parent().expect("below")).expect("made");
    put(&path);
    let kind = fs::symlink_metadata(&path).expect("there").file_type();
    for more in [&[][..], &["--overwrite"], &["--overwrite", "--restart"]] {
        run(root.path(), [args, more].concat())
            .fails(2, &["cannot write to", place, "nothing was touched"]);
        assert_eq!(
            crate::support::files::files_below(&root.path().join("elsewhere")),
            before,
            "{place}"
        );
        assert_eq!(
            fs::symlink_metadata(&path)
                .expect("still there")
                .file_type(),
            kind,
            "{place}"
        );
    }
}

#[test]
fn nothing_below_the_output_is_written_or_removed_through_a_link() {
    let link = |to: &'static str| move |path: &Path| symlink(to, path).expect("linked");
    is_refused("out/.thalweg", link("../elsewhere"), &MERGE);
    is_refused("out/.thalweg", link("nowhere"), &MERGE);
    for name in ["lock", "journal", "aside.tmp", "model.safetensors.part"] {
        is_refused(
            &format!("out/.thalweg/{name}"),
            link("../../elsewhere/precious"),
            &MERGE,
        );
    }
    is_refused("out/.thalweg/scratch", link("../../elsewhere"), &MERGE);
    is_refused(
        "out/.thalweg/scratch/x.part",
        link("../../../elsewhere/precious"),
        &MERGE,
    );
    for name in ["model.safetensors", "thalweg.json", "config.json"] {
        is_refused(
            &format!("out/{name}"),
            link("../elsewhere/precious"),
            &MERGE,
        );
        is_refused(&format!("out/{name}"), link("nowhere"), &MERGE);
    }
    let file = [
        "merge",
        "one",
        "two",
        "--out",
        "out/x.safetensors",
        "--quiet",
    ];
    is_refused("out/x.safetensors", link("../elsewhere/precious"), &file);
    is_refused(
        "out/x.safetensors.thalweg.json",
        link("../elsewhere/precious"),
        &file,
    );
    is_refused("out/.x.safetensors.thalweg", link("../elsewhere"), &file);
    is_refused(
        "out/.x.safetensors.thalweg/lock",
        link("../../elsewhere/precious"),
        &file,
    );
    let apply = ["apply", "one", "--fold", "--out", "out", "--quiet"];
    let root = small();
    let spec = run(root.path(), apply);
    assert!(spec.code.is_some(), "{spec:?}");
}

#[test]
fn folders_pipes_and_other_peoples_files_in_the_places_of_ours_are_refused_by_name() {
    let folder = |path: &Path| fs::create_dir(path).expect("made");
    for name in [
        ".thalweg/lock",
        ".thalweg/journal",
        "model.safetensors",
        "thalweg.json",
        "config.json",
    ] {
        is_refused(&format!("out/{name}"), folder, &MERGE);
        is_refused(&format!("out/{name}"), pipe, &MERGE);
    }
    is_refused(
        "out/.thalweg",
        |path| fs::write(path, "theirs").expect("written"),
        &MERGE,
    );
    is_refused(
        "out/.thalweg/notes.txt",
        |path| fs::write(path, "theirs").expect("written"),
        &MERGE,
    );
    let root = small();
    fs::create_dir(root.path().join("out")).expect("made");
    pipe(&root.path().join("out/model.safetensors"));
    let planned = run(root.path(), ["plan", "one", "two", "--out", "out"]);
    assert!(
        planned.stdout.contains("named pipe") || planned.stderr.contains("named pipe"),
        "{planned:?}"
    );
    run(root.path(), ["verify", "out"]).fails(1, &["out/model.safetensors", "no regular file"]);
}

#[test]
fn transforms_and_stages_are_not_written_through_links_either() {
    let root = small();
    let before = elsewhere(root.path());
    let recipe = "name: first\nmerge_method: linear\nmodels:\n- model: one\n  parameters: {weight: 1}\n- model: two\n  \
                  parameters: {weight: 1}\n---\nmerge_method: passthrough\nmodels:\n- model: first\n";
    fs::write(root.path().join("stages.yml"), recipe).expect("written");
    symlink("elsewhere", root.path().join("out-stages")).expect("linked");
    let merge = ["merge", "stages.yml", "--out", "out", "--quiet"];
    run(root.path(), merge).fails(2, &["cannot write to: out-stages", "a link"]);
    fs::remove_file(root.path().join("out-stages")).expect("removed");
    fs::create_dir(root.path().join("out-stages")).expect("made");
    symlink("../elsewhere", root.path().join("out-stages/first")).expect("linked");
    run(root.path(), merge).fails(2, &["cannot write to: out-stages/first", "a link"]);
    fs::remove_file(root.path().join("out-stages/first")).expect("removed");
    run(root.path(), merge).ok();
    assert_eq!(
        crate::support::files::files_below(&root.path().join("elsewhere")),
        before
    );
}

#[test]
fn the_output_folder_itself_may_be_a_link_to_a_folder_but_not_to_nothing() {
    let root = small();
    fs::create_dir(root.path().join("big-disk")).expect("made");
    symlink("big-disk", root.path().join("out")).expect("linked");
    run(root.path(), MERGE).ok();
    assert!(root.path().join("big-disk/model.safetensors").exists());
    run(root.path(), ["verify", "out", "--quiet"]).ok();
    symlink("nowhere", root.path().join("gone")).expect("linked");
    run(
        root.path(),
        ["merge", "one", "two", "--out", "gone", "--quiet"],
    )
    .fails(2, &["gone", "a link that leads nowhere"]);
    assert!(!root.path().join("nowhere").exists());
}

#[test]
fn a_pipe_or_a_socket_in_the_folder_of_an_input_is_refused_and_not_waited_for() {
    for name in [
        "pipe",
        "config.json",
        "README.md",
        "tokenizer.json",
        "chat_template.jinja",
        "deep/pipe",
    ] {
        let root = small();
        let path = root.path().join("one").join(name);
        let _ = fs::remove_file(&path);
        fs::create_dir_all(path.parent().expect("below")).expect("made");
        pipe(&path);
        let ended = run(root.path(), MERGE).fails(2, &[name]);
        assert!(
            ended.stderr.contains("a pipe") || ended.stderr.contains("not a regular file"),
            "{ended:?}"
        );
        assert!(!root.path().join("out").exists(), "{name}");
    }
    let root = small();
    let _socket =
        std::os::unix::net::UnixListener::bind(root.path().join("one/socket")).expect("bound");
    run(root.path(), MERGE).fails(2, &["one/socket", "a socket"]);
    // A link to a plain file is what a hub's cache has.
    let root = small();
    fs::create_dir(root.path().join("blobs")).expect("made");
    fs::write(root.path().join("blobs/vocab.txt"), "[]").expect("written");
    symlink("../blobs/vocab.txt", root.path().join("one/vocab.txt")).expect("linked");
    run(root.path(), MERGE).ok();
    assert!(
        fs::symlink_metadata(root.path().join("out/vocab.txt"))
            .expect("carried")
            .is_file()
    );
}

#[test]
fn names_of_other_kinds_of_files_are_refused_with_the_form_to_type() {
    let root = small();
    let there = |name: &str| root.path().join(name).exists();
    for (name, form) in [
        ("x.ckpt", "x.safetensors"),
        ("o1.gguf", "o1.safetensors"),
        ("m.safetensor", "m.safetensors"),
    ] {
        for command in [
            &["merge", "one", "two"][..],
            &["plan", "one", "two"],
            &["interpolate", "one", "two"],
        ] {
            run(root.path(), [command, &["--out", name]].concat()).fails(
                2,
                &[
                    "the name is that of",
                    &format!("{form} is one file of weights"),
                    &format!("{name}/"),
                ],
            );
        }
        let apply = ["apply", "one", "--fold", "--out", name];
        assert_ne!(run(root.path(), apply).code, Some(0));
        assert!(!there(name));
    }
    run(
        root.path(),
        [
            "merge", "one", "two", "--align", "weights", "--out", "x.bin",
        ],
    )
    .fails(2, &["x.bin"]);
    run(
        root.path(),
        ["interpolate", "one", "two", "--out", "x.safetensors"],
    )
    .fails(2, &["a folder is written here"]);
    run(
        root.path(),
        ["merge", "one", "two", "--out", "x.ckpt/", "--quiet"],
    )
    .ok();
    assert!(there("x.ckpt/model.safetensors"));
    run(
        root.path(),
        ["merge", "one", "two", "--out", "x.ckpt", "--quiet"],
    )
    .ok();
    run(
        root.path(),
        ["merge", "one", "two", "--out", "f.safetensors/", "--quiet"],
    )
    .ok();
    assert!(there("f.safetensors/model.safetensors"));
}
