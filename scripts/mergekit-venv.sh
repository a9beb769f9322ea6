#!/usr/bin/env bash
# Prints the folder of a Python environment with mergekit, making it under target/ the first time (downloads torch).
#
# MERGEKIT_VENV names one that is there already. Called by bench-peers.sh and compare-mergekit.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${MERGEKIT_VENV:-${CARGO_TARGET_DIR:-target}/mergekit-venv}
if ! [ -x "$venv/bin/mergekit-yaml" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet "mergekit==0.1.5" "torch==2.12.1" numpy >&2
fi
echo "$venv"
