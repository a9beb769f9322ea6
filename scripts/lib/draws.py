"""Random words and the choices that hang on them, computed by numpy alone.

Philox4x32-10 (Salmon et al. 2011) under a key that is hashed from seed, model and tensor, and the rule by which some of
the elements tied at a threshold are taken. Written from the definitions in docs/design.md; shares no code with thalweg.
Used by elementwise.py and compare-mergekit.py.
"""

import struct

import numpy

ROUNDS = 10
LOW = numpy.uint64(0xFFFFFFFF)
HALF = numpy.uint64(32)
MASKS, TIES = 0, 1
# Tied elements are chosen among in groups of so many.
TOGETHER = 64
KNOWN = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (1 << 64) - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox(counters, key):
    """The four words of each counter; words are arrays of u64 below 2^32, the key's low half is its first word."""
    x0, x1, x2, x3 = (numpy.asarray(word, "u8") for word in counters)
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(ROUNDS):
        one, two = x0 * numpy.uint64(0xD2511F53), x2 * numpy.uint64(0xCD9E8D57)
        x0, x1 = (two >> HALF) ^ x1 ^ numpy.uint64(low), two & LOW
        x2, x3 = (one >> HALF) ^ x3 ^ numpy.uint64(high), one & LOW
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return x0, x1, x2, x3


def key_of(seed, position, name):
    """The key of one model's words in the output tensor `name`; `position` is the model's in the recipe."""
    text = b"thalweg draws 1" + struct.pack("<QI", seed, position) + name.encode()
    return int.from_bytes(blake3(text)[:8], "little")


def element_words(key, start, length):
    """The words of the elements from flat index `start` on."""
    flat = numpy.arange(start, start + length, dtype="u8")
    counter = flat // numpy.uint64(4)
    words = philox((counter & LOW, counter >> HALF, numpy.full(length, MASKS), numpy.zeros(length)), key)
    return numpy.choose((flat % numpy.uint64(4)).astype("i8"), words)


def below(probability):
    """The threshold under which words keep an element with this probability."""
    return numpy.floor(2.0**32 * numpy.asarray(probability, "f8") + 0.5).astype("u8")


def spread(kept, of, here, key, row=0):
    """Flags for `here` tied elements in flat order: `kept` are taken of `of`, as many in every stretch.

    All are here unless the threshold is that of the whole model: then they are those of one tensor, and a place beyond them
    may be taken that is none. `row` is the index of the row that the threshold belongs to, or 0.
    """
    flags = numpy.zeros(of, bool)
    for group in range(-(-here // TOGETHER)):
        begin = group * TOGETHER
        share = min(begin + TOGETHER, of) * kept // of - begin * kept // of
        first, second, *_ = (int(word) for word in philox((group & 0xFFFFFFFF, group >> 32, TIES, row), key))
        there = numpy.arange(min(TOGETHER, of - begin))
        places = ((2 * (first % 32) + 1) * there + second % 64) % TOGETHER
        flags[begin + numpy.argsort(places)[:share]] = True
    return flags[:here]


def blake3(text):
    """The hash of at most one chunk of 1024 bytes."""
    assert len(text) <= 1024
    # The square roots of the first primes, as in SHA-2.
    start = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
    blocks = [text[at : at + 64] for at in range(0, len(text), 64)] or [b""]
    chain = start
    for number, block in enumerate(blocks):
        last = number == len(blocks) - 1
        # Flags: begin of the chunk 1, its end 2, root 8.
        flags = (1 if number == 0 else 0) | (10 if last else 0)
        words = list(struct.unpack("<16I", block.ljust(64, b"\0")))
        state = chain + start[:4] + [0, 0, len(block), flags]
        chain = compressed(state, words)
    return struct.pack("<8I", *chain)


def compressed(state, words):
    """The first half of the state after seven rounds over a block of BLAKE3."""
    columns = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    diagonals = [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    for _ in range(7):
        for nth, places in enumerate(columns + diagonals):
            mix(state, places, words[2 * nth], words[2 * nth + 1])
        words = [words[at] for at in (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)]
    return [state[at] ^ state[at + 8] for at in range(8)]


def mix(state, places, first, second):
    a, b, c, d = places
    for word, right, left in ((first, 16, 12), (second, 8, 7)):
        state[a] = (state[a] + state[b] + word) & 0xFFFFFFFF
        state[d] = rotated(state[d] ^ state[a], right)
        state[c] = (state[c] + state[d]) & 0xFFFFFFFF
        state[b] = rotated(state[b] ^ state[c], left)


def rotated(word, right):
    return (word >> right | word << (32 - right)) & 0xFFFFFFFF


def check():
    """Compares with answers that others have published."""
    for counter, key, words in KNOWN:
        assert tuple(int(word) for word in philox(counter, key)) == words, "Philox gives other words"
    wanted = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert blake3(b"").hex() == wanted, "BLAKE3 gives another hash"
