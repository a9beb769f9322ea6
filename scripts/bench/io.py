#!/usr/bin/env python3
"""Times merges through memory maps and through positioned reads, by turns. Called by io.sh."""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys

import figures
from machine import LAUNCHER, read_files, weight_files

MEMORY = "1GiB"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    figures.add_option(parser)
    parser.add_argument("program", help="the release binary")
    parser.add_argument("work", help="folder for the outputs")
    parser.add_argument("rounds", type=int)
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    return parser.parse_args()


def merge(program, out, models, way):
    """Seconds and peak of resident memory of one merge."""
    shutil.rmtree(out, ignore_errors=True)
    command = [program, "merge", *models, "--out", out, "--io", way, "--memory", MEMORY, "--quiet"]
    done = subprocess.run([sys.executable, "-c", LAUNCHER, *map(str, command)], check=True, stdout=subprocess.PIPE)
    said = json.loads(done.stdout)
    if said["exit"]:
        sys.exit(f"io: merge ended with {said['exit']}")
    return said["seconds"], said["peak_bytes"]


def main():
    options = arguments()
    files = [file for model in options.models for file in weight_files(model)]
    size = sum(file.stat().st_size for file in files)
    figures.describe(options.markdown, f"job: {len(options.models)} models, {size / 1e9:.1f} GB, --memory {MEMORY}, warm")
    read_files(files)
    ways = {"map": [], "pread": []}
    for _ in range(options.rounds):
        for way, runs in ways.items():
            runs.append(merge(options.program, f"{options.work}/{way}", options.models, way))
    table = figures.Table(["way", "seconds", "GB/s read", "peak MiB"], options.markdown)
    medians = {way: statistics.median(seconds for seconds, _ in runs) for way, runs in ways.items()}
    for way, runs in ways.items():
        peak = max(peak for _, peak in runs) / (1 << 20)
        table.row(way, f"{medians[way]:.2f}", f"{size / medians[way] / 1e9:.2f}", f"{peak:.0f}")
    print(f"\nspeed of positioned reads: {medians['map'] / medians['pread']:.2f} of that of maps")


if __name__ == "__main__":
    main()
