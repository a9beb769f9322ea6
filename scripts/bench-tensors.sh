#!/usr/bin/env bash
# Measures the memory that models of many small tensors take: scripts/bench-tensors.sh [BUDGET] [COUNT..]
#
# Merges MODELS=3 models of so many tensors each (20000, 50000 and 100000 by default) within BUDGET, 256MiB by default, and
# prints for each the most memory that was resident, as the kernel accounts it, for a merge by tensor, one over the whole
# model, its check by `verify`, and `plan`. Everything lies under target/tensors and is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
    -h | --help)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
        exit 0
        ;;
esac
budget=${1:-256MiB}
shift || true
target=${CARGO_TARGET_DIR:-target}
cargo build --release --locked --bin thalweg
[ $# -gt 0 ] || set -- 20000 50000 100000
exec python3 scripts/bench-tensors.py "$target/release/thalweg" "$target/tensors" "${MODELS:-3}" "$budget" "$@"
