#!/usr/bin/env python3
"""Times thalweg and mergekit on the same models by turns, beside what the machine can do with the same bytes.

Called by peers.sh with the Python of mergekit's environment; needs numpy. A round measures every line once, after
dropping the page cache and again with it warm, each program in turn; medians are printed. mergekit does not sync what it
writes; thalweg does, and its time includes that.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import statistics
import sys

import exact
import figures
from machine import drop_from_cache, read_files, timed, weight_files
from traffic import copy_same_traffic, launch, read_by_threads, timed_writing, write_direct

METHODS = {"karcher": 3, "linear": 3, "slerp": 2}


def main():
    options = arguments()
    bench = Bench(options)
    models = f"models: {len(bench.three)} x {bench.bytes_of(1) / 1e9:.2f} GB, {len(bench.twenty)} at once for the last lines"
    load = f"load: {os.getloadavg()[0]:.1f} processes were running before the first line"
    figures.describe(options.markdown, models, load)
    lines, states = bench.lines(), options.states.split(",")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("peers: stopped; the table has what was measured"))
    try:
        for number in range(options.runs):
            for state in states:
                for line in lines:
                    line.measure(bench, state)
                    print(f"  round {number + 1}/{options.runs} {state:4} {line.progress(state)}", flush=True)
    finally:
        whole = [line for line in lines if all(state in line.measured for state in states)]
        table(whole, states, options.markdown)
        relations(whole, states)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("thalweg", "mergekit", "three", "twenty", "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--states", default="cold,warm")
    parser.add_argument("--memory", default="1GiB", help="thalweg's budget beside mergekit")
    parser.add_argument("--only", help="lines whose names contain this")
    parser.add_argument("--check", default=str(1 << 25), help="compare tensors of up to so many elements; 0: none")
    parser.add_argument("--mergekit-option", action="append", default=[], help="handed on to mergekit-yaml")
    figures.add_option(parser)
    return parser.parse_args()


@dataclasses.dataclass
class Line:
    """One line of the table: an action that returns what was measured, and the bytes that it has to move."""

    name: str
    action: object
    inputs: list
    moved: int
    check: tuple = None
    measured: dict = dataclasses.field(default_factory=dict)
    agreement: object = None

    def measure(self, bench, state):
        os.sync()
        files = [path for model in self.inputs for path in weight_files(model)]
        read_files(files) if state == "warm" else drop_from_cache(files)
        self.measured.setdefault(state, []).append(self.action())
        if self.check and self.agreement is None and bench.check_up_to:
            self.agreement = bench.compare(*self.check)
        shutil.rmtree(bench.output, ignore_errors=True)

    def progress(self, state):
        last = self.measured[state][-1]
        text = f"{self.name:34} {last['seconds']:8.2f} s"
        if "peak_bytes" in last:
            text += f", {last['cpu_seconds']:6.1f} s of processor, {last['peak_bytes'] / 2**20:6.0f} MiB"
        return text

    def median(self, state, what="seconds"):
        return statistics.median(run[what] for run in self.measured[state])

    def agreement_cells(self):
        found = self.agreement
        if not found:
            return ["", "", ""]
        return [f"{100 * found.share():.2f}%", f"{found.relative_error():.2e}", f"{found.relative_floor():.2e}"]

    def peak(self):
        return max(run.get("peak_bytes", 0) for runs in self.measured.values() for run in runs)


class Bench:
    def __init__(self, options):
        self.options = options
        self.work = pathlib.Path(options.work)
        self.output = self.work / "merged"
        self.check_up_to = int(options.check)
        self.three, self.twenty = (sorted(pathlib.Path(top).glob("model-*")) for top in (options.three, options.twenty))
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)

    def bytes_of(self, count):
        return sum(path.stat().st_size for model in self.three[:count] for path in weight_files(model))

    def lines(self):
        one, three = self.bytes_of(1), self.bytes_of(3)
        plain = [
            Line("read, one after the other", lambda: self.read(self.three, 1), self.three, three),
            Line("read, 2 threads", lambda: self.read(self.three), self.three, three),
            Line("write, direct", self.write, self.three, one),
            Line("copy of the same traffic", self.copy, self.three, three + one),
        ]
        merges = []
        for method, count in METHODS.items():
            inputs, moved = self.three[:count], self.bytes_of(count) + one
            for program, run in (("thalweg", self.thalweg), ("mergekit", self.mergekit)):
                action = lambda run=run, method=method, inputs=inputs: run(method, inputs)  # noqa: E731
                merges.append(Line(f"{method} of {count}, {program}", action, inputs, moved, (method, inputs)))
        lines = plain + merges + self.own_lines(one, three)
        return [line for line in lines if (self.options.only or "") in line.name]

    def own_lines(self, one, three):
        """thalweg alone: Karcher of as many models as slerp takes, the budget's effect, and many models at once."""
        total = sum(path.stat().st_size for model in self.twenty for path in weight_files(model))
        pair = self.three[:2]
        lines = [Line("karcher of 2, thalweg", lambda: self.thalweg("karcher", pair), pair, self.bytes_of(2) + one)]
        lines += [
            Line(f"karcher of 3 in {memory}", lambda m=memory: self.thalweg("karcher", self.three, m), self.three, three + one)
            for memory in ("256MiB", "4GiB")
        ]
        lines.append(Line("read of 20, 2 threads", lambda: self.read(self.twenty), self.twenty, total))
        merge = Line("karcher of 20", lambda: self.thalweg("karcher", self.twenty), self.twenty, total + total // 20)
        return [*lines, merge]

    def thalweg(self, method, inputs, memory=None):
        command = [self.options.thalweg, "merge", self.recipe(method, inputs), "--out", str(self.output), "--quiet"]
        return launch([*command, "--memory", memory or self.options.memory])

    def mergekit(self, method, inputs):
        command = [self.options.mergekit, self.recipe(method, inputs), str(self.output), "--no-copy-tokenizer", "--quiet"]
        return launch([*command, *self.options.mergekit_option])

    def recipe(self, method, inputs):
        """The same file for both: what it does not say has the same default in both, or was found to converge alike."""
        recipe = {"merge_method": method, "models": [{"model": str(path.resolve())} for path in inputs]}
        if method == "linear":
            recipe["parameters"] = {"weight": 1.0}
        if method == "slerp":
            recipe |= {"base_model": str(inputs[0].resolve()), "parameters": {"t": 0.5}}
        path = self.work / f"{method}.yml"
        path.write_text(json.dumps(recipe | {"dtype": "bfloat16"}))
        return str(path)

    def read(self, models, threads=2):
        return {"seconds": timed(lambda: read_by_threads(models, threads))}

    def write(self):
        path = self.work / "written"
        return {"seconds": timed_writing(path, lambda: write_direct(path, self.bytes_of(1)))}

    def copy(self):
        return {"seconds": copy_same_traffic(self.three, self.work / "written", self.bytes_of(1))}

    def compare(self, method, inputs):
        """The output that lies there against the exact result, over tensors that are not too large for numpy."""
        merged = exact.open_tensors(self.output)
        models = [exact.open_tensors(path) for path in inputs]
        agreement = exact.Agreement()
        for name, seen in self.sample(merged).items():
            for part, values in exact.METHODS[method]([model[name] for model in models]):
                agreement.add(seen, part, values)
        return agreement

    def sample(self, merged):
        """Each kind of tensor of the first and the last layer, and what lies outside the layers."""
        layers = {int(name.split(".layers.")[1].split(".")[0]) for name in merged if ".layers." in name}
        wanted = {f".layers.{layer}." for layer in (min(layers), max(layers))}
        return {
            name: tensor
            for name, tensor in sorted(merged.items())
            if (".layers." not in name or any(part in name for part in wanted)) and len(tensor) <= self.check_up_to
        }


def table(lines, states, markdown):
    """One line each: times, how many times longer than thalweg's line above it, processor, memory, agreement."""
    heads = [head for state in states for head in (f"{state} s", "GB/s")] + [f"x {state}" for state in states]
    shown = figures.Table(["", *heads, "cpu s", "peak MiB", "exact", "error", "floor"], markdown, first=34)
    reference = None
    for line in lines:
        if "mergekit" not in line.name:
            reference = line
        cells = []
        for state in states:
            cells += [f"{line.median(state):.2f}", f"{line.moved / 1e9 / line.median(state):.2f}"]
        same = "mergekit" in line.name and reference.name.split(",")[0] == line.name.split(",")[0]
        cells += [f"{line.median(state) / reference.median(state):.1f}" if same else "" for state in states]
        ran = [f"{line.median(states[-1], 'cpu_seconds'):.1f}", f"{line.peak() / 2**20:.0f}"]
        cells += ran if line.peak() else ["", ""]
        shown.row(line.name, *cells, *line.agreement_cells())


def relations(lines, states):
    by_name = {line.name: line for line in lines}
    pairs = [
        ("karcher of 3, thalweg", "read, one after the other"),
        ("karcher of 3, thalweg", "read, 2 threads"),
        ("karcher of 3, thalweg", "copy of the same traffic"),
        ("linear of 3, thalweg", "karcher of 3, thalweg"),
        ("slerp of 2, thalweg", "karcher of 2, thalweg"),
        ("karcher of 3 in 256MiB", "karcher of 3 in 4GiB"),
        ("karcher of 20", "read of 20, 2 threads"),
    ]
    print()
    for one, other in pairs:
        if one in by_name and other in by_name:
            ratios = ", ".join(
                f"{state} {by_name[one].median(state) / by_name[other].median(state):.2f}" for state in states
            )
            print(f"{one} / {other}: {ratios}")


if __name__ == "__main__":
    main()
