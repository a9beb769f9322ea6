#!/usr/bin/env python3
"""Merges the same models by the same recipes with thalweg and mergekit and prints a table of differences.

Called by compare-mergekit.sh with the Python of mergekit's environment. Each recipe is run in the models' own dtype and
once more with `dtype: float64`. The second pair of results tells whether both programs mean the same by a method; the
distance of each program's own result from it tells what its arithmetic loses.
"""

import argparse
import json
import logging
import pathlib
import shutil
import subprocess
import sys

import numpy

import exact
import figures

# Method, its name in the table, models, base, parameters of the merge, weights, what is different on purpose.
CASES = [
    ("linear", "linear", "123", None, {}, [0.2, 0.3, 0.5], ""),
    ("linear", "linear, `normalize: false`", "123", None, {"normalize": False}, [0.2, 0.3, 0.4], ""),
    ("passthrough", "passthrough, `scale: 0.7`", "1", None, {"scale": 0.7}, None, ""),
    ("task_arithmetic", "task_arithmetic", "123", "base", {"lambda": 0.8}, [0.2, 0.3, 0.5], ""),
    ("slerp", "slerp", "12", "tuned-1", {"t": 0.3}, None, "norm layers: mergekit is linear above a cosine of 0.9995"),
    ("slerp", "slerp, close fine-tunes", "ab", "close-1", {"t": 0.3}, None, "the same, here for all tensors"),
    ("nuslerp", "nuslerp", "12", None, {}, [0.3, 0.7], ""),
    ("nuslerp", "nuslerp with a base", "12", "base", {}, [0.3, 0.7], ""),
    ("nuslerp", "nuslerp by rows", "12", None, {"nuslerp_flatten": False}, [0.3, 0.7], ""),
    ("nuslerp", "nuslerp by rows with a base", "12", "base", {"nuslerp_flatten": False}, [0.3, 0.7], ""),
    ("nuslerp", "nuslerp, `nuslerp_row_wise`", "12", None, {"nuslerp_flatten": False, "nuslerp_row_wise": True}, [0.3, 0.7], ""),
    ("multislerp", "multislerp", "123", None, {}, [0.2, 0.3, 0.5], ""),
    ("multislerp", "multislerp with a base", "123", "base", {}, [0.2, 0.3, 0.5], ""),
    ("multislerp", "multislerp, weights as they are", "123", None, {"normalize_weights": False}, [0.2, 0.3, 0.4], ""),
    ("karcher", "karcher", "123", None, {}, None, "mergekit stops at a step of 1e-5"),
    ("karcher", "karcher, `tol: 1e-12, max_iter: 50`", "123", None, {"tol": 1e-12, "max_iter": 50}, None, ""),
    ("model_stock", "model_stock", "123", "base", {}, None, ""),
    ("model_stock", "model_stock, `filter_wise`", "123", "base", {"filter_wise": True}, None, ""),
]
FOLDERS = {"1": "tuned-1", "2": "tuned-2", "3": "tuned-3", "a": "close-1", "b": "close-2"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thalweg", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--sizes", default="tiny,larger")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    compare = Comparison(options)
    figures.describe(True)
    heads = ["method", "both in f64", "thalweg f32", "mergekit f32", "thalweg bf16", "mergekit bf16", ""]
    compare.table = figures.Table(heads, True)
    failed = 0
    for case in CASES:
        if options.only in case[1]:
            failed += compare.row(case)
    sys.exit(1 if failed else 0)


class Comparison:
    def __init__(self, options):
        self.thalweg = options.thalweg
        self.work = pathlib.Path(options.work).resolve()
        self.sizes = options.sizes.split(",")
        self.table = None

    def row(self, case):
        """Prints the largest differences over the sizes of models; 1 when a program refused the recipe."""
        method, name, *_, remark = case
        apart, off = 0.0, {}
        try:
            for size in self.sizes:
                for dtype, full in (("f32", "float32"), ("bf16", "bfloat16")):
                    apart = max(apart, self.measure(case, size, dtype, full, off))
        except Refused as refused:
            self.table.row(name, refused, "", "", "", "", remark)
            return 1
        cells = [off[program, dtype] for dtype in ("f32", "bf16") for program in ("thalweg", "mergekit")]
        self.table.row(name, f"{apart:.1e}", *(f"{value:.1e}" for value in cells), remark)
        return 0

    def measure(self, case, size, dtype, full, off):
        models = self.work / f"{size}-{dtype}"
        outputs = {}
        for precision in (full, "float64"):
            recipe = self.recipe(case, models, precision)
            for run in (self.run_thalweg, self.run_mergekit):
                program = run.__name__.removeprefix("run_")
                outputs[program, precision] = run(recipe, self.work / f"{program}-{precision}")
        apart = difference(outputs["thalweg", "float64"], outputs["mergekit", "float64"])
        for program in ("thalweg", "mergekit"):
            # Each against its own f64 result: what they disagree on by definition is in the first column.
            distance = difference(outputs[program, full], outputs[program, "float64"])
            off[program, dtype] = max(distance, off.get((program, dtype), 0.0))
        for output in self.work.glob("*-float*"):
            shutil.rmtree(output)
        for output in self.work.glob("*-bfloat*"):
            shutil.rmtree(output)
        return apart

    def recipe(self, case, models, precision):
        method, _, inputs, base, parameters, weights, _ = case
        entries = [{"model": str(models / FOLDERS[key])} for key in inputs]
        for entry, weight in zip(entries, weights or []):
            entry["parameters"] = {"weight": weight}
        recipe = {"merge_method": method, "models": entries, "parameters": parameters, "dtype": precision}
        if method == "passthrough":
            del recipe["parameters"]
            entries[0]["parameters"] = parameters
        if base:
            recipe["base_model"] = str(models / base)
        path = self.work / "recipe.yml"
        path.write_text(json.dumps(recipe))
        return path

    def run_thalweg(self, recipe, out):
        command = [self.thalweg, "merge", str(recipe), "--out", str(out), "--quiet", "--memory", "1GiB"]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise Refused("thalweg: " + " ".join(done.stderr.split())[:160])
        return exact.open_tensors(out)

    def run_mergekit(self, recipe, out):
        import yaml
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        config = MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text()))
        run_merge(config, str(out), MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True))
        return exact.open_tensors(out)


class Refused(Exception):
    pass


def difference(one, other):
    """The largest |a - b| / |b| of any tensor."""
    if one.keys() != other.keys():
        raise Refused(f"not the same tensors: {sorted(one.keys() ^ other.keys())[:3]}")
    worst = 0.0
    for name, tensor in one.items():
        ours, theirs = tensor.values(), other[name].values()
        worst = max(worst, numpy.linalg.norm(ours - theirs) / numpy.linalg.norm(theirs))
    return worst


if __name__ == "__main__":
    main()
