"""The example with its real MindSpore graphs: eight ranks that depend on each other, and eight that do not."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.layouts import random
from tests.e2e.systems import ROOT, System, Vhosts, environment, running
from tests.e2e.test_idle import processor_share

pytestmark = [pytest.mark.mindspore, pytest.mark.timeout(240)]

EXAMPLE = ROOT / "examples" / "matmul"
ONES = np.ones((128, 96), np.float32)

# One process writes all the files: importing MindSpore takes longer than that.
EXPORT = """
import sys
from pathlib import Path
import numpy as np
from export_model import export_all
full = lambda value: np.full((96, 16), value, np.float32)
folder = Path(sys.argv[1])
random = np.random.default_rng(11)
weights = [random.standard_normal((96, 16)).astype(np.float32) for _ in range(2)]
np.savez(folder / "weights.npz", *weights)
export_all("row_column", [full(0.5), full(1.5)], folder / "divided" / "matmul")
export_all("sharded", weights, folder / "divided" / "matmul_sharded")
export_all("unsharded", [full(0.5), full(0.5)], folder / "listing" / "matmul")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of servables: `divided`, and `listing`, whose graphs are both at 0.5 as in the original's listing."""
    folder = tmp_path_factory.mktemp("matmul")
    for home in ("divided/matmul", "divided/matmul_sharded", "listing/matmul"):
        (folder / home).mkdir(parents=True)
        shutil.copy(EXAMPLE / Path(home).name / "servable_config.py", folder / home)
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, str(folder)],
        cwd=EXAMPLE,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def weights(exported: Path) -> list[np.ndarray]:
    with np.load(exported / "weights.npz") as kept:
        return [kept["arr_0"], kept["arr_1"]]


@pytest.fixture(scope="module")
def divided(exported: Path, vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Both servables of the example, eight ranks each, whose graphs talk to each other."""
    system = System(
        vhosts.url(), exported / "divided", ["matmul", "matmul_sharded"], tmp_path_factory.mktemp("matmul-logs")
    )
    with system:
        system.wait_ready(seconds=150)
        yield system


def test_the_numbers_of_the_original(divided: System) -> None:
    """-96 = -(2 * 96 * 0.5): no rank can have that from its own twelve rows alone."""
    assert divided.group("matmul").communication != "none"
    with divided.client("matmul", "predict") as client:
        [got] = client.infer({"x": ONES, "y": ONES})
    for name, value in (("x", -96), ("z", -144)):
        assert got[name].shape == (128, 16)
        assert got[name].dtype == np.float32
        assert (got[name] == value).all()


def test_the_original_s_listing(exported: Path, vhosts: Vhosts, tmp_path: Path) -> None:
    """Its graphs are not divided, and both have weights of 0.5: it builds its second model of the first network."""
    with running(System(vhosts.url(), exported / "listing", ["matmul"], tmp_path)) as system:
        assert system.group("matmul").communication == "none"
        with system.client("matmul", "predict") as client:
            [got] = client.infer({"x": ONES, "y": ONES})
        assert (got["x"] == -96).all()
        assert (got["z"] == -48).all()


def test_random_inputs_agree_with_numpy(divided: System, weights: list[np.ndarray]) -> None:
    with (
        divided.client("matmul_sharded", "row_parallel") as rows,
        divided.client("matmul_sharded", "column_parallel") as columns,
        divided.client("matmul", "predict") as both,
    ):
        for _ in range(5):
            x, y = random(128, 96), random(128, 96)
            np.testing.assert_allclose(rows.infer({"x": x})[0]["y"], -x @ weights[0], rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(columns.infer({"x": x})[0]["y"], -x @ weights[1], rtol=1e-3, atol=1e-3)
            [got] = both.infer({"x": x, "y": y})
            np.testing.assert_allclose(got["x"], -(2 * x) @ np.full((96, 16), 0.5, np.float32), rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(got["z"], -y @ np.full((96, 16), 1.5, np.float32), rtol=1e-3, atol=1e-3)


def test_many_at_once(divided: System, weights: list[np.ndarray]) -> None:
    """Both subgraphs of both servables, interleaved: the collectives of all ranks meet in the same order."""
    with (
        divided.client("matmul_sharded", "row_parallel") as rows,
        divided.client("matmul_sharded", "column_parallel") as columns,
        divided.client("matmul", "fun1") as fun1,
    ):
        asked = []
        for _ in range(20):
            x = random(128, 96)
            asked += [(rows.infer_async({"x": x}), -x @ weights[0]), (columns.infer_async({"x": x}), -x @ weights[1])]
            asked.append((fun1.infer_async({"x": x}), -(2 * x) @ np.full((96, 16), 0.5, np.float32)))
        for future, expected in asked:
            np.testing.assert_allclose(future.result(60)[0]["y"], expected, rtol=1e-3, atol=1e-3)
    for name in ("matmul", "matmul_sharded"):
        group = divided.group(name)
        assert group.epoch == 1
        assert {rank.step for rank in group.ranks} == {group.step - 1}


def test_a_wrong_shape_is_refused_before_any_rank_sees_it(divided: System) -> None:
    steps = divided.group("matmul").step
    with divided.client("matmul", "fun1") as client, pytest.raises(Exception, match=r"float32 \(128, 96\)"):
        client.infer({"x": ONES[:100]})
    assert divided.group("matmul").step == steps


def test_it_is_idle_when_it_has_nothing_to_do(divided: System) -> None:
    """Sixteen ranks here; the bound is for eight."""
    time.sleep(1.0)
    assert processor_share(divided.orchestrator, divided.agents) < 0.05
