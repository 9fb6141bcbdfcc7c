"""The command line up to where a broker would be needed: help, options, settings, errors and exit codes."""

import json
import re
import subprocess
import sys

import pytest
import typer
from rankmq.engine.claims import CLAIM_HEADER, CLAIMS_HEADER
from rankmq.engine.dead_headers import headers_of
from rankmq.engine.dead_letters import REPLAYED_HEADER
from rankmq.engine.deadline import DEADLINE_HEADER, RUN_HEADER
from rankmq.engine.references import BLOBS_HEADER
from rankmq.engine.topology import LANES
from rankmq.schemas import errors
from rankmq.schemas.errors import OperatorError, RankmqError
from rankmq.scripts.app import app
from rankmq.scripts.options import with_settings
from rankmq.scripts.report import Usage, exit_code, reported
from typer.testing import CliRunner

COMMANDS = (
    *("agents", "bench", "broker", "cancel", "chaos", "dead", "demo", "infer", "job", "orchestrator", "schema"),
    *("status", "up"),
)
GROUPS = {
    "dead": ("list", "show", "replay", "purge"),
    "job": ("run", "submit", "status", "list", "cancel", "resume"),
}
"""Commands that have commands."""
LINES = [(name,) for name in COMMANDS if name not in GROUPS] + [(name, it) for name in GROUPS for it in GROUPS[name]]
SHARED = ("--broker-url", "--tls-ca-file", "--tls-cert-file", "--tls-key-file", "--state", "--config", "--log-level")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("RANKMQ_CONFIG", "")  # so that what a command puts there is taken back
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "nothing-runs-here"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RANKMQ_BROKER_URL", raising=False)


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_help_lists_every_command():
    result = run("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert re.search(rf"^│ {command}\s", plain(result.output), re.MULTILINE)
    assert "Exit codes: 0 done" in plain(result.output)


def test_these_are_all_there_are():
    commands = typer.main.get_command(app).commands
    assert set(commands) == set(COMMANDS)
    assert {name: set(it.commands) for name, it in commands.items() if hasattr(it, "commands")} == {
        name: set(names) for name, names in GROUPS.items()
    }


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_help_of_a_command_has_examples(line):
    result = run(*line, "--help")
    assert result.exit_code == 0
    text = plain(result.output)
    assert line == ("demo",) or f"    rankmq {' '.join(line)}" in text
    if line not in (("schema",), ("chaos",)):  # they ask nobody's broker
        for option in SHARED:
            assert f"{option} " in text


@pytest.mark.parametrize("group", GROUPS)
def test_help_of_a_group_lists_its_commands(group):
    for arguments in ((group, "--help"), (group,)):  # no command is a question for help there too
        text = plain(run(*arguments).output)
        for command in GROUPS[group]:
            assert re.search(rf"^│ {command}\s", text, re.MULTILINE)
            assert f"    rankmq {group} {command}" in text


def test_no_command_is_a_question_for_help():
    assert "Usage:" in run().output


@pytest.mark.parametrize(
    "arguments",
    [
        *(("nothing",), ("up",), ("infer", "a"), ("status", "--nothing"), ("schema", "yaml"), ("up", "a", "-v")),
        *(("cancel",), ("dead", "nothing"), ("dead", "show"), ("bench", "nothing"), ("chaos", "--ranks", "0")),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments):
    assert run(*arguments).exit_code == 2


def test_version_of_rankmq():
    result = run("--version")
    assert result.exit_code == 0
    assert result.output.startswith("rankmq ")


def test_schema_documents_are_json_with_the_names_of_the_topology():
    assert "Request" in json.loads(run("schema").output)["$defs"]
    document = json.loads(run("schema", "asyncapi").output)
    assert document["channels"]["requestsQueue"]["address"] == "rankmq.requests.{servable}.{lane}"
    assert document["channels"]["requestsQueue"]["parameters"]["lane"]["enum"] == list(LANES)
    assert document["channels"]["requests"]["address"] == "{servable}.{lane}"
    assert document["channels"]["cancel"]["bindings"]["amqp"]["exchange"]["name"] == "rankmq.cancel"
    address = "rankmq.{servable}.v{version}.{group}.rank.{rank}.{agent}-{connection}"
    assert document["channels"]["rankQueue"]["address"] == address
    assert document["channels"]["tasks"]["bindings"]["amqp"]["exchange"]["name"] == (
        "rankmq.{servable}.v{version}.{group}.subgraph.{subgraph}"
    )


def test_the_headers_in_the_document_are_those_that_are_sent():
    messages = json.loads(run("schema", "asyncapi").output)["components"]["messages"]
    asked = messages["Request"]["headers"]["properties"]["headers"]["properties"]
    dead = messages["DeadLetter"]["headers"]["properties"]["headers"]["properties"]
    where = {"request": "1", "attempts": 1, "exchange": "", "routing_key": "m", "now": 1.0, "epoch": 2}
    headers = headers_of(errors.InvalidInput("x"), **where, headers={"large": "x" * 200_000, DEADLINE_HEADER: 5})
    assert asked.keys() == {
        *(DEADLINE_HEADER, RUN_HEADER, BLOBS_HEADER, CLAIMS_HEADER, CLAIM_HEADER, REPLAYED_HEADER, "traceparent")
    }
    assert dead.keys() == headers.keys() | asked.keys()
    for name, value in headers.items():
        assert dead[name]["type"] == ("integer" if isinstance(value, int) else "string")


def failure(result) -> str:
    """The one line of a failed command."""
    assert result.stderr.startswith("rankmq: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    return result.stderr


def test_nothing_runs_here():
    for arguments in (("status",), ("infer", "a", "b", "-i", "x=1"), ("cancel", "a"), ("dead", "list")):
        result = run(*arguments)
        assert result.exit_code == 3
        assert "nothing runs here with the state folder" in failure(result)


def test_settings_that_cannot_be_used():
    result = run("status", "--log-level", "loud")
    assert result.exit_code == 3
    assert "setting log_level: " in failure(result)
    result = run("up", "x", "--max-in-flight", "0")
    assert result.exit_code == 3
    assert "setting max_in_flight: " in failure(result)
    result = run("status", "--config", "/nowhere.toml")
    assert result.exit_code == 3
    assert "/nowhere.toml" in failure(result)


def test_a_password_is_in_no_message():
    result = run("status", "--broker-url", "amqp://me:geheim@127.0.0.1:1/", "--timeout", "0.1", "--config", "")
    assert "geheim" not in result.output


def test_inputs_that_cannot_be_meant():
    result = run("infer", "a", "b", "-i", "x=hello")
    assert result.exit_code == 2
    assert "is not JSON" in failure(result)
    result = run("infer", "a", "b", "--output", "x.csv")
    assert result.exit_code == 2
    assert "--output x.csv" in failure(result)


def test_a_wrong_servable_is_told_with_file_and_line_and_starts_nothing(tmp_path):
    home = tmp_path / "broken"
    home.mkdir()
    (home / "servable_config.py").write_text("import numpy\n1 / 0\n")
    state = tmp_path / "state"
    result = run("up", str(home), "--state", str(state))
    assert result.exit_code == 3
    assert f"{home}/servable_config.py:2: ZeroDivisionError" in failure(result)
    assert not state.exists()


MODEL = """
from rankmq.engine import distributed, register
distributed.declare_servable(rank_size=2, stage_size=1, with_batch_dim=False)

@register.register_method(output_names=["y"])
def twice(x):
    return register.call_servable(x, subgraph=0)
"""


def servable(home, text=MODEL):
    home.mkdir(parents=True)
    (home / "servable_config.py").write_text(text)


def test_a_missing_model_file_is_told_and_starts_nothing(tmp_path):
    servable(tmp_path / "twice")
    state = tmp_path / "state"
    result = run("up", str(tmp_path), "--state", str(state))
    assert result.exit_code == 5
    assert "rank 0" in failure(result)
    (tmp_path / "0.txt").touch()
    (tmp_path / "1.txt").touch()
    pattern = str(tmp_path / "{rank}.txt")
    result = run("up", str(tmp_path / "twice"), "--state", str(state), "--model-files", pattern)
    assert result.exit_code == 5
    assert "must all be .mindir (MindSpore) or all .npz (numpy)" in failure(result)
    assert not state.exists()


def test_agents_are_told_which_ranks_there_are(tmp_path):
    servable(tmp_path / "twice")
    servable(
        tmp_path / "calls",
        "from rankmq.engine import register\n@register.register_pipeline(['y'])\ndef f(x):\n    return x\n",
    )
    broker = ("--broker-url", "amqp://127.0.0.1:1/")
    table = tmp_path / "table.json"
    devices = [{"device_id": str(rank), "rank_id": str(rank)} for rank in range(3)]
    table.write_text(
        json.dumps(
            {"version": "1.0", "server_list": [{"server_id": "here", "device": devices[:2]}], "status": "completed"}
        )
    )
    twice = str(tmp_path / "twice")
    cases = [
        ((twice, "--ranks", "0-2"), 2, "has ranks 0 to 1"),
        ((twice, "--ranks", "0", "--rank-table", str(table)), 2, "not both"),
        ((twice, "--rank-table", str(table), "--host", "there"), 3, "no rank on there: say with --host which of here"),
        ((str(tmp_path), "--servable", "nobody"), 3, "there are: calls, twice"),
        ((str(tmp_path / "calls"),), 3, "needs no agents"),
        ((twice,), 5, "rank 0"),
        ((twice, "--ranks", "1"), 5, "say with --model-files where those of these ranks are"),
    ]
    for arguments, code, says in cases:
        result = run("agents", *arguments, *broker)
        assert result.exit_code == code, result.output
        assert says in failure(result)
    table.write_text(
        json.dumps({"version": "1.0", "server_list": [{"server_id": "here", "device": devices}], "status": "completed"})
    )
    result = run("agents", twice, "--rank-table", str(table), "--host", "here", *broker)
    assert result.exit_code == 3
    assert "the table has 3 ranks, and servable twice has 2" in failure(result)


# ------------------------------------------------------------------------------------------------ options and errors


def call_with(function, *arguments: str, **how):
    probe = typer.Typer()
    probe.command()(with_settings("probe", **how)(function))
    return CliRunner().invoke(probe, list(arguments))


def test_options_win_over_the_environment_and_that_over_the_file(tmp_path, monkeypatch):
    seen = []

    def command(settings, number: int = 3) -> None:
        seen.append((settings, number))

    file = tmp_path / "settings.toml"
    file.write_text('max_in_flight = 1\nlockstep_window = 2\nlog_level = "warning"\n')
    monkeypatch.setenv("RANKMQ_LOCKSTEP_WINDOW", "5")
    monkeypatch.setenv("RANKMQ_LOG_LEVEL", "error")
    result = call_with(command, "--config", str(file), "--log-level", "debug", "--number", "4", tuning=True)
    assert result.exit_code == 0, result.output
    (settings, number), *_ = seen
    assert number == 4
    assert (settings.max_in_flight, settings.lockstep_window, settings.log_level) == (1, 5, "debug")


def test_the_state_folder_and_the_broker_are_options():
    seen = []
    result = call_with(lambda settings: seen.append(settings), "--state", "/s", "--broker-url", "amqp://a:b@c/")
    assert result.exit_code == 0, result.output
    assert str(seen[0].state_dir) == "/s"
    assert str(seen[0].address()) == "amqp://a@c:5672"


@pytest.mark.parametrize(
    "kind",
    [it for it in errors.error_codes().values() if issubclass(it, OperatorError)],
)
def test_an_operator_s_error_has_its_exit_code(kind):
    assert exit_code(kind("x")) == kind.exit_code


def test_a_request_s_errors_have_theirs():
    assert exit_code(errors.InvalidInput("x")) == 8
    assert exit_code(errors.StageFailed("x")) == 8
    assert exit_code(errors.InstancesFailed("x", [])) == 8
    assert exit_code(errors.ReplyTimeout("x")) == 9
    assert exit_code(errors.DeadlineExceeded("x")) == 9
    assert exit_code(errors.ConnectionLost("x")) == 4
    assert exit_code(RankmqError("x")) == 8


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (Usage("so\nnot"), 2, "rankmq: so not\n"),
        (errors.GroupError("two\n  lines"), 6, "rankmq: two lines\n"),
        (KeyboardInterrupt(), 130, ""),
        (KeyError("oops"), 1, "rankmq: a defect of rankmq: KeyError: 'oops' (RANKMQ_LOG_LEVEL=debug shows where)\n"),
    ],
)
def test_what_is_raised_is_one_line_and_a_code(capfd, error, code, says):
    with pytest.raises(typer.Exit) as caught, reported():
        raise error
    assert caught.value.exit_code == code
    assert capfd.readouterr().err == says


def test_debug_logs_show_where_it_failed():
    def command(settings) -> None:
        raise KeyError("oops")

    assert "Traceback" not in call_with(command).output
    assert "Traceback" in call_with(command, "--log-level", "debug").output


def test_quiet_commands_log_what_is_asked_for():
    import logging

    def command(settings) -> None:
        logging.getLogger("rankmq.probe").warning("a warning")

    assert "a warning" in call_with(command).output
    assert "a warning" not in call_with(command, quiet=True).output
    assert "a warning" in call_with(command, "--log-level", "info", quiet=True).output


def test_the_entry_point_imports_nothing_before_it_is_called():
    """Each of eight agents imports it once more."""
    code = "import sys; before = set(sys.modules); import rankmq.scripts.main; print(*(set(sys.modules) - before))"
    path = next(path for path in sys.path if path.endswith(".dev"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": path}
    )
    assert set(done.stdout.split()) <= {"__future__", "rankmq", "rankmq.scripts", "rankmq.scripts.main"}


def test_help_imports_nothing_heavy():
    code = (
        "import sys, rankmq.scripts.app; "
        "print(*({'numpy', 'pika', 'pydantic', 'msgspec', 'mindspore', 'rich.table'} & set(sys.modules)))"
    )
    path = next(path for path in sys.path if path.endswith(".dev"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": path}
    )
    assert done.stdout.split() == []
