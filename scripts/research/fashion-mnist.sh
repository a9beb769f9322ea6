#!/usr/bin/env bash
# Trains two MLPs 784-256-256-256-10 on Fashion-MNIST for four epochs and prints the barrier between them before and after
# every kind of alignment: scripts/research/fashion-mnist.sh [--markdown]
#
# The images come from Debian's package (31 MB, fetched by apt-get without installing it). PAIRS=1 sets the number of pairs.
# Everything lies under target/fashion-mnist. Ten minutes on two cores.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

work=$target/fashion-mnist
mkdir -p "$work/package"
if [ ! -f "$work/data/fashion-test.safetensors" ]; then
    (cd "$work/package" && apt-get download dataset-fashion-mnist)
    dpkg-deb -x "$work"/package/dataset-fashion-mnist_*.deb "$work/package"
    python3 scripts/research/fashion-mnist.py "$work/package/usr/share/datasets/fashion-mnist" "$work/data"
fi
build thalweg train-mlp
export THALWEG_COMMAND="scripts/research/fashion-mnist.sh $*"
python3 scripts/research/barrier.py --bin "$target/release" --work "$work/pairs" --pairs "${PAIRS:-1}" \
    --train "$work/data/fashion-train.safetensors" --test "$work/data/fashion-test.safetensors" \
    --widths 256 --layers 3 --epochs 4 --batch 128 "$@" -- --epochs 2 --batch 1000
