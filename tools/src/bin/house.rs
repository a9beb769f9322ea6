//! How legible the sources are, in numbers: tokens of functions, closures, arguments, docs.
//!
//!     cargo run -p thalweg-tools --bin house [--list] [FOLDER OF src]
//!
//! `tests/it/house.rs` holds the limits; `--list` names every place beyond one.

#![expect(
    clippy::print_stdout,
    reason = "a program that prints what it measured"
)]

#[path = "../../../tests/it/house/measure.rs"]
mod measure;
#[path = "../../../tests/it/house/tokens.rs"]
mod tokens;

use std::path::Path;

use measure::{Finding, Measures};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (flags, folders): (Vec<&String>, Vec<&String>) = arguments
        .iter()
        .partition(|argument| argument.starts_with("--"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let root = root.expect("this is a member of the workspace");
    let mut measures = Measures::below(&root.join("src"));
    if let Some(folder) = folders.first() {
        keep_below(&mut measures, folder);
    }
    if flags.iter().any(|flag| *flag == "--list") {
        list(&measures);
    } else {
        table(&measures, root);
    }
}

/// Keeps the findings of one folder; sums stay those of all.
fn keep_below(measures: &mut Measures, folder: &str) {
    for findings in [
        &mut measures.functions,
        &mut measures.closures,
        &mut measures.arguments,
        &mut measures.tuples,
        &mut measures.docs,
        &mut measures.sizes,
    ] {
        findings.retain(|finding| finding.module.starts_with(folder));
    }
}

/// The findings beyond `limit`.
fn beyond(findings: &[Finding], limit: usize) -> impl Iterator<Item = &Finding> {
    findings.iter().filter(move |finding| finding.size > limit)
}

fn table(measures: &Measures, root: &Path) {
    let spread = |findings: &[Finding]| {
        [50, 90, 99, 100]
            .map(|percent| percentile(findings, percent).to_string())
            .join(" · ")
    };
    let readme = std::fs::metadata(root.join("README.md")).map_or(0, |file| file.len());
    let closures = &measures.closures;
    let rows = [
        ("files", measures.files.to_string()),
        ("code lines", measures.code_lines.to_string()),
        (
            "code lines a file: med · p90 · p99 · max",
            spread(&measures.sizes),
        ),
        (
            "files over 400 code lines",
            beyond(&measures.sizes, 400).count().to_string(),
        ),
        ("functions", measures.functions.len().to_string()),
        (
            "tokens a function: med · p90 · p99 · max",
            spread(&measures.functions),
        ),
        (
            "functions over 400 tokens",
            beyond(&measures.functions, 400).count().to_string(),
        ),
        (
            "tokens a code line",
            format!("{:.1}", ratio(measures.tokens, measures.code_lines)),
        ),
        ("closures with a name", closures.len().to_string()),
        (
            "closures with a name, over a line",
            beyond(closures, 1).count().to_string(),
        ),
        (
            "functions with over 6 arguments",
            beyond(&measures.arguments, 6).count().to_string(),
        ),
        (
            "functions with tuple arguments",
            measures.tuples.len().to_string(),
        ),
        ("docs", measures.docs.len().to_string()),
        (
            "docs that begin with What, How, Whether ..",
            beyond(&measures.docs, 0).count().to_string(),
        ),
        (
            "doc lines / code",
            format!(
                "{:.0} %",
                100.0 * ratio(measures.doc_lines, measures.code_lines)
            ),
        ),
        (
            "other comments / code",
            format!(
                "{:.1} %",
                100.0 * ratio(measures.comments, measures.code_lines)
            ),
        ),
        ("runnable doc examples", measures.examples.to_string()),
        ("README bytes", readme.to_string()),
    ];
    println!("| | thalweg |\n|---|---|");
    for (name, value) in rows {
        println!("| {name} | {value} |");
    }
}

/// The size below which `percent` of the findings lie.
fn percentile(findings: &[Finding], percent: usize) -> usize {
    let mut sizes: Vec<usize> = findings.iter().map(|finding| finding.size).collect();
    sizes.sort_unstable();
    let last = sizes.len().saturating_sub(1);
    sizes.get(last * percent / 100).copied().unwrap_or(0)
}

/// The quotient of two counts, which are small enough to be exact.
fn ratio(part: usize, whole: usize) -> f64 {
    let of = |count: usize| f64::from(u32::try_from(count).expect("sources are small"));
    of(part) / of(whole)
}

fn list(measures: &Measures) {
    for (kind, findings, limit) in [
        ("tokens", &measures.functions, 400),
        ("closure", &measures.closures, 1),
        ("arguments", &measures.arguments, 6),
        ("tuple", &measures.tuples, 0),
        ("opening", &measures.docs, 0),
        ("file", &measures.sizes, 400),
    ] {
        for Finding {
            module,
            line,
            name,
            size,
        } in beyond(findings, limit)
        {
            println!("{kind}\t{size}\tsrc/{module}.rs:{line}\t{name}");
        }
    }
}
