#!/usr/bin/env bash
# Runs the CUDA backend on a machine that has a device: scripts/check/cuda.sh [--device cuda:N] [--size 2GB] [--models 4]
#
# Compares kernels with the processor's, bit for bit, and their speeds with those of copies; measures products of matrices
# in GFLOP/s (by cuBLAS, where it is installed, and by the kernel of our own); merges a generated model on both and compares
# the bytes; aligns pairs of models on both and compares the maps. Needs cargo, a C compiler and NVIDIA's driver; no toolkit.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

device=cuda
size=2GB
models=4
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || die "$1 needs a value"
    case $1 in
        --device) device=$2 ;;
        --size) size=$2 ;;
        --models) models=$2 ;;
        *) die "unknown argument $1" ;;
    esac
    shift 2
done

work_in "$target/check-cuda"
say "build"
build thalweg make-checkpoint device-speed
thalweg=$target/release/thalweg

say "speeds, and the same bits as the processor"
"$target/release/device-speed" "$device" | tee "$work/speeds"

say "every kernel at every boundary, for every type, on the device"
THALWEG_DEVICE=$device cargo test --release --locked --test it -- device::kernels device::products device::gathers \
    --test-threads 1

say "a generated model, $size, $models times"
"$target/release/make-checkpoint" --out "$work/tuned" --shape llama-1b --size "$size" \
    --base-seed 1 --seed 2 --noise 0.05 --models "$models"
inputs=("$work"/tuned/model-*)

# Prints the seconds that the merge of a kind ($1) takes on a device ($2), and leaves its output.
merge() {
    local begun ended
    begun=$(date +%s%N)
    "$thalweg" merge "${inputs[@]}" --method "$1" --device "$2" --out "$work/$1-${2%%:*}" --quiet >&2
    ended=$(date +%s%N)
    awk "BEGIN { printf \"%.2f\", ($ended - $begun) / 1e9 }"
}

results=()
for method in karcher linear geometric_median; do
    # The first run warms the page cache for both.
    merge "$method" cpu >/dev/null
    rm -rf "$work/$method-cpu"
    on_cpu=$(merge "$method" cpu)
    on_device=$(merge "$method" "$device")
    diff -r "$work/$method-cpu" "$work/$method-${device%%:*}" >/dev/null || die "$method: other bytes than on the cpu"
    results+=("$(printf '%-18s %10s %10s   same bytes' "$method" "$on_cpu" "$on_device")")
    rm -rf "$work/$method-cpu" "$work/$method-${device%%:*}"
done

say "pairs of models aligned on both"
"$target/release/make-checkpoint" --out "$work/other" --shape llama-1b --size "$size" --base-seed 3 --seed 4

# Prints the seconds that aligning a model ($1) with the first one takes on a device ($2), and leaves the map ($3).
align() {
    local begun ended
    begun=$(date +%s%N)
    "$thalweg" align "${inputs[0]}" "$1" --device "$2" --out "$3" >"$3.report"
    ended=$(date +%s%N)
    awk "BEGIN { printf \"%.2f\", ($ended - $begun) / 1e9 }"
}

# Prints the tensors of a map: all that lies behind its header.
tensors() {
    tail -c "+$(($(od -An -t u8 -N 8 "$1") + 9))" "$1"
}

for pair in tuned unrelated; do
    model=${inputs[1]}
    [ $pair = tuned ] || model=$(dirname "$(find "$work/other" -name config.json | head -n 1)")
    on_cpu=$(align "$model" cpu "$work/$pair-cpu.safetensors")
    on_device=$(align "$model" "$device" "$work/$pair-device.safetensors")
    grep -h '^objective\|^computed' "$work/$pair"-*.report
    tensors "$work/$pair-cpu.safetensors" >"$work/cpu.map"
    tensors "$work/$pair-device.safetensors" >"$work/device.map"
    if cmp -s "$work/cpu.map" "$work/device.map"; then
        same='same map'
    elif [ $pair = tuned ]; then
        die "models of one ancestor: another map than on the cpu"
    else
        # Two orders of units may be equally good to within rounding.
        same='another map'
    fi
    results+=("$(printf '%-18s %10s %10s   %s' "align $pair" "$on_cpu" "$on_device" "$same")")
done

say "result"
cat "$work/speeds"
printf '\n%-18s %10s %10s\n' "merges of $models" "cpu, s" "$device, s"
printf '%s\n' "${results[@]}"
