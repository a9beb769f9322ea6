#!/usr/bin/env bash
# The whole gate: format, lints, tests, documentation: scripts/test.sh
#
# Continuous integration runs this and nothing weaker. A step whose tool is not installed says so.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

step=none
trap 'printf "\nFAILED in: %s\n" "$step" >&2' ERR
begin() {
    step=$1
    say "$step ($SECONDS s)"
}

begin "format"
cargo fmt --check

begin "lints"
cargo clippy --locked --workspace --all-targets -- -D warnings

begin "lints without the device backend"
cargo clippy --locked --no-default-features --lib --bins -- -D warnings

if command -v shellcheck >/dev/null; then
    begin "shell scripts"
    shellcheck scripts/*.sh scripts/*/*.sh .ci/run
else
    printf '\nshellcheck is not installed: shell scripts not checked\n'
fi

if cargo deny --version >/dev/null 2>&1; then
    begin "licences and origins of dependencies"
    cargo deny --locked check --hide-inclusion-graph licenses bans sources
else
    printf '\ncargo-deny is not installed: licences and origins of dependencies not checked\n'
fi

begin "help of the scripts"
for each in scripts/*.sh scripts/*/*.sh; do
    # The common part is no program.
    [ "$each" = scripts/lib.sh ] || "$each" --help | grep -q "$each" || die "$each --help does not say how to call it"
done

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
