#!/usr/bin/env bash
# Times thalweg beside mergekit on the same models, by turns: scripts/bench/peers.sh [SIZE] [OPTION of peers.py ..]
#
# Three Llama-shaped bf16 models (SHAPE=llama-1b, whole unless SIZE limits each) are merged by both programs: Karcher and
# linear of three, slerp of two. Beside the times: reading, writing and copying the same bytes, peak memory, and the number
# of output elements that are the exactly rounded ones. Then thalweg alone: Karcher of two, two budgets, and twenty models
# (of SHAPE20=llama-160m, LAYERS20=4) at once beside the reading of the disk.
# MERGEKIT_VENV names an environment with mergekit; else one is made under target/ (downloads torch).
# Everything lies under target/bench-peers; the models stay there for the next time, KEEP=0 removes them. Options, such as
# --runs 2, --only karcher or --markdown, are those of `PYTHONPATH=scripts/lib python3 scripts/bench/peers.py --help`.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

given=$*
size=()
case ${1:-} in
    [0-9]*)
        size=(--size "$1")
        shift
        ;;
esac
shape=${SHAPE:-llama-1b}
bench=$target/bench-peers
venv=$(mergekit_venv)
build thalweg make-checkpoint

mkdir -p "$bench"
three=$bench/$shape-${size[1]:-whole}
twenty=$bench/twenty-${SHAPE20:-llama-160m}-${LAYERS20:-4}
seeds=(--base-seed 1 --seed 2 --noise 0.05)
make_model "$three" --models 3 "${seeds[@]}" --shape "$shape" "${size[@]}"
make_model "$twenty" --models 20 "${seeds[@]}" --shape "${SHAPE20:-llama-160m}" --layers "${LAYERS20:-4}"

status=0
THALWEG_COMMAND="scripts/bench/peers.sh $given" \
    "$venv/bin/python3" scripts/bench/peers.py --thalweg "$target/release/thalweg" --mergekit "$venv/bin/mergekit-yaml" \
    --work "$bench/work" --three "$three" --twenty "$twenty" "$@" || status=$?
rm -rf "$bench/work"
[ "${KEEP:-1}" = 1 ] || rm -rf "$bench"
exit "$status"
