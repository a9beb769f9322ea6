//! The house: which module may use which, where threads begin, which files use each other in a
//! circle, and how large functions, closures and arguments may be.
//!
//! The order is that of the list in `src/lib.rs`; tests within `src/` may use what they like.

mod limits;
mod measure;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Where a module may start threads; everything else is handed a pool or runs in a plain loop.
const THREADS: [&str; 4] = ["engine", "align/run", "cli/activations", "cli/interpolate"];

/// What starts threads.
const STARTS: [&str; 4] = [
    "ThreadPoolBuilder",
    "thread::spawn",
    "thread::scope",
    "thread::Builder",
];

/// Files that use each other in a circle and may: a folder, then names in it. A facade and the
/// types that its children name do not count. A circle that was opened leaves this list; a new one
/// does not come into it without a reason.
const CIRCLES: [&str; 16] = [
    "align/matching: panel terms",
    "checkpoint: component folder nested parts rivals",
    "checkpoint: file index pickled side zst zst/stream",
    "checkpoint: header strings",
    "checkpoint: map positioned source",
    "cli: activations align align_inputs apply args device flags interpolate job matcher merge models symmetries typed",
    "device: choice cuda",
    "device: lanes multiplication resident",
    "kernel: level x86",
    "net: families families/mlp families/resnet families/vgg graph",
    "output: begin beside commit direct ending exchange finish folder listed lock manifest notes own own_checksum packed \
     place repair resume shard_header sides storage verify verify/folder verify/index verify/room verify/stored write",
    "plan: agree assign choice counters coverage job memory missing shape staging tensor tensor/resolved ties vocabulary",
    "recipe: align document own places rename resolve write",
    // The table of methods, and the rows of one family in a file of their own.
    "recipe: elementwise elementwise/make methods",
    "recipe: hub model_ref",
    "symmetry: fold symmetries",
];

/// The source of one file, without comments and tests.
struct File {
    /// Its path below `src/` without the ending, as modules are written: `plan/mod` is `plan`.
    module: String,
    is_facade: bool,
    code: String,
}

#[test]
fn a_module_uses_only_those_that_stand_above_it_in_the_list() {
    let order = order();
    let place = |name: &str| order.iter().position(|known| known == name);
    let mut upward = Vec::new();
    for file in files() {
        let room = file
            .module
            .split('/')
            .next()
            .expect("a path has a first part");
        let Some(own) = place(room) else { continue };
        for path in paths(&file.code, "crate::") {
            let used = path.split("::").next().expect("a path has a first part");
            if place(used).is_some_and(|used| used > own) {
                upward.push(format!("{} uses {path}", file.module));
            }
        }
    }
    assert!(
        upward.is_empty(),
        "lib.rs lists these modules the other way round:\n{}",
        upward.join("\n")
    );
}

#[test]
fn the_list_names_every_module_once() {
    let order = order();
    let listed: BTreeSet<&String> = order.iter().collect();
    assert_eq!(listed.len(), order.len(), "a module is listed twice");
    let text = fs::read_to_string(root().join("lib.rs")).expect("lib.rs");
    let declared: BTreeSet<String> = text
        .lines()
        .filter_map(|line| name_of(line.strip_prefix("pub mod ")?))
        .collect();
    assert_eq!(
        listed.into_iter().cloned().collect::<BTreeSet<_>>(),
        declared
    );
}

#[test]
fn threads_begin_where_the_list_says() {
    let text = fs::read_to_string(root().join("lib.rs")).expect("lib.rs");
    let docs: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("//! "))
        .collect();
    let docs = docs.join(" ");
    let (_, said) = docs
        .split_once("Threads begin in")
        .expect("lib.rs says where");
    let (said, _) = said.split_once(';').expect("the list ends");
    let named: Vec<String> = said
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    assert_eq!(named, THREADS);
    for file in files() {
        let may = THREADS
            .iter()
            .any(|room| file.module == *room || file.module.starts_with(&format!("{room}/")));
        let starts = STARTS.iter().find(|start| file.code.contains(**start));
        assert!(
            may || starts.is_none(),
            "{} uses {}",
            file.module,
            starts.unwrap_or(&"")
        );
    }
}

#[test]
fn files_use_each_other_in_a_circle_only_where_that_is_known() {
    for circle in circles(&arrows(&files())) {
        let is_known = CIRCLES.iter().any(|known| {
            let (folder, names) = known.split_once(": ").expect("a folder, then names");
            let known: Vec<String> = names
                .split_whitespace()
                .map(|name| format!("{folder}/{name}"))
                .collect();
            circle.iter().all(|file| known.contains(file))
        });
        assert!(
            is_known,
            "these files use each other in a circle: {circle:?}"
        );
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The modules as lib.rs lists them.
fn order() -> Vec<String> {
    let text = fs::read_to_string(root().join("lib.rs")).expect("lib.rs");
    let order: Vec<String> = text
        .lines()
        .filter_map(|line| name_of(line.strip_prefix("//! - [`")?))
        .collect();
    assert!(order.len() > 20, "lib.rs lists its modules");
    order
}

/// The name with which a text begins.
fn name_of(text: &str) -> Option<String> {
    let end = text.find(|c: char| !is_of_name(c))?;
    (end > 0).then(|| text[..end].to_owned())
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn files() -> Vec<File> {
    let mut files = Vec::new();
    collect(&root(), &root(), &mut files);
    files.sort_by(|a, b| a.module.cmp(&b.module));
    files
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<File>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(root, &path, files);
            continue;
        }
        let below = path
            .strip_prefix(root)
            .expect("it lies there")
            .with_extension("");
        let below = below.to_str().expect("names are plain").to_owned();
        let is_test = below
            .split('/')
            .any(|part| matches!(part, "tests" | "testing"));
        if path.extension().is_some_and(|end| end == "rs") && !is_test {
            let text = fs::read_to_string(&path).expect("a source");
            let is_facade = below.ends_with("/mod");
            let module = below.trim_end_matches("/mod").to_owned();
            files.push(File {
                module,
                is_facade,
                code: code_of(&text),
            });
        }
    }
}

/// A source without comments and without what is behind the first test module.
fn code_of(text: &str) -> String {
    let tests = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    let lines = text[..tests].lines();
    lines
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The paths that begin with `prefix`, groups in braces taken apart, without the prefix.
fn paths(code: &str, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if !code[..at].ends_with(|c: char| is_of_name(c) || c == ':' || c == '$') {
            take_path(&code[at + prefix.len()..], "", &mut found);
        }
    }
    found
}

/// Reads one path or group from the start of `text`; gives the rest.
fn take_path<'a>(text: &'a str, before: &str, found: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = take_path(rest, before, found).trim_start();
            match rest.strip_prefix(',') {
                Some(more) => rest = more.trim_start(),
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
            if let Some(rest) = rest.strip_prefix('}') {
                return rest;
            }
        }
    }
    let end = text.find(|c: char| !is_of_name(c)).unwrap_or(text.len());
    let path = format!("{before}{}", &text[..end]);
    let rest = &text[end..];
    match rest.strip_prefix("::") {
        Some(more) if more.starts_with(|c: char| is_of_name(c) || c == '{') => {
            take_path(more, &format!("{path}::"), found)
        }
        _ => {
            found.push(path);
            // An alias is none of the path.
            let aliased = rest
                .strip_prefix(" as ")
                .map(|alias| alias.trim_start_matches(is_of_name));
            aliased.unwrap_or(rest)
        }
    }
}

/// For each file the files that it uses. A child that names what its facade defines does not count.
fn arrows(files: &[File]) -> BTreeMap<String, BTreeSet<String>> {
    let known: BTreeMap<&str, &File> = files
        .iter()
        .map(|file| (file.module.as_str(), file))
        .collect();
    let mut arrows = BTreeMap::new();
    for file in files {
        let mut used: BTreeSet<String> = absolute(file)
            .iter()
            .map(|path| owner(path, &known))
            .collect();
        used.retain(|other| {
            *other != file.module && !format!("{}/", file.module).starts_with(&format!("{other}/"))
        });
        used.remove("");
        arrows.insert(file.module.clone(), used);
    }
    arrows
}

/// All paths of a file, from the root, parts divided by slashes.
fn absolute(file: &File) -> Vec<String> {
    let mut all: Vec<String> = paths(&file.code, "crate::")
        .iter()
        .map(|path| path.replace("::", "/"))
        .collect();
    let parts: Vec<&str> = file.module.split('/').collect();
    for ups in 1..=parts.len() {
        let prefix = "super::".repeat(ups);
        let base = parts[..parts.len() - ups].join("/");
        let found = paths(&file.code, &prefix)
            .into_iter()
            .filter(|path| !path.starts_with("super"));
        all.extend(found.map(|path| {
            format!("{base}/{}", path.replace("::", "/"))
                .trim_start_matches('/')
                .to_owned()
        }));
    }
    if file.is_facade {
        // A facade names its children without a prefix.
        let uses = file.code.split("use ").skip(1);
        let mut found = Vec::new();
        uses.for_each(|text| _ = take_path(text, "", &mut found));
        all.extend(
            found
                .iter()
                .map(|path| format!("{}/{}", file.module, path.replace("::", "/"))),
        );
    }
    all
}

/// The file that a path leads to: the longest that there is, and on through what a facade passes
/// on.
fn owner(path: &str, known: &BTreeMap<&str, &File>) -> String {
    let mut end = path;
    let file = loop {
        match known.get(end) {
            Some(file) => break file,
            None => match end.rsplit_once('/') {
                Some((shorter, _)) => end = shorter,
                None => return String::new(),
            },
        }
    };
    let item = path[end.len()..]
        .trim_start_matches('/')
        .split('/')
        .next()
        .unwrap_or_default();
    let mut passed = Vec::new();
    for text in file.code.split("pub use ").skip(1) {
        take_path(text, "", &mut passed);
    }
    let from = passed
        .iter()
        .find(|path| !item.is_empty() && path.rsplit("::").next() == Some(item));
    match from {
        Some(from) if file.is_facade && !from.starts_with("crate") => {
            owner(&format!("{end}/{}", from.replace("::", "/")), known)
        }
        _ => end.to_owned(),
    }
}

/// Sets of files each of which leads to all others.
fn circles(arrows: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<BTreeSet<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = arrows
        .keys()
        .map(|file| (file, reach(file, arrows)))
        .collect();
    let circle = |file: &String| -> BTreeSet<String> {
        reached[file]
            .iter()
            .filter(|other| reached[**other].contains(file))
            .map(|other| (*other).clone())
            .collect()
    };
    arrows
        .keys()
        .map(circle)
        .filter(|circle| circle.len() > 1)
        .collect()
}

/// The files to which arrows lead from `file`.
fn reach<'a>(
    file: &String,
    arrows: &'a BTreeMap<String, BTreeSet<String>>,
) -> BTreeSet<&'a String> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&String> = arrows[file].iter().collect();
    while let Some(file) = next.pop() {
        if arrows.contains_key(file) && reached.insert(file) {
            next.extend(&arrows[file]);
        }
    }
    reached
}
