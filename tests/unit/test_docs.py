"""What the documents say is what the code does: names, tables, examples, links and commands."""

import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import typer.main
from rankmq.engine import distributed, register
from rankmq.engine.loader import load_servable
from rankmq.engine.settings import Settings
from rankmq.schemas import codec
from rankmq.schemas.errors import OperatorError, error_codes
from rankmq.schemas.limits import Limits
from rankmq.schemas.plain import array_of
from rankmq.schemas.tensors import DTYPES, MAX_DIMENSIONS, MAX_EMPTY_ROWS
from rankmq.scripts.app import app
from rankmq.scripts.commands import schema

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("**/README.md")),
]
PROTOCOL = ROOT / "docs" / "protocol.md"
README = ROOT / "README.md"


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def marked(text: str, name: str) -> str:
    """What stands between `<!-- name: ... -->` and `<!-- end of name -->`."""
    found = re.search(rf"<!-- {name}: .*? -->\n(.*?)<!-- end of {name} -->", text, re.DOTALL)
    assert found, f"no part marked {name}"
    return found[1].strip()


def rows(table: str) -> list[list[str]]:
    """The cells of a Markdown table, without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def code(cell: str) -> str:
    return cell.strip("`")


# --------------------------------------------------------------------------------------------------- links and commands


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text()))
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (document.parent / file).resolve() if file else document
        assert path.exists(), f"{target} does not exist"
        assert path.is_relative_to(ROOT), f"{target} is outside of the clone"
        if anchor:
            assert anchor in anchors(path), f"{target}: no such heading"


def spans(document: Path) -> Iterator[str]:
    """Code between backticks, and the lines of shell blocks."""
    text = document.read_text()
    yield from re.findall(r"`([^`\n]+)`", without_code(text))
    for block in [*blocks(text, "sh"), *blocks(text, "console")]:
        for line in block.replace("\\\n", " ").splitlines():
            yield line.removeprefix("$ ")


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_name)
def test_commands_and_their_options_exist(document: Path) -> None:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for span in spans(document):
        words = shlex.split(span, comments=True) if span.startswith("rankmq ") else []
        if len(words) < 2 or words[1] in ("--help", "COMMAND"):
            continue
        assert words[1] in commands, f"{span}: no such command"
        command = commands[words[1]]
        if hasattr(command, "commands") and len(words) > 2:
            assert words[2] in command.commands, f"{span}: no such command"
            command = command.commands[words[2]]
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for word in words[2:]:
            if word.startswith("-") and word != "-":
                assert word.partition("=")[0] in known | {"--help"}, f"{span}: {word} is no option of it"


def test_every_command_is_in_the_readme() -> None:
    table = {code(row[0]).split()[1] for row in rows(README.read_text()) if row[0].startswith("`rankmq ")}
    assert table == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_name)
def test_files_that_are_named_exist(document: Path) -> None:
    folders = "schemas|engine|workers|scripts|tests|docs|examples"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", without_code(document.read_text())):
        assert (ROOT / name).exists(), f"{name} does not exist"


# ----------------------------------------------------------------------------------------------------------- the readme


def test_the_settings_are_in_the_readme() -> None:
    def default(value: object) -> str:
        return "" if value is None else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"

    expected = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        expected.append(f"| `{name}` | {default(field.default)} | {field.description} |")
    assert marked(README.read_text(), "settings").splitlines() == expected


def test_the_first_servable_loads(tmp_path: Path) -> None:
    export, configuration = blocks(README.read_text(), "python")[:2]
    assert len([line for line in configuration.splitlines() if line]) == 15
    home = tmp_path / "hello"
    home.mkdir()
    (home / "servable_config.py").write_text(configuration)

    servable = load_servable(tmp_path, "hello", require_models=False)

    assert set(servable.methods) == {"double", "halve"}
    assert set(servable.pipelines) == {"grow"}
    compile(export, "export.py", "exec")


def test_the_page_for_authors_has_two_servables_that_load(tmp_path: Path) -> None:
    _, *lessons, tally = blocks((ROOT / "docs" / "servables.md").read_text(), "python")
    for name, text in (("lessons", "\n\n".join(lessons)), ("tally", tally)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "servable_config.py").write_text(text)
    found = [load_servable(tmp_path, name, require_models=False) for name in ("lessons", "tally")]
    assert [(set(it.methods), set(it.pipelines)) for it in found] == [
        ({"project", "plain", "climb", "reach", "look_up"}, {"settle"}),
        ({"begin", "add"}, {"add_up"}),
    ]


@pytest.mark.parametrize("word", [distributed.declare_servable, distributed.subgraph, register.repeat])
def test_every_word_of_a_configuration_is_in_the_documents_for_authors(word: Callable[..., Any]) -> None:
    """On the page for authors, and word by word for those who come from MindSpore Serving."""
    for name in ("servables.md", "from-mindspore-serving.md"):
        text = (ROOT / "docs" / name).read_text()
        for parameter in inspect.signature(word).parameters:
            if parameter not in ("args", "tag", "file", "enable_pipeline_infer", "communication"):
                assert parameter in text, f"{parameter} of {word.__name__} is not in {name}"


# --------------------------------------------------------------------------------------------------------- the protocol


def test_the_error_codes_are_in_the_protocol() -> None:
    table = {code(row[0]): (code(row[1]), row[2]) for row in rows(marked(PROTOCOL.read_text(), "errors"))}
    assert table == {name: (kind.__name__, kind.side) for name, kind in error_codes().items()}


def test_the_exit_codes_are_in_the_protocol() -> None:
    operators = {name: kind.exit_code for name, kind in error_codes().items() if issubclass(kind, OperatorError)}
    table = {code(row[0]): row[3] for row in rows(marked(PROTOCOL.read_text(), "errors"))}
    for name, exit_code in operators.items():
        assert f"exit code {exit_code}" in table[name]


def test_the_dtypes_are_in_the_protocol() -> None:
    named = [name for row in rows(marked(PROTOCOL.read_text(), "dtypes")) for name in re.findall(r"`(\w+)`", row[0])]
    assert named == list(DTYPES)


def test_the_limits_are_in_the_protocol() -> None:
    def number(text: str) -> int:
        value, _, unit = text.partition(" ")
        return int(value.replace(",", "")) * {"": 1, "MiB": 1024**2}[unit]

    limits, settings = Limits(), Settings()
    table = {row[0]: number(row[1]) for row in rows(marked(PROTOCOL.read_text(), "limits"))}
    assert table == {
        "size of the body": limits.body_bytes,
        "instances": limits.instances,
        "inputs of an instance": limits.inputs,
        "length of an input's name": limits.name_length,
        "depth of nested lists": limits.nesting,
        "values in nested lists and in tensors of text or bytes": limits.elements,
        "dimensions of a tensor": MAX_DIMENSIONS,
        "rows of an empty tensor": MAX_EMPTY_ROWS,
        "deliveries of a request": settings.max_deliveries,
    }
    assert (settings.limits.body_bytes, settings.limits.instances) == (limits.body_bytes, limits.instances)


def test_the_names_on_the_broker_are_in_the_protocol() -> None:
    text = PROTOCOL.read_text()
    for name in schema._names().values():
        plain = name.replace("{lane}", "normal").replace("{", "<").replace("}", ">")
        assert f"`{plain}`" in text, f"{plain} is not in {PROTOCOL.name}"


def test_the_bytes_in_the_protocol_are_what_they_say() -> None:
    text = PROTOCOL.read_text()
    dumps = [
        bytes.fromhex("".join(line.partition("#")[0] for line in block.splitlines())) for block in blocks(text, "hex")
    ]
    shown = [json.loads(block) for block in blocks(text, "json")]
    assert len(dumps) == 2
    request, reply = codec.decode_request(dumps[0]), codec.decode_reply(dumps[1])
    limits = Limits()

    assert dumps[0] == msgpack.packb(msgpack.unpackb(dumps[0]))
    assert dumps[1] == codec.encode_reply(reply)
    assert f"The request in MessagePack, {len(dumps[0])} bytes" in text

    requests = [codec.decode_request(json.dumps(it).encode(), codec.JSON) for it in shown if "instances" in it]
    assert len(requests) == 3
    for same in requests:
        assert (same.servable, same.method, same.version) == (request.servable, request.method, request.version)
        ours, theirs = (array_of(it.instances[0]["x"], limits).tolist() for it in (request, same))
        assert ours == theirs

    (part,) = [codec.decode_part(json.dumps(it).encode(), codec.JSON) for it in shown if "number" in it]
    assert (part.index, part.attempt, part.number, *part.outputs) == (0, 1, 3, "text")
    shown = [it for it in shown if "number" not in it]
    answers = [codec.decode_reply(json.dumps(it).encode(), codec.JSON) for it in shown if "outputs" in it]
    assert len(answers) == 3
    assert answers[0] == reply
    assert [len(it.errors) for it in answers] == [0, 1, 0]
    assert answers[2].error is not None
    assert {error.error.code for error in answers[1].errors} | {answers[2].error.code} <= error_codes().keys()


def test_every_message_is_in_the_protocol() -> None:
    from rankmq.schemas import messages

    text = PROTOCOL.read_text()
    for name in messages.__all__:
        kind = getattr(messages, name)
        if inspect.isclass(kind) and issubclass(kind, messages.Message) and kind is not messages.Message:
            assert f"`{name}`" in text, f"the message {name} is not in {PROTOCOL.name}"


# -------------------------------------------------------------------------------------------- from MindSpore Serving


def test_the_configuration_side_by_side_loads(tmp_path: Path) -> None:
    """The right-hand configuration is the example's; the left-hand one differs from it in the imports alone."""
    theirs, ours = blocks((ROOT / "docs" / "from-mindspore-serving.md").read_text(), "python")[:2]
    home = tmp_path / "matmul"
    home.mkdir()
    (home / "servable_config.py").write_text(ours)

    servable = load_servable(tmp_path, "matmul", require_models=False)

    assert set(servable.methods) == {"fun1", "fun2"}
    assert set(servable.pipelines) == {"predict"}
    assert servable.rank_size == 8
    differing = set(theirs.splitlines()) ^ set(ours.splitlines())
    assert differing
    assert all(re.match(r"(from|import) ", line) for line in differing)
