#!/usr/bin/env bash
# Merges two models of Llama-3-70B's shape (141 GB each, bf16) on a disk that cannot hold them:
# scripts/bench/scale.sh [PARTS] [--markdown]
#
# It is done PART BY PART, not as one run: for each group of layers (LAYERS=2) the shards of both models are made, merged
# as a checkpoint of their own, verified and deleted. So the tensors, their sizes, the traffic of 424 GB and the budget are
# those of the whole merge, but no single run has all 723 tensors, and layers of a part are numbered from 0. The last two
# parts hold one layer each, with the embedding and with a matrix of lm_head's size. PARTS ends the run after so many.
# Inputs are dropped from the page cache before each merge. BUDGETS="2GiB 512MiB" are taken in turn; the results must be
# equal. After them the same traffic is moved by plain reading and writing, for comparison.
# Room needed: three times the largest part, 12 GB. Time: half an hour, most of it for making and deleting files.
# Everything lies under target/scale and is removed at the end.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

given=$*
parts=0
case ${1:-} in
    [0-9]*)
        parts=$1
        shift
        ;;
esac
build thalweg make-checkpoint
work_in "$target/scale"
THALWEG_COMMAND="scripts/bench/scale.sh $given" \
    python3 scripts/bench/scale.py --thalweg "$target/release/thalweg" --generator "$target/release/make-checkpoint" \
    --work "$work" --layers "${LAYERS:-2}" --budgets "${BUDGETS:-2GiB 512MiB}" --parts "$parts" "$@"
