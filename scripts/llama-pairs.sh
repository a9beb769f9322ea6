#!/usr/bin/env bash
# What alignment brings between small Llama nets that were trained independently: scripts/llama-pairs.sh [STEPS]
#
# Trains three nets of .6 million parameters on Python's own standard library (a and b from different seeds and on
# different data, c from the seed of a), STEPS steps each (2100 unless given), aligns pairs in the ways that
# `thalweg align --residual` knows, merges the pairs half and half by linear and Karcher means, and prints the held-out
# losses of all midpoints beside those of the nets.
# Makes a virtual environment with torch, transformers and safetensors under target (some GB, once), or uses
# PYTHON=/path/to/python that has them. Everything lies under target/llama-pairs; trained nets are used again.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONDONTWRITEBYTECODE=1

case ${1:-} in
    -h | --help)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
        exit 0
        ;;
esac
steps=${1:-2100}
target=${CARGO_TARGET_DIR:-target}
work=$target/llama-pairs
python=${PYTHON:-$target/venv-llama-pairs/bin/python}

if ! "$python" -c 'import torch, transformers, safetensors' 2>/dev/null; then
    [ -z "${PYTHON:-}" ] || { echo "llama-pairs: $PYTHON lacks torch, transformers or safetensors" >&2; exit 1; }
    python3 -m venv "$target/venv-llama-pairs"
    "$target/venv-llama-pairs/bin/pip" install --quiet torch transformers safetensors numpy
fi
[ -n "${SKIP_BUILD:-}" ] || cargo build --release --locked --bin thalweg

mkdir -p "$work"
for net in a:1:1 b:2:2 c:1:3; do
    IFS=: read -r name seed data <<<"$net"
    "$python" scripts/llama-pairs.py train "$work/$name-$steps" --seed "$seed" --data "$data" --steps "$steps"
done
"$python" scripts/llama-pairs.py table --thalweg "$target/release/thalweg" --work "$work" --steps "$steps"
