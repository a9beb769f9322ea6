//! Hostile files through the real program: one clear error each, in bounded memory, and nothing is
//! written.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;
use thalweg::checkpoint::compress_frame;
use thalweg::dtype::Dtype;

use crate::output_verify::unsealed;
use crate::support::program::{Ended, run, start};
use crate::support::striped::{spec, write};

/// What every run here may use.
const MEMORY: u64 = 256 << 20;

fn with_good_model() -> TempDir {
    // NOTE: not in memory, where a hole is filled when it is read through a map.
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary folder");
    write(
        &root.path().join("good"),
        &[vec![spec("t", Dtype::BF16, &[64, 64])]],
        1,
    );
    root
}

/// Merges the good model with `input`, watching the memory.
fn merge_with(root: &Path, input: &str) -> Ended {
    let args = [
        "merge", "good", input, "--out", "out", "--memory", "256MiB", "--quiet",
    ];
    let ended = start(root, args).end_watched();
    assert!(
        ended.peak < MEMORY,
        "{} bytes resident: {ended:?}",
        ended.peak
    );
    ended
}

/// One error in a line or two, with these words, and no output folder.
#[track_caller]
fn refused(root: &Path, input: &str, words: &[&str]) {
    let ended = merge_with(root, input);
    assert!(matches!(ended.code, Some(1 | 2)), "{ended:?}");
    assert!(
        ended.stderr.starts_with("thalweg: ") && ended.stderr.lines().count() <= 2,
        "{ended:?}"
    );
    assert!(
        !ended.stderr.contains("panicked") && ended.stdout.is_empty(),
        "{ended:?}"
    );
    for words in words {
        assert!(
            ended.stderr.contains(words),
            "wanted {words:?} in {ended:?}"
        );
    }
    assert!(!root.join("out").exists(), "{ended:?}");
}

fn safetensors(path: &Path, header: &str, data: u64) {
    let mut file = File::create(path).expect("created");
    file.write_all(&(header.len() as u64).to_le_bytes())
        .expect("written");
    file.write_all(header.as_bytes()).expect("written");
    file.set_len(8 + header.len() as u64 + data)
        .expect("resized");
}

#[test]
fn hostile_headers_are_refused_by_name() {
    let root = with_good_model();
    let tensor = |name: &str, shape: &str, offsets: &str| {
        format!(r#""{name}":{{"dtype":"BF16","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let t = tensor("t", "[2]", "[0,4]");
    let cases = [
        ("not-json", "{\"t\":".to_owned(), 0, "header"),
        (
            "not-an-object",
            "[1,2]".to_owned(),
            0,
            "does not begin with {",
        ),
        (
            "leading-space",
            format!(" {{{t}}}"),
            4,
            "does not begin with {",
        ),
        ("twice", format!("{{{t},{t}}}"), 4, "t"),
        (
            "unknown-dtype",
            r#"{"t":{"dtype":"F7","shape":[2],"data_offsets":[0,4]}}"#.to_owned(),
            4,
            "F7",
        ),
        (
            "unknown-field",
            r#"{"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"x":1}}"#.to_owned(),
            2,
            "x",
        ),
        ("trailing-bytes", format!("{{{t}}}"), 5, "bytes"),
        ("cut-data", format!("{{{t}}}"), 3, "bytes"),
        (
            "backwards",
            format!("{{{}}}", tensor("t", "[2]", "[4,0]")),
            4,
            "`t`",
        ),
        (
            "negative",
            format!("{{{}}}", tensor("t", "[2]", "[-4,0]")),
            4,
            "-4",
        ),
        (
            "hole",
            format!("{{{}}}", tensor("t", "[2]", "[4,8]")),
            8,
            "t",
        ),
        (
            "overlap",
            format!("{{{t},{}}}", tensor("u", "[2]", "[2,6]")),
            6,
            "u",
        ),
        (
            "wrong-size",
            format!("{{{}}}", tensor("t", "[3]", "[0,4]")),
            4,
            "t",
        ),
        (
            "overflowing-shape",
            format!("{{{}}}", tensor("t", "[4294967296,4294967296,4]", "[0,0]")),
            0,
            "t",
        ),
        (
            "absurd-empty-shape",
            format!("{{{}}}", tensor("t", "[0,9223372036854775808,4]", "[0,0]")),
            0,
            "t",
        ),
        (
            "beyond-u64",
            format!("{{{}}}", tensor("t", "[2]", "[0,99999999999999999999]")),
            4,
            "header",
        ),
        (
            "control-in-name",
            format!("{{{}}}", tensor("a\\u0000b", "[2]", "[0,4]")),
            4,
            "header",
        ),
        (
            "empty-name",
            format!("{{{}}}", tensor("", "[2]", "[0,4]")),
            4,
            "header",
        ),
        (
            "deep",
            format!("{}1{}", "{\"a\":".repeat(5000), "}".repeat(5000)),
            0,
            "header",
        ),
        (
            "metadata-is-a-list",
            r#"{"__metadata__":[]}"#.to_owned(),
            0,
            "header",
        ),
    ];
    for (name, header, data, words) in cases {
        let file = format!("{name}.safetensors");
        safetensors(&root.path().join(&file), &header, data);
        refused(root.path(), &file, &[&file, words]);
    }
}

#[test]
fn header_lengths_that_lie_are_refused_before_they_are_believed() {
    let root = with_good_model();
    for (name, length, file_bytes) in [
        ("empty", None, 0),
        ("three-bytes", None, 3),
        ("beyond-the-end", Some(1000), 100),
        ("everything", Some(u64::MAX), 100),
        ("hundred-megabytes", Some(100_000_000), 100_000_008),
        ("four-gigabytes", Some(1 << 32), 5 << 30),
    ] {
        let file = format!("{name}.safetensors");
        let handle = File::create(root.path().join(&file)).expect("created");
        if let Some(length) = length {
            (&handle)
                .write_all(&u64::to_le_bytes(length))
                .expect("written");
        }
        handle.set_len(file_bytes).expect("resized");
        refused(root.path(), &file, &[&file, "cannot read header"]);
    }
}

#[test]
fn a_million_tensors_fit_the_budget_or_are_refused_for_it() {
    let root = with_good_model();
    let names = (0..1_000_000).map(|at| {
        format!(
            r#""{at:x}":{{"dtype":"U8","shape":[],"data_offsets":[{at},{}]}}"#,
            at + 1
        )
    });
    let header = format!("{{{}}}", names.collect::<Vec<_>>().join(","));
    safetensors(&root.path().join("million.safetensors"), &header, 1_000_000);
    let refused = |ended: Ended| {
        assert!(
            matches!(ended.code, Some(1 | 2)) && !ended.stderr.contains("panic"),
            "{ended:?}"
        )
    };
    refused(merge_with(root.path(), "million.safetensors"));
    // As many as a header can hold: in the budget all the same.
    let names = (0..1_900_000)
        .map(|at| {
            format!(
                r#""{at:x}":{{"dtype":"U8","shape":[],"data_offsets":[{at},{}]}}"#,
                at + 1
            )
        })
        .take_while({
            let mut length = 2;
            move |name| {
                length += name.len() + 1;
                length < 100_000_000
            }
        });
    let names: Vec<_> = names.collect();
    safetensors(
        &root.path().join("most.safetensors"),
        &format!("{{{}}}", names.join(",")),
        names.len() as u64,
    );
    refused(merge_with(root.path(), "most.safetensors"));
    // One string that is nearly all of a long header.
    let metadata = format!(r#"{{"__metadata__":{{"a":"{}"}}}}"#, "n".repeat(99_000_000));
    safetensors(&root.path().join("metadata.safetensors"), &metadata, 0);
    refused(merge_with(root.path(), "metadata.safetensors"));
    // Few tensors in as long a header: what is held is the text.
    let name = "n".repeat(1 << 20);
    safetensors(
        &root.path().join("name.safetensors"),
        &format!(r#"{{"{name}":{{"dtype":"U8","shape":[],"data_offsets":[0,1]}}}}"#),
        1,
    );
    refused(merge_with(root.path(), "name.safetensors"));
}

#[test]
fn indexes_that_lead_elsewhere_or_nowhere_are_refused() {
    let root = with_good_model();
    let shard = fs::read(root.path().join("good/model.safetensors")).expect("read");
    for (name, map, words) in [
        (
            "outside",
            json!({ "t": "../good/model.safetensors" }),
            "not a plain file name",
        ),
        (
            "absolute",
            json!({ "t": "/etc/passwd.safetensors" }),
            "not a plain file name",
        ),
        (
            "missing",
            json!({ "t": "a.safetensors", "u": "b.safetensors" }),
            "missing: b.safetensors",
        ),
        (
            "absent-tensor",
            json!({ "t": "a.safetensors", "u": "a.safetensors" }),
            "not in a.safetensors",
        ),
        (
            "not-weights",
            json!({ "t": "config.json" }),
            "not a safetensors file",
        ),
        ("nothing", json!({}), "names no tensor"),
    ] {
        let folder = root.path().join(name);
        fs::create_dir(&folder).expect("made");
        fs::write(folder.join("a.safetensors"), &shard).expect("written");
        let index = json!({ "metadata": {}, "weight_map": map });
        fs::write(
            folder.join("model.safetensors.index.json"),
            index.to_string(),
        )
        .expect("written");
        refused(
            root.path(),
            name,
            &[&format!("{name}/model.safetensors.index.json"), words],
        );
    }
}

#[test]
fn links_in_a_circle_and_things_that_are_no_files_are_refused() {
    let root = with_good_model();
    let folder = root.path().join("circle");
    fs::create_dir(&folder).expect("made");
    symlink("model.safetensors", folder.join("model.safetensors")).expect("linked");
    refused(root.path(), "circle", &["circle/model.safetensors"]);
    fs::remove_file(folder.join("model.safetensors")).expect("removed");
    symlink("/dev/zero", folder.join("model.safetensors")).expect("linked");
    refused(
        root.path(),
        "circle",
        &["circle/model.safetensors", "not a regular file"],
    );
    fs::remove_file(folder.join("model.safetensors")).expect("removed");
    fs::create_dir(folder.join("model.safetensors")).expect("made");
    refused(root.path(), "circle", &["circle"]);
    symlink("circle2", root.path().join("circle2")).expect("linked");
    refused(root.path(), "circle2", &["circle2"]);
}

#[test]
fn a_small_file_that_unpacks_to_gigabytes_is_refused_or_read_in_bounds() {
    let root = with_good_model();
    // A header length that is allowed, then zeros without end: the reader must stop at what the
    // header may have.
    let bomb = [compress_frame(
        &[&(30u64 << 20).to_le_bytes()[..], &vec![b' '; 1 << 20]].concat(),
        1,
    )
    .expect("packed")];
    let zeros = compress_frame(&vec![0; 64 << 20], 1).expect("packed");
    let path = root.path().join("bomb.safetensors.zst");
    let mut file = File::create(&path).expect("created");
    bomb.iter()
        .for_each(|frame| file.write_all(frame).expect("written"));
    (0..40).for_each(|_| file.write_all(&zeros).expect("written"));
    assert!(fs::metadata(&path).expect("there").len() < 1 << 20);
    refused(
        root.path(),
        "bomb.safetensors.zst",
        &["bomb.safetensors.zst"],
    );
}

#[test]
fn torch_files_with_code_or_lies_are_refused_and_run_nothing() {
    let root = with_good_model();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/torch");
    for name in ["hostile.pt", "hostile-legacy.pt", "script.pt"] {
        fs::copy(data.join(name), root.path().join(name)).expect("copied");
        refused(root.path(), name, &[name]);
    }
    // Every cut of a good file, and its directory overwritten.
    let good = fs::read(data.join("dict.pt")).expect("read");
    for cut in [3, 100, good.len() / 2, good.len() - 30, good.len() - 1] {
        fs::write(root.path().join("cut.pt"), &good[..cut]).expect("written");
        refused(root.path(), "cut.pt", &["cut.pt"]);
    }
    let mut lying = good.clone();
    let end = lying.len();
    // The directory's place and size in the end record.
    lying[end - 10..end - 2].fill(0xff);
    fs::write(root.path().join("lying.pt"), lying).expect("written");
    refused(root.path(), "lying.pt", &["lying.pt"]);
}

#[test]
fn recipes_that_grow_without_end_are_refused() {
    let root = with_good_model();
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (this, last) in ('b'..='z').zip('a'..) {
        bomb.push_str(&format!(
            "{this}: &{this} [{}]\n",
            vec![format!("*{last}"); 9].join(", ")
        ));
    }
    let deep = "[".repeat(100_000);
    let long = format!("merge_method: {}\n", "x".repeat(300 << 20));
    for (name, text) in [("bomb.yml", bomb), ("deep.yml", deep), ("long.yml", long)] {
        fs::write(root.path().join(name), text).expect("written");
        let ended = start(root.path(), ["merge", name, "--out", "out", "--quiet"]).end_watched();
        assert!(
            ended.peak < MEMORY && ended.code == Some(2) && !ended.stderr.contains("panicked"),
            "{ended:?}"
        );
    }
}

#[test]
fn a_config_of_a_gigabyte_is_refused_and_a_huge_tokenizer_is_copied_in_bounds() {
    let root = with_good_model();
    let sparse = |name: &str, bytes: u64| {
        File::create(root.path().join("good").join(name))
            .and_then(|file| file.set_len(bytes))
            .expect("made");
    };
    sparse("tokenizer.json", 400 << 20);
    let ended = merge_with(root.path(), "good");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        fs::metadata(root.path().join("out/tokenizer.json"))
            .expect("copied")
            .len(),
        400 << 20
    );
    fs::remove_dir_all(root.path().join("out")).expect("removed");
    fs::remove_file(root.path().join("good/tokenizer.json")).expect("removed");
    sparse("config.json", 1 << 30);
    let ended = merge_with(root.path(), "good");
    assert!(
        matches!(ended.code, Some(1..=3)) && ended.stderr.contains("good/config.json"),
        "{ended:?}"
    );
    assert!(
        !root.path().join("out/model.safetensors").exists(),
        "a checkpoint without its config"
    );
}

#[test]
fn a_manifest_that_lies_is_damage_and_nothing_else() {
    let root = with_good_model();
    run(
        root.path(),
        ["merge", "good", "good", "--out", "out", "--quiet"],
    )
    .ok();
    let path = root.path().join("out/thalweg.json");
    // Whoever forges one can make its checksum fit, so what is behind that is what counts.
    let text = unsealed(&fs::read_to_string(&path).expect("read"));
    for (from, to) in [
        ("\"model.safetensors\"", "\"../good/model.safetensors\""),
        ("\"offset\": ", "\"offset\": 9"),
        ("\"length\": 8192", "\"length\": 18446744073709551615"),
        ("\"format\": 1", "\"format\": 2"),
        ("\"format\": 1", "\"format\": 3"),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        fs::write(&path, changed).expect("written");
        let ended = start(root.path(), ["verify", "out", "--quiet"]).end_watched();
        assert!(
            ended.code == Some(1) && ended.peak < MEMORY && !ended.stderr.contains("panicked"),
            "{ended:?}"
        );
    }
    File::create(&path)
        .and_then(|file| file.set_len(2 << 30))
        .expect("made");
    run(root.path(), ["verify", "out", "--quiet"]).fails(1, &["out/thalweg.json"]);
}

#[test]
fn nothing_that_an_input_says_steers_the_terminal_or_fills_it() {
    let root = with_good_model();
    let long = "x".repeat(350_000);
    let evil = "evil\u{1b}[2J\u{9b}31m\u{7}";
    let header = |text: String| {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.into_bytes());
        bytes
    };
    let field = |name: &str| {
        let name = serde_json::to_string(name).expect("text");
        header(format!(
            "{{\"a\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0],{name}:1}}}}"
        ))
    };
    let tensor = |name: &str| {
        let name = serde_json::to_string(name).expect("text");
        header(format!(
            "{{{name}:{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}}}"
        ))
    };
    let quiet = |ended: &crate::support::program::Ended| {
        for text in [&ended.stdout, &ended.stderr] {
            assert!(text.len() < 20_000, "{} bytes", text.len());
            assert!(
                text.chars().all(|c| c == '\n' || !c.is_control()),
                "{text:?}"
            );
        }
    };
    for (number, bytes) in [field(evil), field(&long), tensor(evil), tensor(&long)]
        .into_iter()
        .enumerate()
    {
        let name = format!("hostile{number}.safetensors");
        fs::write(root.path().join(&name), bytes).expect("written");
        let good = "good/model.safetensors";
        for command in [
            &["merge", &name, good, "--out", "out"][..],
            &["plan", &name, &name, "--out", "out", "--tensors"],
            &[
                "plan",
                good,
                &name,
                "--out",
                "out",
                "--tensors",
                "--missing",
                "common",
            ],
            &["symmetries", &name],
            &[
                "merge",
                &name,
                good,
                "--missing",
                "common",
                "--out",
                &format!("out{number}"),
            ],
        ] {
            quiet(&run(root.path(), command));
        }
    }
    // What turns text around is no control character, so such a name is allowed; even JSON does not
    // show it raw.
    let turned = "turned\u{202e}around";
    fs::write(root.path().join("turned.safetensors"), tensor(turned)).expect("written");
    let plan = [
        "plan",
        "turned.safetensors",
        "turned.safetensors",
        "--out",
        "out",
        "--json",
    ];
    let json = run(root.path(), plan).ok();
    assert_eq!(json.json()["tensors"][0]["name"], turned);
    assert!(!json.stdout.contains('\u{202e}'), "{json:?}");
}
