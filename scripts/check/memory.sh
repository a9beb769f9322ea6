#!/usr/bin/env bash
# Merges tensors much larger than the budget and checks the peak of memory: scripts/check/memory.sh [BUDGET]
#
# BUDGET is 256MiB by default. Two and MANY=20 models of one 2 GiB embedding, by tensor, by row, over the model, through
# memory maps, positioned reads and, where zstd is installed, compressed; results that are verified, alone and against
# their inputs; and two networks of 2 GiB are aligned. The inputs are sparse files; the output needs 2 GiB. Everything
# lies under target/memory (or under WORK, which must not be in memory: there a hole that is read takes pages) and is
# removed at the end.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

budget=${1:-256MiB} many=${MANY:-20}
thalweg=$target/release/thalweg

build thalweg
work_in "${WORK:-$target/memory}"

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

# Seconds and the peak in bytes of a command, as the kernel accounts it; its output goes to standard error.
measured() {
    python3 -c 'import os, subprocess, sys, time
begun = time.monotonic()
child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
child.returncode = os.waitstatus_to_exitcode(status)
print(f"{time.monotonic() - begun:.2f}", usage.ru_maxrss * 1024)
sys.exit(child.returncode)' "$@"
}

# Out of the page cache, so that reading means reading from the disk.
forget() {
    sync
    python3 -c 'import os, sys
for path in sys.argv[1:]:
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)' "$work"/out/*.safetensors
}

# Verifies what was merged last: name, and what is behind `verify`.
check_verify() {
    local name=$1 seconds peak reading limit
    limit=$(python3 -c 'import re, sys
number, unit = re.fullmatch(r"([0-9.]+) *([KMG]iB)", sys.argv[1]).groups()
print(int(float(number) * 1024 ** (1 + "KMG".index(unit[0]))))' "$budget")
    shift
    # Twice, since what lies below the disk may have a cache of its own.
    for _ in 1 2; do
        forget
        read -r reading _ < <(measured cat "$work"/out/*.safetensors 2>/dev/null)
    done
    forget
    read -r seconds peak < <(measured "$thalweg" verify "$work/out" --quiet "$@")
    printf '%-28s %5d MiB of %d, %s s; reading the bytes alone %s s\n' \
        "$name" "$((peak >> 20))" "$((limit >> 20))" "$seconds" "$reading"
    [ -n "$peak" ] && [ "$peak" -le "$limit" ] || failed=1
}

all=()
for ((k = 0; k < many; k++)); do all+=("$work/$k"); done
two=("$work/0" "$work/1")
check "2 models, by tensor" "${two[@]}"
check_verify "  verified"
check_verify "  verified against inputs" --sample 1000 --against "${two[@]}" --memory "$budget"
check "2 models, by row" "${two[@]}" --granularity row
check_verify "  verified against inputs" --sample 1000 --against "${two[@]}" --memory "$budget" --granularity row
check "2 models, whole model" "${two[@]}" --granularity model
check_verify "  verified against inputs" --sample 1000 --against "${two[@]}" --memory "$budget" --granularity model
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
[ "$failed" = 0 ] || die "more resident than $budget"
