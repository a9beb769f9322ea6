#!/usr/bin/env bash
# Measures the memory that models of many small tensors take: scripts/bench/tensors.sh [--markdown] [BUDGET] [COUNT ..]
#
# Merges MODELS=3 models of COUNT tensors each (20000, 50000 and 100000 by default) within BUDGET, 256MiB by default, and
# prints for each count the peak of resident memory, as the kernel accounts it, of a merge by tensor, one over the whole
# model, its check by `verify`, and `plan`. Everything lies under target/tensors and is removed at the end.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

given=$*
options=()
if [ "${1:-}" = --markdown ]; then
    options=(--markdown)
    shift
fi
budget=${1:-256MiB}
shift || true
[ $# -gt 0 ] || set -- 20000 50000 100000
build thalweg
THALWEG_COMMAND="scripts/bench/tensors.sh $given" \
    python3 scripts/bench/tensors.py "${options[@]}" "$target/release/thalweg" "$target/tensors" "${MODELS:-3}" "$budget" "$@"
