//! Output heads that configs tie to the input embeddings.

use std::collections::BTreeSet;

use crate::error::{Error, Kind, Result};

use super::families::{EMBEDDINGS, FOREIGN, HEADS, Head, is_headless, is_tied, scales_tied};
use super::{Parts, Ties, before};

/// The state of a head in one input.
enum HeadState {
    /// A tensor of its own.
    Own,
    /// Tied to the embeddings of this name.
    Tied { embeddings: String, stored: bool },
    /// Neither stored nor tied to anything.
    Lacking,
}

/// Decides for every stored head if it is written.
///
/// # Errors
///
/// Fails when some inputs tie a head, others do not, and the family treats the two differently
/// beyond the weights.
pub fn decide(parts: &Parts<'_>, ties: &mut Ties) -> Result<()> {
    let stored = parts
        .members
        .iter()
        .flat_map(|input| parts.inputs[*input].tensors().keys());
    let heads: BTreeSet<&str> = stored
        .map(|name| name.as_str())
        .filter(|name| head_of(name).is_some())
        .collect();
    for name in heads {
        let folded = |input: &usize| parts.job.untied_head(*input) == Some(name);
        // Folding has made it a tensor of its own.
        if parts.members.iter().any(folded) {
            continue;
        }
        let states: Vec<(usize, HeadState)> = parts
            .members
            .iter()
            .map(|input| (*input, state(parts, *input, name)))
            .collect();
        let is_own = |(_, state): &(usize, HeadState)| matches!(state, HeadState::Own);
        let lacks = |(_, state): &(usize, HeadState)| matches!(state, HeadState::Lacking);
        if states.iter().any(is_own) || states.iter().any(lacks) {
            write(parts, ties, name, &states)?;
        } else {
            leave_out(ties, name, states);
        }
    }
    Ok(())
}

/// Returns the kind of head that a tensor of this name is, and what precedes it in the name.
fn head_of(name: &str) -> Option<(&Head, &str)> {
    HEADS.iter().find_map(|head| {
        let begin = before(name, head.end)?;
        (!head.whole || begin.is_empty()).then_some((head, begin))
    })
}

fn state(parts: &Parts<'_>, input: usize, name: &str) -> HeadState {
    let own = parts.shape(input, name);
    let untied = if own.is_some() {
        HeadState::Own
    } else {
        HeadState::Lacking
    };
    let tied = parts.configs[input].as_ref().and_then(is_tied);
    // If the config does not say: a stored head is its own, and a head that is not stored can only
    // be the embeddings.
    if tied == Some(false) || (tied.is_none() && own.is_some()) {
        return untied;
    }
    if own.is_none() && !may_have(parts, input, name) {
        return HeadState::Lacking;
    }
    match embeddings(parts, input, name)
        .filter(|found| own.is_none() || parts.shape(input, found) == own)
    {
        Some(found) => HeadState::Tied {
            embeddings: found.to_owned(),
            stored: own.is_some(),
        },
        None => untied,
    }
}

/// Tells if a model that does not store the head `name` can still have it.
fn may_have(parts: &Parts<'_>, input: usize, name: &str) -> bool {
    let Some((head, begin)) = head_of(name) else {
        return false;
    };
    let beside = format!("{begin}{}", head.beside);
    let names = || parts.inputs[input].tensors().keys();
    match head.beside.is_empty() {
        true => !parts.configs[input].as_ref().is_some_and(is_headless),
        false => names().any(|name| name.starts_with(&beside)),
    }
}

/// Finds the input embeddings that belong to the head `name`; `None` when there are none, or
/// several fit equally well.
fn embeddings<'a>(parts: &Parts<'a>, input: usize, name: &str) -> Option<&'a str> {
    let begin = head_of(name)?.1;
    let matrices = parts.inputs[input]
        .tensors()
        .iter()
        .filter(|(_, entry)| entry.shape.len() == 2);
    let mut ranked: Vec<_> = matrices
        .filter_map(|(other, _)| Some((rank(begin, other)?, other.as_str())))
        .collect();
    ranked.sort_unstable();
    match ranked.as_slice() {
        [(first, _), (second, _), ..] if first == second => None,
        [(_, found), ..] => Some(found),
        [] => None,
    }
}

/// Ranks a matrix as embeddings of the head that `begin` precedes, the best first; `None` when it
/// is none.
fn rank(begin: &str, name: &str) -> Option<(bool, bool, usize, usize)> {
    let mut ends = EMBEDDINGS.iter().enumerate();
    let (at, middle) = ends.find_map(|(at, end)| Some((at, before(name, end)?)))?;
    let is_foreign = FOREIGN.iter().any(|word| middle.contains(word));
    let depth = middle.matches('.').count();
    Some((is_foreign, !name.starts_with(begin), at, depth))
}

/// Writes the head: inputs that tie it give their embeddings.
fn write(
    parts: &Parts<'_>,
    ties: &mut Ties,
    name: &str,
    states: &[(usize, HeadState)],
) -> Result<()> {
    let tied = states.iter().filter_map(|(input, state)| match state {
        HeadState::Tied { embeddings, stored } => Some((*input, embeddings, *stored)),
        _ => None,
    });
    let tied: Vec<_> = tied.collect();
    let Some((first, embeddings, _)) = tied.first() else {
        return Ok(());
    };
    let own = states
        .iter()
        .find(|(_, state)| matches!(state, HeadState::Own))
        .map(|(input, _)| *input);
    if let Some(own) = own
        && parts.configs[*first].as_ref().is_some_and(scales_tied)
    {
        let cause = format!(
            "it ties `{name}` to `{embeddings}`, {} has a head of its own, and this family scales what a tied head reads",
            parts.root(own)
        );
        return Err(Error::new(
            Kind::Mismatch,
            "inputs do not fit each other",
            parts.root(*first),
            cause,
        )
        .with_hint("merge models that all tie their heads, or that all have heads of their own"));
    }
    for (input, embeddings, stored) in &tied {
        if *stored {
            ties.hide(
                *input,
                name,
                format!("its config ties it to {embeddings}, which is taken for both"),
            );
        }
        ties.give(*input, name, embeddings);
    }
    if let Some(own) = own {
        ties.untied = true;
        ties.notes.push(format!(
            "{} has a head of its own in {name}, {} ties it to {embeddings}: both are written, and the config says \
             tie_word_embeddings: false",
            parts.root(own),
            shown(&tied.iter().map(|(input, ..)| parts.root(*input)).collect::<Vec<_>>()),
        ));
        give_biases(parts, ties, name);
    }
    Ok(())
}

/// Gives an untied head in a decoder the bias beside its weight, which tied models need not store.
fn give_biases(parts: &Parts<'_>, ties: &mut Ties, name: &str) {
    let Some(begin) = name.strip_suffix("decoder.weight") else {
        return;
    };
    let (inner, outer) = (format!("{begin}decoder.bias"), format!("{begin}bias"));
    for &input in &parts.members {
        if parts.shape(input, &inner).is_none() && parts.shape(input, &outer).is_some() {
            ties.give(input, &inner, &outer);
        }
    }
}

/// Leaves out a head that every input ties.
fn leave_out(ties: &mut Ties, name: &str, states: Vec<(usize, HeadState)>) {
    for (input, state) in states {
        if let HeadState::Tied {
            embeddings,
            stored: true,
        } = state
        {
            ties.hide(
                input,
                name,
                format!("its config ties it to {embeddings}, which is written for both"),
            );
            ties.tied = true;
        }
    }
}

fn shown(roots: &[String]) -> String {
    match roots {
        [one] => one.clone(),
        [one, rest @ ..] => format!("{one} (as {} more do)", rest.len()),
        [] => String::new(),
    }
}
