//! Compares the token numbers of two models, because the rows of embeddings and heads belong to
//! tokens.
//!
//! Each token is compared by a 64-bit hash, so a million tokens take 8 MB; only the texts of the
//! first difference are read.

// The files are those of others.
#![deny(clippy::indexing_slicing, clippy::string_slice)]

use std::fmt;
use std::io::{BufReader, Read};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use xxhash_rust::xxh3::xxh3_64;

use crate::checkpoint::{Checkpoint, open_regular};
use crate::error::{Error, Kind, Result};

use super::pieces;

/// The largest tokenizer file that is read.
const MAX_BYTES: u64 = 256 << 20;
/// The most tokens in a vocabulary.
const MAX_TOKENS: usize = 1 << 22;
/// The file that holds a vocabulary and its added tokens.
const WHOLE: &str = "tokenizer.json";
/// Files that hold a vocabulary; the first that exists is used.
const FILES: [&str; 8] = [
    WHOLE,
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    SHIFTED,
    "tekken.json",
    "qwen.tiktoken",
];
/// A file of pieces whose numbers differ from those in the model.
const SHIFTED: &str = "sentencepiece.bpe.model";
/// The file of tokens that were added to a vocabulary, with their numbers.
const ADDED: &str = "added_tokens.json";
/// The file of settings, with the added tokens among them.
const SETTINGS: &str = "tokenizer_config.json";
/// The endings of names of tensors with a row for each token.
const BY_TOKEN: [&str; 15] = [
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "tokens_embed.weight",
    "token_embedding.weight",
    "embed_in.weight",
    "shared.weight",
    "word_embedding.weight",
    "lm_head.weight",
    "lm_head.bias",
    "embed_out.weight",
    "output_projection.weight",
    "cls.predictions.decoder.weight",
    "cls.predictions.bias",
];

/// True if a tensor of this name has a row for each token.
pub fn is_by_token(name: &str) -> bool {
    // Meta's name for the head is the ending of many other names, so it must match in full.
    BY_TOKEN.iter().any(|ending| name.ends_with(ending)) || name == "output.weight"
}

/// The result of comparing two tokenizers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Compared {
    /// All numbers in both tokenizers belong to the same tokens, or neither model has a tokenizer.
    Alike,
    /// A message with the first difference.
    Different(String),
    /// A message with the reason why they cannot be compared.
    Unknown(String),
}

/// Compares the tokenizers beside the weights of two models.
///
/// # Errors
///
/// When a tokenizer file cannot be read.
pub(super) fn compare(reference: &Checkpoint, model: &Checkpoint) -> Result<Compared> {
    let (ours, theirs) = (files_of(reference), files_of(model));
    let (one, other) = match (ours.first(), theirs.first()) {
        (None, None) => return Ok(Compared::Alike),
        (Some(one), Some(other)) => (one, other),
        (Some(_), None) => return Ok(Compared::Unknown(without(model, reference))),
        (None, Some(_)) => return Ok(Compared::Unknown(without(reference, model))),
    };
    if same_files(&ours, &theirs)? {
        return Ok(Compared::Alike);
    }
    let (one_name, other_name) = (one.file_name(), other.file_name());
    let shifted = [one_name, other_name]
        .iter()
        .any(|name| name.is_some_and(|name| name == SHIFTED));
    match (Tokens::<Mark>::read(&ours)?, Tokens::<Mark>::read(&theirs)?) {
        (Some(own), Some(others)) if one_name == other_name || !shifted => {
            let different = own.first_other(&others);
            different.map_or(Ok(Compared::Alike), |(number, more)| {
                named(number, more, &ours, &theirs)
            })
        }
        (None, None) if one_name == other_name => {
            let cause = format!("{} and {} are not the same", one.display(), other.display());
            Ok(if same_bytes(one, other)? {
                Compared::Alike
            } else {
                Compared::Different(cause)
            })
        }
        _ => Ok(Compared::Unknown(format!(
            "{} and {} cannot be compared: whether both number their tokens alike is not known",
            one.display(),
            other.display()
        ))),
    }
}

fn without(model: &Checkpoint, other: &Checkpoint) -> String {
    let (model, other) = (model.root().display(), other.root().display());
    format!(
        "{model} has no tokenizer files, so that it is taken to number its tokens as {other} does"
    )
}

/// Describes the first token that differs, and the number of further ones.
fn named(number: usize, more: usize, ours: &[PathBuf], theirs: &[PathBuf]) -> Result<Compared> {
    let (own, other) = (token(ours, number)?, token(theirs, number)?);
    let more = if more == 0 {
        String::new()
    } else {
        format!(", and {more} more differ")
    };
    let first = |files: &[PathBuf]| files.first().cloned().unwrap_or_default();
    let (one, two) = (first(ours), first(theirs));
    let (one, two) = (one.display(), two.display());
    Ok(Compared::Different(format!(
        "token {number} is {own:?} in {one}, {other:?} in {two}{more}"
    )))
}

/// Returns the text of token `number`; an empty one when there is no such token.
fn token(files: &[PathBuf], number: usize) -> Result<Box<str>> {
    let tokens = Tokens::<Box<str>>::read(files)?;
    let token = tokens.and_then(|tokens| tokens.0.into_iter().nth(number).flatten());
    Ok(token.unwrap_or_default())
}

/// Lists the files with a model's tokens, the vocabulary first.
fn files_of(model: &Checkpoint) -> Vec<PathBuf> {
    let folder = model
        .folder()
        .or_else(|| model.root().parent())
        .unwrap_or(Path::new("."));
    let there = |name: &str| folder.join(name).is_file();
    let Some(main) = FILES.into_iter().find(|name| there(name)) else {
        return vec![];
    };
    let added = [ADDED, SETTINGS]
        .into_iter()
        .filter(|name| there(name) && !(main == WHOLE && *name == ADDED));
    [main]
        .into_iter()
        .chain(added)
        .map(|name| folder.join(name))
        .collect()
}

fn same_files(ours: &[PathBuf], theirs: &[PathBuf]) -> Result<bool> {
    let pairs = || ours.iter().zip(theirs);
    if ours.len() != theirs.len()
        || pairs().any(|(one, other)| one.file_name() != other.file_name())
    {
        return Ok(false);
    }
    for (one, other) in pairs() {
        if !same_bytes(one, other)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A representation of a token: its text or its hash.
trait Token: From<Box<str>> + Clone + PartialEq {}

impl Token for Box<str> {}

/// A hash of a token; two tokens share one with a chance of 1 in 2^64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark(NonZeroU64);

impl From<Box<str>> for Mark {
    fn from(token: Box<str>) -> Self {
        Self(NonZeroU64::new(xxh3_64(token.as_bytes())).unwrap_or(NonZeroU64::MAX))
    }
}

impl Token for Mark {}

/// Tokens by number.
struct Tokens<T>(Vec<Option<T>>);

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// The parts of `tokenizer.json` that are read.
#[derive(serde::Deserialize)]
#[serde(bound = "T: Token")]
struct TokenizerFile<T> {
    #[serde(default = "Vec::new")]
    added_tokens: Vec<Added>,
    model: Option<Model<T>>,
}

#[derive(serde::Deserialize)]
struct Added {
    id: usize,
    content: Box<str>,
}

#[derive(serde::Deserialize)]
#[serde(bound = "T: Token")]
struct Model<T> {
    #[serde(default)]
    vocab: Tokens<T>,
}

/// The parts of `tokenizer_config.json` that are read.
#[derive(serde::Deserialize, Default)]
struct Settings {
    #[serde(default)]
    added_tokens_decoder: Option<indexmap::IndexMap<usize, Content>>,
}

#[derive(serde::Deserialize)]
struct Content {
    content: Box<str>,
}

impl<T: Token> Tokens<T> {
    /// Reads the tokens in `files`; `None` when their format is unknown.
    fn read(files: &[PathBuf]) -> Result<Option<Self>> {
        let Some((main, added)) = files.split_first() else {
            return Ok(None);
        };
        let Some(mut tokens) = Self::main(main)? else {
            return Ok(None);
        };
        for path in added {
            tokens.add(path)?;
        }
        Ok(Some(tokens))
    }

    fn main(path: &Path) -> Result<Option<Self>> {
        let refused = |cause: &dyn fmt::Display| refused(path, cause);
        let mut reader = BufReader::new(capped(path)?);
        let mut tokens = Self::default();
        match path.extension().and_then(|end| end.to_str()) {
            _ if path.ends_with("tekken.json") => return Ok(None),
            Some("txt") => {
                let mut text = String::new();
                reader
                    .read_to_string(&mut text)
                    .map_err(|error| refused(&error))?;
                for (number, line) in text.lines().enumerate() {
                    tokens
                        .put(number, line.into())
                        .map_err(|cause| refused(&cause))?;
                }
            }
            Some("model") => {
                // Other programs use this name for other files.
                let read = pieces::read(&mut reader, &mut |number, piece| {
                    tokens.put(number, piece.into())
                });
                return Ok(read
                    .ok()
                    .map(|()| tokens)
                    .filter(|tokens| !tokens.0.is_empty()));
            }
            Some("json") if !path.ends_with(WHOLE) => {
                tokens = serde_json::from_reader(reader).map_err(|error| refused(&error))?;
            }
            Some("json") => {
                let file: TokenizerFile<T> =
                    serde_json::from_reader(reader).map_err(|error| refused(&error))?;
                tokens = file.model.map(|model| model.vocab).unwrap_or_default();
                for Added { id, content } in file.added_tokens {
                    tokens.put(id, content).map_err(|cause| refused(&cause))?;
                }
            }
            _ => return Ok(None),
        }
        Ok(Some(tokens))
    }

    /// Puts the added tokens of another file into their places.
    fn add(&mut self, path: &Path) -> Result<()> {
        let refused = |cause: &dyn fmt::Display| refused(path, cause);
        let reader = BufReader::new(capped(path)?);
        if path.ends_with(ADDED) {
            let added: Self = serde_json::from_reader(reader).map_err(|error| refused(&error))?;
            let len = self.0.len().max(added.0.len());
            self.0.resize(len, None);
            self.0
                .iter_mut()
                .zip(added.0)
                .for_each(|(own, added)| *own = added.or(own.take()));
            return Ok(());
        }
        let mut text = String::new();
        BufReader::new(reader)
            .read_to_string(&mut text)
            .map_err(|error| refused(&error))?;
        // Python writes numbers there that JSON cannot hold.
        let settings = crate::json::parse(&text).map_err(|error| refused(&error))?;
        let settings: Settings =
            serde_json::from_value(settings).map_err(|error| refused(&error))?;
        for (number, Content { content }) in settings.added_tokens_decoder.unwrap_or_default() {
            self.put(number, content).map_err(|cause| refused(&cause))?;
        }
        Ok(())
    }

    fn put(&mut self, number: usize, token: Box<str>) -> Result<(), String> {
        if number >= MAX_TOKENS {
            return Err(format!(
                "token number {number}, at most {MAX_TOKENS} are read"
            ));
        }
        if self.0.len() <= number {
            self.0.resize(number + 1, None);
        }
        if let Some(place) = self.0.get_mut(number) {
            *place = Some(token.into());
        }
        Ok(())
    }

    /// Finds the first number with different tokens, and counts the further ones.
    fn first_other(&self, others: &Self) -> Option<(usize, usize)> {
        let pairs = self.0.iter().zip(&others.0).enumerate();
        let mut differing =
            pairs.filter(|(_, pair)| matches!(pair, (Some(own), Some(other)) if own != other));
        let (number, _) = differing.next()?;
        Some((number, differing.count()))
    }
}

impl<'de, T: Token> Deserialize<'de> for Tokens<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TokensVisitor(std::marker::PhantomData))
    }
}

/// Reads either a number for each token, or tokens with their scores in order.
struct TokensVisitor<T>(std::marker::PhantomData<T>);

impl<'de, T: Token> Visitor<'de> for TokensVisitor<T> {
    type Value = Tokens<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tokens<T>, A::Error> {
        let mut tokens = Tokens::default();
        while let Some((token, number)) = access.next_entry::<Box<str>, usize>()? {
            tokens.put(number, token).map_err(A::Error::custom)?;
        }
        Ok(tokens)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tokens<T>, A::Error> {
        let mut tokens = Tokens::default();
        while let Some((token, _)) = access.next_element::<(Box<str>, IgnoredAny)>()? {
            tokens
                .put(tokens.0.len(), token)
                .map_err(A::Error::custom)?;
        }
        Ok(tokens)
    }
}

fn refused(path: &Path, cause: &dyn fmt::Display) -> Error {
    Error::new(Kind::Input, "cannot read tokenizer", path.display(), cause)
        .with_hint("`any_vocabulary: true` leaves the tokenizers alone")
}

/// Opens a file and checks its size.
fn capped(path: &Path) -> Result<impl Read> {
    let failed = |error| Error::io("cannot read tokenizer", path, error);
    let file = open_regular(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    if len > MAX_BYTES {
        return Err(refused(
            path,
            &format!("{len} bytes, at most {MAX_BYTES} are read"),
        ));
    }
    Ok(file.take(MAX_BYTES))
}

fn same_bytes(one: &Path, other: &Path) -> Result<bool> {
    if len(one)? != len(other)? {
        return Ok(false);
    }
    Ok(hash(one)? == hash(other)?)
}

fn len(path: &Path) -> Result<u64> {
    let file = path.metadata().map_err(|error| unread(path, error))?;
    Ok(file.len())
}

fn hash(path: &Path) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let opened = open_regular(path).map_err(|error| unread(path, error))?;
    std::io::copy(&mut BufReader::new(opened), &mut hasher).map_err(|error| unread(path, error))?;
    Ok(hasher.finalize())
}

fn unread(path: &Path, error: std::io::Error) -> Error {
    Error::io("cannot read tokenizer", path, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Checkpoint) {
        let dir = tempfile::tempdir().expect("a folder");
        let weights = safetensors::serialize(
            Vec::<(String, safetensors::tensor::TensorView<'_>)>::new(),
            None,
        );
        std::fs::write(
            dir.path().join("model.safetensors"),
            weights.expect("no tensors"),
        )
        .expect("written");
        files
            .iter()
            .for_each(|(name, text)| std::fs::write(dir.path().join(name), text).expect("written"));
        let checkpoint = Checkpoint::open(dir.path()).expect("opens");
        (dir, checkpoint)
    }

    fn compared(one: &[(&str, &str)], other: &[(&str, &str)]) -> Result<Compared> {
        let ((_one, one), (_other, other)) = (folder(one), folder(other));
        compare(&one, &other)
    }

    fn different(compared: Result<Compared>) -> String {
        match compared.expect("both can be read") {
            Compared::Different(found) => found,
            other => panic!("{other:?}"),
        }
    }

    const PIECES: &str = r#"{"added_tokens": [{"id": 2, "content": "<s>", "special": true}],
        "model": {"type": "BPE", "vocab": {"b": 1, "a": 0}, "merges": ["a b"]}}"#;

    #[test]
    fn the_same_numbers_agree_whatever_the_file() {
        let same = [
            (PIECES, "tokenizer.json"),
            (r#"{"a": 0, "b": 1, "c": 7}"#, "vocab.json"),
            ("a\nb\n<s>\n", "vocab.txt"),
            (
                r#"{"model": {"vocab": [["a", -1.5], ["b", 0]]}}"#,
                "tokenizer.json",
            ),
        ];
        for (one, name) in same {
            for (other, other_name) in same {
                let found =
                    compared(&[(name, one)], &[(other_name, other)]).expect("both can be read");
                assert_eq!(found, Compared::Alike, "{one} {other}");
            }
        }
        assert_eq!(
            compared(&[], &[]).expect("none to compare with"),
            Compared::Alike
        );
        for other in [("tokenizer.json", PIECES), ("tekken.json", "{}")] {
            let found = compared(
                &[("vocab.json", "{}")][usize::from(other.1 == PIECES)..],
                &[other],
            );
            assert!(matches!(
                found.expect("both can be read"),
                Compared::Unknown(_)
            ));
        }
    }

    #[test]
    fn added_tokens_count_wherever_they_are_written() {
        let vocab = ("vocab.json", r#"{"a": 0, "b": 1}"#);
        let settings = |token: &str| {
            format!(
                r#"{{"model_max_length": 1e400, "added_tokens_decoder": {{"2": {{"content": "{token}"}}}}}}"#
            )
        };
        let added = ("added_tokens.json", r#"{"<s>": 2}"#);
        let (same, other) = (settings("<s>"), settings("<t>"));
        let whole = ("tokenizer.json", PIECES);
        for one in [
            &[vocab, added][..],
            &[vocab, (SETTINGS, &same)],
            &[whole],
            &[whole, (SETTINGS, &same)],
        ] {
            for another in [&[vocab, added][..], &[vocab, (SETTINGS, &same)], &[whole]] {
                assert_eq!(
                    compared(one, another).expect("read"),
                    Compared::Alike,
                    "{one:?} {another:?}"
                );
            }
            for another in [
                &[vocab, (SETTINGS, &*other)][..],
                &[whole, (SETTINGS, &other)],
            ] {
                assert!(
                    different(compared(one, another)).contains("token 2 is \"<s>\""),
                    "{one:?} {another:?}"
                );
            }
        }
    }

    #[test]
    fn pieces_of_sentencepiece_are_read_as_they_are_numbered() {
        // A piece: its text, its score, its kind; then another field of a model.
        let model = |pieces: &[&str]| {
            let mut bytes = Vec::new();
            for piece in pieces {
                let len = u8::try_from(piece.len()).expect("short");
                bytes.extend([0x0a, len + 9, 0x0a, len]);
                bytes.extend(piece.as_bytes());
                bytes.extend([0x15, 0, 0, 0x80, 0x3f, 0x18, 0x01]);
            }
            bytes.extend([0x12, 0x02, 0x08, 0x01]);
            String::from_utf8(bytes.iter().map(|byte| byte & 0x7f).collect()).expect("ASCII")
        };
        let name = "tokenizer.model";
        let (same, other) = (model(&["a", "b", "<s>"]), model(&["a", "c", "<s>"]));
        let whole = ("tokenizer.json", PIECES);
        assert_eq!(
            compared(&[(name, &same)], &[whole]).expect("read"),
            Compared::Alike
        );
        for one in [&[(name, &*same)][..], &[whole]] {
            assert!(different(compared(one, &[(name, &other)])).contains("token 1 is \"b\" in "));
        }
        let shifted = compared(&[(SHIFTED, &same)], &[whole]).expect("read");
        assert!(matches!(shifted, Compared::Unknown(_)), "{shifted:?}");
        assert!(
            different(compared(&[(SHIFTED, &same)], &[(SHIFTED, &other)])).contains("token 1 ")
        );
    }

    #[test]
    fn names_of_tensors_tell_which_have_a_row_for_each_token() {
        for name in [
            "model.embed_tokens.weight",
            "transformer.wte.weight",
            "lm_head.weight",
            "output.weight",
        ] {
            assert!(is_by_token(name), "{name}");
        }
        for name in [
            "bert.embeddings.position_embeddings.weight",
            "layers.0.output.weight",
            "model.norm.weight",
        ] {
            assert!(!is_by_token(name), "{name}");
        }
    }

    #[test]
    fn the_first_other_number_is_named() {
        for other in [r#"{"a": 0, "c": 1, "</s>": 2}"#, r#"{"c": 1, "x": 2}"#] {
            let found = different(compared(
                &[("tokenizer.json", PIECES)],
                &[("vocab.json", other)],
            ));
            assert!(
                found.contains("token 1 is \"b\" in ") && found.contains("\"c\" in "),
                "{found}"
            );
            assert!(found.ends_with("and 1 more differ"), "{found}");
        }
        let found = different(compared(
            &[("tokenizer.model", "x")],
            &[("tokenizer.model", "y")],
        ));
        assert!(found.ends_with("are not the same"));
    }

    #[test]
    fn damaged_tokenizers_are_refused_by_name() {
        for text in [
            "",
            "{",
            "[]",
            r#"{"model": {"vocab": {"a": -1}}}"#,
            r#"{"model": {"vocab": {"a": 99999999}}}"#,
        ] {
            let error = compared(&[("tokenizer.json", text)], &[("tokenizer.json", PIECES)])
                .expect_err("damaged");
            assert!(
                error.to_string().contains("cannot read tokenizer")
                    && error.subject().ends_with("tokenizer.json")
            );
        }
    }
}
