#!/usr/bin/env bash
# Fuzzes everything that reads untrusted bytes: scripts/fuzz.sh [seconds per target] [target ...]
# Needs a C++ compiler beside the stable toolchain. New finds go to fuzz/found, seeds come from fuzz/corpus.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(header index pickle torch recipe journal manifest zst spec)

# What cargo-fuzz would pass, without what needs a nightly compiler. A --target keeps it away from build scripts.
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
bins=()
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
nice -n 19 cargo build --release --target "$host" "${bins[@]}"

# In memory where the system has such: a file is written for every input that is tried.
memory=/dev/shm
[ -d "$memory" ] || memory=${TMPDIR:-/tmp}
THALWEG_FUZZ_FOLDER=$(mktemp -d "$memory/thalweg-fuzz.XXXXXX")
export THALWEG_FUZZ_FOLDER
trap 'rm -rf "$THALWEG_FUZZ_FOLDER"' EXIT

for target in "${targets[@]}"; do
    mkdir -p "found/$target" "grown/$target"
    printf '\n== %s\n' "$target"
    nice -n 19 "target/$host/release/$target" "grown/$target" "corpus/$target" -artifact_prefix="found/$target/" \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=512 -max_len=16384 \
        -print_final_stats=1 2>&1 | grep -vE '^#|NEW|REDUCE|^INFO' || {
        echo "fuzz: $target failed; see fuzz/found/$target" >&2
        exit 1
    }
done
