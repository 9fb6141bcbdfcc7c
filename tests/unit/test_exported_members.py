"""The public surface: what each package offers, pinned. A change here is a change for those who use rankmq."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PUBLIC: dict[str, str] = {
    "rankmq.schemas": """
        BFLOAT16 CHANNEL_NAMES DTYPES JSON MSGPACK SCHEMA_VERSION
        AlreadyRunning AttemptsExhausted Blob BlobMissing BlobUnavailable BrokerRefused BrokerUnavailable Cancelled
        ClientClosed CollectiveFailed
        ConfigurationError ConnectionLost DeadlineExceeded ErrorInfo GraphFailed GroupError GroupStatus
        GroupUnavailable InstanceError InstancesFailed InternalError InvalidInput LimitExceeded Limits LockstepError
        ModelError OperatorError ProducerError QueueFull QueueStatus RankStatus RankmqError RanksDisagree Reply
        ReplyTimeout ReplyUnroutable Request RequestError RequestIdReused ServableError ServingError SessionLost
        StageFailed Stats Status TemporaryFailure Tensor TurnsExhausted Undecodable UnknownMethod UnknownServable
        UnknownVersion
        UnsupportedSchema Value
        array_of asyncapi bfloat16_to_float32 content_type_of decode_reply decode_request decode_status encode
        encode_reply encode_request error_codes float32_to_bfloat16 from_array from_plain from_wire json_schema
        tensor_from_json tensor_to_json to_array
    """,
}
MODULES = sorted(f"rankmq.schemas.{path.stem}" for path in (ROOT / "schemas").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_surface(name):
    package = importlib.import_module(name)
    assert list(package.__all__) == sorted(PUBLIC[name].split(), key=isort_order)
    for member in package.__all__:
        assert hasattr(package, member)


@pytest.mark.parametrize("name", PUBLIC)
def test_nothing_else_is_public_but_modules(name):
    package = importlib.import_module(name)
    others = {member for member in vars(package) if not member.startswith("_")} - set(package.__all__)
    assert {member for member in others if not inspect.ismodule(getattr(package, member))} <= {"annotations"}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_offers(name):
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(set(module.__all__), key=isort_order)
    for member in module.__all__:
        assert hasattr(module, member)


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_is_explained(name):
    package = importlib.import_module(name)
    for member in package.__all__:
        found = getattr(package, member)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert inspect.getdoc(found), member


@pytest.mark.parametrize("name", PUBLIC)
def test_the_package_is_typed(name):
    assert (ROOT / name.removeprefix("rankmq.") / "py.typed").exists()


def isort_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as ruff sorts `__all__`."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)
