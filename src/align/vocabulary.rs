//! Whether two models number their tokens alike: vocabulary axes are never reordered, so they must.

use std::fmt;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::checkpoint::{Checkpoint, open_regular};
use crate::error::{Error, Kind, Result};

/// The largest tokenizer file that is read.
const MAX_BYTES: u64 = 256 << 20;
/// The most tokens that a vocabulary may have.
const MAX_TOKENS: usize = 1 << 22;
/// Files that hold a vocabulary, the first that is there counts.
const FILES: [&str; 3] = ["tokenizer.json", "vocab.json", "vocab.txt"];
/// Files that hold one in a form that is compared as a whole.
const MODELS: [&str; 3] = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"];

/// The first token whose number is another in the two models, in words; none when all numbers that both have agree, or
/// when one of the models has no tokenizer beside it.
///
/// # Errors
///
/// When a tokenizer file cannot be read.
pub fn difference(reference: &Checkpoint, model: &Checkpoint) -> Result<Option<String>> {
    let (Some(one), Some(other)) = (reference.folder(), model.folder()) else { return Ok(None) };
    if let (Some(one), Some(other)) = (first_of(one, &FILES), first_of(other, &FILES)) {
        let (ours, theirs) = (Tokens::read(&one)?, Tokens::read(&other)?);
        let pairs = ours.0.iter().zip(&theirs.0).enumerate();
        let mut differing = pairs.filter_map(|(number, pair)| match pair {
            (Some(ours), Some(theirs)) if ours != theirs => Some((number, ours, theirs)),
            _ => None,
        });
        return Ok(differing.next().map(|(number, ours, theirs)| {
            let more = differing.count();
            let more = if more == 0 { String::new() } else { format!(", and {more} more differ") };
            format!("token {number} is {ours:?} in {}, {theirs:?} in {}{more}", one.display(), other.display())
        }));
    }
    for name in MODELS {
        let (one, other) = (one.join(name), other.join(name));
        if one.is_file() && other.is_file() && !same_bytes(&one, &other)? {
            return Ok(Some(format!("{} and {} are not the same", one.display(), other.display())));
        }
    }
    Ok(None)
}

fn first_of(folder: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

/// Tokens by number.
#[derive(Default)]
struct Tokens(Vec<Option<Box<str>>>);

/// What is read of `tokenizer.json`.
#[derive(serde::Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Model,
}

#[derive(serde::Deserialize)]
struct Added {
    id: usize,
    content: Box<str>,
}

#[derive(serde::Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Tokens,
}

impl Tokens {
    fn read(path: &Path) -> Result<Self> {
        let refused =
            |cause: &dyn fmt::Display| Error::new(Kind::Input, "cannot read tokenizer", path.display(), cause);
        let file = capped(path)?;
        if path.extension().is_some_and(|end| end == "txt") {
            let mut text = String::new();
            BufReader::new(file).read_to_string(&mut text).map_err(|error| refused(&error))?;
            return Ok(Self(text.lines().map(|line| Some(line.into())).collect()));
        }
        if path.ends_with("vocab.json") {
            return serde_json::from_reader(BufReader::new(file)).map_err(|error| refused(&error));
        }
        let file: TokenizerFile = serde_json::from_reader(BufReader::new(file)).map_err(|error| refused(&error))?;
        let mut tokens = file.model.vocab;
        for Added { id, content } in file.added_tokens {
            tokens.put(id, content).map_err(|cause| refused(&cause))?;
        }
        Ok(tokens)
    }

    fn put(&mut self, number: usize, token: Box<str>) -> Result<(), String> {
        if number >= MAX_TOKENS {
            return Err(format!("token number {number}, at most {MAX_TOKENS} are read"));
        }
        if self.0.len() <= number {
            self.0.resize(number + 1, None);
        }
        self.0[number] = Some(token);
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TokensVisitor)
    }
}

/// Either a number for each token, or tokens with their scores in order.
struct TokensVisitor;

impl<'de> Visitor<'de> for TokensVisitor {
    type Value = Tokens;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tokens, A::Error> {
        let mut tokens = Tokens::default();
        while let Some((token, number)) = access.next_entry::<Box<str>, usize>()? {
            tokens.put(number, token).map_err(A::Error::custom)?;
        }
        Ok(tokens)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tokens, A::Error> {
        let mut tokens = Tokens::default();
        while let Some((token, _)) = access.next_element::<(Box<str>, f64)>()? {
            tokens.put(tokens.0.len(), token).map_err(A::Error::custom)?;
        }
        Ok(tokens)
    }
}

/// An opened file that is not too long.
fn capped(path: &Path) -> Result<impl Read> {
    let failed = |error| Error::io("cannot read tokenizer", path, error);
    let file = open_regular(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    if len > MAX_BYTES {
        let cause = format!("{len} bytes, at most {MAX_BYTES} are read");
        return Err(Error::new(Kind::Input, "cannot read tokenizer", path.display(), cause)
            .with_hint("`any_vocabulary: true` leaves the tokenizers alone"));
    }
    Ok(file.take(MAX_BYTES))
}

fn same_bytes(one: &Path, other: &Path) -> Result<bool> {
    let hash = |path: &Path| {
        let mut hasher = blake3::Hasher::new();
        let read = std::io::copy(&mut capped(path)?, &mut hasher);
        read.map(|_| hasher.finalize()).map_err(|error| Error::io("cannot read tokenizer", path, error))
    };
    Ok(hash(one)? == hash(other)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Checkpoint) {
        let dir = tempfile::tempdir().expect("a folder");
        let weights = safetensors::serialize(Vec::<(String, safetensors::tensor::TensorView<'_>)>::new(), None);
        std::fs::write(dir.path().join("model.safetensors"), weights.expect("no tensors")).expect("written");
        files.iter().for_each(|(name, text)| std::fs::write(dir.path().join(name), text).expect("written"));
        let checkpoint = Checkpoint::open(dir.path()).expect("opens");
        (dir, checkpoint)
    }

    fn compared(one: &[(&str, &str)], other: &[(&str, &str)]) -> Result<Option<String>> {
        let ((_one, one), (_other, other)) = (folder(one), folder(other));
        difference(&one, &other)
    }

    const PIECES: &str = r#"{"added_tokens": [{"id": 2, "content": "<s>", "special": true}],
        "model": {"type": "BPE", "vocab": {"b": 1, "a": 0}, "merges": ["a b"]}}"#;

    #[test]
    fn the_same_numbers_agree_whatever_the_file() {
        let same = [
            (PIECES, "tokenizer.json"),
            (r#"{"a": 0, "b": 1, "c": 7}"#, "vocab.json"),
            ("a\nb\n<s>\n", "vocab.txt"),
            (r#"{"model": {"vocab": [["a", -1.5], ["b", 0]]}}"#, "tokenizer.json"),
        ];
        for (one, name) in same {
            for (other, other_name) in same {
                let found = compared(&[(name, one)], &[(other_name, other)]).expect("both can be read");
                assert_eq!(found, None, "{one} {other}");
            }
        }
        assert_eq!(compared(&[], &[("tokenizer.json", PIECES)]).expect("none to compare with"), None);
    }

    #[test]
    fn the_first_other_number_is_named() {
        for other in [r#"{"a": 0, "c": 1, "</s>": 2}"#, r#"{"c": 1, "x": 2}"#] {
            let found = compared(&[("tokenizer.json", PIECES)], &[("vocab.json", other)]).expect("both can be read");
            let found = found.expect("they differ");
            assert!(found.contains("token 1 is \"b\" in ") && found.contains("\"c\" in "), "{found}");
            assert!(found.ends_with("and 1 more differ"), "{found}");
        }
        let found = compared(&[("tokenizer.model", "x")], &[("tokenizer.model", "y")]).expect("both can be read");
        assert!(found.expect("they differ").ends_with("are not the same"));
    }

    #[test]
    fn damaged_tokenizers_are_refused_by_name() {
        for text in ["", "{", "[]", r#"{"model": {"vocab": {"a": -1}}}"#, r#"{"model": {"vocab": {"a": 99999999}}}"#] {
            let error = compared(&[("tokenizer.json", text)], &[("tokenizer.json", PIECES)]).expect_err("damaged");
            assert!(error.to_string().contains("cannot read tokenizer") && error.subject().ends_with("tokenizer.json"));
        }
    }
}
