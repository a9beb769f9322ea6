"""What a merge should have written: f64 results computed by numpy alone, rounded once.

Slow and plain on purpose: the Karcher mean walks over whole vectors, in full precision, with angles taken from chords.
It shares no code and no algebra with thalweg. Used by peers.py, compare-mergekit.py and selecting.py.
"""

import json
import pathlib
import struct

import numpy

CHUNK = 1 << 22
STORED = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
STEPS = 60
# The tangent is a sum of rounded numbers: below this it is noise.
CONVERGED = 1e-14


def open_tensors(folder):
    """Every tensor of a folder by its name: shape, dtype and the mapped elements, flat."""
    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        data = numpy.memmap(path, dtype="u1", mode="r", offset=8 + length)
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                tensors[name] = Tensor(entry["shape"], entry["dtype"], data[begin:end])
    return tensors


class Tensor:
    def __init__(self, shape, dtype, data):
        self.shape, self.dtype = shape, dtype
        self.elements = data.view(STORED[dtype])

    def __len__(self):
        return len(self.elements)

    def part(self, begin, end):
        """Elements as f64."""
        return widen(self.elements[begin:end], self.dtype)

    def values(self):
        return self.part(0, len(self)).reshape(self.shape)


def widen(elements, dtype):
    if dtype == "BF16":
        return (elements.astype("u4") << 16).view("f4").astype("f8")
    return elements.astype("f8")


def rounded(values, dtype):
    """The nearest element of a dtype as it is stored, halfway cases to even, from f64 in one rounding."""
    if dtype != "BF16":
        with numpy.errstate(over="ignore"):
            return values.astype(STORED[dtype])
    bits = values.view("u8")
    half = numpy.uint64((1 << 44) - 1)
    even = (bits >> numpy.uint64(45)) & numpy.uint64(1)
    # 45 of f64's 52 fraction bits go; below the least normal number all are multiples of one step.
    kept = ((bits + half + even) & ~numpy.uint64((1 << 45) - 1)).view("f8")
    kept = numpy.where(numpy.abs(values) < 2.0**-126, numpy.rint(values * 2.0**133) * 2.0**-133, kept)
    return (kept.astype("f4").view("u4") >> 16).astype("<u2")


def parts(length):
    return [(begin, min(begin + CHUNK, length)) for begin in range(0, length, CHUNK)]


def dot(length, a, b):
    return sum(float(numpy.dot(a(*part), b(*part))) for part in parts(length))


def linear(tensors):
    """The mean, by parts."""
    for part in parts(len(tensors[0])):
        yield part, sum(tensor.part(*part) for tensor in tensors) / len(tensors)


def slerp(tensors, t=0.5):
    """Along the great circle between two tensors, by parts."""
    first, second = tensors
    norms = [numpy.sqrt(dot(len(tensor), tensor.part, tensor.part)) for tensor in tensors]
    chord = chord_between(len(first), lambda *p: first.part(*p) / norms[0], lambda *p: second.part(*p) / norms[1])
    theta = 2 * numpy.arcsin(min(chord / 2, 1.0))
    factors = [numpy.sin((1 - t) * theta) / numpy.sin(theta), numpy.sin(t * theta) / numpy.sin(theta)]
    for part in parts(len(first)):
        yield part, factors[0] * first.part(*part) + factors[1] * second.part(*part)


def karcher(tensors):
    """The Karcher mean of directions with equal weights, times the mean of norms, by parts."""
    length, share = len(tensors[0]), 1 / len(tensors)
    norms = [numpy.sqrt(dot(length, tensor.part, tensor.part)) for tensor in tensors]
    mean, tangent = numpy.zeros(length), numpy.empty(length)

    def unit(i, begin, end):
        return tensors[i].part(begin, end) / norms[i]

    for part in parts(length):
        mean[slice(*part)] = sum(share * unit(i, *part) for i in range(len(tensors)))
    mean /= numpy.linalg.norm(mean)
    for _ in range(STEPS):
        step = tangent_at(mean, tangent, unit, len(tensors))
        if step < CONVERGED:
            break
        mean *= numpy.cos(step)
        tangent *= numpy.sin(step) / step
        mean += tangent
        mean /= numpy.linalg.norm(mean)
    scale = sum(share * norm for norm in norms)
    for part in parts(length):
        yield part, scale * mean[slice(*part)]


def tangent_at(mean, tangent, unit, count):
    """Fills in the mean of the logarithms of all directions; returns its length."""
    length = len(mean)
    thetas = [
        2 * numpy.arcsin(min(chord_between(length, lambda *p: mean[slice(*p)], lambda *p, i=i: unit(i, *p)) / 2, 1.0))
        for i in range(count)
    ]
    factors = [theta / numpy.sin(theta) / count if theta > 0 else 1 / count for theta in thetas]
    along = sum(factor * numpy.cos(theta) for factor, theta in zip(factors, thetas))
    for part in parts(length):
        here = slice(*part)
        tangent[here] = sum(factors[i] * unit(i, *part) for i in range(count)) - along * mean[here]
    # What rounding left along the mean is no direction to walk in.
    tangent -= numpy.dot(tangent, mean) * mean
    return float(numpy.linalg.norm(tangent))


def chord_between(length, a, b):
    return numpy.sqrt(sum(float(numpy.sum(numpy.square(a(*part) - b(*part)))) for part in parts(length)))


METHODS = {"karcher": karcher, "linear": linear, "slerp": slerp}


class Agreement:
    """How near an output is to the exact result, over all tensors that were compared."""

    def __init__(self):
        self.equal = self.elements = 0
        self.squared_error = self.squared_floor = self.squared = 0.0

    def add(self, output, part, exact):
        wanted = rounded(exact, output.dtype)
        got = output.elements[slice(*part)]
        self.equal += int(numpy.count_nonzero(wanted == got))
        self.elements += len(wanted)
        self.squared_error += float(numpy.sum(numpy.square(widen(got, output.dtype) - exact)))
        self.squared_floor += float(numpy.sum(numpy.square(widen(wanted, output.dtype) - exact)))
        self.squared += float(numpy.sum(numpy.square(exact)))

    def share(self):
        return self.equal / self.elements

    def relative_error(self):
        return (self.squared_error / self.squared) ** 0.5

    def relative_floor(self):
        """The error that the rounding of the exact result alone makes."""
        return (self.squared_floor / self.squared) ** 0.5
