#!/usr/bin/env bash
# Times merge methods beside linear, karcher and a plain copy: scripts/bench/methods.sh [--markdown] [SIZE [ROUNDS [METHOD ..]]]
#
# Merges a base and three fine-tunes of SIZE (500MB by default) from the warm page cache by every method in turn, ROUNDS=5
# times each, in --memory MEMORY=1GiB, and prints the least seconds, the least processor time, and the ratio of both to
# linear's and karcher's of the same rounds. Models and outputs lie under target/bench; the models stay there for the next
# time.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

given=$*
options=()
if [ "${1:-}" = --markdown ]; then
    options=(--markdown)
    shift
fi
size=${1:-500MB} rounds=${2:-5}
shift "$(($# < 2 ? $# : 2))"
inputs=$target/bench/tuned-1b-bf16-$size
build thalweg make-checkpoint
make_model "$inputs/base" --shape llama-1b --dtype bf16 --size "$size" --seed 1
for ((k = 1; k <= 3; k++)); do
    make_model "$inputs/$k" --shape llama-1b --dtype bf16 --size "$size" --base-seed 1 --seed "$((k + 1))" --noise 0.01
done
work_in "$target/bench/methods"
THALWEG_COMMAND="scripts/bench/methods.sh $given" \
    python3 scripts/bench/methods.py "${options[@]}" --memory "${MEMORY:-1GiB}" "$target/release/thalweg" "$work" "$rounds" "$inputs" "$@"
