"""Several servables and versions together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.catalog import Catalog
from rankmq.engine.loader import load_servable
from rankmq.engine.servable import Method, Pipeline, Servable, Where
from rankmq.schemas.errors import ServableError, UnknownMethod, UnknownServable, UnknownVersion

from tests.unit.engine.servable_files import WORDS, write_config

TEXT = """\
@register.register_method("y")
def m(x):
    return x
@register.register_pipeline("y")
def p(x):
    return x
"""


def servable(name, version, directory=None, **methods):
    where = Where("servable_config.py", 1)
    return Servable(
        name=name,
        version=version,
        directory=directory,
        file=directory,
        models=(),
        methods={method: Method(method, (), (), (), (), where) for method in methods},
        pipelines={},
        calls=(),
        rank_size=0,
        stage_size=0,
        communication="none",
        model_files=None,
    )


def load(directory, name, more="", version=0):
    write_config(directory, WORDS + TEXT + more, name)
    return load_servable(directory, name, version, require_models=False)


@given(st.sets(st.integers(1, 1000), min_size=1, max_size=8), st.randoms())
def test_zero_is_the_newest_version_and_any_other_itself(versions, random):
    order = random.sample(sorted(versions), len(versions))
    catalog = Catalog(servable("a", version, m=1) for version in order)
    assert len(catalog) == len(versions)
    assert catalog.servable("a").version == catalog.resolve("a", 0, "m")[0].version == max(versions)
    for version in range(1, 1002):
        if version in versions:
            assert catalog.servable("a", version).version == version
        else:
            with pytest.raises(UnknownVersion, match=", ".join(map(str, sorted(versions)))):
                catalog.resolve("a", version, "m")


def test_methods_and_pipelines_are_both_found(tmp_path):
    a, b = load(tmp_path, "a"), load(tmp_path, "b")
    catalog = Catalog([a, b])
    assert list(catalog) == [a, b]
    assert catalog.resolve("a", 0, "m") == (a, a.methods["m"])
    found, entry = catalog.resolve("b", 1, "p")
    assert found is b
    assert isinstance(entry, Pipeline)


def test_what_is_not_there_is_told_with_what_is(tmp_path):
    catalog = Catalog([load(tmp_path, "b"), load(tmp_path, "a")])
    with pytest.raises(UnknownServable, match="no servable is named 'c'; there are: a, b"):
        catalog.resolve("c", 0, "m")
    with pytest.raises(UnknownVersion, match="a is not served in version 2; there are: 1"):
        catalog.resolve("a", 2, "m")
    with pytest.raises(UnknownVersion):
        catalog.resolve("a", -1, "m")
    with pytest.raises(UnknownMethod, match="'x'; there are: m, p"):
        catalog.resolve("a", 0, "x")
    with pytest.raises(UnknownServable, match="there are: none"):
        Catalog([]).servable("a")


def test_one_servable_twice(tmp_path):
    a = load(tmp_path, "a")
    with pytest.raises(ServableError, match="a version 1 is loaded twice"):
        Catalog([a, a])


def test_a_pipeline_may_call_another_servable(tmp_path):
    catalog = Catalog([load(tmp_path, "a", "PipelineServable('b', 'm', 1)\n"), load(tmp_path, "b")])
    assert len(catalog) == 2


@pytest.mark.parametrize(
    ("call", "match"),
    [
        ("('b', 'typo')", "servable b has no method or pipeline 'typo'; there are: m, p"),
        ("('c', 'm')", "no servable is named 'c'; there are: a, b"),
        ("('b', 'm', 2)", "b is not served in version 2; there are: 1"),
        ("('a', 'm', 2)", "a is not served in version 2; there are: 1"),
        ("('b', 'p')", "names p, a pipeline"),
    ],
)
def test_a_call_of_what_is_not_served(tmp_path, call, match):
    a, b = load(tmp_path, "a", f"\nPipelineServable{call}\n"), load(tmp_path, "b")
    with pytest.raises(ServableError, match=match) as caught:
        Catalog([a, b])
    assert (caught.value.file, caught.value.line) == (str(a.file), 11)
