# ruff: noqa: T201  # it is a program
"""Mutated messages against the decoders: typed errors only, and the memory stays flat.

    python -m tests.fuzz.decoder [--messages N] [--seed S]

Every mutation of a request is taken as far as an orchestrator takes it: decoded, its inputs made arrays, and those made
tensors again. The other messages are decoded. Prints the tally, the rate, and the memory each tenth of the way.
"""

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT / ".dev"), str(ROOT)) if path not in sys.path]

import psutil  # noqa: E402
from rankmq.schemas import codec  # noqa: E402
from rankmq.schemas.errors import RankmqError, RequestError  # noqa: E402
from rankmq.schemas.limits import Limits  # noqa: E402
from rankmq.schemas.plain import array_of  # noqa: E402
from rankmq.schemas.tensors import from_array  # noqa: E402

from tests.unit.schemas.builders import EVERY_MESSAGE, decoder_of, most  # noqa: E402
from tests.unit.schemas.test_hostile import SEEDS, SMALL, mutate  # noqa: E402

FLAT_BYTES = 32 * 1024 * 1024
WARM = 0.1


def serve(body: bytes, limits: Limits, tally: Counter[str]) -> None:
    """What an orchestrator does with a request."""
    try:
        request = codec.decode_request(body, codec.content_type_of(None, body), limits)
    except RequestError as error:
        tally[error.code] += 1
        return
    for row in request.instances:
        for value in row.values():
            try:
                from_array(array_of(value, limits))
                tally["input read"] += 1
            except RequestError as error:
                tally[f"input: {error.code}"] += 1


def run(messages: int, seed: int, say: bool = True) -> tuple[Counter[str], int]:
    """Mutates and decodes.

    Returns:
        What came of it, and by how many bytes the memory has grown since a tenth of the way.
    """
    chance, tally = random.Random(seed), Counter[str]()
    requests = list(SEEDS.values())
    others = [(decoder_of(kind), codec.encode(most(kind))) for kind in EVERY_MESSAGE]
    process, began, before = psutil.Process(), time.monotonic(), 0
    limits = (Limits(), SMALL)
    for number in range(messages):
        if number % 4:
            serve(mutate(chance.choice(requests), chance), limits[number % 2], tally)
        else:
            decode, body = chance.choice(others)
            try:
                decode(mutate(body, chance))
                tally["other: decoded"] += 1
            except RankmqError as error:
                tally[f"other: {error.code}"] += 1
        if number == int(messages * WARM):
            before = process.memory_info().rss
        if say and number % max(1, messages // 10) == 0:
            rate = number / max(time.monotonic() - began, 1e-9)
            print(f"{number:>10,}  {process.memory_info().rss / 1e6:6.1f} MB  {rate:8,.0f} a second", flush=True)
    return tally, process.memory_info().rss - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    tally, grown = run(given.messages, given.seed)
    for what, count in sorted(tally.items()):
        print(f"{count:>10,}  {what}")
    print(f"memory has grown by {grown / 1e6:.1f} MB since a tenth of the way")
    sys.exit(grown > FLAT_BYTES)


if __name__ == "__main__":
    main()
