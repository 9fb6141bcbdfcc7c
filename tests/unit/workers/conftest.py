"""What the tests of model files share."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def schema():
    """The classes of MindSpore's files, without MindSpore itself, whose import takes seconds."""
    found = importlib.util.find_spec("mindspore")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs MindSpore's schema of model files")
    path = Path(found.submodule_search_locations[0]) / "train" / "mind_ir_pb2.py"
    spec = importlib.util.spec_from_file_location("schema_of_mindir", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
