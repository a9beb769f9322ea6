#!/usr/bin/env bash
# Fashion-MNIST from Debian's package (31 MB, fetched by apt-get without installing it): trains two MLPs
# 784-256-256-256-10 for four epochs and prints the barrier between them before and after every kind of alignment.
# Everything lies under target/fashion-mnist. Ten minutes on two cores.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
work=$target/fashion-mnist
mkdir -p "$work/package"
if [ ! -f "$work/data/fashion-test.safetensors" ]; then
    (cd "$work/package" && apt-get download dataset-fashion-mnist)
    dpkg-deb -x "$work"/package/dataset-fashion-mnist_*.deb "$work/package"
    python3 scripts/fashion-mnist.py "$work/package/usr/share/datasets/fashion-mnist" "$work/data"
fi
cargo build --release --locked --workspace --bin thalweg --bin train-mlp
python3 scripts/barrier.py --bin "$target/release" --work "$work/pairs" --pairs "${PAIRS:-1}" \
    --train "$work/data/fashion-train.safetensors" --test "$work/data/fashion-test.safetensors" \
    --widths 256 --layers 3 --epochs 4 --batch 128 -- --epochs 2 --batch 1000
