#!/usr/bin/env bash
# Merges tensors much larger than the budget and looks at the memory: scripts/check-memory.sh [BUDGET]
#
# BUDGET is 256MiB by default. Two and MANY=20 models of one 2 GiB embedding, by tensor, by row, over the model, through
# memory maps, positioned reads and, where zstd is installed, compressed. The inputs are sparse files; the output needs
# 2 GiB. Everything lies under target/memory (or under WORK, which must not be in memory: there a hole that is read takes
# pages) and is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
    -h | --help)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
        exit 0
        ;;
esac
budget=${1:-256MiB} many=${MANY:-20}
target=${CARGO_TARGET_DIR:-target}
work=${WORK:-$target/memory}
thalweg=$target/release/thalweg

cargo build --release --locked --bin thalweg
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# Some kilobytes of values in every mebibyte; between them the file is a hole.
python3 - "$work" "$many" <<'PYTHON'
import json, os, random, struct, sys

work, many = sys.argv[1], int(sys.argv[2])
rows, columns = 131072, 8192
for number in range(many):
    os.makedirs(f"{work}/{number}")
    size = 2 * rows * columns
    place = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, size]}
    header = json.dumps({"model.embed_tokens.weight": place}).encode()
    header += b" " * (-len(header) % 8)
    draw = random.Random(number)
    with open(f"{work}/{number}/model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        start = file.tell()
        file.truncate(start + size)
        for at in range(start, start + size, 1 << 20):
            file.seek(at)
            file.write(bytes(draw.randrange(256) if i % 2 == 0 else draw.choice((0x3D, 0xBD)) for i in range(4096)))
PYTHON

failed=0
check() {
    local name=$1 report peak limit
    shift
    rm -rf "$work/out"
    report=$("$thalweg" merge --out "$work/out" --memory "$budget" --quiet --json "$@")
    read -r peak limit < <(python3 -c 'import json, sys
report = json.loads(sys.argv[1])
print(report["peak_resident_bytes"], report["memory_limit_bytes"])' "$report")
    printf '%-28s %5d MiB of %d\n' "$name" "$((peak >> 20))" "$((limit >> 20))"
    [ "$peak" -le "$limit" ] || failed=1
}

all=()
for ((k = 0; k < many; k++)); do all+=("$work/$k"); done
two=("$work/0" "$work/1")
check "2 models, by tensor" "${two[@]}"
check "2 models, by row" "${two[@]}" --granularity row
check "2 models, whole model" "${two[@]}" --granularity model
check "2 models, positioned reads" "${two[@]}" --io pread
check "$many models, by tensor" "${all[@]}"
check "$many models, by row" "${all[@]}" --granularity row
check "$many models, whole model" "${all[@]}" --granularity model
if command -v zstd >/dev/null; then
    for k in 0 1; do
        zstd -q -1 --rm "$work/$k/model.safetensors" -o "$work/$k/model.safetensors.zst"
    done
    check "2 models, zstd" "${two[@]}"
else
    echo "zstd is not installed: compressed models not checked here"
fi
[ "$failed" = 0 ] || { echo "check-memory: more resident than $budget" >&2; exit 1; }
