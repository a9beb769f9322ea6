#!/usr/bin/env bash
# Measures alignment between small Llama nets that were trained independently: scripts/research/llama-pairs.sh [STEPS]
#
# Trains three nets of .6 million parameters on Python's own standard library (a and b from different seeds and on
# different data, c from the seed of a), STEPS steps each (2100 by default), aligns pairs in the ways that
# `thalweg align --residual` knows, merges the pairs half and half by linear and Karcher means, and prints the held-out
# losses of all midpoints beside those of the nets, as Markdown.
# Makes a virtual environment with torch, transformers and safetensors under target (some GB, once), or uses
# PYTHON=/path/to/python that has them. Everything lies under target/llama-pairs; trained nets are used again.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

steps=${1:-2100}
work=$target/llama-pairs
python=$(python_with llama-pairs "torch transformers safetensors" torch transformers safetensors numpy)
build thalweg
mkdir -p "$work"
for net in a:1:1 b:2:2 c:1:3; do
    IFS=: read -r name seed data <<<"$net"
    "$python" scripts/research/llama-pairs.py train "$work/$name-$steps" --seed "$seed" --data "$data" --steps "$steps"
done
export THALWEG_COMMAND="scripts/research/llama-pairs.sh $*"
"$python" scripts/research/llama-pairs.py table --thalweg "$target/release/thalweg" --work "$work" --steps "$steps"
