"""Trains pairs of MLPs from different seeds, aligns each pair in every way there is, and prints the barriers between them.

Called by digits-barrier.sh and fashion-mnist.sh; Python's own library is all it needs.
"""

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import figures


def run(*args):
    return subprocess.run([str(arg) for arg in args], check=True, stdout=subprocess.PIPE, text=True).stdout


class Pair:
    """Two networks trained from different seeds."""

    def __init__(self, options, width, number):
        self.options = options
        self.folder = options.work / f"{width}-{number}"
        self.models = [self.folder / "a", self.folder / "b"]
        hidden = ",".join([str(width)] * options.layers)
        for model, seed in zip(self.models, (2 * number, 2 * number + 1)):
            run(options.bin / "train-mlp", "--data", options.train, "--hidden", hidden, "--seed", seed,
                "--epochs", options.epochs, "--batch", options.batch, "--rate", options.rate, "--out", model)

    def align(self, name, *more):
        out = self.folder / f"{name}.safetensors"
        run(self.options.bin / "thalweg", "align", *self.models, "--out", out, "--overwrite", "--quiet", *more)
        return out

    def activations(self):
        files = [self.folder / f"activations-{side}.safetensors" for side in "ab"]
        for model, file in zip(self.models, files):
            run(self.options.bin / "thalweg", "activations", model, "--data", self.options.train, "--out", file,
                "--overwrite", "--quiet")
        return files

    def curves(self, name, align):
        """Barrier and accuracy in the middle by the name of the way."""
        out = self.folder / f"curve-{name}"
        text = run(self.options.bin / "thalweg", "interpolate", *self.models, "--align", align, "--data",
                   self.options.test, "--points", 25, "--out", out, "--overwrite", "--json")
        found = json.loads(text)
        result = {}
        for curve in found["curves"]:
            middle = curve["points"][len(curve["points"]) // 2]
            result[curve["name"]] = (found["barriers"][curve["name"]], middle["accuracy"], middle["loss"])
        ends = found["curves"][0]["points"]
        singles = ((ends[0]["loss"] + ends[-1]["loss"]) / 2, (ends[0]["accuracy"] + ends[-1]["accuracy"]) / 2)
        return singles, result

    def measure(self):
        ways = {
            "weights": self.align("weights"),
            "activations": self.align("activations", "--activations", *self.activations()),
            "straight-through": self.align("straight-through", "--straight-through", "--data", self.options.train,
                                           *self.options.descent),
        }
        row = {}
        for name, align in ways.items():
            singles, curves = self.curves(name, align)
            row["singles"], row["naive"] = (0.0, singles[1], singles[0]), curves["naive"]
            row[name], row[f"{name}, Karcher"] = curves["aligned"], curves["aligned, Karcher"]
        return row


COLUMNS = ["singles", "naive", "weights", "weights, Karcher", "activations", "straight-through"]


def mean(rows, column):
    return [sum(row[column][at] for row in rows) / len(rows) for at in range(3)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--widths", type=int, nargs="+", required=True)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--plot", nargs=2, metavar=("WIDTH", "SVG"))
    figures.add_option(parser)
    parser.add_argument("descent", nargs="*", help="flags of align --straight-through, behind --")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    job = f"job: barrier / accuracy in the middle (loss in the middle), means over {options.pairs} pairs"
    figures.describe(options.markdown, job)
    table = figures.Table(["width", *COLUMNS], options.markdown, widths=23)
    for width in options.widths:
        rows = [Pair(options, width, number).measure() for number in range(options.pairs)]
        cells = []
        for column in COLUMNS:
            barrier, accuracy, loss = mean(rows, column)
            barrier = f"{barrier:.3f} / " if column != "singles" else ""
            cells.append(f"{barrier}{accuracy:.3f} ({loss:.3f})")
        table.row(str(width), *cells)
    if options.plot:
        width, plot = options.plot
        Path(plot).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(options.work / f"{width}-0/curve-weights/curve.svg", plot)
        print(f"plot: {plot}, of width {width}")


if __name__ == "__main__":
    main()
