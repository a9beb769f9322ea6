//! Text for people: names of files, tensors and keys come from inputs, may hold anything and be as
//! long as they like.

use std::borrow::Cow;

/// The most characters of one word that are shown.
const WORD: usize = 512;

/// The most characters of one message that are shown.
const MESSAGE: usize = 6000;

/// The most characters of a name in a table or a list.
const NAME: usize = 160;

/// How many characters the note about what was left out takes at most, with the ellipses around it.
const NOTE: usize = 40;

/// `text` as it may go to a terminal: what would steer one, or turn the direction of text, is
/// escaped; line breaks and tabs stay. Words that are longer than 512 characters, and messages that
/// are longer than 6000, lose their middle.
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

/// A name as one word of a table, a list or a progress line: all control characters are escaped,
/// and a long one loses its middle.
pub fn name(text: &str) -> String {
    let escaped = escaped(text, &|_| false, &|c| c.escape_unicode().to_string());
    cut(&escaped, NAME).into_owned()
}

/// JSON with the same characters escaped as JSON has it; nothing is cut.
pub fn json(text: &str) -> Cow<'_, str> {
    escaped(text, &|c| c == '\n' || c == '\t', &|c| {
        format!("\\u{:04x}", u32::from(c))
    })
}

/// Whether a character moves the cursor, changes the terminal, or turns what follows around.
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

/// `text` without its middle where it has more than `most` characters; never longer than that.
fn cut(text: &str, most: usize) -> Cow<'_, str> {
    // Bytes are at least as many as characters, and cheaper to count.
    let count = if text.len() <= most {
        0
    } else {
        text.chars().count()
    };
    if count <= most {
        return text.into();
    }
    let side = (most - NOTE) / 2;
    let at = |number: usize| {
        text.char_indices()
            .nth(number)
            .map_or(text.len(), |(at, _)| at)
    };
    let (head, tail) = (&text[..at(side)], &text[at(count - side)..]);
    format!("{head}…[{} more]…{tail}", count - 2 * side).into()
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
