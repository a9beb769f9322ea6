//! What the README names is there: the tests that show what happens after a fault, scripts, files, and what it tells people
//! to type is understood.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::crash::scratch;
use crate::program::run;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).expect("a README")
}

/// All Rust files below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a folder").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The names of all tests, found by the line above them.
fn tests() -> HashSet<String> {
    let mut paths = vec![];
    sources(&root().join("src"), &mut paths);
    sources(&root().join("tests"), &mut paths);
    let mut names = HashSet::new();
    for path in paths {
        let text = fs::read_to_string(path).expect("a source");
        let mut lines = text.lines().map(str::trim);
        while let Some(line) = lines.next() {
            if line == "#[test]" {
                let item = lines.find(|line| !line.starts_with(['#', '/'])).expect("an item");
                let name = item.trim_start_matches("fn ").split('(').next().expect("a name");
                names.insert(name.to_owned());
            }
        }
    }
    names
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_fault_names_a_test_that_exists() {
    let (readme, tests) = (readme(), tests());
    let rows: Vec<_> = readme
        .lines()
        .skip_while(|line| !line.starts_with("| fault |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert!(rows.len() >= 20, "{} rows", rows.len());
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        let [_, _, shown_by] = cells[..] else { panic!("not three columns: {row}") };
        let named: Vec<_> = quoted(shown_by).collect();
        assert!(!named.is_empty(), "no test is named: {row}");
        for name in named {
            assert!(tests.contains(name) || root().join(name).is_file(), "there is no {name}: {row}");
        }
    }
}

#[test]
fn every_script_that_is_mentioned_exists() {
    let readme = readme();
    let mentioned: HashSet<_> = readme
        .split(|c: char| !(c.is_ascii_alphanumeric() || "/.-_".contains(c)))
        .filter(|word| word.starts_with("scripts/") || word.starts_with("tests/"))
        .map(|word| word.trim_end_matches('.'))
        .collect();
    assert!(mentioned.len() >= 8, "{mentioned:?}");
    for path in mentioned {
        assert!(root().join(path).exists(), "there is no {path}");
    }
}

/// All scripts, in whichever folder they lie.
fn scripts(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a folder").path();
        if path.is_dir() { scripts(&path, found) } else { found.push(path) }
    }
}

/// Crates that only tests need take longer to build than the program.
#[test]
fn scripts_build_programs_and_none_of_what_only_tests_need() {
    let mut found = vec![];
    scripts(&root().join("scripts"), &mut found);
    let mut builds = 0;
    for path in found {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        // `build` is the function of lib.sh that takes names of programs.
        for line in text.lines().filter(|line| line.contains("cargo build") || line.trim_start().starts_with("build "))
        {
            builds += 1;
            for pulls in ["--example", "--test", "--bench", "--all-targets"] {
                assert!(!line.contains(pulls), "{}: {line}", path.display());
            }
        }
    }
    assert!(builds >= 8, "{builds}");
}

#[test]
fn every_command_of_the_readme_is_one() {
    let (text, folder) = (readme(), scratch());
    let mut commands = 0;
    for line in text.lines().filter_map(|line| line.strip_prefix("thalweg ")) {
        let typed = line.split('#').next().unwrap_or_default();
        // Prose goes on after the name.
        let Some(name) = typed.split_whitespace().next() else { continue };
        let known = ["merge", "plan", "verify", "reference", "symmetries", "apply", "align"];
        if !known.contains(&name) {
            continue;
        }
        commands += 1;
        let ended = run(folder.path(), typed.split_whitespace());
        // The models are not there; that is all that may be wrong.
        assert!(!ended.stderr.contains("error: ") && !ended.stderr.contains("command line"), "{line}: {ended:?}");
        assert!(ended.code == Some(0) || ended.stderr.starts_with("thalweg: cannot "), "{line}: {ended:?}");
    }
    assert!(commands > 10, "{commands}");
}
