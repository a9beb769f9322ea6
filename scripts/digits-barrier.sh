#!/usr/bin/env bash
# Trains MLPs 64-w-w-10 on scikit-learn's digits (tests/data, see make-digits.sh), three pairs of each width, and prints
# the barriers between them before and after every kind of alignment. Writes the plot docs/barrier.svg. A minute or two.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
cargo build --release --locked --workspace --bin thalweg --bin train-mlp
python3 scripts/barrier.py --bin "$target/release" --work "$target/digits-barrier" \
    --train tests/data/digits-train.safetensors --test tests/data/digits-test.safetensors \
    --widths 16 32 64 128 256 --epochs 80 --plot 128 docs/barrier.svg -- --epochs 40
