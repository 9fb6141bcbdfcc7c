"""What `rankmq up` says when it is up."""

from types import SimpleNamespace

import pytest
from rankmq.scripts.commands import up

from tests.unit.engine.servable_files import WORDS, load

METHODS = """
@register.register_method(output_names=["y"])
def one(x):
    return x

@register.register_method(output_names=["y"])
def two(x):
    return x
"""
PIPELINES = """
@register.register_pipeline(output_names=["y"])
def whole(x, n):
    return x

@register.register_pipeline(output_names=["y"])
def extra(x):
    return x
"""


@pytest.mark.parametrize(
    ("text", "call"), [(METHODS, "one -i x=..."), (METHODS + PIPELINES, "whole -i x=... -i n=...")]
)
def test_it_proposes_what_its_author_put_first(tmp_path, capsys, text, call):
    settings = SimpleNamespace(
        address=lambda: "amqp://x", model_copy=lambda update: SimpleNamespace(state_dir=tmp_path)
    )
    servables = [load(tmp_path, WORDS + text, "small")]
    engine = SimpleNamespace(servables=servables, seconds={"ready": 1.0}, state_dir=tmp_path, settings=settings)
    up._print(engine)
    assert f"call it with: rankmq infer small {call}; stop" in capsys.readouterr().out
