#!/usr/bin/env bash
# The whole gate: format, lints, tests, documentation. Continuous integration runs this and nothing weaker.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

step=none
trap 'printf "\nFAILED in: %s\n" "$step" >&2' ERR
begin() {
    step=$1
    printf '\n== %s (%d s)\n' "$step" "$SECONDS"
}

begin "format"
cargo fmt --check

begin "lints"
cargo clippy --locked --workspace --all-targets -- -D warnings

begin "lints without the device backend"
cargo clippy --locked --no-default-features --lib --bins -- -D warnings

if command -v shellcheck >/dev/null; then
    begin "shell scripts"
    shellcheck scripts/*.sh .ci/run
else
    printf '\nshellcheck is not installed: shell scripts not checked\n'
fi

begin "tests"
# Benchmarks are measurements, not tests; they are compiled by the lints above.
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --workspace --lib --bins --tests --no-fail-fast
else
    printf 'cargo-nextest is not installed: using cargo test\n'
    cargo test --locked --workspace --lib --bins --tests --no-fail-fast
fi

begin "documentation examples"
cargo test --locked --doc

begin "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --lib

trap - ERR
printf '\nAll checks passed in %d s: format, lints, tests, documentation.\n' "$SECONDS"
