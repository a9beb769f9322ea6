#!/usr/bin/env bash
# Merges small models with thalweg and with mergekit, method by method, and prints by how much the results differ.
#
# Options go to compare-mergekit.py: --only karcher for methods whose name contains that, --sizes tiny for the quick half.
# Both programs read the same YAML file. MERGEKIT_VENV names an environment with mergekit; else one is made under target/
# (downloads torch). Everything lies under target/compare-mergekit and is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONDONTWRITEBYTECODE=1

case ${1:-} in
    -h | --help)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
        exit 0
        ;;
esac
target=${CARGO_TARGET_DIR:-target}
work=$target/compare-mergekit
venv=$(scripts/mergekit-venv.sh)
[ -n "${SKIP_BUILD:-}" ] || cargo build --release --locked --workspace --bin thalweg --bin make-checkpoint
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# A base, three fine-tunes of it, and two that lie closer than mergekit's slerp looks.
make() {
    local folder=$1
    shift
    "$target/release/make-checkpoint" --out "$folder/base" --seed 1 "$@" >&2
    for k in 1 2 3; do
        "$target/release/make-checkpoint" --out "$folder/tuned-$k" --base-seed 1 --seed $((k + 1)) --noise 0.2 "$@" >&2
    done
    for k in 1 2; do
        "$target/release/make-checkpoint" --out "$folder/close-$k" --base-seed 1 --seed $((k + 4)) --noise 0.01 "$@" >&2
    done
}
for dtype in f32 bf16; do
    make "$work/tiny-$dtype" --shape tiny --dtype $dtype
    make "$work/larger-$dtype" --shape llama-1b --layers 1 --intermediate 5632 --vocab 1024 --dtype $dtype
done
HF_HUB_OFFLINE=1 "$venv/bin/python3" scripts/compare-mergekit.py --thalweg "$target/release/thalweg" --work "$work" "$@"
