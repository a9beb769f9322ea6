//! Sizes that tell how legible sources are: tokens of functions, closures with names, arguments,
//! the openings of docs.

use std::fs;
use std::ops::Range;
use std::path::Path;

use super::tokens::{Source, Token, nesting};

/// Words with which no doc begins: they open a clause where a verb or a noun says more.
pub const OPENINGS: [&str; 7] = ["What", "How", "Whether", "Who", "Whose", "Whom", "Which"];

/// A place in a source, and what was found there.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The path below `src/`, without the ending.
    pub module: String,
    /// The line, from 1.
    pub line: usize,
    pub name: String,
    /// Tokens, lines or arguments.
    pub size: usize,
}

/// The measures of one file or of all.
#[derive(Debug, Default)]
pub struct Measures {
    pub files: usize,
    pub code_lines: usize,
    pub tokens: usize,
    pub doc_lines: usize,
    pub comments: usize,
    pub examples: usize,
    /// Every function, with its tokens.
    pub functions: Vec<Finding>,
    /// Closures that are bound to a name, with their lines.
    pub closures: Vec<Finding>,
    /// Every function, with its arguments, the receiver among them.
    pub arguments: Vec<Finding>,
    /// Arguments that are taken apart in the signature.
    pub tuples: Vec<Finding>,
    /// Docs, those with one of [`OPENINGS`] with size 1.
    pub docs: Vec<Finding>,
    /// Files with their lines of code.
    pub sizes: Vec<Finding>,
}

impl Measures {
    /// Measures all sources below `root`, without tests.
    pub fn below(root: &Path) -> Self {
        let mut measures = Self::default();
        measures.collect(root, root);
        measures
    }

    fn collect(&mut self, root: &Path, folder: &Path) {
        let entries = fs::read_dir(folder).expect("a folder of sources");
        let mut paths: Vec<_> = entries
            .map(|entry| entry.expect("an entry").path())
            .collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                self.collect(root, &path);
                continue;
            }
            let below = path.strip_prefix(root).expect("it lies there");
            let module = below.with_extension("").to_string_lossy().into_owned();
            let is_test = module
                .split('/')
                .any(|part| matches!(part, "tests" | "testing"));
            if path.extension().is_some_and(|end| end == "rs") && !is_test {
                self.add(&module, &fs::read_to_string(&path).expect("a source"));
            }
        }
    }

    /// Adds the measures of one source.
    pub fn add(&mut self, module: &str, text: &str) {
        let source = Source::production(text);
        let tokens = &source.tokens;
        let mut lines: Vec<usize> = tokens.iter().map(|token| token.line).collect();
        lines.dedup();
        self.files += 1;
        self.code_lines += lines.len();
        self.tokens += tokens.len();
        self.doc_lines += source.docs.len();
        self.comments += source.comments;
        self.sizes.push(Finding {
            module: module.to_owned(),
            line: 1,
            name: module.to_owned(),
            size: lines.len(),
        });
        for at in 0..tokens.len() {
            self.function(module, tokens, at);
            self.closure(module, tokens, at);
        }
        self.docs(module, &source.docs);
    }

    /// Adds the function whose keyword stands at `at`, if one does.
    fn function(&mut self, module: &str, tokens: &[Token], at: usize) {
        let Some(name) = tokens.get(at + 1).filter(|name| {
            tokens[at].text == "fn"
                && name
                    .text
                    .starts_with(|c: char| c == '_' || c.is_alphabetic())
        }) else {
            return;
        };
        let end = end_of_function(tokens, at);
        let finding = |size| Finding {
            module: module.to_owned(),
            line: name.line + 1,
            name: name.text.to_owned(),
            size,
        };
        if tokens[end - 1].text == "}" {
            self.functions.push(finding(end - at));
        }
        let arguments = arguments(tokens, at);
        self.arguments.push(finding(arguments.len()));
        let is_tuple = |argument: &Range<usize>| tokens[argument.start].text == "(";
        let tuples = arguments.into_iter().filter(is_tuple).count();
        self.tuples.extend((tuples > 0).then(|| finding(tuples)));
    }

    /// Adds the closure of the binding that stands at `at`, if one does.
    fn closure(&mut self, module: &str, tokens: &[Token], at: usize) {
        if tokens[at].text != "let" {
            return;
        }
        let rest = &tokens[at..];
        let is_closure = rest
            .iter()
            .take_while(|token| !matches!(token.text, ";" | "{" | "("))
            .skip_while(|token| token.text != "=")
            .skip(1)
            .find(|token| token.text != "move")
            .is_some_and(|token| matches!(token.text, "|" | "||"));
        let mut depth = 0;
        let end = rest.iter().position(|token| {
            depth += nesting(token.text);
            depth == 0 && token.text == ";"
        });
        if let Some(end) = end.filter(|_| is_closure) {
            let name = rest[1..]
                .iter()
                .find(|token| token.text != "mut")
                .expect("a binding has a name");
            self.closures.push(Finding {
                module: module.to_owned(),
                line: rest[0].line + 1,
                name: name.text.to_owned(),
                size: rest[end].line - rest[0].line + 1,
            });
        }
    }

    fn docs(&mut self, module: &str, docs: &[Token]) {
        let mut previous = None;
        let mut fences = 0;
        for doc in docs {
            if previous.is_none_or(|line: usize| line + 1 != doc.line) {
                let word = doc.text.split(|c: char| !c.is_alphabetic()).next();
                let opens = word.is_some_and(|word| OPENINGS.contains(&word));
                self.docs.push(Finding {
                    module: module.to_owned(),
                    line: doc.line + 1,
                    name: doc.text.to_owned(),
                    size: usize::from(opens),
                });
            }
            previous = Some(doc.line);
            if let Some(language) = doc.text.strip_prefix("```") {
                fences += 1;
                // Every second fence closes.
                let runs = matches!(language, "" | "no_run") && fences % 2 == 1;
                self.examples += usize::from(runs);
            }
        }
    }
}

/// The end of the function whose keyword stands at `at`: behind its body, or the semicolon of one
/// without.
fn end_of_function(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        depth += nesting(token.text);
        if depth == 0 && matches!(token.text, "}" | ";") {
            return index + 1;
        }
    }
    tokens.len()
}

/// The tokens of each argument of the function whose keyword stands at `at`.
fn arguments(tokens: &[Token], at: usize) -> Vec<Range<usize>> {
    // Generic parameters may have parentheses too, those of `Fn`.
    let mut angles = 0;
    let open = (at + 2..tokens.len()).find(|index| {
        match tokens[*index].text {
            "<" => angles += 1,
            ">" => angles -= 1,
            ">>" => angles -= 2,
            _ => {}
        }
        angles == 0 && tokens[*index].text == "("
    });
    let Some(open) = open else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let (mut start, mut depth) = (open + 1, 0);
    for (index, token) in tokens.iter().enumerate().skip(open) {
        depth += match token.text {
            "<" => 1,
            ">" => -1,
            ">>" => -2,
            text => nesting(text),
        };
        let ends = depth == 0 || (depth == 1 && token.text == ",");
        if ends && index > start {
            found.push(start..index);
        }
        if ends {
            start = index + 1;
        }
        if depth == 0 {
            break;
        }
    }
    found
}
