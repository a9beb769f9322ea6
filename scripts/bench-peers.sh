#!/usr/bin/env bash
# Times thalweg beside mergekit on the same models, by turns: scripts/bench-peers.sh [SIZE] [option of bench-peers.py ..]
#
# Three Llama-shaped bf16 models (SHAPE=llama-1b, whole unless SIZE says how large each may be) are merged by both programs:
# Karcher and linear of three, slerp of two. Beside the times: what reading, writing and copying the same bytes takes,
# peak memory, and how many output elements are the exactly rounded ones. Then thalweg alone: Karcher of two, two budgets,
# and twenty models (of SHAPE20=llama-160m, LAYERS20=4) at once beside the reading of the disk.
# MERGEKIT_VENV names an environment with mergekit; else one is made under target/ (downloads torch).
# Everything lies under target/bench-peers; the models stay there for the next time, KEEP=0 removes them.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONDONTWRITEBYTECODE=1

size=()
case ${1:-} in
    -h | --help)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
        exit 0
        ;;
    [0-9]*)
        size=(--size "$1")
        shift
        ;;
esac
shape=${SHAPE:-llama-1b}
target=${CARGO_TARGET_DIR:-target}
bench=$target/bench-peers
venv=$(scripts/mergekit-venv.sh)
[ -n "${SKIP_BUILD:-}" ] || cargo build --release --locked --workspace --bin thalweg --bin make-checkpoint

# make FOLDER COUNT OPTION ..: an interrupted run leaves no mark, and what it left is made anew.
make() {
    local folder=$1 count=$2
    shift 2
    [ -e "$folder.made" ] && return
    rm -rf "${folder:?}"
    "$target/release/make-checkpoint" --out "$folder" --models "$count" --base-seed 1 --seed 2 --noise 0.05 "$@"
    touch "$folder.made"
}
mkdir -p "$bench"
three=$bench/$shape-${size[1]:-whole}
twenty=$bench/twenty-${SHAPE20:-llama-160m}-${LAYERS20:-4}
make "$three" 3 --shape "$shape" "${size[@]}"
make "$twenty" 20 --shape "${SHAPE20:-llama-160m}" --layers "${LAYERS20:-4}"

status=0
"$venv/bin/python3" scripts/bench-peers.py --thalweg "$target/release/thalweg" --mergekit "$venv/bin/mergekit-yaml" \
    --work "$bench/work" --three "$three" --twenty "$twenty" "$@" || status=$?
rm -rf "$bench/work"
[ "${KEEP:-1}" = 1 ] || rm -rf "$bench"
exit "$status"
