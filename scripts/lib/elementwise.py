"""What the methods on single elements of differences should write: f64 results computed by numpy alone, by full sorts.

TIES, DARE, DELLA, breadcrumbs, SCE, nearswap, Arcee Fusion, RAM and consensus, written from their definitions, whole
tensors in memory. Shares no code with thalweg. Used by selecting.py and compare-mergekit.py.
"""

import math

import numpy

import draws

# Which elements are kept, whether signs are elected, `normalize` and `rescale` where a recipe says nothing.
FAMILY = {
    "ties": ("largest", True, True, False),
    "dare_linear": ("random", False, False, True),
    "dare_ties": ("random", True, False, True),
    "della_linear": ("by rank", False, False, True),
    "della": ("by rank", True, True, True),
    "breadcrumbs": ("band", False, False, False),
    "breadcrumbs_ties": ("band", True, False, False),
    "consensus_ta": ("all", False, False, False),
    "consensus_ties": ("largest", True, True, False),
}
KEYS = {"seed": 0, "ties": "spread", "sign_tie": "plus", "rescale_by": "norm", "granularity": "tensor"}
PER_MODEL = {"density": 1.0, "epsilon": 0.15, "gamma": 0.01, "tall_lambda": 0.4}
# The place in the recipe that stands for all models.
EVERYONE = 0xFFFFFFFF
CANCELLED = 2.0**-45
# An importance so near a threshold may round to either side of it.
NEAR = 1e-6


class Merge:
    """One recipe: a method, its parameters, and the positions of the models but the base in the recipe."""

    def __init__(self, method, parameters, models, positions, keys):
        self.method, self.shared, self.models, self.positions = method, parameters, models, positions
        self.keys = KEYS | keys
        # By name, flags of the elements whose choice hangs on the last bits of exponentials: in one piece or several.
        self.doubtful = {}

    def own(self, name, model):
        """A parameter of one model."""
        return self.models[model].get(name, self.shared.get(name, PER_MODEL.get(name)))

    def tensors(self, base, models):
        """The merged tensors, by name, in f64. All are arrays of f64 in their shapes."""
        merged, whole = {}, []
        for name in sorted(base):
            pieces = self.pieces(name, base[name], [model[name] for model in models])
            if self.keys["granularity"] == "model":
                whole += pieces
                continue
            values = [Group(self, [piece]).merged() for piece in pieces]
            merged[name] = numpy.concatenate([numpy.zeros(0), *values])
        if whole:
            ends = numpy.cumsum([piece.base.size for piece in whole])[:-1]
            parts = numpy.split(Group(self, whole).merged(), ends)
            merged = {piece.name: part for piece, part in zip(whole, parts)}
        return {name: merged[name].reshape(base[name].shape) for name in base}

    def pieces(self, name, base, models):
        """The tensor, or its slices along the first axis; a vector is one slice."""
        columns = base.shape[-1] if base.ndim else 1
        rows = base.shape[0] if self.keys["granularity"] == "row" and base.ndim > 1 else 1
        length = base.size // rows if rows else 0
        flat = [values.reshape(-1) for values in (base, *models)]
        parts = []
        for row in range(rows):
            here = slice(row * length, (row + 1) * length)
            parts.append(Piece(name, row, columns, here.start, [values[here] for values in flat]))
        return parts


class Piece:
    """Consecutive elements of one tensor, from flat index `start` on."""

    def __init__(self, name, row, columns, start, values):
        self.name, self.row, self.columns, self.start = name, row, columns, start
        self.base, *self.models = values


class Group:
    """The elements that one threshold, norm or count is taken over."""

    def __init__(self, merge, pieces):
        self.merge, self.keys, self.pieces = merge, merge.keys, pieces
        self.base = numpy.concatenate([piece.base for piece in pieces])
        models = zip(*(piece.models for piece in pieces))
        with numpy.errstate(invalid="ignore"):
            self.deltas = [numpy.concatenate(parts) - self.base for parts in models]
        self.size = self.base.size
        # The elements that are kept or not by the rule for equal ones, whichever model.
        self.tied = numpy.zeros(self.size, bool)
        self.ends = numpy.cumsum([piece.base.size for piece in pieces])[:-1]

    def merged(self):
        """The merged elements. An element to which nothing is added is the base's."""
        if self.size == 0:
            return self.base
        if self.merge.method == "arcee_fusion":
            return self.fused()
        added = OTHERS.get(self.merge.method, Group.family)(self)
        return numpy.where(added == 0, self.base, self.base + added)

    # Which elements are kept.

    def band(self, keys, low, high, position):
        """Flags of the elements with ascending ranks from `low` up to `high`; equal ones are chosen by the recipe's rule."""
        order = numpy.argsort(keys, kind="stable")
        flags = numpy.zeros(self.size, bool)
        if low >= high:
            return flags
        flags[order[low:high]] = True
        for threshold in {keys[order[low]], keys[order[high - 1]]}:
            tied = numpy.flatnonzero(keys == threshold)
            inside = int(numpy.count_nonzero(flags[tied]))
            if inside < tied.size:
                flags[tied] = self.chosen(tied, inside, position)
                self.tied[tied] = True
        return flags

    def chosen(self, tied, kept, position):
        """Flags for the places `tied`: `kept` of them, counted tensor by tensor where they are spread."""
        if self.keys["ties"] == "first":
            return numpy.arange(tied.size) < kept
        parts, begin = [], 0
        for piece in self.pieces:
            end = begin + piece.base.size
            here = int(numpy.count_nonzero((tied >= begin) & (tied < end)))
            key = draws.key_of(self.keys["seed"], position, piece.name)
            parts.append(draws.spread(kept, tied.size, here, key, piece.row))
            begin = end
        return numpy.concatenate(parts)

    def drawn(self, thresholds, position):
        """Flags of the elements whose random words lie below their thresholds."""
        words = [
            draws.element_words(draws.key_of(self.keys["seed"], position, piece.name), piece.start, piece.base.size)
            for piece in self.pieces
        ]
        return numpy.concatenate(words) < thresholds

    def rank_thresholds(self, model, density, epsilon):
        """Thresholds of words that grow with the rank in each row along the last axis."""
        low, span = draws.below(density - epsilon), numpy.uint64(math.floor(2.0**33 * epsilon + 0.5))
        parts = []
        for piece, delta in zip(self.pieces, numpy.split(self.deltas[model], self.ends)):
            last = piece.columns - 1
            if last <= 0 or delta.size == 0:
                parts.append(numpy.full(delta.size, draws.below(density)))
                continue
            rows = magnitude_keys(delta).reshape(-1, piece.columns)
            ranks, equal = zip(*(double_ranks(row, self.keys["ties"]) for row in rows))
            parts.append(low + span * numpy.concatenate(ranks).astype("u8") // numpy.uint64(2 * last))
            here = slice(sum(map(len, parts)) - delta.size, sum(map(len, parts)))
            self.tied[here] |= numpy.concatenate(equal)
        return numpy.concatenate(parts)

    def kept(self, model):
        """Flags of the kept elements of a model, and the probability that each had of being kept."""
        sparsifier, *_ = FAMILY[self.merge.method]
        density, position = self.merge.own("density", model), self.merge.positions[model]
        if density >= 1 or sparsifier == "all":
            return numpy.ones(self.size, bool), 1.0
        if density <= 0:
            return numpy.zeros(self.size, bool), 1.0
        count = int(density * self.size)
        if sparsifier == "random":
            return self.drawn(draws.below(density), position), density
        if sparsifier == "by rank":
            thresholds = self.rank_thresholds(model, density, self.merge.own("epsilon", model))
            return self.drawn(thresholds, position), thresholds.astype("f8") / 2.0**32
        keys = magnitude_keys(self.deltas[model])
        if sparsifier == "largest":
            return self.band(keys, self.size - max(1, count), self.size, position), density
        bottom = max(0, self.size - count - int(self.merge.own("gamma", model) * self.size))
        return self.band(keys, bottom, bottom + count, position), density

    # How the kept ones are mixed.

    def family(self):
        """Kept, weighted and rescaled differences, summed; where signs are elected only those that agree."""
        _, elects, normalize, rescale = FAMILY[self.merge.method]
        shared = self.merge.shared
        rescale = shared.get("rescale", rescale)
        values, weights = [], []
        for model, delta in enumerate(self.deltas):
            flags, probability = self.kept(model)
            weights.append(self.merge.own("weight", model))
            if rescale:
                values.append(self.rescaled(delta, flags, probability, model))
            else:
                values.append(weights[-1] * numpy.where(flags, delta, 0.0))
        agree = self.agreeing(values) if elects else [numpy.ones(self.size, bool) for _ in values]
        added = total(numpy.where(flags, value, 0.0) for flags, value in zip(agree, values))
        if shared.get("normalize", normalize):
            divisor = total(numpy.where(flags, weight, 0.0) for flags, weight in zip(agree, weights))
            nothing = divisor == 0 if elects else numpy.abs(divisor) < 1e-8
            added = added / numpy.where(nothing, 1.0, divisor)
        return shared.get("lambda", 1.0) * added

    def rescaled(self, delta, flags, probability, model):
        """The kept differences of a model, times its weight and what makes up for the others."""
        weight, kept = self.merge.own("weight", model), numpy.where(flags, delta, 0.0)
        scale, by, density = 1.0, self.keys["rescale_by"], self.merge.own("density", model)
        if by == "probability" and numpy.ndim(probability):
            return weight * (kept * (1.0 / numpy.where(flags, probability, 1.0)))
        if by in ("density", "probability"):
            scale = 1.0 / density if 0 < density < 1 else 1.0
        else:
            before, after = norm(delta), norm(delta[flags])
            if min(before, after) > 0 and min(before, after) >= self.merge.shared.get("rescale_floor", 1e-7):
                scale = before / after
        return weight * scale * kept

    def agreeing(self, values):
        """For each model the flags of the elements that have the elected sign."""
        summed = total(values)
        sign = numpy.where(summed >= 0, 1.0, -1.0)
        if self.keys["sign_tie"] == "zero":
            sizes = total(numpy.abs(value) for value in values)
            # A zero agrees with nobody.
            sign = numpy.where(numpy.abs(summed) <= CANCELLED * sizes, numpy.nan, sign)
        return [numpy.sign(value) == sign for value in values]

    def consensus(self):
        """What the family gives where enough models are behind it."""
        merged = self.family()
        behind = [
            numpy.abs(delta) > self.merge.own("tall_lambda", model) * numpy.abs(merged - delta)
            for model, delta in enumerate(self.deltas)
        ]
        return numpy.where(numpy.sum(behind, axis=0) >= self.merge.shared.get("agree", 2), merged, 0.0)

    def nearswap(self):
        (delta,) = self.deltas
        near = self.merge.shared["t"] / numpy.maximum(numpy.abs(delta), 1e-6)
        return numpy.clip(near, 0, 1) * delta

    def ram(self):
        """Means over the models that changed an element; what one alone changed, times its factor."""
        shared = self.merge.shared
        epsilon = shared.get("epsilon", 1e-5)
        changed = [numpy.abs(delta) > epsilon for delta in self.deltas]
        counts = numpy.sum(changed, axis=0)
        factors = [1.0] * len(changed)
        if self.merge.method == "ramplus_tl":
            r, alpha = shared.get("r", 0.1), shared.get("alpha", 0.2)
            for model, own in enumerate(changed):
                common, alone = (int(numpy.count_nonzero(own & part)) for part in (counts > 1, counts == 1))
                if common > 0:
                    overlap = common / max(alone, epsilon) if max(alone, epsilon) > 0 else math.inf
                    factors[model] = 1 + r * min(overlap, alpha)
        kept = [numpy.where(own, delta, 0.0) for own, delta in zip(changed, self.deltas)]
        alone = total(factor * delta for factor, delta in zip(factors, kept))
        return numpy.where(counts > 1, total(kept) / numpy.maximum(counts, 1), alone)

    def sce(self):
        """Selected by variance, weighed by energy, and what has not the sign of the sum erased."""
        top = self.merge.shared.get("select_topk", 1.0)
        flags = numpy.ones(self.size, bool)
        if top < 1:
            mean = total(self.deltas)
            variance = total((len(self.deltas) * delta - mean) ** 2 for delta in self.deltas)
            keys = magnitude_keys(numpy.sqrt(variance))
            count = int(max(top, 0) * int(numpy.count_nonzero(keys)))
            flags = self.band(keys, self.size - count, self.size, EVERYONE)
        values = [numpy.where(flags, delta, 0.0) for delta in self.deltas]
        energies = [math.fsum(value * value) / self.size for value in values]
        together = sum(energies)
        floor = self.merge.shared.get("weight_floor", 1e-6)
        uniform = together == 0 or together < floor
        weights = [1 / len(values) if uniform else energy / together for energy in energies]
        agree = self.agreeing(values)
        added = total(numpy.where(own, weight * value, 0.0) for own, weight, value in zip(agree, weights, values))
        divisor = total(numpy.where(own, weight, 0.0) for own, weight in zip(agree, weights))
        return added / numpy.maximum(divisor, 1e-6)

    def fused(self):
        """The model's elements that stand out, and else the base's."""
        model = numpy.concatenate([piece.models[0] for piece in self.pieces])
        importance = self.importance().astype("f4").astype("f8")
        ordered = numpy.sort(importance)
        low, middle, high = (ordered[int(share * (self.size - 1))] for share in (0.25, 0.5, 0.75))
        threshold = middle + 1.5 * (high - low)
        # The median itself, as a threshold, is one of the numbers that are compared.
        near = (numpy.abs(importance - threshold) <= NEAR * numpy.abs(threshold)) & (threshold != middle)
        for piece, flags in zip(self.pieces, numpy.split(near, self.ends)):
            self.merge.doubtful.setdefault(piece.name, []).append(flags)
        return numpy.where(importance >= threshold, model, self.base)

    def importance(self):
        parts = []
        for piece in self.pieces:
            rows = (piece.base.size // max(piece.columns, 1), piece.columns)
            model, base = (values.reshape(rows) for values in (piece.models[0], piece.base))
            p, q = probabilities(model), probabilities(base)
            # The sum of rounded terms may fall below zero.
            divergence = numpy.maximum(numpy.sum(p * numpy.log(p / q), axis=1, keepdims=True), 0.0)
            parts.append((numpy.abs(model - base) * divergence).reshape(-1))
        return numpy.concatenate(parts)


OTHERS = {
    "consensus_ta": Group.consensus,
    "consensus_ties": Group.consensus,
    "nearswap": Group.nearswap,
    "ram": Group.ram,
    "ramplus_tl": Group.ram,
    "sce": Group.sce,
}


def total(parts):
    """The sum in the order of the models, from zero."""
    result = 0.0
    for part in parts:
        result = result + part
    return result


def norm(values):
    return math.fsum(numpy.abs(values))


def magnitude_keys(values):
    """Bits of magnitudes that are rounded to f32: they compare as the magnitudes do."""
    with numpy.errstate(over="ignore"):
        return numpy.abs(values).astype("f4").view("u4")


def double_ranks(keys, ties):
    """Twice the ranks in a row, the middle ones of equal keys or in the order of columns; flags of the equal ones."""
    _, run, lengths = numpy.unique(keys, return_inverse=True, return_counts=True)
    if ties == "first":
        ranks = numpy.empty(keys.size, "i8")
        ranks[numpy.argsort(keys, kind="stable")] = 2 * numpy.arange(keys.size)
    else:
        ranks = (2 * numpy.cumsum(lengths) - lengths - 1)[run]
    return ranks, (lengths > 1)[run]


def probabilities(rows):
    powers = numpy.exp(rows - rows.max(axis=1, keepdims=True, initial=-numpy.inf))
    return powers / powers.sum(axis=1, keepdims=True) + 1e-8
