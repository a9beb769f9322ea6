#!/usr/bin/env bash
# Times thalweg beside the machine's own reading, writing and copying: scripts/bench/merge.sh [SIZE] [OPTION of merge.py ..]
#
# SIZE is the size of one model (default 1GB). MODELS=3 sets their number, SHAPE=llama-1b and DTYPE=bf16 their kind.
# Everything lies under target/bench; the models stay there for the next time, KEEP=0 removes them. Options, such as
# --runs 3, --states cold or --markdown, are those of `PYTHONPATH=scripts/lib python3 scripts/bench/merge.py --help`.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

size=1GB
case ${1:-} in
    [0-9]*)
        size=$1
        shift
        ;;
esac
models=${MODELS:-3} shape=${SHAPE:-llama-1b} dtype=${DTYPE:-bf16}
bench=$target/bench
inputs=$bench/$shape-$dtype-$size

build thalweg make-checkpoint
folders=()
for ((k = 1; k <= models; k++)); do
    make_model "$inputs/$k" --shape "$shape" --dtype "$dtype" --size "$size" --base-seed 1 --seed "$((k + 1))" --noise 0.05
    folders+=("$inputs/$k")
done
status=0
THALWEG_COMMAND="scripts/bench/merge.sh $size $*" \
    python3 scripts/bench/merge.py --thalweg "$target/release/thalweg" --work "$bench/work" "$@" "${folders[@]}" || status=$?
rm -rf "$bench/work"
[ "${KEEP:-1}" = 1 ] || rm -rf "$bench"
exit "$status"
