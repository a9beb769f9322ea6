//! Rust sources as tokens: names, literals and operators, each with its line; comments apart.

/// The operators of more than one character, longest first.
const OPERATORS: [&str; 24] = [
    "..=", "...", "<<=", ">>=", "::", "->", "=>", "==", "!=", "<=", ">=", "&&", "||", "+=", "-=",
    "*=", "/=", "%=", "^=", "&=", "|=", "<<", ">>", "..",
];

/// A name, a literal or an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    pub text: &'a str,
    /// The line where it begins, from 0.
    pub line: usize,
}

/// A source taken apart.
#[derive(Debug, Default)]
pub struct Source<'a> {
    pub tokens: Vec<Token<'a>>,
    /// Lines of doc comments without their mark, with their line number.
    pub docs: Vec<Token<'a>>,
    /// How many lines have a comment that is no doc.
    pub comments: usize,
}

impl<'a> Source<'a> {
    /// Takes `text` apart.
    pub fn of(text: &'a str) -> Self {
        let mut reader = Reader {
            text,
            at: 0,
            line: 0,
            source: Self::default(),
        };
        while reader.step() {}
        reader.source
    }

    /// Takes `text` apart, without the items that are for tests only.
    pub fn production(text: &'a str) -> Self {
        let mut source = Self::of(text);
        while let Some(from) = position(&source.tokens, &["#", "[", "cfg", "(", "test", ")", "]"]) {
            let end = end_of_item(&source.tokens, from);
            let lines = source.tokens[from].line..=source.tokens[end - 1].line;
            source.tokens.drain(from..end);
            source.docs.retain(|doc| !lines.contains(&doc.line));
        }
        source
    }
}

/// Where a run of tokens with these texts begins.
pub fn position(tokens: &[Token], texts: &[&str]) -> Option<usize> {
    tokens.windows(texts.len()).position(|window| {
        window
            .iter()
            .zip(texts)
            .all(|(token, text)| token.text == *text)
    })
}

/// The end of the item that begins, with its attributes, at `from`: behind a semicolon or a body.
fn end_of_item(tokens: &[Token], from: usize) -> usize {
    let mut depth = 0_i32;
    for (at, token) in tokens.iter().enumerate().skip(from) {
        depth += nesting(token.text);
        if depth == 0 && matches!(token.text, ";" | "}") {
            return at + 1;
        }
    }
    tokens.len()
}

/// 1 for an opening bracket, -1 for a closing one, else 0.
pub fn nesting(text: &str) -> i32 {
    match text {
        "(" | "[" | "{" => 1,
        ")" | "]" | "}" => -1,
        _ => 0,
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    source: Source<'a>,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Reads one token, comment or space; false at the end.
    fn step(&mut self) -> bool {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return false;
        };
        if first.is_whitespace() {
            self.pass(first.len_utf8());
        } else if rest.starts_with("//") {
            self.line_comment();
        } else if rest.starts_with("/*") {
            self.source.comments += 1;
            let end = rest.find("*/").map_or(rest.len(), |end| end + 2);
            self.pass(end);
        } else {
            let length = length_of_token(rest);
            let token = Token {
                text: &rest[..length],
                line: self.line,
            };
            self.source.tokens.push(token);
            self.pass(length);
        }
        true
    }

    fn line_comment(&mut self) {
        let rest = self.rest();
        let end = rest.find('\n').unwrap_or(rest.len());
        let comment = &rest[..end];
        let doc = comment
            .strip_prefix("///")
            .filter(|rest| !rest.starts_with('/'))
            .or_else(|| comment.strip_prefix("//!"));
        match doc {
            Some(text) => self.source.docs.push(Token {
                text: text.strip_prefix(' ').unwrap_or(text),
                line: self.line,
            }),
            None => self.source.comments += 1,
        }
        self.pass(end);
    }

    /// Goes on by `length` bytes.
    fn pass(&mut self, length: usize) {
        self.line += self.rest()[..length].matches('\n').count();
        self.at += length;
    }
}

/// The length of the token with which `text` begins.
fn length_of_token(text: &str) -> usize {
    if let Some(length) = length_of_string(text).or_else(|| length_of_quote(text)) {
        return length;
    }
    let name = text.find(|c: char| !is_of_name(c)).unwrap_or(text.len());
    if name > 0 {
        return length_of_number(text).unwrap_or(name);
    }
    let operator = OPERATORS
        .iter()
        .find(|operator| text.starts_with(**operator));
    let first = text.chars().next().map_or(0, char::len_utf8);
    operator.map_or(first, |operator| operator.len())
}

/// Whether a character may be part of a name or a number.
pub fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of a string with its prefix, raw or plain.
fn length_of_string(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r", "b", "c", ""].into_iter().find(|prefix| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| is_quoted(rest, prefix.ends_with('r')))
    })?;
    let rest = &text[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = rest.find('"')?;
        let close = format!("\"{}", &rest[..hashes]);
        let end = rest[hashes + 1..].find(&close)?;
        return Some(prefix.len() + hashes + 1 + end + close.len());
    }
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(prefix.len() + at + 1),
            _ => {}
        }
    }
    None
}

/// Whether a string begins here; a raw one may have number signs before the quote.
fn is_quoted(text: &str, is_raw: bool) -> bool {
    let text = if is_raw {
        text.trim_start_matches('#')
    } else {
        text
    };
    text.starts_with('"')
}

/// The length of a character in quotes, or of a lifetime.
fn length_of_quote(text: &str) -> Option<usize> {
    let prefix = usize::from(text.starts_with("b'"));
    let inner = text[prefix..].strip_prefix('\'')?;
    if let Some(escaped) = inner.strip_prefix('\\') {
        // The escaped character may be a quote itself.
        return Some(prefix + 3 + escaped[1..].find('\'')? + 1);
    }
    let first = inner.chars().next()?;
    if inner[first.len_utf8()..].starts_with('\'') {
        return Some(prefix + first.len_utf8() + 2);
    }
    let name = inner.find(|c: char| !is_of_name(c)).unwrap_or(inner.len());
    Some(1 + name)
}

/// The length of a number; a dot belongs to it where a digit follows.
fn length_of_number(text: &str) -> Option<usize> {
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut end = 0;
    let bytes = text.as_bytes();
    while end < bytes.len() {
        let is_dot = bytes[end] == b'.' && bytes.get(end + 1).is_some_and(u8::is_ascii_digit);
        let is_sign = matches!(bytes[end], b'-' | b'+')
            && matches!(bytes[end - 1], b'e' | b'E')
            && !text.starts_with("0x");
        if !(is_of_name(char::from(bytes[end])) || is_dot || is_sign) {
            break;
        }
        end += 1;
    }
    Some(end)
}
