"""What the producers ask of the matmul servable, and what numpy answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .journal import RIGHT, WRONG

__all__ = ["COLUMNS", "METHOD", "SERVABLE", "WIDTH", "Questions", "weights_of"]

Array = np.ndarray[Any, Any]

SERVABLE = "matmul"
METHOD = "predict"
"""A pipeline: x = -(2 * x) @ w0, z = -y @ w1."""

COLUMNS, WIDTH = 96, 16
_BASES = 32
_SCALES = 100
_MOST = 4


class Questions:
    """Numbered requests; all that are unanswered at one time have different inputs, and so different answers.

    Inputs are small whole numbers in float32. Where the weights are too, every sum is exact in whatever order it is
    made, and so an answer must be equal; else it must be close.

    Args:
        weights: of the two graphs, float32 of shape (96, 16).
        rows: of x and y.
        seed: of the producer.
    """

    def __init__(self, weights: Sequence[Array], rows: int, seed: int) -> None:
        chance = np.random.default_rng(seed)
        self._bases = chance.integers(-_MOST, _MOST, (_BASES, 2, rows, COLUMNS), endpoint=True).astype(np.float32)
        self._answers = [{"x": -(x + x) @ weights[0], "z": -y @ weights[1]} for x, y in self._bases]
        self._exact = all((weight == np.round(weight)).all() for weight in weights)

    def inputs(self, number: int) -> dict[str, Array]:
        """The instance of a request.

        Args:
            number: the request's, from 0.

        Returns:
            x and y, float32 of shape (rows, 96).
        """
        x, y = self._bases[number % _BASES] * _scale(number)
        return {"x": x, "y": y}

    def verdict(self, number: int, outputs: Mapping[str, Array]) -> tuple[str, str]:
        """Looks at every number of an answer.

        Args:
            number: the request's.
            outputs: x and z.

        Returns:
            `RIGHT` or `WRONG`, and what is wrong.
        """
        wanted = self._answers[number % _BASES]
        if outputs.keys() != wanted.keys():
            return WRONG, f"outputs {sorted(outputs)}"
        scale = _scale(number)
        for name, base in wanted.items():
            want, got = base * scale, np.asarray(outputs[name])
            if got.shape != want.shape or got.dtype != want.dtype:
                return WRONG, f"{name} is {got.dtype} {got.shape}"
            near = got == want if self._exact else np.isclose(got, want, rtol=1e-3, atol=1e-2 * float(scale))
            if not near.all():
                place = tuple(map(int, np.argwhere(~near)[0]))
                bad = near.size - int(near.sum())
                return WRONG, f"{name}{list(place)} is {got[place]}, not {want[place]}; {bad} numbers differ"
        return RIGHT, ""


def _scale(number: int) -> np.float32:
    return np.float32(1 + number // _BASES % _SCALES)


def weights_of(folder: Path) -> list[Array]:
    """The weights that a servable was made with.

    Args:
        folder: which has a weights.npz.
    """
    with np.load(folder / "weights.npz", allow_pickle=False) as kept:
        return [kept["matmul_0"], kept["matmul_1"]]
