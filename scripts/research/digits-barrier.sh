#!/usr/bin/env bash
# Trains MLPs 64-w-w-10 on scikit-learn's digits, three pairs of each width, and prints the barriers between them before
# and after every kind of alignment: scripts/research/digits-barrier.sh [--markdown]
#
# The digits are tests/data/digits-*.safetensors, see scripts/fixtures/digits.sh. Writes the plot docs/barrier.svg. A minute
# or two.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

build thalweg train-mlp
export THALWEG_COMMAND="scripts/research/digits-barrier.sh $*"
python3 scripts/research/barrier.py --bin "$target/release" --work "$target/digits-barrier" \
    --train tests/data/digits-train.safetensors --test tests/data/digits-test.safetensors \
    --widths 16 32 64 128 256 --epochs 80 --plot 128 docs/barrier.svg "$@" -- --epochs 40
