"""Measures the memory that many small tensors take; called by tensors.sh."""

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys

import figures
from machine import bytes_of

SHAPE, EXPERTS = [4, 4], 512


def name(number):
    layer, expert = divmod(number, EXPERTS)
    return f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"


def write(folder, count, seed):
    os.makedirs(folder)
    size = 2 * SHAPE[0] * SHAPE[1]
    entry = {"dtype": "BF16", "shape": SHAPE}
    header = {name(i): entry | {"data_offsets": [size * i, size * (i + 1)]} for i in range(count)}
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    draw = random.Random(seed)
    with open(f"{folder}/model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        low = draw.randbytes(size * count // 2)
        sign = bytes(0x3D | (byte & 0x80) for byte in draw.randbytes(size * count // 2))
        file.write(bytes(byte for pair in zip(low, sign) for byte in pair))
    with open(f"{folder}/config.json", "w") as file:
        json.dump({"model_type": "llama", "hidden_size": 64}, file)


def peak(command):
    """The most resident bytes of a command, which must succeed; None when its memory was too small."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    words = child.stderr.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode == 2 and "memory is too small" in words:
        return None, words.strip().splitlines()[-1].strip()
    if child.returncode:
        sys.exit(f"{' '.join(command)}: {words}")
    return usage.ru_maxrss * 1024, ""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    figures.add_option(parser)
    parser.add_argument("program", help="the release binary")
    parser.add_argument("work", help="folder for models and outputs")
    parser.add_argument("models", type=int)
    parser.add_argument("budget", help="such as 256MiB")
    parser.add_argument("counts", type=int, nargs="+", help="tensors of each model")
    return parser.parse_args()


def main():
    options = arguments()
    program, work, budget = options.program, options.work, options.budget
    limit, failed, notes = bytes_of(budget), False, []
    figures.describe(options.markdown, f"job: {options.models} models, --memory {budget}; peak resident MiB")
    table = figures.Table(["tensors", "plan", "merge", "model", "verify"], options.markdown)
    for count in options.counts:
        shutil.rmtree(work, ignore_errors=True)
        try:
            inputs = [f"{work}/{number}" for number in range(options.models)]
            for number, folder in enumerate(inputs):
                write(folder, count, number)
            out = ["--out", f"{work}/out", "--memory", budget]
            merge = [program, "merge", *inputs, *out, "--quiet"]
            runs = [
                [program, "plan", *inputs, *out],
                merge,
                [*merge, "--overwrite", "--granularity", "model"],
                [program, "verify", f"{work}/out", "--memory", budget, "--quiet"],
            ]
            cells, said = [], []
            for run in runs:
                bytes_, words = peak(run)
                said += [words] if words else []
                failed |= bytes_ is not None and bytes_ > limit
                cells.append(f"{bytes_ / (1 << 20):.0f}" if bytes_ else "refused")
                if bytes_ is None:
                    break
            cells += [""] * (len(runs) - len(cells))
            table.row(f"{count}", *cells)
            notes += [f"{count} tensors: {words}" for words in said]
        finally:
            shutil.rmtree(work, ignore_errors=True)
    for note in notes:
        print(note)
    if failed:
        sys.exit(f"tensors: more resident than {budget}")


if __name__ == "__main__":
    main()
