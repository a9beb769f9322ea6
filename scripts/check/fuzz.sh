#!/usr/bin/env bash
# Fuzzes everything that reads untrusted bytes: scripts/check/fuzz.sh [SECONDS] [TARGET ..]
#
# SECONDS (60 by default) are spent on each target: header, index, pickle, torch, recipe, journal, manifest, zst, spec, or
# those that are named. Needs a C++ compiler beside the stable toolchain. New finds go to fuzz/found, seeds come from
# fuzz/corpus.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
cd fuzz

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
for name in "${targets[@]}"; do bins+=(--bin "$name"); done
nice -n 19 cargo build --release --target "$host" "${bins[@]}"

# In memory where the system has such: a file is written for every input that is tried.
memory=/dev/shm
[ -d "$memory" ] || memory=${TMPDIR:-/tmp}
THALWEG_FUZZ_FOLDER=$(mktemp -d "$memory/thalweg-fuzz.XXXXXX")
export THALWEG_FUZZ_FOLDER
trap 'rm -rf "$THALWEG_FUZZ_FOLDER"' EXIT

for name in "${targets[@]}"; do
    mkdir -p "found/$name" "grown/$name"
    say "$name"
    nice -n 19 "target/$host/release/$name" "grown/$name" "corpus/$name" -artifact_prefix="found/$name/" \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=512 -max_len=16384 \
        -print_final_stats=1 2>&1 | grep -vE '^#|NEW|REDUCE|^INFO' || {
        die "$name failed; see fuzz/found/$name"
    }
done
