"""Prompts of many kinds, the same on every machine: what a server may be asked, and worse."""

from __future__ import annotations

import inspect
import json
import random
import string
from collections.abc import Callable, Iterator

import weightguard.catalogue
import weightguard.checkpoint.opening
import weightguard.guard.guard
import weightguard.guard.scrub
import weightguard.locate
import weightguard.manifest
import weightguard.tensor
from weightguard_integrations.torch.prompts import PADDED, make_prompts

Encode = Callable[[str], list[int]]

LIMIT, LONG = 256, 1024
SCRIPTS = {
    "greek": (0x3B1, 0x3C9), "cyrillic": (0x430, 0x44F), "hebrew": (0x5D0, 0x5EA),
    "arabic": (0x627, 0x64A), "devanagari": (0x905, 0x939), "thai": (0xE01, 0xE2E),
    "hiragana": (0x3041, 0x3096), "chinese": (0x4E00, 0x5E00), "hangul": (0xAC00, 0xB000),
    "emoji": (0x1F600, 0x1F64F), "mathematics": (0x2200, 0x22FF),
}  # fmt: skip
SOURCES = (
    weightguard.catalogue, weightguard.checkpoint.opening, weightguard.guard.guard,
    weightguard.guard.scrub, weightguard.locate, weightguard.manifest, weightguard.tensor,
)  # fmt: skip


def diverse_prompts(encode: Encode, vocabulary: int) -> Iterator[tuple[str, list[int]]]:
    """Yield (kind, token ids): texts, code, scripts, figures, repeated and random tokens."""
    for kind, sequences in make_prompts(encode, vocabulary, None, LIMIT).held_out.items():
        if kind != PADDED:
            yield from ((kind, list(sequence)) for sequence in sequences)
    generator = random.Random(2)
    texts = [*_code(generator), *_scripts(generator), *_figures(generator), *_markup(generator)]
    yield from ((kind, encode(text)[:LIMIT]) for kind, text in texts)
    for _ in range(60):
        token = generator.randrange(vocabulary)
        yield "one token, repeated", [token] * generator.randrange(2, 65)
    for _ in range(60):
        length = generator.choice([2, 3, 5, 17, 64, 200])
        yield "random tokens", [generator.randrange(vocabulary) for _ in range(length)]
    for number in range(6):
        text = inspect.getsource(SOURCES[number])
        yield "very long", encode(text)[:LONG]


def _code(generator: random.Random) -> Iterator[tuple[str, str]]:
    for number in range(70):
        source = inspect.getsource(SOURCES[number % len(SOURCES)])
        start = generator.randrange(len(source) - 200)
        yield "code", source[start : start + generator.choice([20, 100, 400])]


def _scripts(generator: random.Random) -> Iterator[tuple[str, str]]:
    for first, last in SCRIPTS.values():
        for _ in range(9):
            words = (
                "".join(chr(generator.randint(first, last)) for _ in range(generator.randint(1, 8)))
                for _ in range(generator.randint(1, 12))
            )
            yield "other scripts", " ".join(words)


def _figures(generator: random.Random) -> Iterator[tuple[str, str]]:
    for _ in range(50):
        count = generator.randint(1, 20)
        yield "figures", ", ".join(str(generator.randrange(10**9)) for _ in range(count))
        signs = generator.choices(string.punctuation + "\n\t ", k=generator.randint(2, 60))
        yield "punctuation and blanks", "".join(signs)


def _markup(generator: random.Random) -> Iterator[tuple[str, str]]:
    for _ in range(30):
        name = "".join(generator.choices(string.ascii_letters, k=6))
        yield "JSON", json.dumps({name: [generator.random(), name * 2, None, True]}, indent=1)
        yield "HTML", f"<div class='{name}'><p>{name.upper()} &amp; {name}</p></div>"
