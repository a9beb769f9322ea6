#!/usr/bin/env python3
"""Times merge methods by turns, beside linear, karcher and a plain copy. Called by methods.sh."""

import argparse
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import figures
from machine import LAUNCHER, read_files, weight_files

PARAMETERS = {
    "linear": {"weight": 0.5},
    "karcher": {},
    "task_arithmetic": {"weight": 0.5},
    "dare_linear": {"weight": 0.5, "density": 0.4, "rescale": False},
    "dare_ties": {"weight": 0.5, "density": 0.4},
    "ram": {},
    "ramplus_tl": {},
    "nearswap": {"t": 0.0005},
    "consensus_ta": {"weight": 0.5},
    "ties": {"weight": 0.5, "density": 0.4},
    "breadcrumbs_ties": {"weight": 0.5, "density": 0.4},
    "sce": {"select_topk": 0.4},
    "della": {"weight": 0.5, "density": 0.4},
    "arcee_fusion": {},
}
# Methods of one model besides the base.
ALONE = {"nearswap", "arcee_fusion"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    figures.add_option(parser)
    parser.add_argument("--memory", default="1GiB", help="the limit of each merge")
    parser.add_argument("program", help="the release binary")
    parser.add_argument("work", type=pathlib.Path, help="folder for recipes and outputs")
    parser.add_argument("rounds", type=int)
    parser.add_argument("inputs", type=pathlib.Path, help="folder of the models base, 1, 2 and 3")
    parser.add_argument("methods", nargs="*", help="all by default")
    return parser.parse_args()


def recipe(method, inputs):
    """The recipe of a method; linear, karcher and the copy read as many models as the others."""
    models = ["1"] if method in ALONE else ["1", "2", "3"]
    said = {"merge_method": method, "parameters": PARAMETERS[method]}
    if method in ("linear", "karcher"):
        models = ["base", *models]
    else:
        said["base_model"] = str(inputs / "base")
    said["models"] = [{"model": str(inputs / model)} for model in models]
    return said


def merge(options, method):
    """Seconds, processor seconds and peak of resident memory of one merge."""
    path = options.work / f"{method}.json"
    path.write_text(json.dumps(recipe(method, options.inputs)))
    out = options.work / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [options.program, "merge", path, "--out", out, "--memory", options.memory, "--quiet"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", LAUNCHER, *map(str, command)], check=True, stdout=subprocess.PIPE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = json.loads(done.stdout)
    if said["exit"]:
        sys.exit(f"methods: {method} ended with {said['exit']}")
    used = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return said["seconds"], used, said["peak_bytes"]


def copy(options):
    """Seconds of reading four models and writing one."""
    begun = time.monotonic()
    read_files([file for model in ("1", "2", "3") for file in weight_files(options.inputs / model)])
    for file in weight_files(options.inputs / "base"):
        shutil.copyfile(file, options.work / "copied")
    seconds = time.monotonic() - begun
    (options.work / "copied").unlink()
    return seconds


def main():
    options = arguments()
    methods = options.methods or list(PARAMETERS)
    for needed in ("karcher", "linear"):
        if needed not in methods:
            methods.insert(0, needed)
    files = [file for model in ("base", "1", "2", "3") for file in weight_files(options.inputs / model)]
    size = sum(file.stat().st_size for file in files)
    job = f"job: a base and three fine-tunes, {size / 1e9:.1f} GB, --memory {options.memory}, warm"
    figures.describe(options.markdown, job)
    read_files(files)
    runs, copies = {method: [] for method in methods}, []
    for _ in range(options.rounds):
        copies.append(copy(options))
        for method in methods:
            runs[method].append(merge(options, method))
    heads = ["method", "seconds", "CPU s", "to linear", "CPU to linear", "to karcher", "CPU to karcher", "peak MiB"]
    table = figures.Table(heads, options.markdown)
    wall = {method: min(seconds for seconds, _, _ in of) for method, of in runs.items()}
    used = {method: min(cpu for _, cpu, _ in of) for method, of in runs.items()}
    for method, of in runs.items():
        peak = max(peak for _, _, peak in of) / (1 << 20)
        ratios = [
            f"{figure[method] / figure[beside]:.2f}" for beside in ("linear", "karcher") for figure in (wall, used)
        ]
        table.row(method, f"{wall[method]:.2f}", f"{used[method]:.2f}", *ratios, f"{peak:.0f}")
    print(f"\nreading three models and copying one: {min(copies):.2f} s")


if __name__ == "__main__":
    main()
