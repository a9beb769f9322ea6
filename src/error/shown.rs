//! Text for people: names of files, tensors and keys come from inputs and may hold any characters,
//! in any number, so they are escaped and cut.

use std::borrow::Cow;

/// The most characters of one word that are shown.
const WORD: usize = 512;

/// The most characters of one message that are shown.
const MESSAGE: usize = 6000;

/// The most characters of a name in a table or a list.
const NAME: usize = 160;

/// The most characters of the note about the part left out, with the ellipses around it.
const NOTE: usize = 40;

/// Makes `text` safe for a terminal: escapes characters that control it or turn the direction of
/// text; line breaks and tabs stay. Words of more than 512 characters, and messages of more than
/// 6000, lose their middle.
pub fn shown(text: &str) -> Cow<'_, str> {
    let escaped = escaped(text, &|c| c == '\n' || c == '\t', &|c| {
        c.escape_unicode().to_string()
    });
    if escaped.len() <= WORD {
        return escaped;
    }
    let words: String = escaped
        .split_inclusive(char::is_whitespace)
        .map(|word| cut(word, WORD))
        .collect();
    cut(&words, MESSAGE).into_owned().into()
}

/// Makes a name one word of a table, a list or a progress line: escapes all control characters and
/// cuts the middle out of a long name.
pub fn name(text: &str) -> String {
    let escaped = escaped(text, &|_| false, &|c| c.escape_unicode().to_string());
    cut(&escaped, NAME).into_owned()
}

/// Escapes the same characters in JSON, in JSON's own way; cuts nothing.
pub fn json(text: &str) -> Cow<'_, str> {
    escaped(text, &|c| c == '\n' || c == '\t', &|c| {
        format!("\\u{:04x}", u32::from(c))
    })
}

/// Tells if a character moves the cursor, changes the terminal, or turns the direction of text.
fn steers(c: char) -> bool {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
}

fn escaped<'a>(
    text: &'a str,
    stays: &dyn Fn(char) -> bool,
    escape: &dyn Fn(char) -> String,
) -> Cow<'a, str> {
    if !text.chars().any(|c| steers(c) && !stays(c)) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) && !stays(c) {
            safe.push_str(&escape(c))
        } else {
            safe.push(c)
        }
    }
    safe.into()
}

/// Cuts the middle out of a text of more than `most` characters; the result is never longer.
fn cut(text: &str, most: usize) -> Cow<'_, str> {
    // There are at least as many bytes as characters, and they are cheaper to count.
    let count = if text.len() <= most {
        0
    } else {
        text.chars().count()
    };
    if count <= most {
        return text.into();
    }
    let side = (most - NOTE) / 2;
    let (head, tail) = (
        &text[..place_of(text, side)],
        &text[place_of(text, count - side)..],
    );
    format!("{head}…[{} more]…{tail}", count - 2 * side).into()
}

/// Returns the place of character `number` in bytes.
fn place_of(text: &str, number: usize) -> usize {
    let mut places = text.char_indices().map(|(at, _)| at);
    places.nth(number).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped_and_ordinary_text_is_not() {
        assert_eq!(
            shown("a\u{1b}[31mb\u{9b}2J\r\u{202e}c"),
            "a\\u{1b}[31mb\\u{9b}2J\\u{d}\\u{202e}c"
        );
        assert_eq!(name("two\nlines"), "two\\u{a}lines");
        for plain in ["", "layers.0.weight", "Größe 重み …", "a: b\n  c\td"] {
            assert!(
                matches!(shown(plain), Cow::Borrowed(same) if same == plain),
                "{plain}"
            );
        }
        let value = serde_json::json!({ "name": "\u{1b}\u{9b}\u{7f}\u{2066}" });
        let text = json(&format!("{value:#}")).into_owned();
        assert!(text.chars().all(|c| c == '\n' || !steers(c)), "{text:?}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).expect("still JSON"),
            value
        );
    }

    #[test]
    fn long_words_and_long_messages_lose_their_middle_and_are_not_cut_again() {
        let long = format!("field `{}` is not known, wanted dtype", "ü".repeat(350_000));
        let once = shown(&long).into_owned();
        assert!(
            once.starts_with("field `ü") && once.ends_with("is not known, wanted dtype"),
            "{once}"
        );
        assert!(
            once.contains("more]") && once.chars().count() < 700,
            "{once}"
        );
        assert_eq!(shown(&once), once);
        let many = "word ".repeat(100_000);
        assert!(shown(&many).chars().count() <= MESSAGE);
        assert!(name(&"x".repeat(5000)).chars().count() <= NAME);
        assert_eq!(name(&"x".repeat(NAME)), "x".repeat(NAME));
    }
}
