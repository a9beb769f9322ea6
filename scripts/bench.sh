#!/usr/bin/env bash
# Times thalweg beside the machine's own reading, writing and copying: scripts/bench.sh [SIZE] [option of bench.py ..]
#
# SIZE is that of one model (default 1GB). MODELS=3 sets how many, SHAPE=llama-1b and DTYPE=bf16 what they are like.
# Everything lies under target/bench; the models stay there for the next time, KEEP=0 removes them.
set -euo pipefail
cd "$(dirname "$0")/.."

size=1GB
case ${1:-} in
    -h | --help)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
        exit 0
        ;;
    [0-9]*)
        size=$1
        shift
        ;;
esac
models=${MODELS:-3} shape=${SHAPE:-llama-1b} dtype=${DTYPE:-bf16}
target=${CARGO_TARGET_DIR:-target}
bench=$target/bench
inputs=$bench/$shape-$dtype-$size

cargo build --release --locked --workspace --bin thalweg --bin make-checkpoint
# A folder that an interrupted run left half made has no mark and is made anew.
for ((k = 1; k <= models; k++)); do
    [ -e "$inputs/$k.made" ] && continue
    rm -rf "${inputs:?}/$k"
    "$target/release/make-checkpoint" --out "$inputs/$k" --shape "$shape" --dtype "$dtype" --size "$size" \
        --base-seed 1 --seed "$((k + 1))" --noise 0.05
    touch "$inputs/$k.made"
done

folders=()
for ((k = 1; k <= models; k++)); do folders+=("$inputs/$k"); done
status=0
python3 scripts/bench.py --thalweg "$target/release/thalweg" --work "$bench/work" "$@" "${folders[@]}" || status=$?
rm -rf "$bench/work"
[ "${KEEP:-1}" = 1 ] || rm -rf "$bench"
exit "$status"
