"""examples/gpt through the broker: whatever joins or leaves the batch, every token is the whole model's, in numpy."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.e2e.systems import ROOT, System, Vhosts, environment, running
from tests.integration.gpt_reference import best, read

pytest.importorskip("mindspore")
pytestmark = [pytest.mark.mindspore, pytest.mark.timeout(240)]

EXAMPLE = ROOT / "examples" / "gpt"
RANKS, SLOTS = 4, 4


@pytest.fixture(scope="module")
def system(vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder, logs = tmp_path_factory.mktemp("gpt"), tmp_path_factory.mktemp("logs")
    shutil.copytree(EXAMPLE / "gpt", folder / "gpt")
    configuration = folder / "gpt" / "servable_config.py"
    text = configuration.read_text().replace("rank_size=8", f"rank_size={RANKS}").replace("slots=16", f"slots={SLOTS}")
    configuration.write_text(text)
    command = [sys.executable, "export_model.py", "--output", str(folder), "--rank-size", str(RANKS)]
    done = subprocess.run(
        [*command, "--slots", str(SLOTS)], cwd=EXAMPLE, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with running(System(vhosts.url(), folder, ["gpt"], logs, heartbeats_missed=30)) as system:
        yield system


def requests(seed: int, count: int) -> list[tuple[np.ndarray, int]]:
    """Prompts, and how many tokens are to come after each."""
    random = np.random.default_rng(seed)
    sizes = [(1, 64), (128, 65), (60, 1), (100, 2)]
    sizes += [(int(random.integers(1, 129)), int(random.integers(1, 40))) for _ in range(count - len(sizes))]
    return [(random.integers(0, 256, size).astype(np.int32), new) for size, new in sizes]


def test_texts_that_come_and_go_are_the_whole_models(system: System) -> None:
    # Given three times as many requests as slots, of all lengths
    weights = read(system.directory / "model")
    texts = requests(1, 3 * SLOTS)
    found: dict[int, list[int]] = {}
    most = [0]
    random = np.random.default_rng(2)
    starts = np.cumsum(random.uniform(0, 0.15, len(texts)))
    # When they come at random times
    with system.client("gpt", "generate", timeout=150.0) as client:

        def ask(number: int) -> None:
            time.sleep(float(starts[number]))
            prompt, new = texts[number]
            found[number] = client.infer({"prompt": prompt, "new_tokens": np.int32(new)})[0]["tokens"].tolist()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(texts))]
        before = system.group("gpt").ranks[0].step
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            most[0] = max(most[0], system.group("gpt").slots_waiting)
            time.sleep(0.05)
    # Then every token is the one of the whole model
    for number, (prompt, new) in enumerate(texts):
        assert len(found[number]) == new
        assert found[number] == best(weights, prompt, found[number]), f"prompt of {prompt.size}, {new} tokens"
    # And they have shared slices: a step of its own for each slice of each would have been more
    alone = sum(1 + -(-(new - 1) // 8) for _, new in texts)
    assert system.group("gpt").ranks[0].step - before < alone
    assert most[0] > 0, "no request has waited for a slot"
    assert system.group("gpt").slots_held == 0


@pytest.mark.parametrize("method", ["generate_by_trip", "generate_combined"])
def test_the_other_ways_give_the_same(system: System, method: str) -> None:
    prompt = np.arange(40, dtype=np.int32)
    request = {"prompt": prompt, "new_tokens": np.int32(11)}
    with system.client("gpt", "generate") as one, system.client("gpt", method) as other:
        np.testing.assert_array_equal(one.infer(request)[0]["tokens"], other.infer(request)[0]["tokens"])
