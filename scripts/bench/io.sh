#!/usr/bin/env bash
# Times both ways of reading plain files by turns: scripts/bench/io.sh [--markdown] [SIZE [ROUNDS]]
#
# Merges MODELS=3 models of SIZE (1GB by default) from the warm page cache through memory maps and through positioned
# reads, ROUNDS=7 times each, and prints medians, their ratio and the peaks of resident memory. Models and outputs lie
# under target/bench; the models stay there for the next time.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

given=$*
options=()
if [ "${1:-}" = --markdown ]; then
    options=(--markdown)
    shift
fi
size=${1:-1GB} rounds=${2:-7}
inputs=$target/bench/llama-1b-bf16-$size
build thalweg make-checkpoint
folders=()
for ((k = 1; k <= ${MODELS:-3}; k++)); do
    make_model "$inputs/$k" --shape llama-1b --dtype bf16 --size "$size" --base-seed 1 --seed "$((k + 1))" --noise 0.05
    folders+=("$inputs/$k")
done
work_in "$target/bench/io"
THALWEG_COMMAND="scripts/bench/io.sh $given" \
    python3 scripts/bench/io.py "${options[@]}" "$target/release/thalweg" "$work" "$rounds" "${folders[@]}"
