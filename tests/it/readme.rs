//! The README and the pages under docs name things that exist: tests that show what happens after a
//! fault, scripts, files, other pages. The program understands the commands that they tell people
//! to type.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::files::scratch;
use crate::support::program::run;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The names of all Markdown files in a folder below the root, in order.
fn pages_in(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).expect("a folder");
    let names = entries.map(|entry| Path::new(folder).join(entry.expect("a folder").file_name()));
    let mut names: Vec<_> = names
        .filter(|name| name.extension().is_some_and(|end| end == "md"))
        .collect();
    names.sort();
    names
}

/// Name and text of the README, the pages beside it, and those under docs.
fn pages() -> Vec<(PathBuf, String)> {
    let names = pages_in("").into_iter().chain(pages_in("docs"));
    names
        .map(|name| (name.clone(), page(&name.to_string_lossy())))
        .collect()
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
                let item = lines
                    .find(|line| !line.starts_with(['#', '/']))
                    .expect("an item");
                let name = item
                    .trim_start_matches("fn ")
                    .split('(')
                    .next()
                    .expect("a name");
                names.insert(name.to_owned());
            }
        }
    }
    names
}

/// The texts between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_fault_names_a_test_that_exists() {
    let (guarantees, tests) = (page("docs/guarantees.md"), tests());
    let rows: Vec<_> = guarantees
        .lines()
        .skip_while(|line| !line.starts_with("| fault |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert!(rows.len() >= 20, "{} rows", rows.len());
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        let [_, _, shown_by] = cells[..] else {
            panic!("not three columns: {row}")
        };
        let named: Vec<_> = quoted(shown_by).collect();
        assert!(!named.is_empty(), "no test is named: {row}");
        for name in named {
            assert!(
                tests.contains(name) || root().join(name).is_file(),
                "there is no {name}: {row}"
            );
        }
    }
}

#[test]
fn every_script_that_is_mentioned_exists() {
    let pages = pages();
    let words = pages.iter().flat_map(|(_, text)| {
        text.split(|c: char| !(c.is_ascii_alphanumeric() || "/.-_".contains(c)))
    });
    let mentioned: HashSet<_> = words
        .filter(|word| {
            ["scripts/", "tests/", "src/", "docs/"]
                .iter()
                .any(|folder| word.starts_with(folder))
        })
        .map(|word| word.trim_end_matches('.'))
        .collect();
    assert!(mentioned.len() >= 8, "{mentioned:?}");
    for path in mentioned {
        assert!(root().join(path).exists(), "there is no {path}");
    }
}

#[test]
fn the_readme_is_short_and_links_every_page() {
    let readme = page("README.md");
    assert!(
        readme.lines().count() <= 200,
        "{} lines",
        readme.lines().count()
    );
    for (name, _) in pages()
        .iter()
        .filter(|(name, _)| name != Path::new("README.md"))
    {
        assert!(
            readme.contains(&format!("]({})", name.display())),
            "the README does not link {}",
            name.display()
        );
    }
}

/// The anchor of a heading, as web sites that show Markdown make it.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let mut links = 0;
    for (name, text) in pages() {
        let targets = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            links += 1;
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() {
                name.clone()
            } else {
                name.parent().expect("a folder").join(file)
            };
            assert!(
                root().join(&path).exists(),
                "{}: there is no {target}",
                name.display()
            );
            let linked = fs::read_to_string(root().join(&path)).unwrap_or_default();
            let mut headings = linked
                .lines()
                .filter(|line| line.starts_with('#'))
                .map(|line| anchor(line.trim_start_matches(['#', ' '])));
            assert!(
                heading.is_empty() || headings.any(|known| known == heading),
                "{}: {target}",
                name.display()
            );
        }
    }
    assert!(links >= 30, "{links}");
}

/// All scripts, in whichever folder they lie.
fn scripts(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a folder").path();
        if path.is_dir() {
            scripts(&path, found)
        } else {
            found.push(path)
        }
    }
}

/// Crates that only tests need take longer to build than the program.
#[test]
fn scripts_build_programs_and_none_of_what_only_tests_need() {
    let mut found = vec![];
    scripts(&root().join("scripts"), &mut found);
    let mut builds = 0;
    for path in found {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        // `build` is the function of lib.sh that takes names of programs.
        for line in text
            .lines()
            .filter(|line| line.contains("cargo build") || line.trim_start().starts_with("build "))
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
fn every_command_of_the_pages_is_one() {
    let folder = scratch();
    let texts: Vec<_> = pages().into_iter().map(|(_, text)| text).collect();
    let mut commands = 0;
    for line in texts
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.strip_prefix("thalweg "))
    {
        let typed = line.split('#').next().unwrap_or_default();
        // Prose goes on after the name.
        let Some(name) = typed.split_whitespace().next() else {
            continue;
        };
        let known = [
            "merge",
            "plan",
            "verify",
            "reference",
            "symmetries",
            "apply",
            "align",
            "activations",
            "interpolate",
        ];
        if !known.contains(&name) {
            continue;
        }
        commands += 1;
        let ended = run(folder.path(), typed.split_whitespace());
        // The models are not there; that is all that may be wrong.
        assert!(
            !ended.stderr.contains("error: ") && !ended.stderr.contains("command line"),
            "{line}: {ended:?}"
        );
        assert!(
            ended.code == Some(0) || ended.stderr.starts_with("thalweg: cannot "),
            "{line}: {ended:?}"
        );
    }
    assert!(commands > 30, "{commands}");
}
