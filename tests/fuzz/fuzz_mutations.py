"""Damage to files: bytes of any, values of text ones; a seed gives the same damage again."""

import json
import random
import re

HUGE = ("1e400", "-1e400", "1" + "0" * 400, "9" * 5000, "NaN", "nan", "inf", "-1", "0", "1e-320")
OTHER = ('"text"', "null", "[]", "{}", "true", "[1, 2]", '"\\u0000"', "''", "")


def flip(content, rng):
    """One to four bits turned over."""
    for _ in range(rng.choice((1, 1, 1, 4))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def cut(content, rng):
    """The end is missing."""
    del content[rng.randrange(len(content)) :]


def zero(content, rng):
    """A run of bytes is zero, as after a power failure."""
    start = rng.randrange(len(content))
    size = min(rng.choice((1, 8, 512, 4096)), len(content) - start)
    content[start : start + size] = bytes(size)


def swap(content, rng):
    """Two blocks have changed places."""
    size = max(1, min(rng.choice((4, 64, 4096)), len(content) // 3))
    a, b = sorted(rng.randrange(len(content) - size + 1) for _ in range(2))
    if b - a >= size:
        content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]


def noise(content, rng):
    """A run of bytes is random."""
    start = rng.randrange(len(content))
    size = min(rng.choice((2, 16, 300)), len(content) - start)
    content[start : start + size] = rng.randbytes(size)


def extremes(content, rng):
    """A number of 2, 4 or 8 bytes is the largest there is, or nearly."""
    size = rng.choice((2, 4, 8))
    start = rng.randrange(max(1, len(content) - size))
    content[start : start + size] = rng.choice((b"\xff" * size, b"\xff" * (size - 1) + b"\x7f"))


def insert(content, rng):
    """Bytes too many."""
    content[(start := rng.randrange(len(content))) : start] = rng.randbytes(rng.choice((1, 8, 100)))


BYTES = (flip, flip, cut, zero, swap, noise, extremes, insert)


def damaged(content, seed):
    """``content`` after one damage of bytes."""
    rng, result = random.Random(seed), bytearray(content)
    rng.choice(BYTES)(result, rng)
    return bytes(result)


def damaged_text(content, seed):
    """``content``, a text with numbers and words, after a damage of values; at times of bytes."""
    rng = random.Random(seed)
    if rng.random() < 0.3:
        return damaged(content, seed)
    text = content.decode()
    pattern = rng.choice(
        (r"-?\d+(\.\d*)?([eE][-+]?\d+)?", r'"[^"\n]*"', r"\b(true|false)\b", r"\w+")
    )
    found = list(re.finditer(pattern, text)) or list(re.finditer(r"\S+", text))
    one = rng.choice(found)
    value = rng.choice((*HUGE, *OTHER, rng.choice(found)[0]))
    return (text[: one.start()] + value + text[one.end() :]).encode()


def damaged_json(content, seed):
    """A JSON file with a value of another kind somewhere, or damaged as text."""
    rng = random.Random(seed)
    if rng.random() < 0.5:
        return damaged_text(content, seed)
    document = json.loads(content)
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            return damaged_text(content, seed)
        key = rng.choice(list(keys))
        if not isinstance(place[key], dict | list) or rng.random() < 0.3:
            break
        place = place[key]
    if rng.random() < 0.3 and isinstance(place, dict):
        del place[key]
    else:
        values = ("text", 10**400, -1, 0, 1.5, True, None, [], {}, [[1]], "x" * 10000)
        place[key] = rng.choice(values)
    return json.dumps(document).encode()
