#!/usr/bin/env bash
# Merges small models by every method on single elements and compares each bit: scripts/check/selecting.sh [OPTION ..]
#
# What should come out is computed by numpy: full sorts, random words one by one. Options are those of selecting.py: --only
# ties takes the recipes whose text contains that, --seed 1 makes other models, --keep leaves them for a look.
# THALWEG=/path/to/thalweg takes a program that is there, such as a debug build; PYTHON one with numpy. Everything lies
# under target/selecting and is removed at the end.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

python=$(python_with numpy numpy numpy)
[ -n "${THALWEG:-}" ] || build thalweg
work_in "$target/selecting"
"$python" scripts/check/selecting.py --thalweg "${THALWEG:-$target/release/thalweg}" --work "$work" "$@"
