"""Prompts as token ids: to calibrate on, held out, for the canary and for the probe.

The built-in texts are in ``texts.json``. Without a tokenizer all of them are token ids from a
seeded generator: what the activations do is measured as well, the loss means less.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from weightguard.checkpoint.files import CheckpointFile
from weightguard.errors import CheckpointError, WeightguardError
from weightguard_integrations.torch.blocks import Tokens
from weightguard_integrations.torch.canary import CANARY_TOKENS

Encode: TypeAlias = Callable[[str], list[int]]
HeldOut: TypeAlias = Mapping[str, Sequence[Tokens]]

PADDED, DECODE = "left padding", "kv-cache decode"
MAX_FILE_BYTES = 1 << 20
MAX_PROMPTS = 256
MAX_PROMPT_TOKENS = 512
LOSS_SEQUENCES, LOSS_TOKENS = 2, 96
"""Losses are taken over so many tokens: they tell 0.01 nats, and can run a hundred times."""
SINGLE_TOKENS = 256
"""First tokens of prompts that calibration samples besides its texts."""
PROBE_TOKENS = 64
LONG_TOKENS = 480
SEED = 20240

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,;:!?-_/#@$%&*()[]{}"


@dataclass(frozen=True, slots=True)
class Prompts:
    """All token sequences of a calibration; ``identity`` names those it is calibrated on."""

    identity: str
    loss: Sequence[Tokens]
    activations: Sequence[Tokens]
    held_out: HeldOut
    canary: Tokens
    probes: Mapping[str, Tokens]


def make_prompts(
    encode: Encode | None, vocabulary: int, file: str | os.PathLike[str] | None, limit: int
) -> Prompts:
    """Return the prompts for a model of ``vocabulary`` token ids and ``limit`` positions.

    ``file`` replaces the built-in calibration texts: UTF-8, a prompt or a JSON array of token
    ids a line. Raises WeightguardError for a file that cannot be used.
    """
    source = _Source(encode, vocabulary, min(limit, MAX_PROMPT_TOKENS))
    given = source.calibration() if file is None else read_prompts(Path(file), source)
    singles = [[token] for token in source.random_ids(SINGLE_TOKENS, 1)]
    loss = [tokens[:LOSS_TOKENS] for tokens in given if len(tokens) > 1][:LOSS_SEQUENCES]
    if not loss:
        raise WeightguardError(
            f"no prompt of {str(file)!r} has two tokens or more, so there is no loss to measure. "
            "Give sentences."
        )
    return Prompts(
        _identity(file, given),
        loss,
        [*given, *singles],
        source.held_out(),
        source.canary(),
        source.probes(),
    )


def read_prompts(path: Path, source: _Source) -> list[Tokens]:
    """Return the prompts of a file; raises WeightguardError for what cannot be used."""
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not 1 <= len(lines) <= MAX_PROMPTS:
        raise WeightguardError(
            f"{str(path)!r} holds {len(lines)} prompts; give 1 to {MAX_PROMPTS}, one a line."
        )
    return [source.given(line, f"{str(path)!r}, prompt {n}") for n, line in enumerate(lines, 1)]


def read_text(path: Path) -> str:
    """Return a prompt file's text; raises WeightguardError when it is none."""
    try:
        file = CheckpointFile(path.resolve(), path.name)
        try:
            data = file.read(0, file.size, limit=MAX_FILE_BYTES)
        finally:
            file.close()
    except CheckpointError as error:
        raise WeightguardError(
            f"cannot read the prompts: {error}. Name a text file of up to 1 MiB."
        ) from error
    try:
        return bytes(data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WeightguardError(
            f"{str(path)!r} is not UTF-8 text: byte {error.start} cannot be read. "
            "Convert it, for example with `iconv -t UTF-8`."
        ) from error


class _Source:
    """Makes token sequences from texts, or from a generator where there is no tokenizer."""

    def __init__(self, encode: Encode | None, vocabulary: int, limit: int):
        self._encode, self._vocabulary, self._limit = encode, vocabulary, limit
        self._texts: dict[str, Any] = json.loads(
            resources.files(__package__).joinpath("texts.json").read_text("utf-8")
        )

    def given(self, line: str, place: str) -> Tokens:
        """Return the tokens of one line of a prompt file."""
        tokens = self._ids(line, place) if line.lstrip().startswith("[") else None
        if tokens is None:
            tokens = self._text(line, place)
        if len(tokens) > self._limit:
            raise WeightguardError(
                f"{place} has {len(tokens)} tokens; {self._limit} is the most that this model "
                "and a calibration take. Shorten it, or make several prompts of it."
            )
        return tokens

    def _ids(self, line: str, place: str) -> Tokens | None:
        """Return the token ids of a JSON array, None where the line is a text in brackets."""
        try:
            tokens = json.loads(line)
        except (ValueError, RecursionError) as error:
            if self._encode is not None and any(letter.isalpha() for letter in line):
                return None
            raise WeightguardError(
                f"{place} is no JSON array of token ids: {_first_words(error)}. "
                "Write it like [1, 2, 3]."
            ) from error
        if not isinstance(tokens, list) or not tokens:
            raise WeightguardError(f"{place}: one token id at least is needed. Leave it out.")
        for position, token in enumerate(tokens, 1):
            if type(token) is not int or not 0 <= token < self._vocabulary:
                raise WeightguardError(
                    f"{place}: entry {position} is {_first_words(json.dumps(token))}, where token "
                    f"ids must be integers from 0 to {self._vocabulary - 1}."
                )
        return tokens

    def _text(self, line: str, place: str) -> Tokens:
        if self._encode is None:
            raise WeightguardError(
                f"{place}: the checkpoint has no tokenizer, so its prompts must be JSON arrays "
                "of token ids, one a line."
            )
        tokens = self._encode(line)
        if not tokens:
            raise WeightguardError(f"{place}: the tokenizer makes no token of it. Leave it out.")
        return tokens

    def calibration(self) -> list[Tokens]:
        return self._many(self._texts["calibration"], 2, LOSS_TOKENS)

    def canary(self) -> Tokens:
        return self._one(self._texts["canary"], 3, CANARY_TOKENS)

    def probes(self) -> dict[str, Tokens]:
        texts: dict[str, str] = self._texts["probes"]
        named = {
            name: self._one(text, 10 + number, PROBE_TOKENS)
            for number, (name, text) in enumerate(sorted(texts.items()))
        }
        return {**named, "random": self.random_ids(min(PROBE_TOKENS, self._limit), 4)}

    def held_out(self) -> HeldOut:
        kinds: dict[str, Sequence[Tokens]] = {
            kind: self._many(texts, 20 + number, 48)
            for number, (kind, texts) in enumerate(sorted(self._texts["held_out"].items()))
        }
        plain = [tokens for kind in kinds.values() for tokens in kind]
        generator = np.random.default_rng([SEED, 5])
        kinds["gibberish"] = [self._gibberish(generator) for _ in range(12)]
        kinds["random ids"] = [self.random_ids(40, 60 + n)[: self._limit] for n in range(8)]
        kinds["one token"] = [[token] for token in self.random_ids(24, 6)]
        repeats = generator.choice(len(plain), 8, replace=False)
        kinds["repeated token"] = [
            ([plain[i][n % len(plain[i])]] * 32)[: self._limit] for n, i in enumerate(repeats)
        ]
        joined = [token for tokens in plain for token in tokens]
        kinds["long"] = [
            joined[len(joined) * n // 4 :][: min(LONG_TOKENS, self._limit)] for n in range(3)
        ]
        kinds[PADDED] = plain[::3][:12]
        kinds[DECODE] = [tokens[:36] for tokens in plain[1::3][:12]]
        return kinds

    def random_ids(self, count: int, stream: int) -> list[int]:
        """Return uniform token ids, the same for the same vocabulary and stream."""
        generator = np.random.default_rng([SEED, stream])
        ids: list[int] = generator.integers(0, self._vocabulary, count).tolist()
        return ids

    def _gibberish(self, generator: np.random.Generator) -> Tokens:
        letters = generator.choice(list(_LETTERS), 80)
        if self._encode is None:
            return self.random_ids(40, int(generator.integers(1 << 32)))[: self._limit]
        return self._encode("".join(letters))[: self._limit]

    def _many(self, texts: Sequence[str], stream: int, length: int) -> list[Tokens]:
        return [self._one(t, 1000 * stream + n, length, cut=False) for n, t in enumerate(texts)]

    def _one(self, text: str, stream: int, length: int, *, cut: bool = True) -> Tokens:
        """Return a text's tokens, or ``length`` random ones where there is no tokenizer."""
        tokens = self.random_ids(length, stream) if self._encode is None else self._encode(text)
        return tokens[: min(length, self._limit) if cut else self._limit]


def _first_words(what: object) -> str:
    return str(what)[:40].rstrip(".")


def _identity(file: str | os.PathLike[str] | None, given: Sequence[Tokens]) -> str:
    digest = hashlib.sha256(json.dumps([list(tokens) for tokens in given]).encode("ascii"))
    return f"{'built-in' if file is None else 'given'} sha256:{digest.hexdigest()}"
