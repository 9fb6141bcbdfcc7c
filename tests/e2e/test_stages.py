"""Pipeline-parallel stages: however the ranks are divided, the answers are the same."""

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import Start
from tests.e2e.graphs import WORDS, Graph, op, spec, write_servable

RANKS, LAYERS, WIDTH = 8, 8, 12
WEIGHTS = [
    np.random.default_rng(layer).standard_normal((WIDTH, WIDTH)).astype(np.float32) / 3 for layer in range(LAYERS)
]


def graph(stage: int, stages: int) -> Graph:
    """The layers of one stage: x -> relu(x @ w) for each."""
    each = LAYERS // stages
    layers = range(stage * each, (stage + 1) * each)
    operations, value = [], "x"
    for layer in layers:
        operations += [op("matmul", f"{value} w{layer}", f"p{layer}"), op("relu", f"p{layer}", f"y{layer}")]
        value = f"y{layer}"
    return Graph(
        operations, [spec("x", -1, WIDTH)], [spec(value, -1, WIDTH)], {f"w{layer}": WEIGHTS[layer] for layer in layers}
    )


def expected(x: np.ndarray) -> np.ndarray:
    for weight in WEIGHTS:
        x = np.maximum(x @ weight, 0)
    return x


def configuration(stages: int) -> str:
    return (
        WORDS
        + f"""
distributed.declare_servable(rank_size={RANKS}, stage_size={stages}, with_batch_dim=True, batch_size=4)
@register.register_method(output_names=["y"])
def run(x):
    return register.call_servable(x, subgraph=0)
"""
    )


@pytest.mark.parametrize("stages", [1, 2, 4, 8])
def test_the_same_answers_from_any_number_of_stages(start: Start, tmp_path: Path, stages: int) -> None:
    # Given the same eight layers over 1, 2, 4 or 8 stages
    each = RANKS // stages
    write_servable(
        tmp_path, "layers", configuration(stages), {"g": lambda rank: graph(rank // each, stages)}, ranks=RANKS
    )
    system = start("layers")
    wrong: list[str] = []
    with system.client("layers", "run") as client:
        # When several producers ask at once
        def ask(seed: int) -> None:
            generator = np.random.default_rng(seed)
            for _ in range(20):
                rows = [generator.standard_normal(WIDTH).astype(np.float32) for _ in range(3)]
                for row, answer in zip(rows, client.infer([{"x": row} for row in rows]), strict=True):
                    if not np.allclose(answer["y"], expected(row), rtol=1e-4, atol=1e-5):
                        wrong.append(f"seed {seed}")

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        # Then every answer is right, and every rank has run steps
        assert not wrong
        status = system.group("layers")
        assert status.stage_size == stages
        assert all(rank.step >= 0 for rank in status.ranks)
        # And where a rank of a middle stage dies, the next answer is right again
        os.kill(status.ranks[RANKS // 2].pid, signal.SIGKILL)
        row = np.ones(WIDTH, np.float32)
        np.testing.assert_allclose(client.infer({"x": row})[0]["y"], expected(row), rtol=1e-4, atol=1e-5)


def test_stages_that_do_not_fit_together_are_refused(build: Start, tmp_path: Path) -> None:
    # Given a second stage that takes another width than the first gives
    def misfit(rank: int) -> Graph:
        other = Graph([op("identity", "x", "y")], [spec("x", -1, 5)], [spec("y", -1, 5)])
        return graph(0, 2) if rank < RANKS // 2 else other

    write_servable(tmp_path, "misfit", configuration(2), {"g": misfit}, ranks=RANKS)
    # When it is started
    system = build("misfit")
    with system:
        # Then the orchestrator ends, with one line that says which stages
        assert system.orchestrator.ended() == 5
        assert "stage 0 gives" in system.orchestrator.said
        assert "Traceback" not in system.orchestrator.said
        system.destroy()
