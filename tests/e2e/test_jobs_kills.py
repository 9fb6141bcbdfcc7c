"""A job whose rank, runner, orchestrator and broker are killed, one after the other: every row once, none again."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from rankmq.workers.broker import PrivateBroker

from tests.e2e.cli import rankmq
from tests.e2e.jobs import WEIGHT, Battle, write_matmul, write_rows
from tests.e2e.systems import System

COUNT = 3000
ROWS = 2


@pytest.mark.timeout(240)
def test_a_job_outlives_whatever_is_killed(tmp_path: Path) -> None:
    write_matmul(tmp_path / "servables", ROWS)
    (tmp_path / "logs").mkdir()
    x = write_rows(tmp_path / "x.npz", COUNT, ROWS)
    job = [tmp_path / "x.npz", "-s", "matmul", "-m", "fun2", "--rows-per-request", 4, "--window", 16, "-o"]
    with (
        PrivateBroker(tmp_path / "broker") as broker,
        System(broker.url, tmp_path / "servables", ["matmul"], tmp_path / "logs") as system,
    ):
        system.wait_ready()
        battle = Battle(broker, system, tmp_path, tmp_path / "out")
        with closing(battle):
            battle.run("run", *job, battle.out)
            battle.fight(COUNT)
        undisturbed = rankmq("job", "run", *job, tmp_path / "calm", broker_url=system.url)
        assert undisturbed.returncode == 0, undisturbed.stderr

    results = np.load(battle.out / "results.npz")
    assert results["row"].tolist() == list(range(COUNT))
    assert np.array_equal(results["y"], [-(it @ WEIGHT) for it in x])
    for name in ("results.npz", "errors.jsonl"):
        assert (battle.out / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()
    summary = json.loads((battle.out / "summary.json").read_text())
    assert summary["counts"] == {"total": COUNT, "completed": COUNT, "failed": 0}
    assert summary["runs"] == 2
    with sqlite3.connect(battle.out / "job.sqlite") as db:
        covered = db.execute('SELECT sum(count) FROM requests WHERE attempt = 0 AND "offset" IS NOT NULL').fetchone()
    assert covered == (COUNT,)
