#!/usr/bin/env bash
# Merges the biggest Llama-shaped models that the disk holds, in little memory: scripts/bench/big-run.sh [SIZE] [--markdown]
#
# SIZE is the size of one model, such as 20GB; by default as large as the free disk allows (inputs, output, some air).
# MODELS=2 sets their number, MEMORY=1GiB the budget, SHAPE=llama-70b the layers' shape, RUNS=1 the repetitions.
# Prints the wall time, its ratio to a plain copy of the same traffic, and the peak memory; verifies the result; removes
# everything it made (target/big) at the end, or when it is interrupted.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

models=${MODELS:-2} memory=${MEMORY:-1GiB} shape=${SHAPE:-llama-70b} runs=${RUNS:-1}
given=$*
size=
case ${1:-} in
    [0-9]*)
        size=$1
        shift
        ;;
esac

build thalweg make-checkpoint
work_in "$target/big"
free=$(df --output=avail -B1 "$work" | tail -n 1)
# All inputs and one more folder at a time: the copy, the written file or the merged model. A tenth stays free.
size=${size:-$((free * 9 / (10 * (models + 1) * 1000000000)))GB}
printf 'free on the disk: %d GB; %d models of up to %s each\n' "$((free / 1000000000))" "$models" "$size"
[ "$size" != 0GB ] || die "not enough room on this disk"

folders=()
for ((k = 1; k <= models; k++)); do
    "$target/release/make-checkpoint" --out "$work/$k" --shape "$shape" --size "$size" \
        --base-seed 1 --seed "$((k + 1))" --noise 0.05
    folders+=("$work/$k")
done
THALWEG_COMMAND="scripts/bench/big-run.sh $given" \
    python3 scripts/bench/merge.py --thalweg "$target/release/thalweg" --work "$work/work" --runs "$runs" --states cold \
    --memory "$memory" "$@" "${folders[@]}"
