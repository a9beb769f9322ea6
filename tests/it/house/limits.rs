//! Sizes up to which sources are legible: lines of files, tokens of functions, lines of closures with names,
//! arguments, openings of docs. `cargo run -p thalweg-tools --bin house` prints them as a table.

use super::measure::{Finding, Measures};
use super::root;
use super::tokens::{Source, Token};

/// A limit, and the modules that are not within it yet. The lists only shrink.
struct Limit {
    /// The quantity, with its unit, as a failure names it.
    name: &'static str,
    most: usize,
    exempt: &'static [&'static str],
}

const FUNCTIONS: Limit = Limit {
    name: "tokens in a function",
    most: 400,
    exempt: &[
        "checkpoint",
        "engine",
        "journal",
        "kernel",
        "method",
        "output",
    ],
};

const CLOSURES: Limit = Limit {
    name: "lines of a closure with a name",
    most: 1,
    exempt: &[
        "budget",
        "checkpoint",
        "engine",
        "journal",
        "kernel",
        "method",
        "output",
        "pass",
        "plan/choice",
        "plan/memory",
    ],
};

const ARGUMENTS: Limit = Limit {
    name: "arguments",
    most: 6,
    exempt: &[],
};

const TUPLES: Limit = Limit {
    name: "arguments that are taken apart in the signature",
    most: 0,
    exempt: &["checkpoint"],
};

const OPENINGS: Limit = Limit {
    name: "docs that begin with What, How, Whether, Who or Which",
    most: 0,
    exempt: &[],
};

const FILES: Limit = Limit {
    name: "lines of code in a file",
    most: 400,
    exempt: &["output", "recipe/keys", "recipe/methods"],
};

impl Limit {
    /// Fails when one of `findings` lies beyond the limit.
    fn hold(&self, findings: &[Finding]) {
        assert!(findings.len() > 10, "{}: nothing was measured", self.name);
        let beyond: Vec<String> = findings
            .iter()
            .filter(|finding| finding.size > self.most && !self.exempts(&finding.module))
            .map(|finding| {
                let Finding {
                    module,
                    line,
                    name,
                    size,
                } = finding;
                format!("src/{module}.rs:{line} {name}: {size}")
            })
            .collect();
        assert!(
            beyond.is_empty(),
            "more than {} {}:\n{}",
            self.most,
            self.name,
            beyond.join("\n")
        );
    }

    fn exempts(&self, module: &str) -> bool {
        self.exempt.iter().any(|room| {
            module
                .strip_prefix(room)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

#[test]
fn files_functions_closures_arguments_and_docs_are_within_the_limits() {
    let measures = Measures::below(&root());
    FUNCTIONS.hold(&measures.functions);
    CLOSURES.hold(&measures.closures);
    ARGUMENTS.hold(&measures.arguments);
    OPENINGS.hold(&measures.docs);
    FILES.hold(&measures.sizes);
    let beyond = measures
        .tuples
        .iter()
        .find(|finding| !TUPLES.exempts(&finding.module));
    assert!(beyond.is_none(), "{}: {beyond:?}", TUPLES.name);
}

/// A source with one of each that is measured.
const SAMPLE: &str = r##"
//! Whose docs these are.

/// Whether it is so.
fn first<F: Fn(u8) -> u8>((a, b): (u8, u8), c: Vec<(u8, u8)>) -> u8 {
    // Why this is here.
    let short = |x| x + a;
    let long = move |x: u8| {
        let text = r#"fn none() { "|" }"#; // no token
        x + b
    };
    short(1) + long(2) + '"' as u8
}

/// Adds.
///
/// ```
/// assert!(true);
/// ```
trait Adds {
    fn add(&self, other: &'static str) -> Self;
}

#[cfg(test)]
mod tests {
    /// What is not counted.
    fn helper((a, b): (u8, u8)) -> u8 {
        a + b
    }
}
"##;

#[test]
fn a_sample_is_measured_as_a_reader_would_count() {
    let mut measures = Measures::default();
    measures.add("sample", SAMPLE);
    let sizes = |findings: &[Finding]| -> Vec<(String, usize)> {
        findings
            .iter()
            .map(|finding| (finding.name.clone(), finding.size))
            .collect()
    };
    let of = |name: &str, size| (name.to_owned(), size);
    assert_eq!(sizes(&measures.functions), [of("first", 83)]);
    assert_eq!(sizes(&measures.closures), [of("short", 1), of("long", 4)]);
    assert_eq!(sizes(&measures.arguments), [of("first", 2), of("add", 2)]);
    assert_eq!(sizes(&measures.tuples), [of("first", 1)]);
    let docs: Vec<usize> = measures.docs.iter().map(|doc| doc.size).collect();
    assert_eq!(docs, [1, 1, 0]);
    assert_eq!(
        (measures.examples, measures.comments, measures.code_lines),
        (1, 2, 11)
    );
}

#[test]
fn literals_and_lifetimes_are_one_token_each() {
    let text = r##"b"\"" r#"a"b"# 'x' '\'' b'\\' 'static 1.5e-3 0x1F 1..=2 a>>=b "a\\" c"##;
    let source = Source::of(text);
    let texts: Vec<&str> = source
        .tokens
        .iter()
        .map(|token: &Token| token.text)
        .collect();
    assert_eq!(
        texts,
        [
            r#"b"\"""#,
            r##"r#"a"b"#"##,
            "'x'",
            r"'\''",
            r"b'\\'",
            "'static",
            "1.5e-3",
            "0x1F",
            "1",
            "..=",
            "2",
            "a",
            ">>=",
            "b",
            r#""a\\""#,
            "c",
        ]
    );
}
