#!/usr/bin/env python3
"""Merges small models by every method on single elements and compares each bit with what numpy computes.

Called by selecting.sh. The tensors have odd shapes, all elements tied, none changed, differences that cancel; recipes go
through methods, parameters, keys and dtypes, each run with other threads, blocks and instruction sets. A tensor that does
not fit is merged within the least memory. Sums of norms, energies and divergences are rounded in another order here: a
result may lie a few of f64's last bits away from them.
"""

import argparse
import itertools
import json
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys

import numpy

import draws
import elementwise
import exact

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
# Dtypes of base, of the models, and of the output.
STORED = [
    ("F32", "F32", "F32"), ("BF16", "BF16", "BF16"), ("F16", "F16", "F16"), ("F64", "F64", "F64"),
    ("BF16", "BF16", "F64"), ("F32", "BF16", "F32"),
]
SHAPES = [(), (1,), (2,), (1, 7), (9, 1), (1, 1), (3, 4, 5), (2, 1, 3), (0,), (0, 4), (4, 0), (65,), (300,), (7, 130), (37, 96)]
LARGE, LONG = (130, 517), (1200, 1100)
# Steps so small that only subnormal numbers have them; in f64 those that f32 does not tell from zero.
LEAST = {"F32": 2.0**-149, "BF16": 2.0**-133, "F16": 2.0**-24, "F64": 2.0**-160}
HOW = [
    [], ["--threads", "1"], ["--threads", "3"], ["--block-size", "4KiB"], ["--block-size", "16KiB", "--threads", "2"],
    ["--simd", "portable"], ["--io", "pread"],
]
PATIENCE = 300
# Relative to base and differences: the last bits that another order of additions moves.
LAST_BITS = 2.0**-44


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thalweg", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--dtype", default="", help="only models and outputs whose dtypes contain that")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=10, help="stop after so many recipes with faults")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    draws.check()
    work = pathlib.Path(options.work)
    check, failed = Check(options, work), 0
    for stored, (shapes, wanted) in itertools.product(STORED, [(odd, recipes), (long, long_recipes)]):
        if options.dtype not in " ".join(stored):
            continue
        check.make(stored, shapes)
        for recipe in wanted():
            if options.only in json.dumps(recipe) and failed < options.limit:
                failed += check.recipe(recipe)
    print(f"{check.runs} merges, {check.elements:,} elements compared, {failed} merges with faults")
    if options.keep and failed:
        shutil.copytree(work, f"{work}-kept", dirs_exist_ok=True)
    sys.exit(1 if failed or not check.runs else 0)


# The recipes.

def recipes():
    """Recipes with models by their names in place of folders."""
    for method in elementwise.FAMILY:
        if not method.startswith("consensus"):
            yield from family(method)
    yield from others()


def recipe(method, models, parameters, keys, base="base", listed=None):
    """A recipe whose base is not listed, or stands at the place `listed`."""
    entries = [{"model": f"tuned-{at + 1}", "parameters": own} for at, own in enumerate(models)]
    if listed is not None:
        entries.insert(listed, {"model": base})
    return {"merge_method": method, "base_model": base, "models": entries, "parameters": parameters} | keys


def weighed(*weights, **parameters):
    """Three models, each with its weight; a parameter with a list has one for each, too."""
    def own(name, value, at):
        return value[at] if isinstance(value, list) else value

    return [
        {"weight": weight} | {name: own(name, value, at) for name, value in parameters.items()}
        for at, weight in enumerate(weights)
    ]


def family(method):
    """The family of differences: densities, weights, factors, and the keys that mean something for the method."""
    sparsifier, elects, normalize, rescale = elementwise.FAMILY[method]
    usual = weighed(0.2, 0.3, 0.5, **PARTS[sparsifier][0])
    for parts in PARTS[sparsifier]:
        yield recipe(method, weighed(0.2, 0.3, 0.5, **parts), {}, {})
    for weights in [(1.0,), (0.5, 0.5), (0.25,) * 3, (0.5, -0.3, 0.7), (0.5, -0.5), (-1.0, -0.5, -0.25), (0.0, 1.0, 0.0)]:
        yield recipe(method, weighed(*weights, **PARTS[sparsifier][1]), {"lambda": 0.7}, {})
    yield recipe(method, usual, {"normalize": not normalize, "lambda": -1.5}, {}, listed=0)
    yield recipe(method, usual, {"rescale": not rescale}, {}, listed=1)
    yield recipe(method, usual, {"rescale": True, "rescale_floor": 0}, {})
    for by, parts in itertools.product(("density", "probability"), PARTS[sparsifier]):
        yield recipe(method, weighed(0.2, 0.3, 0.5, **parts), {"rescale": True}, {"rescale_by": by})
    for granularity, seed, scale in itertools.product(("row", "model"), (0, 7), (False, True)):
        keys = {"granularity": granularity, "seed": seed}
        yield recipe(method, usual, {"rescale": scale}, keys, listed=2)
    if sparsifier != "random":
        for granularity, parts in itertools.product(("tensor", "row"), PARTS[sparsifier]):
            yield recipe(method, weighed(0.2, 0.3, 0.5, **parts), {}, {"ties": "first", "granularity": granularity})
    yield recipe(method, usual, {}, {"seed": 2**53 - 1})
    if elects:
        for weights in [(0.2, 0.3, 0.5), (0.5, 0.5), (0.5, 0.3, 0.2), (0.3, 0.2, 0.1)]:
            yield recipe(method, weighed(*weights, **PARTS[sparsifier][0]), {}, {"sign_tie": "zero"})


PARTS = {
    "largest": [{"density": density} for density in (0.5, 0.3, [0.1, 0.5, 0.9], 1e-9, 0.999999, 0, [0.5, 1, 0], 0.29)],
    "random": [{"density": density} for density in (0.5, 0.3, [0.1, 0.5, 0.9], 1e-9, 0.999999, 0, [0.5, 1, 0])],
    "by rank": [
        {"density": 0.5}, {"density": 0.3, "epsilon": 0.1}, {"density": [0.2, 0.5, 0.8]}, {"density": [0.5, 1, 0]},
        {"density": 0.5, "epsilon": [0.0, 0.499, 0.3]},
    ],
    "band": [
        {"density": 0.5}, {"density": 0.3, "gamma": 0.2}, {"density": 0.5, "gamma": [0.0, 0.1, 0.5]},
        {"density": [0.9, 0.95, 0.3], "gamma": 0.3}, {"density": [0.5, 1, 0], "gamma": 0.01}, {"density": 1e-9},
        {"density": 0.29, "gamma": 0.29},
    ],
}


def others():
    three, one = [{}, {}, {}], [{}]
    for top, granularity in itertools.product((1, 0.5, 0.1, 1e-9, 0, 0.29, 0.999), ("tensor", "row", "model")):
        yield recipe("sce", three, {"select_topk": top}, {"granularity": granularity})
    for models in (one, [{}, {}]):
        yield recipe("sce", models, {"select_topk": 0.5}, {"seed": 3}, listed=0)
    for floor, keys in itertools.product((0, 1e-6, 1e-3), ({}, {"sign_tie": "zero"}, {"ties": "first"})):
        yield recipe("sce", three, {"select_topk": 0.4, "weight_floor": floor}, keys)
    for t in (1e-4, 3e-3, 0, 1.0):
        yield recipe("nearswap", one, {"t": t}, {}, listed=0 if t == 1e-4 else None)
    for granularity in ("tensor", "row", "model"):
        yield recipe("arcee_fusion", one, {}, {"granularity": granularity})
    for epsilon in (1e-5, 0, 2e-4, 1.0):
        yield recipe("ram", three, {"epsilon": epsilon}, {})
        for granularity in ("tensor", "row", "model"):
            yield recipe("ramplus_tl", three, {"epsilon": epsilon}, {"granularity": granularity})
    yield recipe("ramplus_tl", three, {"r": 0.5, "alpha": 0.7, "epsilon": 3e-4}, {}, listed=1)
    for agree, tall in itertools.product((1, 2, 3), (0.4, 1.0, [0.2, 0.4, 0.6])):
        yield recipe("consensus_ta", weighed(0.2, 0.3, 0.5, tall_lambda=tall), {"agree": agree}, {})
        yield recipe("consensus_ties", weighed(0.2, 0.3, 0.5, tall_lambda=tall, density=0.4), {"agree": agree}, {})


def long_recipes():
    """A recipe of each kind for tensors that do not fit, and one of many models."""
    ties, band = {"density": 0.3}, {"density": 0.5, "gamma": 0.1}
    for granularity in ("tensor", "row", "model"):
        keys = {"granularity": granularity}
        yield recipe("ties", weighed(0.2, 0.3, 0.5, **ties), {"rescale": True}, keys)
        yield recipe("dare_ties", weighed(0.2, 0.3, 0.5, **ties), {}, keys)
        yield recipe("della", weighed(0.2, 0.3, 0.5, density=0.5), {}, keys)
        yield recipe("breadcrumbs", weighed(0.2, 0.3, 0.5, **band), {}, keys)
        yield recipe("sce", [{}, {}, {}], {"select_topk": 0.3}, keys)
        yield recipe("arcee_fusion", [{}], {}, keys)
        yield recipe("ramplus_tl", [{}, {}, {}], {"epsilon": 2e-4}, keys)
    yield recipe("ties", weighed(0.2, 0.3, 0.5, **ties), {}, {"ties": "first"})
    yield recipe("consensus_ties", weighed(0.2, 0.3, 0.5, **ties), {}, {})
    nine = recipe("ties", weighed(*[0.1] * 9, **ties), {}, {})
    for at, entry in enumerate(nine["models"]):
        entry["model"] = f"tuned-{at % 3 + 1}"
    yield nine


# The models.

class Numbers:
    """Stored numbers around a base, in f64."""

    def __init__(self, seed, base_dtype, dtype):
        self.random, self.base_dtype, self.dtype = numpy.random.default_rng(seed), base_dtype, dtype

    def base(self, values):
        return stored(values, self.base_dtype)

    def around(self, base, steps):
        """A base and models in these steps from it."""
        return base, [stored(base + step, self.dtype) for step in steps]

    def normal(self, shape, scales):
        """A base and fine-tunes of it."""
        base = self.base(self.random.normal(size=shape) * 0.02)
        return self.around(base, [self.random.normal(size=shape) * scale for scale in scales])


def stored(values, dtype):
    flat = numpy.asarray(values, "f8").reshape(-1)
    return exact.widen(exact.rounded(flat, dtype), dtype).reshape(numpy.shape(values))


def long(seed, base_dtype, dtype):
    """A tensor that does not fit into the least memory, and a shorter one."""
    numbers = Numbers(seed, base_dtype, dtype)
    shapes = {"long": LONG, "short": (300, 128), "vector": (4096,)}
    return {name: numbers.normal(shape, (1e-4, 2e-4, 3e-4)) for name, shape in shapes.items()}


def odd(seed, base_dtype, dtype):
    """Base and three models by name: odd shapes, and differences that are special."""
    numbers, found = Numbers(seed, base_dtype, dtype), {}
    random_numbers, around = numbers.random, numbers.around
    for shape in SHAPES:
        found["shape." + "x".join(map(str, shape))] = numbers.normal(shape, (2e-4, 1e-3, 5e-5))
    found["large"] = numbers.normal(LARGE, (1e-4, 2e-4, 3e-4))
    # From here on differences are exact in every dtype: multiples of 2^-9, bases up to 2^-3 or so.
    shape, unit = (24, 64), 2.0**-9
    steps = numbers.base(random_numbers.integers(-20, 21, shape) * unit)
    signs = [random_numbers.choice((-1.0, 1.0), shape) for _ in range(3)]
    found["unchanged"] = around(steps, [numpy.zeros(shape)] * 3)
    found["constant"] = around(steps, [sign * unit for sign in signs])
    found["constant.alike"] = around(steps, [numpy.full(shape, unit)] * 3)
    found["constant.vector"] = around(steps.reshape(-1), [sign.reshape(-1) * unit for sign in signs])
    found["one"] = around(steps, [numpy.where(numpy.arange(1536).reshape(shape) == 777, unit, 0.0)] * 3)
    few = [random_numbers.integers(-3, 4, shape) * unit for _ in range(3)]
    found["few"] = around(steps, few)
    found["few.long"] = around(steps.reshape(2, 768), [step.reshape(2, 768) for step in few])
    found["cancelling"] = around(steps, [few[0], -few[0], few[1]])
    found["zeros"] = around(numpy.full(shape, -0.0), [few[0], numpy.full(shape, 0.0), numpy.full(shape, -0.0)])
    found["tenths"] = around(numpy.zeros(shape), [sign * scale for sign, scale in zip(signs, (0.1, 0.2, 0.3))])
    least = max(LEAST[base_dtype], LEAST[dtype])
    found["subnormal"] = around(numpy.zeros(shape), [step / unit * least for step in few])
    return found


def write(folder, values, dtype):
    """A checkpoint of one file."""
    folder.mkdir(parents=True)
    header, data = {}, b""
    for name, tensor in values.items():
        stored = exact.rounded(numpy.ascontiguousarray(tensor).reshape(-1), dtype).tobytes()
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(stored)]}
        data += stored
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


# The comparison.

class Check:
    def __init__(self, options, work):
        self.thalweg, self.seed, self.work = options.thalweg, options.seed, work
        self.how = random.Random(options.seed)
        self.runs = self.elements = 0

    def make(self, stored, make):
        """Makes the models in these dtypes, in place of the last ones."""
        base, model, self.out = stored
        self.dtypes = f"{base} and {model} to {self.out}"
        self.folder, self.fits = self.work / "-".join((*stored, make.__name__)), make is not long
        numbers = make(self.seed, base, model)
        self.base = {name: values for name, (values, _) in numbers.items()}
        self.models = [{name: values[at] for name, (_, values) in numbers.items()} for at in range(3)]
        write(self.folder / "base", self.base, base)
        for at, values in enumerate(self.models):
            write(self.folder / f"tuned-{at + 1}", values, model)

    def recipe(self, recipe):
        """Compares the outputs of a recipe; 1 when they differ."""
        self.runs += 1
        flags = self.how.choice(HOW)
        if self.fits:
            got, error = self.merged(recipe, [*flags, "--memory", "512MiB"])
        else:
            _, error = self.merged(recipe, [*flags, "--memory", "1MiB"])
            least = re.search(r"--memory (\S+) or more", error or "")
            got, error = self.merged(recipe, [*flags, "--memory", least[1]]) if least else (None, error)
        if got is None:
            faults = [error]
        else:
            faults = self.faults(recipe, got)
        if faults:
            print(f"\n{self.dtypes}, {' '.join(flags) or 'plain'}: {json.dumps(recipe)}")
            for fault in faults:
                print(f"  {fault}", flush=True)
        return 1 if faults else 0

    def merged(self, recipe, flags):
        """The tensors that thalweg writes, or else what it says."""
        entries = [entry | {"model": str(self.folder / entry["model"])} for entry in recipe["models"]]
        base = str(self.folder / recipe["base_model"])
        path, out = self.work / "recipe.yml", self.work / "out"
        path.write_text(json.dumps(recipe | {"models": entries, "base_model": base, "dtype": DTYPES[self.out]}))
        shutil.rmtree(out, ignore_errors=True)
        command = [self.thalweg, "merge", str(path), "--out", str(out), "--quiet", *flags]
        try:
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return None, f"not done after {PATIENCE} s"
        if done.returncode != 0:
            return None, f"exit code {done.returncode}: {' '.join(done.stderr.split())[:300]}"
        return exact.open_tensors(out), None

    def faults(self, recipe, got):
        wanted = self.wanted(recipe)
        if got.keys() != wanted.tensors.keys():
            return [f"other tensors: {sorted(got.keys() ^ wanted.tensors.keys())}"]
        faults = []
        for name, values in wanted.tensors.items():
            self.elements += values.size
            fault = self.fault(wanted, name, got[name])
            if fault:
                faults.append(fault)
        return faults

    def wanted(self, recipe):
        models = [entry for entry in recipe["models"] if entry["model"] != "base"]
        positions = [at for at, entry in enumerate(recipe["models"]) if entry["model"] != "base"]
        keys = {key: recipe[key] for key in elementwise.KEYS if key in recipe}
        own = [entry["parameters"] for entry in models]
        merge = elementwise.Merge(recipe["merge_method"], recipe["parameters"], own, positions, keys)
        numbers = {f"tuned-{at + 1}": values for at, values in enumerate(self.models)}
        return Wanted(merge, self.base, [numbers[entry["model"]] for entry in models])

    def fault(self, wanted, name, got):
        """A line about the elements of a tensor that differ, if any do."""
        values = wanted.tensors[name].reshape(-1)
        if got.dtype != self.out or tuple(got.shape) != wanted.tensors[name].shape:
            return f"{name}: {got.dtype} {got.shape}"
        rounded = exact.rounded(values, self.out)
        differ = rounded.view(UNSIGNED[self.out]) != got.elements.view(UNSIGNED[self.out])
        if wanted.adds:
            reach = LAST_BITS * numpy.sum([numpy.abs(model[name]) for model in (self.base, *wanted.models)], axis=0).reshape(-1)
            low, high = (exact.widen(exact.rounded(values + step, self.out), self.out) for step in (-reach, reach))
            differ &= (got.part(0, len(got)) < low) | (got.part(0, len(got)) > high)
        differ &= ~wanted.doubtful(name)
        if not differ.any():
            return None
        at = int(numpy.argmax(differ))
        numbers = [exact.widen(elements[at : at + 1], self.out)[0] for elements in (got.elements, rounded)]
        place = numpy.unravel_index(at, wanted.tensors[name].shape)
        return (
            f"{name} {list(got.shape)}: {int(differ.sum())} of {differ.size} differ, the first at {list(map(int, place))}: "
            f"got {numbers[0]:.9g}, wanted {numbers[1]:.9g}; base {self.base[name].reshape(-1)[at]:.9g}, "
            f"models {', '.join(f'{model[name].reshape(-1)[at]:.9g}' for model in wanted.models)}"
        )


UNSIGNED = {"F32": "u4", "BF16": "u2", "F16": "u2", "F64": "u8"}


class Wanted:
    """What a recipe should give, in f64."""

    def __init__(self, merge, base, models):
        self.merge, self.models = merge, models
        self.tensors = merge.tensors(base, models)
        # Sums over many elements are added up in another order.
        *_, rescale = elementwise.FAMILY.get(merge.method, (False,))
        self.adds = merge.method == "sce" or merge.shared.get("rescale", rescale)

    def doubtful(self, name):
        """Flags of the elements that may be chosen either way."""
        return numpy.concatenate(self.merge.doubtful.get(name, [numpy.zeros(self.tensors[name].size, bool)]))


if __name__ == "__main__":
    main()
