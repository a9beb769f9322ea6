#!/usr/bin/env python3
"""Merges two 70B-shaped models part by part, where the disk cannot hold them whole; called by scale.sh."""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

import figures
from machine import bytes_of, drop_from_cache, timed, weight_files
from traffic import copy_same_traffic, launch

LAYERS = 80
# The byte-level tokenizer's own tokens: 4 MB in a part that should have no embedding.
SMALLEST_VOCABULARY = 258


def main():
    options = arguments()
    scale = Scale(options)
    parts = scale.parts()
    wanted = parts[: options.parts or None]
    job = f"job: {len(wanted)} of {len(parts)} parts, one after the other; budgets {', '.join(scale.budgets)}"
    figures.describe(options.markdown, job)
    for number, (vocabulary, layers) in enumerate(wanted):
        scale.part(number, vocabulary, layers)
        print(f"part {number + 1:3}/{len(wanted)}: {scale.line(-1)}", flush=True)
    scale.totals()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("thalweg", "generator", "work", "budgets"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--layers", type=int, default=2, help="layers of a part")
    parser.add_argument("--parts", type=int, default=0, help="stop after so many; 0: all")
    figures.add_option(parser)
    return parser.parse_args()


class Scale:
    def __init__(self, options):
        self.options = options
        self.work = pathlib.Path(options.work)
        self.budgets = options.budgets.split()
        self.done = []

    def parts(self):
        """Vocabulary and layers of each part. The last two hold one layer and a matrix of the embedding's size each."""
        parts, left = [], LAYERS - 2
        while left:
            layers = min(left, self.options.layers)
            parts.append((SMALLEST_VOCABULARY, layers))
            left -= layers
        return [*parts, (None, 1), (None, 1)]

    def part(self, number, vocabulary, layers):
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        command = [
            self.options.generator, "--out", str(self.work / "in"), "--models", "2", "--shape", "llama-70b",
            "--layers", str(layers), "--tied", "true", "--base-seed", str(1000 + number), "--seed", str(1 + 2 * number), "--noise", "0.05",
        ]
        if vocabulary:
            command += ["--vocab", str(vocabulary)]
        made = timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))
        models = sorted((self.work / "in").iterdir())
        found = {"made": made, "moved": 3 * total(models[0]), "merges": {}}
        for budget in self.budgets:
            self.cold(models)
            found["merges"][budget] = self.merge(models, budget)
        self.cold(models)
        found["copy"] = copy_same_traffic(models, self.work / "written", total(models[0]))
        shutil.rmtree(self.work)
        self.done.append(found)

    def cold(self, models):
        os.sync()
        drop_from_cache([path for model in models for path in weight_files(model)])

    def merge(self, models, budget):
        out = self.work / "merged"
        command = [self.options.thalweg, "merge", *map(str, models), "--out", str(out), "--memory", budget, "--quiet"]
        measured = launch(command)
        if measured["peak_bytes"] > bytes_of(budget):
            sys.exit(f"scale: {measured['peak_bytes'] / 2**20:.0f} MiB resident with a budget of {budget}")
        subprocess.run([self.options.thalweg, "verify", "--quiet", str(out)], check=True)
        self.same_as_before(out)
        return measured

    def same_as_before(self, out):
        """The first budget's result is kept as its hashes; the others must have the same."""
        tensors = json.loads((out / "thalweg.json").read_text())["tensors"]
        kept = self.work / "tensors.json"
        if kept.exists() and json.loads(kept.read_text()) != tensors:
            sys.exit("scale: another budget gave another result")
        kept.write_text(json.dumps(tensors))
        shutil.rmtree(out)

    def line(self, at):
        found = self.done[at]
        return ", ".join([
            f"{found['moved'] / 1e9:5.1f} GB",
            *(f"{budget} {one['seconds']:6.2f} s {one['peak_bytes'] / 2**20:5.0f} MiB" for budget, one in found["merges"].items()),
            f"copy {found['copy']:6.2f} s",
        ])

    def totals(self):
        moved = sum(found["moved"] for found in self.done)
        copied = sum(found["copy"] for found in self.done)
        heads = ["", "GB moved", "seconds", "GB/s", "/ copy", "cpu s", "peak MiB"]
        shown = figures.Table(heads, self.options.markdown)
        for budget in self.budgets:
            merges = [found["merges"][budget] for found in self.done]
            seconds, cpu = (sum(one[key] for one in merges) for key in ("seconds", "cpu_seconds"))
            peak = max(one["peak_bytes"] for one in merges) / 2**20
            rates = (f"{moved / 1e9 / seconds:.2f}", f"{seconds / copied:.2f}")
            shown.row(budget, f"{moved / 1e9:.1f}", f"{seconds:.1f}", *rates, f"{cpu:.1f}", f"{peak:.0f}")
        shown.row("copy", f"{moved / 1e9:.1f}", f"{copied:.1f}", f"{moved / 1e9 / copied:.2f}", "", "", "")
        made = sum(found["made"] for found in self.done)
        print(f"\nEvery part was verified, and all budgets gave the same bytes. Making the parts took {made:.0f} s.")


def total(model):
    return sum(path.stat().st_size for path in weight_files(model))


if __name__ == "__main__":
    main()
