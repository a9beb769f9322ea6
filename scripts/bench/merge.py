#!/usr/bin/env python3
"""Times thalweg merge beside what the machine can do with the same bytes, in one run and by turns.

Called by merge.sh and big-run.sh. Each round measures, after dropping the page cache and again with it warm:
sequential reading of all inputs, writing and syncing a file as large as the output, a plain copy of the same traffic
(cp of one model while the others are read, then sync) and the merge itself. Needs nothing but Python.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import threading

import figures
from machine import (
    BUFFER_BYTES, LAUNCHER, available_memory, bytes_of, drop_from_cache, read_files, timed, weight_files,
)


def main():
    options = arguments()
    bench = Bench(options)
    states = options.states.split(",")
    if "warm" in states and bench.input_bytes + bench.output_bytes > 0.8 * available_memory():
        print("The models do not fit the page cache: only cold runs.")
        states.remove("warm")
    describe(bench, states, options.markdown)
    times = {}
    for number in range(options.runs):
        for state in states:
            for name, action, _ in bench.steps():
                bench.prepare(state)
                seconds = action()
                times.setdefault((state, name), []).append(seconds)
                print(f"  round {number + 1}/{options.runs} {state:4} {name:7} {seconds:8.2f} s", flush=True)
    for state in states:
        table(bench, state, times, options.markdown)
    ok = memory_line(bench, options.memory)
    verify(bench)
    sys.exit(0 if ok else 1)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thalweg", required=True, help="the release binary")
    parser.add_argument("--work", required=True, help="folder for outputs, on the disk of the inputs")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--states", default="cold,warm")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--merge-option", action="append", default=[], help="handed on to thalweg merge")
    figures.add_option(parser)
    parser.add_argument("models", nargs="+")
    return parser.parse_args()


class Bench:
    def __init__(self, options):
        self.thalweg = options.thalweg
        self.models = [pathlib.Path(model) for model in options.models]
        self.work = pathlib.Path(options.work)
        self.output = self.work / "merged"
        self.merge_command = [
            self.thalweg, "merge", *options.models, "--memory", options.memory, "--quiet", "--out", str(self.output),
            *options.merge_option,
        ]
        self.inputs = [weight_files(model) for model in self.models]
        self.input_bytes = sum(path.stat().st_size for files in self.inputs for path in files)
        self.output_bytes = sum(path.stat().st_size for path in self.inputs[0])
        self.peak_bytes = 0
        self.cpu_seconds = []
        self.work.mkdir(parents=True, exist_ok=True)

    def steps(self):
        """What a round measures: name, action, bytes read and written."""
        return [
            ("read", self.read, self.input_bytes),
            ("write", self.write, self.output_bytes),
            ("memcpy", self.memcpy, 2 * self.output_bytes),
            ("copy", self.copy, self.input_bytes + self.output_bytes),
            ("merge", self.merge, self.input_bytes + self.output_bytes),
        ]

    def prepare(self, state):
        """Leaves no unwritten data behind, and the inputs out of the page cache or in it."""
        os.sync()
        files = [path for files in self.inputs for path in files]
        if state == "warm":
            read_files(files)
            return
        drop_from_cache(files)

    def read(self):
        return timed(lambda: read_files(path for files in self.inputs for path in files))

    def write(self):
        path = self.work / "written"
        block = os.urandom(BUFFER_BYTES)

        def action():
            with open(path, "xb", buffering=0) as file:
                os.posix_fallocate(file.fileno(), 0, self.output_bytes)
                left = self.output_bytes
                while left:
                    left -= file.write(block[: min(left, len(block))])
                os.fsync(file.fileno())

        seconds = timed(action)
        path.unlink()
        return seconds

    def memcpy(self):
        """Scaled from a piece that is far larger than the processor's caches."""
        length = min(self.output_bytes, 512 << 20)
        source, target = bytearray(os.urandom(1 << 20)) * (-(-length >> 20)), bytearray(length)
        view = memoryview(source)[:length]
        target[:] = view

        def action():
            memoryview(target)[:] = view

        return timed(action) * self.output_bytes / length

    def copy(self):
        target = self.work / "copied"

        def action():
            others = [path for files in self.inputs[1:] for path in files]
            reader = threading.Thread(target=read_files, args=(others,))
            reader.start()
            subprocess.run(["cp", "-r", "-L", str(self.models[0]), str(target)], check=True)
            for path in weight_files(target):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            reader.join()

        seconds = timed(action)
        shutil.rmtree(target)
        return seconds

    def merge(self):
        shutil.rmtree(self.output, ignore_errors=True)
        launcher = subprocess.run(
            [sys.executable, "-c", LAUNCHER, *self.merge_command], stdout=subprocess.PIPE, text=True, check=True
        )
        measured = json.loads(launcher.stdout)
        if measured["exit"] != 0:
            sys.exit(f"bench: merge ended with exit code {measured['exit']}: {' '.join(self.merge_command)}")
        self.peak_bytes = max(self.peak_bytes, measured["peak_bytes"])
        self.cpu_seconds.append(measured["cpu_seconds"])
        return measured["seconds"]


def describe(bench, states, markdown):
    models, read, written = len(bench.models), bench.input_bytes / 1e9, bench.output_bytes / 1e9
    figures.describe(markdown, f"job: {models} models, {read:.2f} GB in, about {written:.2f} GB out")
    print(f"merge:   {' '.join(bench.merge_command)}")
    if "cold" in states and os.geteuid() != 0:
        print("note:    not root, so cold means that the inputs alone were dropped from the page cache")


def table(bench, state, times, markdown):
    copy = statistics.median(times[state, "copy"])
    shown = figures.Table([state, "GB moved", "median s", "least s", "most s", "GB/s", "/ copy"], markdown)
    for name, _, moved in bench.steps():
        seconds = times[state, name]
        median = statistics.median(seconds)
        ratio = f"{median / copy:.2f}" if name == "merge" else ""
        measured = (moved / 1e9, median, min(seconds), max(seconds), moved / 1e9 / median)
        shown.row(name, *(f"{value:.2f}" for value in measured), ratio)


def memory_line(bench, memory):
    budget = bytes_of(memory)
    within = bench.peak_bytes <= budget
    print(
        f"\nmerge: peak resident memory {bench.peak_bytes / 2**20:.0f} MiB of {budget / 2**20:.0f} MiB allowed"
        f"{'' if within else ': TOO MUCH'}; processor time {statistics.median(bench.cpu_seconds):.1f} s"
    )
    return within


def verify(bench):
    command = [bench.thalweg, "verify", str(bench.output)]
    seconds = timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))
    print(f"verify: the output is whole ({seconds:.1f} s)")
    shutil.rmtree(bench.output)


if __name__ == "__main__":
    main()
