#!/usr/bin/env python3
"""Merges the same models by the same recipes with thalweg and mergekit and prints tables of differences.

Called by compare-mergekit.sh with the Python of mergekit's environment. Each recipe is run in the models' own dtype and
once more with `dtype: float64`. The second pair of results tells whether both programs mean the same by a method; the
distance of each program's own result from it tells what its arithmetic loses.

Methods that keep some elements and drop others have a table of their own: there the elements for which the programs chose
otherwise are counted, and the distance is that of all others. mergekit's random draws are replaced by thalweg's.
"""

import argparse
import contextlib
import json
import logging
import pathlib
import shutil
import subprocess
import sys

import numpy

import draws
import elementwise
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
# The same for methods on single elements, all with the base; keys of thalweg's own stand beside the parameters.
TIED, RANKS = "tied elements", "ranks of equal elements"
CHOSEN = [
    ("ties", "ties", "abc", {"density": 0.5}, {}, [0.2, 0.3, 0.5], TIED),
    ("ties", "ties, `ties: first`", "abc", {"density": 0.5}, {"ties": "first"}, [0.2, 0.3, 0.5], "the same"),
    ("ties", "ties, a negative weight", "abc", {"density": 0.3}, {}, [0.6, 0.5, -0.2], "the same"),
    ("ties", "ties, `rescale: true`", "abc", {"density": 0.3, "rescale": True}, {}, [0.2, 0.3, 0.5], "the same"),
    ("dare_linear", "dare_linear", "abc", {"density": 0.5}, {}, [0.2, 0.3, 0.5], "mergekit rescales in f32"),
    ("dare_ties", "dare_ties", "abc", {"density": 0.5}, {}, [0.2, 0.3, 0.5], "the same"),
    ("della_linear", "della_linear", "abc", {"density": 0.5}, {}, [0.2, 0.3, 0.5], RANKS),
    ("della", "della", "abc", {"density": 0.5}, {}, [0.2, 0.3, 0.5], "the same"),
    ("della", "della, `ties: first`", "abc", {"density": 0.5}, {"ties": "first"}, [0.2, 0.3, 0.5], "the same"),
    ("breadcrumbs", "breadcrumbs", "abc", {"density": 0.6, "gamma": 0.02}, {}, [0.2, 0.3, 0.5], TIED),
    ("breadcrumbs_ties", "breadcrumbs_ties", "abc", {"density": 0.6}, {}, [0.2, 0.3, 0.5], TIED),
    ("sce", "sce", "abc", {}, {}, None, ""),
    ("sce", "sce, `select_topk: 0.3`", "abc", {"select_topk": 0.3}, {}, None, TIED),
    ("nearswap", "nearswap, `t: 1e-4`", "a", {"t": 1e-4}, {}, None, ""),
    ("arcee_fusion", "arcee_fusion", "a", {}, {}, None, "mergekit writes f32"),
    ("ram", "ram", "abc", {"epsilon": 1e-4}, {}, None, ""),
    ("ramplus_tl", "ramplus_tl", "abc", {"epsilon": 1e-4}, {}, None, "mergekit writes f32, by a factor in f32"),
]
FOLDERS = {"1": "tuned-1", "2": "tuned-2", "3": "tuned-3", "a": "close-1", "b": "close-2", "c": "close-3"}
# Elements differ by choice, not by rounding, when they differ by more than this share of the largest difference there;
# where norms are matched, another choice moves all other elements of the tensor, too, and elections that are nearly even.
APART, APART_BESIDE_FACTORS = 1e-5, 2e-2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thalweg", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--sizes", default="tiny,larger")
    figures.add_option(parser)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    compare = Comparison(options)
    figures.describe(options.markdown, f"elements: {compare.elements():,} in each model")
    failed = 0
    for heads, cases, row in [(HEADS, CASES, compare.row), (CHOSEN_HEADS, CHOSEN, compare.chosen_row)]:
        wanted = [case for case in cases if options.only in case[1]]
        if wanted:
            compare.table = figures.Table(heads, options.markdown, first=34)
            failed += sum(row(case) for case in wanted)
    sys.exit(1 if failed else 0)


HEADS = ["method", "both in f64", "thalweg f32", "mergekit f32", "thalweg bf16", "mergekit bf16", ""]
CHOSEN_HEADS = [
    "method", "f32, apart", "tied", "the rest", "bf16, apart", "tied", "the rest", "thalweg bf16", "mergekit bf16", "",
]


class Comparison:
    def __init__(self, options):
        self.thalweg = options.thalweg
        self.work = pathlib.Path(options.work).resolve()
        self.sizes = options.sizes.split(",")
        self.table = None

    def elements(self):
        bases = [exact.open_tensors(self.work / f"{size}-f32" / "base") for size in self.sizes]
        return sum(len(tensor) for base in bases for tensor in base.values())

    def row(self, case):
        """Prints the largest differences over the sizes of models; 1 when a program refused the recipe."""
        method, name, inputs, base, parameters, weights, remark = case
        apart, off = 0.0, {}
        try:
            for size in self.sizes:
                for dtype, full in (("f32", "float32"), ("bf16", "bfloat16")):
                    models = self.work / f"{size}-{dtype}"
                    recipe = recipe_of(method, models, inputs, base, parameters, weights)
                    outputs = self.outputs(recipe, (full, "float64"))
                    apart = max(apart, difference(outputs["thalweg", "float64"], outputs["mergekit", "float64"]))
                    losses(outputs, full, off)
                    self.forget()
        except Refused as refused:
            self.table.row(name, refused, "", "", "", "", remark)
            return 1
        cells = [off[program, dtype] for dtype in ("float32", "bfloat16") for program in ("thalweg", "mergekit")]
        self.table.row(name, f"{apart:.1e}", *(f"{value:.1e}" for value in cells), remark)
        return 0

    def chosen_row(self, case):
        """Prints how many elements the programs chose otherwise, and what all others differ by."""
        method, name, inputs, parameters, keys, weights, remark = case
        cells, off = [], {}
        try:
            for dtype, precisions in (("f32", ("float64",)), ("bf16", ("bfloat16", "float64"))):
                choices = Choices(case)
                for size in self.sizes:
                    models = self.work / f"{size}-{dtype}"
                    recipe = recipe_of(method, models, inputs, "base", parameters, weights) | keys
                    outputs = self.outputs(recipe, precisions)
                    choices.add(outputs["thalweg", "float64"], outputs["mergekit", "float64"], models)
                    if dtype == "bf16":
                        losses(outputs, "bfloat16", off)
                    self.forget()
                cells += choices.cells()
        except Refused as refused:
            self.table.row(name, refused, *[""] * 7, remark)
            return 1
        cells += [f"{off[program, 'bfloat16']:.1e}" for program in ("thalweg", "mergekit")]
        self.table.row(name, *cells, remark)
        return 0

    def outputs(self, recipe, precisions):
        """Both programs' results in each precision."""
        outputs = {}
        for precision in precisions:
            path = self.work / "recipe.yml"
            path.write_text(json.dumps(recipe | {"dtype": precision}))
            for run in (self.run_thalweg, run_mergekit):
                program = run.__name__.removeprefix("run_")
                outputs[program, precision] = run(path, self.work / f"{program}-{precision}")
        return outputs

    def forget(self):
        for output in self.work.glob("*-*float*"):
            shutil.rmtree(output)

    def run_thalweg(self, recipe, out):
        command = [self.thalweg, "merge", str(recipe), "--out", str(out), "--quiet", "--memory", "1GiB"]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise Refused("thalweg: " + " ".join(done.stderr.split())[:160])
        return exact.open_tensors(out)


def run_mergekit(recipe, out):
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text()))
    with our_draws():
        run_merge(config, str(out), MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True))
    return exact.open_tensors(out)


def recipe_of(method, models, inputs, base, parameters, weights):
    entries = [{"model": str(models / FOLDERS[key])} for key in inputs]
    for entry, weight in zip(entries, weights or []):
        entry["parameters"] = {"weight": weight}
    recipe = {"merge_method": method, "models": entries, "parameters": parameters}
    if method == "passthrough":
        del recipe["parameters"]
        entries[0]["parameters"] = parameters
    if base:
        recipe["base_model"] = str(models / base)
    return recipe


def losses(outputs, full, off):
    """How far each program's result is from its own f64 result: not what they disagree on by definition."""
    for program in ("thalweg", "mergekit"):
        distance = difference(outputs[program, full], outputs[program, "float64"])
        off[program, full] = max(distance, off.get((program, full), 0.0))


@contextlib.contextmanager
def our_draws():
    """Lets mergekit draw thalweg's random words: the same functions of model, tensor and element."""
    import torch
    from mergekit.merge_methods import generalized_task_arithmetic as family

    method, sparsify, bernoulli = family.GeneralizedTaskArithmeticMerge, family.sparsify, torch.bernoulli
    merge_group = method.merge_group
    # The keys of the models to come, the next one last, and that of the model at hand.
    coming, at_hand = [], []

    def merge_group_here(self, group, /, **parameters):
        models = [position for position, entry in enumerate(group.entries) if not entry.is_base]
        coming[:] = [draws.key_of(0, position, group.metadata.name) for position in reversed(models)]
        return merge_group(self, group, **parameters)

    def sparsify_next(*arguments, **options):
        at_hand[:] = [coming.pop()]
        return sparsify(*arguments, **options)

    def drawn(probabilities):
        words = draws.element_words(at_hand[0], 0, probabilities.numel()).reshape(probabilities.shape)
        kept = words < draws.below(probabilities.double().numpy())
        return torch.from_numpy(kept).to(probabilities.dtype)

    method.merge_group, family.sparsify, torch.bernoulli = merge_group_here, sparsify_next, drawn
    try:
        yield
    finally:
        method.merge_group, family.sparsify, torch.bernoulli = merge_group, sparsify, bernoulli


class Choices:
    """Counts the elements that two results chose otherwise."""

    def __init__(self, case):
        self.method, _, self.inputs, self.parameters, self.keys, self.weights, _ = case
        self.apart = self.tied = 0
        self.rest = 0.0
        matches = self.method.startswith("della") or self.parameters.get("rescale", False)
        self.limit = APART_BESIDE_FACTORS if matches else APART

    def add(self, ours, theirs, models):
        if ours.keys() != theirs.keys():
            raise Refused(f"not the same tensors: {sorted(ours.keys() ^ theirs.keys())[:3]}")
        folders = [exact.open_tensors(models / FOLDERS[key]) for key in self.inputs]
        base = exact.open_tensors(models / "base")
        for name, tensor in ours.items():
            inputs = [folder[name].values() for folder in folders]
            self.compare(name, tensor.values(), theirs[name].values(), base[name].values(), inputs)

    def compare(self, name, ours, theirs, base, inputs):
        reach = numpy.max([numpy.abs(values - base) for values in inputs], axis=0)
        apart = numpy.abs(ours - theirs) > self.limit * reach
        self.apart += int(numpy.count_nonzero(apart))
        if apart.any():
            self.tied += int(numpy.count_nonzero(apart.reshape(-1) & self.at_thresholds(name, base, inputs)))
        rest = numpy.linalg.norm((ours - theirs)[~apart]) / numpy.linalg.norm(theirs)
        self.rest = max(self.rest, rest)

    def at_thresholds(self, name, base, inputs):
        """Flags of the elements that are kept or not by the rule for equal ones."""
        models = [{"weight": weight} for weight in self.weights or [0.0] * len(inputs)]
        merge = elementwise.Merge(self.method, self.parameters, models, list(range(len(models))), self.keys)
        group = elementwise.Group(merge, merge.pieces(name, base, inputs))
        group.merged()
        return group.tied

    def cells(self):
        return [f"{self.apart:,}", f"{self.tied:,}", f"{self.rest:.1e}"]


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
