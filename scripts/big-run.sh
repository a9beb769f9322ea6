#!/usr/bin/env bash
# Merges the biggest Llama-shaped models that the disk holds, in little memory: scripts/big-run.sh [SIZE]
#
# SIZE is that of one model, such as 20GB; by default as large as the free disk allows (inputs, output, some air).
# MODELS=2 sets how many, MEMORY=1GiB the budget, SHAPE=llama-70b the layers' shape, RUNS=1 the repetitions.
# Prints the wall time, its ratio to a plain copy of the same traffic, and the peak memory; verifies the result;
# removes everything it made (target/big) at the end, or when it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."

models=${MODELS:-2} memory=${MEMORY:-1GiB} shape=${SHAPE:-llama-70b} runs=${RUNS:-1}
target=${CARGO_TARGET_DIR:-target}
big=$target/big

case ${1:-} in
    -h | --help)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
        exit 0
        ;;
esac

cargo build --release --locked --workspace --bin thalweg --bin make-checkpoint
rm -rf "$big"
mkdir -p "$big"
trap 'rm -rf "$big"' EXIT
trap 'exit 130' INT TERM

free=$(df --output=avail -B1 "$big" | tail -n 1)
# All inputs and one more folder at a time: the copy, the written file or the merged model. A tenth stays free.
size=${1:-$((free * 9 / (10 * (models + 1) * 1000000000)))GB}
printf 'free on the disk: %d GB; %d models of up to %s each\n' "$((free / 1000000000))" "$models" "$size"
[ "$size" != 0GB ] || { echo "big-run: not enough room on this disk" >&2; exit 1; }

folders=()
for ((k = 1; k <= models; k++)); do
    "$target/release/make-checkpoint" --out "$big/$k" --shape "$shape" --size "$size" \
        --base-seed 1 --seed "$((k + 1))" --noise 0.05
    folders+=("$big/$k")
done
python3 scripts/bench.py --thalweg "$target/release/thalweg" --work "$big/work" --runs "$runs" --states cold \
    --memory "$memory" "${folders[@]}"
