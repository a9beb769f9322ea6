//! mergekit's flags, as its users type them: obeyed if they have a meaning here, else answered with
//! a warning or an error that names the replacement.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::budget::parse_bytes;
use crate::error::{Error, Kind, Result};
use crate::recipe::THREADS;

/// The treatment of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Carried out, or the default behaviour anyway.
    Obeyed,
    /// Without effect on the result; the warning.
    Vain(&'static str),
    /// Refused, since it asks for another result; the replacement, if there is one.
    Refused(&'static str),
}

use Fate::{Obeyed, Refused, Vain};

/// A flag of `mergekit-yaml` or `mergekit-multi`.
struct Flag {
    name: &'static str,
    takes_value: bool,
    fate: Fate,
}

const fn switch(name: &'static str, fate: Fate) -> Flag {
    Flag {
        name,
        takes_value: false,
        fate,
    }
}

const fn valued(name: &'static str, fate: Fate) -> Flag {
    Flag {
        name,
        takes_value: true,
        fate,
    }
}

const ON_DISK: &str = "tensors are streamed, so there is nothing to hold; --memory and --device-memory set the limits";

const FLAGS: [Flag; 37] = [
    switch("cuda", Obeyed),
    switch("lazy-unpickle", Obeyed),
    switch(
        "no-lazy-unpickle",
        Vain("PyTorch files are always read lazily"),
    ),
    switch("copy-tokenizer", Obeyed),
    switch(
        "no-copy-tokenizer",
        Refused("a folder always gets its tokenizer; give one file, --out X.safetensors"),
    ),
    switch("write-model-card", Obeyed),
    switch(
        "no-write-model-card",
        Refused("a folder always gets its model card; give one file, --out X.safetensors"),
    ),
    switch("safe-serialization", Obeyed),
    switch(
        "no-safe-serialization",
        Refused("thalweg writes safetensors only"),
    ),
    switch("clone-tensors", Obeyed),
    switch("no-clone-tensors", Obeyed),
    switch("async-write", Obeyed),
    switch("no-async-write", Obeyed),
    switch("no-cuda", Obeyed),
    switch("verbose", Obeyed),
    valued("out-shard-size", Obeyed),
    valued("num-threads", Obeyed),
    valued(
        "write-threads",
        Vain("--threads sets the number of threads"),
    ),
    switch("low-cpu-memory", Vain(ON_DISK)),
    switch("no-low-cpu-memory", Obeyed),
    switch(
        "read-to-gpu",
        Vain("give --device cuda to compute on the GPU"),
    ),
    switch("no-read-to-gpu", Obeyed),
    switch(
        "multi-gpu",
        Vain("one device computes; --device cuda:N chooses it"),
    ),
    switch("no-multi-gpu", Obeyed),
    switch("gpu-rich", Vain("give --device cuda to compute on the GPU")),
    switch("trust-remote-code", Vain("no code of a model is ever run")),
    switch("no-trust-remote-code", Obeyed),
    valued("random-seed", Vain("no method here is random")),
    valued("lora-merge-cache", Vain("no adapter is folded in")),
    valued("lora-merge-dtype", Vain("no adapter is folded in")),
    switch(
        "allow-crimes",
        Vain(
            "tensors are matched by their names; --missing and --mismatch say what to do where models differ",
        ),
    ),
    switch("no-allow-crimes", Obeyed),
    switch(
        "unsafe-truncate-embeddings",
        Refused("--mismatch crop cuts rows to what all models have"),
    ),
    valued(
        "transformers-cache",
        Refused("set the variable HF_HUB_CACHE to that folder instead"),
    ),
    valued(
        "intermediate-dir",
        Refused("earlier stages of a recipe are written to OUT-stages beside the output"),
    ),
    switch(
        "tensor-intersection",
        Refused(
            "tensors that some models lack cannot be left out; --missing common merges them over the models that have them",
        ),
    ),
    switch(
        "tensor-union",
        Refused("--missing common merges tensors over the models that have them"),
    ),
];

/// The flags of mergekit that were given, with their values.
#[derive(Debug, Clone, Default)]
pub struct MergekitArgs {
    given: Vec<(&'static str, Option<String>)>,
}

impl Args for MergekitArgs {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, |command, flag| {
            let action = if flag.takes_value {
                ArgAction::Set
            } else {
                ArgAction::SetTrue
            };
            let arg = Arg::new(flag.name)
                .long(flag.name)
                .action(action)
                .hide(true);
            command.arg(if flag.name == "verbose" {
                arg.short('v')
            } else {
                arg
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for MergekitArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = FLAGS.iter().filter_map(|flag| match flag.takes_value {
            true => matches
                .get_one::<String>(flag.name)
                .map(|value| (flag.name, Some(value.clone()))),
            false => matches.get_flag(flag.name).then_some((flag.name, None)),
        });
        Ok(Self {
            given: given.collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl MergekitArgs {
    /// Refuses flags that ask for another result.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] with the flag and its replacement.
    pub fn refuse(&self) -> Result<()> {
        let refused = self.fates().find_map(|(name, fate)| match fate {
            Refused(instead) => Some((name, instead)),
            _ => None,
        });
        match refused {
            Some((name, instead)) => {
                Err(wrong(name, "mergekit's flag has no like here").with_hint(instead))
            }
            None => Ok(()),
        }
    }

    /// A sentence for each flag that changes nothing.
    pub fn warnings(&self) -> Vec<String> {
        self.fates()
            .filter_map(|(name, fate)| match fate {
                Vain(why) => Some(format!("--{name} has no effect here: {why}")),
                _ => None,
            })
            .collect()
    }

    /// Tells if the first GPU was asked for.
    pub fn asks_for_a_device(&self) -> bool {
        self.given.iter().any(|(name, _)| *name == "cuda")
    }

    /// `--num-threads`.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] when `--threads` would not take the number either.
    pub fn threads(&self) -> Result<Option<usize>> {
        let Some(text) = self.value("num-threads") else {
            return Ok(None);
        };
        let count = text.parse().ok().filter(|count| THREADS.contains(count));
        match count.and_then(|count| usize::try_from(count).ok()) {
            Some(count) => Ok(Some(count)),
            None => {
                let cause = format!(
                    "wanted {} to {}, got {text}",
                    THREADS.start(),
                    THREADS.end()
                );
                Err(wrong("num-threads", &cause))
            }
        }
    }

    /// `--out-shard-size`.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] when the text is not a size.
    pub fn shard_size(&self) -> Result<Option<u64>> {
        let read = |text| parse_bytes(text).map_err(|cause| wrong("out-shard-size", &cause));
        self.value("out-shard-size").map(read).transpose()
    }

    fn value(&self, wanted: &str) -> Option<&str> {
        self.given
            .iter()
            .find(|(name, _)| *name == wanted)
            .and_then(|(_, value)| value.as_deref())
    }

    fn fates(&self) -> impl Iterator<Item = (&'static str, Fate)> {
        self.given
            .iter()
            .filter_map(|(name, _)| FLAGS.iter().find(|flag| flag.name == *name))
            .map(|flag| (flag.name, flag.fate))
    }
}

fn wrong(name: &str, cause: &str) -> Error {
    Error::new(
        Kind::Usage,
        "cannot use the command line",
        format!("--{name}"),
        cause,
    )
}
