"""The roles on their own, on a broker that somebody else runs; and what cannot be used."""

import json
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rankmq.engine.address import BrokerAddress
from rankmq.workers.broker import PrivateBroker, TlsFiles

from tests.e2e.cli import RANKMQ, Service, failed, rankmq, write_servables
from tests.e2e.systems import Vhosts, environment, wait_until


@pytest.fixture(scope="module")
def servables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("servables")
    write_servables(folder)
    return folder


@pytest.fixture
def url(vhosts: Vhosts) -> str:
    return vhosts.url()


DOUBLE = ("infer", "small", "double", "-i", "x=[1,2,3]", "-o", "-")


def doubled(**settings: object) -> bool:
    done = rankmq(*DOUBLE, **settings)
    return done.returncode == 0 and json.loads(done.stdout)["y"]["data"] == [2, 4, 6]


def is_ready(url: str) -> bool:
    return rankmq("status", broker_url=url).returncode == 0


def test_orchestrator_and_agents_apart(servables: Path, url: str, tmp_path: Path):
    matmul = servables / "matmul"
    with (
        Service(tmp_path, "agents", matmul, "--ranks", "0-3", broker_url=url) as low,
        Service(tmp_path, "orchestrator", servables, "--max-in-flight", 8, broker_url=url) as orchestrator,
    ):
        wait_until(lambda: "rank 3 of matmul.v1.g0 registers" in orchestrator.errors, "the lower ranks")
        status = rankmq("status", broker_url=url)
        assert status.returncode == 6
        assert "ranks 4-7 are missing" in status.stdout
        assert "ranks 0-1 are missing" in status.stdout
        high = ("--servable", "matmul", "--model-files", matmul / "1/device{rank}/matmul_0.npz")
        with (
            Service(
                tmp_path, "agents", servables, "--ranks", "4-5,6,7", *high,
                "--model-files", matmul / "1/device{rank}/matmul_1.npz", broker_url=url,
            ) as upper,
            Service(tmp_path, "agents", servables, "--servable", "small", broker_url=url) as small,
        ):  # fmt: skip
            wait_until(lambda: is_ready(url), "both groups")
            assert doubled(broker_url=url)
            (told,) = json.loads(rankmq("status", "--json", broker_url=url).stdout)
            assert told["max_in_flight"] == 8
            parents = {low.process.pid, upper.process.pid, small.process.pid}
            assert orchestrator.process.pid == told["pid"]
            assert not parents & {rank["pid"] for group in told["groups"] for rank in group["ranks"]}
            assert orchestrator.stop() == 0
            nobody = rankmq("status", broker_url=url)
            assert nobody.returncode == 6
            assert "no orchestrator answers on amqp://" in nobody.stderr
            late = rankmq(*DOUBLE, "--timeout", 1, broker_url=url)
            assert "no reply within 1 s" in failed(late, 9)
            for service in (small, upper, low):
                assert service.stop(2 if service is small else 15) == (130 if service is small else 0)
                assert service.left_behind(5) == []


def test_ranks_by_the_rank_table(servables: Path, url: str, tmp_path: Path):
    table = tmp_path / "table.json"
    servers = [
        {"server_id": host, "device": [{"device_id": "0", "rank_id": rank}]}
        for host, rank in (("one", "0"), ("two", "1"))
    ]
    table.write_text(json.dumps({"version": "1.0", "server_list": servers, "status": "completed"}))
    small = (servables / "small", "--rank-table", table)
    with (
        Service(tmp_path, "orchestrator", *small, broker_url=url),
        Service(tmp_path, "agents", *small, "--host", "one", broker_url=url),
        Service(tmp_path, "agents", *small, "--host", "two", broker_url=url),
    ):
        wait_until(lambda: is_ready(url), "the group")
        (told,) = json.loads(rankmq("status", "--json", broker_url=url).stdout)
        assert [rank["host"] for rank in told["groups"][0]["ranks"]] == ["one", "two"]
        assert doubled(broker_url=url)


def test_missing_ranks_are_named_in_time(servables: Path, url: str, tmp_path: Path):
    with Service(tmp_path, "agents", servables / "small", "--ranks", 1, broker_url=url):
        done = rankmq("orchestrator", servables / "small", "--wait-agents", 4, broker_url=url)
        assert "ranks 0 have not registered within 4 s" in failed(done, 6)


def test_up_on_somebody_else_s_broker(servables: Path, url: str, tmp_path: Path):
    with Service(tmp_path, "up", servables / "small", "--state", tmp_path / "state", broker_url=url) as up:
        up.wait_for("call it with")
        assert doubled(state_dir=tmp_path / "state")
        assert f"broker  amqp://rankmq@127.0.0.1:{BrokerAddress.parse(url).port}" in up.output
        assert not (tmp_path / "state" / "broker").exists()
        assert up.stop() == 0


def test_a_wrong_password(servables: Path, url: str, tmp_path: Path):
    wrong = url.replace(BrokerAddress.parse(url).password, "wrong-password")
    with Service(tmp_path, "up", servables / "small", "--state", tmp_path / "state", broker_url=wrong) as up:
        message = failed(up, 4)
        assert "refuses this user or password" in message
        assert "wrong-password" not in up.output + up.errors
        assert up.left_behind(5) == []
    for command in (DOUBLE, ("status",), ("agents", servables / "small"), ("orchestrator", servables / "small")):
        assert "refuses this user or password" in failed(rankmq(*command, broker_url=wrong), 4)


def test_no_broker(servables: Path, tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"amqp://127.0.0.1:{taken.getsockname()[1]}/"
        small = servables / "small"
        for command in (DOUBLE, ("status",), ("up", small), ("agents", small), ("orchestrator", small)):
            given = {"broker_url": nobody, "connect_timeout": 0.5, "state_dir": tmp_path / "state"}
            assert "no broker answers" in failed(rankmq(*command, **given), 4)


def test_a_taken_port(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = rankmq("broker", "--port", port, "--state", tmp_path / "state")
        assert f"port {port} is taken" in failed(done, 7)


def test_a_model_file_that_cannot_be_read(servables: Path, url: str, tmp_path: Path):
    write_servables(tmp_path / "damaged")
    (tmp_path / "damaged/small/1/device1/1_slow.npz").write_bytes(b"no graph")
    given = {"broker_url": url, "state_dir": tmp_path / "state"}
    with Service(tmp_path, "up", tmp_path / "damaged" / "small", **given) as up:
        assert "1_slow.npz is not a graph" in failed(up, 5)
        assert up.left_behind(5) == []


def test_over_tls_with_client_certificates(
    servables: Path, tls_files: TlsFiles, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    state = tmp_path / "state"
    files = ("--tls-ca-file", tls_files.ca, "--tls-cert-file", tls_files.cert, "--tls-key-file", tls_files.key)
    with PrivateBroker(tmp_path_factory.mktemp("tls"), tls=tls_files) as broker:
        with Service(tmp_path, "up", servables / "small", *files, "--state", state, broker_url=broker.tls_url) as up:
            up.wait_for("call it with")
            assert doubled(state_dir=state)  # which finds the certificates beside the URL
            assert rankmq("status", "--state", state).returncode == 0
            assert up.stop() == 0
        without = rankmq("status", broker_url=broker.tls_url)
        assert "certificate" in failed(without, 4)


def test_the_scripts_of_older_days(servables: Path, url: str, tmp_path: Path):
    """What served and started agents with MindSpore Serving r1.3, its import lines changed."""
    server, agents = tmp_path / "serving_server.py", tmp_path / "serving_agent.py"
    server.write_text(
        textwrap.dedent(f"""
        from rankmq.engine import distributed

        if __name__ == "__main__":
            distributed.start_servable({str(servables)!r}, "matmul", version_number=1,
                                       distributed_address="127.0.0.1:6200")
        """)
    )
    agents.write_text(
        textwrap.dedent("""
        from rankmq.workers import distributed

        def start_agents():
            model_files = []
            for i in range(8):
                model_files.append([f"1/device{i}/matmul_0.npz", f"1/device{i}/matmul_1.npz"])
            distributed.startup_agents(distributed_address="127.0.0.1:6200", model_files=model_files)

        if __name__ == "__main__":
            start_agents()
        """)
    )
    with Script(agents, servables / "matmul", url) as started, Script(server, tmp_path, url) as serving:
        wait_until(lambda: is_ready(url), "the group")
        assert "127.0.0.1:6200 has no effect" in serving.errors
        done = rankmq("status", "--json", broker_url=url)
        assert [group["group"]["servable"] for group in json.loads(done.stdout)[0]["groups"]] == ["matmul"]
        assert serving.stop() == 0
        assert started.stop() == 0
        assert started.left_behind(5) == []


class Script(Service):
    """A script of a user's, run in a folder."""

    def __init__(self, script: Path, folder: Path, url: str) -> None:
        self._out, self._err = script.with_suffix(".out"), script.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, str(script)], stdout=out, stderr=err, env=environment(broker_url=url), cwd=folder
            )
        self._seen = {}


def test_startup_agents_says_what_is_missing(servables: Path, url: str, tmp_path: Path):
    script = tmp_path / "agents.py"
    script.write_text(
        "import sys\nfrom rankmq.workers import distributed\nfrom rankmq.schemas.errors import OperatorError\n"
        "try:\n    distributed.startup_agents(**eval(sys.argv[1]))\n"
        "except OperatorError as error:\n    sys.exit(f'{type(error).__name__}: {error}')\n"
    )

    def said(**arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, str(script), repr(arguments)],
            capture_output=True, text=True, timeout=60, check=False, env=environment(broker_url=url),
        )  # fmt: skip
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    files = [
        [str(servables / f"small/1/device{rank}/{name}.npz") for name in ("0_double", "1_slow")] for rank in (0, 1)
    ]
    assert said(model_files=[]).startswith("ModelError: startup_agents needs model_files")
    assert said(model_files=[["nowhere.npz"]]).startswith(
        "ModelError: the model file of rank 0 of this machine is missing"
    )
    assert "group configuration file of rank 1" in said(model_files=files, group_config_files=[files[0], ["no.pb"]])
    assert said(model_files=files, wait_orchestrator_seconds=0.0).startswith(
        "GroupError: no orchestrator answers on amqp://"
    )
    with Service(tmp_path, "orchestrator", servables, broker_url=url) as orchestrator:
        wait_until(lambda: rankmq("status", broker_url=url).stdout, "the orchestrator")
        assert "served: matmul.v1.g0, small.v1.g0" in said(model_files=files)
        one = said(model_files=files[:1], servable_name="small", version_number=0)
        assert "small.v1.g0 has 2 ranks and model_files has 1: say with rank_start" in one
        assert orchestrator.stop() == 0


def test_the_module_is_the_command():
    done = subprocess.run([*RANKMQ, "--version"], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.startswith("rankmq ")
