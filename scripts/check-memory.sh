#!/usr/bin/env bash
# Merges tensors much larger than the budget and looks at the memory: scripts/check-memory.sh [BUDGET]
#
# BUDGET is 256MiB by default. Two and MANY=20 models of one 2 GiB embedding, by tensor, by row, over the model, through
# memory maps, positioned reads and, where zstd is installed, compressed; and two networks of 2 GiB are aligned. The inputs
# are sparse files; the output needs 2 GiB. Everything lies under target/memory (or under WORK, which must not be in
# memory: there a hole that is read takes pages) and is removed at the end.
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


def model(name, seed, shapes):
    os.makedirs(f"{work}/{name}")
    header, size = {}, 0
    for tensor, (rows, columns) in shapes.items():
        end = size + 2 * rows * columns
        header[tensor] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [size, end]}
        size = end
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    draw = random.Random(seed)
    with open(f"{work}/{name}/model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        start = file.tell()
        file.truncate(start + size)
        for at in range(start, start + size, 1 << 20):
            file.seek(at)
            length = min(4096, start + size - at)
            file.write(bytes(draw.randrange(256) if i % 2 == 0 else draw.choice((0x3D, 0xBD)) for i in range(length)))


for number in range(many):
    model(number, number, {"model.embed_tokens.weight": (131072, 8192)})
for number in range(2):
    model(f"net-{number}", many + number, {"layers.0.weight": (128, 8388608), "layers.1.weight": (10, 128)})
PYTHON

failed=0
check() {
    local name=$1
    shift
    rm -rf "$work/out"
    within "$name" merge --out "$work/out" "$@"
}
within() {
    local name=$1 report peak limit
    shift
    report=$("$thalweg" "$@" --memory "$budget" --quiet --json)
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
within "2 networks, aligned" align "$work/net-0" "$work/net-1" --out "$work/perms.safetensors"
if command -v zstd >/dev/null; then
    for k in 0 1; do
        zstd -q -1 --rm "$work/$k/model.safetensors" -o "$work/$k/model.safetensors.zst"
    done
    check "2 models, zstd" "${two[@]}"
else
    echo "zstd is not installed: compressed models not checked here"
fi
[ "$failed" = 0 ] || { echo "check-memory: more resident than $budget" >&2; exit 1; }
