//! The manifest's checksum of itself: its last key holds the BLAKE3 hash of all text above that line.
//!
//! So `head -n -2 thalweg.json | b3sum --no-names` prints what the line says, without any knowledge of the rest.

/// The last key of the file.
const KEY: &str = "blake3_of_all_above";

/// Adds the checksum to a pretty-printed JSON object that has at least one key.
pub(super) fn with_own_checksum(json: &str) -> Vec<u8> {
    let json = json.trim_end();
    let body = json.strip_suffix('}').unwrap_or(json).trim_end();
    let mut text = format!("{body},\n").into_bytes();
    let line = last_lines(&text);
    text.extend(line.into_bytes());
    text
}

/// What stands behind `body` when it is whole. Its length is always the same.
fn last_lines(body: &[u8]) -> String {
    format!("  \"{KEY}\": \"{}\"\n}}\n", blake3::hash(body).to_hex())
}

/// What is wrong with the checksum in `text`; none when it is there and right.
pub(super) fn wrong_own_checksum(text: &[u8]) -> Option<String> {
    let (body, found) = text.split_at(text.len().saturating_sub(last_lines(&[]).len()));
    let wanted = last_lines(body);
    if found == wanted.as_bytes() {
        return None;
    }
    let begins = |found: &[u8]| found.starts_with(format!("  \"{KEY}\": \"").as_bytes());
    Some(if begins(found) {
        format!("its text hashes to {}, which its last line does not say", blake3::hash(body).to_hex())
    } else {
        format!("it does not end with {KEY}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_right_and_the_json_still_json() {
        for json in ["{\n  \"a\": 1\n}", "{\n  \"a\": {}\n}", "{\n  \"a\": {\n    \"b\": []\n  }\n}\n"] {
            let text = with_own_checksum(json);
            assert_eq!(wrong_own_checksum(&text), None);
            let mut value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
            let hash = value.as_object_mut().expect("an object").remove(KEY).expect("it is there");
            assert_eq!(value, serde_json::from_str::<serde_json::Value>(json).expect("JSON"));
            // As the module's documentation says: all but the last two lines.
            let plain = String::from_utf8(text).expect("UTF-8");
            let above: String =
                plain.split_inclusive('\n').rev().skip(2).collect::<Vec<_>>().into_iter().rev().collect();
            assert_eq!(hash, blake3::hash(above.as_bytes()).to_hex().as_str());
        }
    }

    #[test]
    fn every_flipped_bit_every_cut_and_every_byte_more_is_wrong() {
        let text = with_own_checksum("{\n  \"note\": \"abc\"\n}");
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut changed = text.clone();
                changed[at] ^= 1 << bit;
                assert!(wrong_own_checksum(&changed).is_some(), "bit {bit} of byte {at}");
            }
            assert!(wrong_own_checksum(&text[..at]).is_some(), "cut at {at}");
        }
        assert!(wrong_own_checksum(&[&text[..], b"\n"].concat()).is_some());
        assert!(wrong_own_checksum(b"").is_some());
    }
}
