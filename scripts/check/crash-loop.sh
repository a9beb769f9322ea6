#!/usr/bin/env bash
# Kills merging processes at random moments and goes on each time: scripts/check/crash-loop.sh [N]
#
# N is the number of kills (default 20, SIGKILL each). After every kill all files that already bear their final name
# must equal those of an undisturbed run; when a run ends, the whole folder must. The inputs must not change.
# SIZE=1GB is the size of each of the MODELS=2 inputs; SEED=1 repeats the same random moments. Under target/crash.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

wanted=${1:-20} size=${SIZE:-1GB} models=${MODELS:-2} seed=${SEED:-$$}
work=$target/crash
thalweg=$target/release/thalweg
RANDOM=$seed

fail() { die "$* (everything is left in $work; seed $seed)"; }

build thalweg make-checkpoint
rm -rf "$work"
folders=()
for ((k = 1; k <= models; k++)); do
    "$target/release/make-checkpoint" --out "$work/in-$k" --shape llama-160m --size "$size" \
        --shard-size 100MB --base-seed 1 --seed "$((k + 1))" --noise 0.05
    folders+=("$work/in-$k")
done

merge() {
    exec "$thalweg" merge "${folders[@]}" --shard-size 100MB --memory 512MiB --quiet --out "$1"
}
hash_inputs() { find "${folders[@]}" -type f -print0 | sort -z | xargs -0 b2sum; }
millis() { date +%s%3N; }

inputs_before=$(hash_inputs)
started=$(millis)
(merge "$work/undisturbed") || fail "the undisturbed merge failed"
span=$(($(millis) - started))
printf 'an undisturbed merge takes %d ms\n' "$span"

# Every file under a final name must be whole, whatever the moment of the kill.
check_named() {
    local file name
    while IFS= read -r -d '' file; do
        name=${file#"$work/out/"}
        [ ! -e "$work/undisturbed/$name" ] || cmp "$file" "$work/undisturbed/$name" || fail "$name is damaged after a kill"
    done < <(find "$work/out" -type f -print0 2>/dev/null)
}
check_whole() {
    diff -r "$work/undisturbed" "$work/out" || fail "the result differs from the undisturbed one"
    rm -rf "$work/out"
    finished=$((finished + 1))
}

kills=0 finished=0 resumed=0
while [ "$kills" -lt "$wanted" ]; do
    # Up to 60 % of the whole run, so that most runs need several attempts.
    pause=$((span * 6 * RANDOM / 327670))
    [ ! -d "$work/out" ] || resumed=$((resumed + 1))
    (merge "$work/out") >"$work/log" 2>&1 &
    process=$!
    sleep "$((pause / 1000)).$(printf '%03d' "$((pause % 1000))")"
    kill -KILL "$process" 2>/dev/null || true
    status=0
    # The shell's own word about the killed process belongs in no report.
    wait "$process" 2>/dev/null || status=$?
    case $status in
        137)
            kills=$((kills + 1))
            check_named
            printf 'kill %d after %d ms\n' "$kills" "$pause"
            ;;
        0) check_whole ;;
        *) fail "exit code $status instead of going on: $(cat "$work/log")" ;;
    esac
done

started=$(millis)
(merge "$work/out") || fail "the last run did not go on"
printf 'the last run took %d ms of %d\n' "$(($(millis) - started))" "$span"
check_whole
[ "$inputs_before" = "$(hash_inputs)" ] || fail "an input has changed"
printf 'Done: %d kills, %d runs resumed, %d merges finished, every one with the undisturbed bytes.\n' \
    "$kills" "$resumed" "$finished"
rm -rf "$work"
