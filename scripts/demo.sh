#!/usr/bin/env bash
# Makes three tiny fine-tunes of one model, merges them with the release binary and verifies the result: scripts/demo.sh
#
# Everything lies under target/demo afterwards, to look at.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

demo=$target/demo

trap 'printf "\nFAILED: the command above did not succeed\n" >&2' ERR
run() {
    printf '$ %s\n' "$*"
    "$@"
}

say "Building thalweg (the first time takes two to three minutes)"
build thalweg make-checkpoint

rm -rf "$demo"
say "Making three fine-tunes of one tiny Llama-shaped model"
run "$target/release/make-checkpoint" --out "$demo/tuned" --shape tiny --shard-size 100KB \
    --base-seed 1 --seed 10 --noise 0.05 --models 3

say "Merging them: the Karcher mean of every tensor"
run "$target/release/thalweg" merge "$demo/tuned/model-1" "$demo/tuned/model-2" "$demo/tuned/model-3" \
    --memory 256MiB --shard-size 100KB --out "$demo/merged"

say "Checking every byte of the result against its recorded hashes"
run "$target/release/thalweg" verify "$demo/merged"

say "The merged model, a Hugging Face folder"
ls -l "$demo/merged"
printf '\nDone: three models merged into %s\n' "$demo/merged"
