#!/usr/bin/env bash
# Merges small models with thalweg and with mergekit, method by method, and prints the differences of the results:
# scripts/bench/compare-mergekit.sh [OPTION of compare-mergekit.py ..]
#
# --only karcher takes the methods whose name contains that, --sizes tiny the quick half; --markdown prints tables as
# Markdown, headed by date, machine and command. Both programs read the same YAML file. MERGEKIT_VENV names an environment
# with mergekit; else one is made under target/ (downloads torch). Everything lies under target/compare-mergekit and is
# removed at the end.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

venv=$(mergekit_venv)
build thalweg make-checkpoint
work_in "$target/compare-mergekit"

# A base, three fine-tunes of it, and three that lie as close as real ones: closer than mergekit's slerp looks.
make() {
    local folder=$1 k
    shift
    "$target/release/make-checkpoint" --out "$folder/base" --seed 1 "$@" >&2
    for k in 1 2 3; do
        "$target/release/make-checkpoint" --out "$folder/tuned-$k" --base-seed 1 --seed $((k + 1)) --noise 0.2 "$@" >&2
    done
    for k in 1 2 3; do
        "$target/release/make-checkpoint" --out "$folder/close-$k" --base-seed 1 --seed $((k + 4)) --noise 0.01 "$@" >&2
    done
}
for dtype in f32 bf16; do
    make "$work/tiny-$dtype" --shape tiny --dtype $dtype
    make "$work/larger-$dtype" --shape llama-1b --layers 1 --intermediate 5632 --vocab 1024 --dtype $dtype
done
export HF_HUB_OFFLINE=1 THALWEG_COMMAND="scripts/bench/compare-mergekit.sh $*"
"$venv/bin/python3" scripts/bench/compare-mergekit.py --thalweg "$target/release/thalweg" --work "$work" "$@"
