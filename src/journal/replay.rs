//! Decoding: from untrusted bytes to the durable state of an earlier run.

use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::record::{
    BLOCKS, CHECKSUM_BYTES, CLAIMS, HEAD_BYTES, IDENTITY, MAGIC, NOTE, NotePlace, PREFIX_BYTES,
    RUN_NOTE, SHARD, STEP, VERSION, Value,
};
use crate::error::{Error, Kind, Result};

/// The limit on hashing in the search for records behind an unreadable one, as a multiple of the
/// journal's size. A torn record needs far less; a file that needs more is damaged.
const SEARCH_EFFORT: usize = 16;

/// A journal whose records are whole; [`Journal::replay`] decodes their claims.
#[derive(Debug)]
pub struct Journal<'a> {
    path: PathBuf,
    identity: &'a str,
    /// The offset of each commit, with its encoded claims.
    commits: Vec<(usize, &'a [u8])>,
    valid_len: usize,
}

/// The claims of a journal, by tensor and by shard.
#[derive(Debug, PartialEq, Eq)]
pub struct State {
    /// The values of each tensor's durable check blocks, from its first block on.
    pub values: Vec<Vec<Value>>,
    /// The place of the note about each tensor, JSON text.
    pub notes: Vec<Option<NotePlace>>,
    /// The note about all tensors together, as JSON text.
    pub run_note: Option<String>,
    /// For each shard: true if it is durable under its final name.
    pub shards: Vec<bool>,
    /// The steps that are done, in order, each as JSON text.
    pub steps: Vec<String>,
}

impl State {
    /// Creates a state without claims, for an output of `tensors` tensors and `shards` shards.
    pub fn empty(tensors: usize, shards: usize) -> Self {
        Self {
            values: vec![vec![]; tensors],
            notes: vec![None; tensors],
            run_note: None,
            shards: vec![false; shards],
            steps: vec![],
        }
    }
}

impl<'a> Journal<'a> {
    /// Reads the records of a journal's `bytes`; `path` is for messages only.
    ///
    /// An unreadable last record is left out: appending goes on at [`Journal::valid_len`]. Takes no
    /// more memory than the bytes do.
    ///
    /// # Errors
    ///
    /// [`Kind::Resume`] when the bytes are not a journal, or one of another version or with damage
    /// before its end.
    pub fn parse(bytes: &'a [u8], path: &Path) -> Result<Self> {
        let refuse =
            |cause: String| Error::new(Kind::Resume, "cannot read journal", path.display(), cause);
        let head = bytes
            .get(..HEAD_BYTES)
            .filter(|head| head.starts_with(&MAGIC));
        let head = head.ok_or_else(|| refuse("it does not begin as a journal does".into()))?;
        let version = read_u32(head, MAGIC.len()).expect("the head holds twelve bytes");
        if version != VERSION {
            return Err(refuse(format!(
                "format version {version}, this program knows {VERSION}"
            )));
        }
        let first = Record::at(bytes, HEAD_BYTES).filter(|first| first.kind == IDENTITY);
        let first = first.ok_or_else(|| refuse("its first record is damaged".into()))?;
        let identity =
            std::str::from_utf8(first.payload).map_err(|error| refuse(error.to_string()))?;
        let mut journal = Self {
            path: path.to_owned(),
            identity,
            commits: vec![],
            valid_len: first.end,
        };
        while let Some(record) = Record::at(bytes, journal.valid_len) {
            if record.kind != CLAIMS {
                return Err(refuse(format!(
                    "a second identity at byte {}",
                    journal.valid_len
                )));
            }
            // An empty commit would let a small file ask for a large list.
            if record.payload.is_empty() {
                return Err(refuse(format!(
                    "an empty record at byte {}",
                    journal.valid_len
                )));
            }
            journal
                .commits
                .push((journal.valid_len + PREFIX_BYTES, record.payload));
            journal.valid_len = record.end;
        }
        match find_record_after(bytes, journal.valid_len) {
            None => Ok(journal),
            Some(later) => {
                let at = journal.valid_len;
                Err(refuse(format!(
                    "the record at byte {at} is damaged, yet more follows at byte {later}"
                )))
            }
        }
    }

    /// Returns the run's identity, JSON text.
    pub fn identity(&self) -> &'a str {
        self.identity
    }

    /// Returns the length up to the end of the last whole record, in bytes.
    pub fn valid_len(&self) -> usize {
        self.valid_len
    }

    /// Decodes the claims, for an output with `blocks[tensor]` check blocks per tensor and `shards`
    /// shards.
    ///
    /// # Errors
    ///
    /// [`Kind::Resume`] when a record does not fit such an output.
    pub fn replay(&self, blocks: &[u64], shards: usize) -> Result<State> {
        let mut state = State::empty(blocks.len(), shards);
        for (number, (start, commit)) in self.commits.iter().enumerate() {
            let mut rest = Fields {
                bytes: commit,
                end: start + commit.len(),
            };
            while !rest.bytes.is_empty() {
                let claim = state.apply(&mut rest, blocks);
                claim.ok_or_else(|| {
                    let cause = format!("record {} claims what cannot be", number + 1);
                    Error::new(
                        Kind::Resume,
                        "cannot replay journal",
                        self.path.display(),
                        cause,
                    )
                })?;
            }
        }
        Ok(state)
    }
}

impl State {
    /// Applies the next claim; `None` when it is invalid.
    fn apply(&mut self, rest: &mut Fields<'_>, blocks: &[u64]) -> Option<()> {
        match rest.byte()? {
            BLOCKS => {
                let (tensor, first, count) = (rest.index()?, rest.index()?, rest.index()?);
                let values = self.values.get_mut(tensor)?;
                let end = u64::try_from(first.checked_add(count)?).ok()?;
                if first != values.len() || end > *blocks.get(tensor)? {
                    return None;
                }
                let (taken, odd) = rest
                    .take(count.checked_mul(size_of::<Value>())?)?
                    .as_chunks();
                debug_assert!(odd.is_empty());
                values.extend_from_slice(taken);
            }
            NOTE => {
                let (tensor, len) = (rest.index()?, rest.index()?);
                let at = u64::try_from(rest.position()).ok()?;
                std::str::from_utf8(rest.take(len)?).ok()?;
                *self.notes.get_mut(tensor)? = Some(NotePlace {
                    at,
                    len: u32::try_from(len).ok()?,
                });
            }
            RUN_NOTE => {
                let len = rest.index()?;
                self.run_note = Some(std::str::from_utf8(rest.take(len)?).ok()?.to_owned());
            }
            STEP => {
                let len = rest.index()?;
                self.steps
                    .push(std::str::from_utf8(rest.take(len)?).ok()?.to_owned());
            }
            SHARD => *self.shards.get_mut(rest.index()?)? = true,
            _ => return None,
        }
        Some(())
    }
}

struct Record<'a> {
    kind: u8,
    payload: &'a [u8],
    end: usize,
}

impl<'a> Record<'a> {
    /// Decodes the record at `at`, if it is whole and valid.
    fn at(bytes: &'a [u8], at: usize) -> Option<Self> {
        let len = usize::try_from(read_u32(bytes, at)?).ok()?;
        let payload_end = at.checked_add(PREFIX_BYTES)?.checked_add(len)?;
        let end = payload_end.checked_add(CHECKSUM_BYTES)?;
        let checksum = bytes.get(payload_end..end)?;
        let kind = bytes[at + PREFIX_BYTES - 1];
        let known = matches!(kind, IDENTITY | CLAIMS);
        let whole = known && xxh3_64(&bytes[at..payload_end]).to_le_bytes() == checksum;
        whole.then(|| Self {
            kind,
            payload: &bytes[at + PREFIX_BYTES..payload_end],
            end,
        })
    }
}

/// Finds a valid record behind the unreadable bytes at `from`; returns its offset.
fn find_record_after(bytes: &[u8], from: usize) -> Option<usize> {
    let mut effort = bytes.len().saturating_mul(SEARCH_EFFORT);
    for at in from.saturating_add(1)..bytes.len() {
        let len = usize::try_from(read_u32(bytes, at)?).ok()?;
        let fits = len.saturating_add(PREFIX_BYTES + CHECKSUM_BYTES) <= bytes.len() - at;
        if fits && matches!(bytes[at + PREFIX_BYTES - 1], IDENTITY | CLAIMS) {
            let Some(left) = effort.checked_sub(len) else {
                return Some(at);
            };
            effort = left;
            if Record::at(bytes, at).is_some() {
                return Some(at);
            }
        }
    }
    None
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

/// The rest of a commit's claims, still to be decoded.
struct Fields<'a> {
    bytes: &'a [u8],
    /// The end of the claims in the journal.
    end: usize,
}

impl<'a> Fields<'a> {
    /// Returns the offset of the next byte in the journal.
    fn position(&self) -> usize {
        self.end - self.bytes.len()
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|taken| taken[0])
    }

    fn index(&mut self) -> Option<usize> {
        read_u32(self.take(4)?, 0).and_then(|value| usize::try_from(value).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Claim, claims_record, head_with_identity, noting_record};
    use super::*;

    const BLOCKS_OF: [u64; 3] = [3, 1, 0];

    fn path() -> &'static Path {
        Path::new("out/.thalweg/journal")
    }

    fn commits() -> [Vec<Claim>; 3] {
        let blocks = |tensor, first, values| Claim::Blocks {
            tensor,
            first,
            values,
        };
        [
            vec![
                blocks(0, 0, vec![[1; 32], [2; 32]]),
                Claim::Note {
                    tensor: 0,
                    note: "{\"angle\":0.5}".into(),
                },
            ],
            vec![
                blocks(0, 2, vec![[3; 32]]),
                blocks(1, 0, vec![[4; 32]]),
                Claim::Shard { shard: 1 },
            ],
            vec![
                Claim::Shard { shard: 0 },
                Claim::Step { step: "[1]".into() },
                Claim::Step { step: "[2]".into() },
            ],
        ]
    }

    /// A journal of three commits, and where its records end.
    fn sample() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = head_with_identity("{\"a\":1}").expect("short");
        let mut ends = vec![bytes.len()];
        for commit in commits() {
            bytes.extend(claims_record(&commit).expect("short"));
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn replay(bytes: &[u8]) -> Result<(State, usize)> {
        let journal = Journal::parse(bytes, path())?;
        assert_eq!(journal.identity(), "{\"a\":1}");
        Ok((journal.replay(&BLOCKS_OF, 2)?, journal.valid_len()))
    }

    fn refusal(claims: &[Claim]) -> String {
        let mut bytes = sample().0;
        bytes.extend(claims_record(claims).expect("short"));
        replay(&bytes).expect_err("refused").to_string()
    }

    #[test]
    fn what_was_recorded_is_replayed() {
        let (bytes, ends) = sample();
        let (state, len) = replay(&bytes).expect("whole");
        assert_eq!(len, ends[3]);
        assert_eq!(
            state.values,
            [vec![[1; 32], [2; 32], [3; 32]], vec![[4; 32]], vec![]]
        );
        let [Some(NotePlace { at, len }), None, None] = state.notes[..] else {
            panic!("{:?}", state.notes)
        };
        let at = usize::try_from(at).expect("small");
        assert_eq!(&bytes[at..at + len as usize], b"{\"angle\":0.5}");
        let (record, places) = noting_record(&commits()[0]).expect("short");
        assert_eq!(&bytes[ends[0]..ends[1]], record);
        assert_eq!(
            places,
            [(
                0,
                NotePlace {
                    at: (at - ends[0]) as u64,
                    len
                }
            )]
        );
        assert_eq!(state.shards, [true, true]);
        assert_eq!(state.steps, ["[1]", "[2]"]);
    }

    #[test]
    fn a_journal_cut_anywhere_behind_its_identity_loses_only_the_torn_record() {
        let (bytes, ends) = sample();
        for cut in 0..bytes.len() {
            let replayed = replay(&bytes[..cut]);
            match ends.iter().rposition(|end| *end <= cut) {
                None => assert_eq!(replayed.expect_err("no identity").kind(), Kind::Resume),
                Some(whole) => assert_eq!(replayed.expect("a torn tail is dropped").1, ends[whole]),
            }
        }
    }

    #[test]
    fn a_flipped_byte_is_refused_unless_only_the_last_record_can_be_torn() {
        let (bytes, ends) = sample();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x41;
            let replayed = replay(&damaged);
            if at < ends[2] {
                assert_eq!(
                    replayed.expect_err("damage before the last record").kind(),
                    Kind::Resume,
                    "byte {at}"
                );
            } else {
                assert_eq!(replayed.expect("as good as torn").1, ends[2], "byte {at}");
            }
        }
    }

    #[test]
    fn a_tail_of_zeros_or_noise_is_dropped() {
        let (bytes, ends) = sample();
        for tail in [
            vec![0; 5000],
            (0..5000u32)
                .map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3])
                .collect(),
        ] {
            let torn = [bytes.clone(), tail].concat();
            assert_eq!(replay(&torn).expect("torn").1, ends[3]);
        }
    }

    #[test]
    fn claims_that_cannot_be_are_refused() {
        let blocks = |tensor, first, count: usize| Claim::Blocks {
            tensor,
            first,
            values: vec![[0; 32]; count],
        };
        for claim in [
            blocks(0, 3, 1),
            blocks(0, 2, 1),
            blocks(2, 0, 1),
            blocks(3, 0, 1),
            blocks(1, u32::MAX, 1),
        ] {
            assert!(refusal(&[claim]).contains("record 4 claims what cannot be"));
        }
        assert!(refusal(&[Claim::Shard { shard: 2 }]).contains("record 4"));
        assert!(
            refusal(&[Claim::Note {
                tensor: 3,
                note: "1".into()
            }])
            .contains("record 4")
        );
    }

    #[test]
    fn other_files_and_versions_are_refused() {
        let (mut bytes, _) = sample();
        bytes[8] = 2;
        assert!(
            replay(&bytes)
                .expect_err("newer")
                .to_string()
                .contains("version 2, this program knows 1")
        );
        assert_eq!(replay(b"").expect_err("empty").kind(), Kind::Resume);
        assert_eq!(
            replay(b"{\"format\": \"something else\"}")
                .expect_err("other")
                .kind(),
            Kind::Resume
        );
        let twice = [
            head_with_identity("{\"a\":1}").expect("short"),
            bytes[HEAD_BYTES..].to_vec(),
        ]
        .concat();
        assert!(
            replay(&twice)
                .expect_err("twice")
                .to_string()
                .contains("second identity")
        );
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_behind_a_valid_head_never_panic(
            tail in proptest::collection::vec(0u8..4, 0..300), cut in 0usize..400,
        ) {
            let (bytes, _) = sample();
            let kept = &bytes[..bytes.len().min(cut)];
            let outcome = Journal::parse(&[kept, &tail].concat(), path()).map(|journal| journal.replay(&BLOCKS_OF, 2).is_ok());
            if cut == 0 {
                proptest::prop_assert!(outcome.is_err());
            }
        }
    }
}
