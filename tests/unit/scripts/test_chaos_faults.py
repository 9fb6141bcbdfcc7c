"""Which fault comes when: a function of the seed."""

import itertools
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.schemas.errors import ConfigurationError
from rankmq.scripts.chaos.damage import Damage
from rankmq.scripts.chaos.faults import FAULTS, Setting, chosen, each_once, possible, schedule

seeds = st.integers(0, 2**32)
settings = st.builds(Setting, ranks=st.integers(1, 12), groups=st.integers(1, 3))


def first(seed: int, setting: Setting, count: int):
    return list(itertools.islice(schedule(seed, possible(setting), setting), count))


@given(seeds, settings)
def test_the_same_seed_gives_the_same_faults(seed, setting):
    assert first(seed, setting, 50) == first(seed, setting, 50)
    faults = possible(setting)
    assert list(each_once(seed, faults, setting)) == list(each_once(seed, faults, setting))


def test_another_seed_gives_others():
    setting = Setting(ranks=8)
    assert len({tuple(map(str, first(seed, setting, 20))) for seed in range(20)}) == 20


@given(seeds, settings)
def test_every_fault_comes_once_in_each_round(seed, setting):
    kinds = len(possible(setting))
    planned = first(seed, setting, 3 * kinds)
    for begin in range(0, 3 * kinds, kinds):
        names = [it.fault.name for it in planned[begin : begin + kinds]]
        assert sorted(names) == sorted(fault.name for fault in possible(setting))
    assert kinds < 8 or len({tuple(it.fault.name for it in planned[n : n + kinds]) for n in (0, kinds)}) == 2


@given(seeds, settings)
def test_what_is_hit_is_there(seed, setting):
    for planned in first(seed, setting, 60):
        assert 0 <= planned.group < setting.groups
        assert len(set(planned.ranks)) == len(planned.ranks)
        assert all(0 <= rank < setting.ranks for rank in planned.ranks)
        assert len(planned.ranks) == (planned.fault.ranks or (planned.fault.way == "rank"))
        assert 0.5 <= planned.pause <= 2.5
        if planned.fault.way == "rank":
            assert planned.ranks == (setting.ranks - 1,)


def test_the_seed_reaches_every_rank_and_group():
    setting = Setting(ranks=4, groups=2)
    hit = {(it.group, it.ranks) for it in first(5, setting, 600) if it.fault.name == "kill-rank"}
    assert hit == {(group, (rank,)) for group in range(2) for rank in range(4)}


def test_each_once_kills_every_rank_in_turn():
    setting = Setting(ranks=5, groups=2)
    planned = list(each_once(0, possible(setting), setting))
    assert [(it.group, it.ranks) for it in planned[:5]] == [(0, (rank,)) for rank in range(5)]
    assert [it.fault.name for it in planned[5:]] == [name for name in FAULTS if name != "kill-rank"]


@pytest.mark.parametrize(
    ("setting", "missing"),
    [
        (Setting(ranks=1), {"kill-two-ranks", "kill-group"}),
        (Setting(ranks=2), {"kill-group"}),
        (Setting(ranks=1, groups=2), {"kill-two-ranks"}),
        (Setting(ranks=8, groups=2), set()),
    ],
)
def test_what_cannot_be_done_is_not_planned(setting, missing):
    assert {fault.name for fault in possible(setting)} == FAULTS.keys() - missing
    assert chosen("", setting) == possible(setting)


def test_faults_are_chosen_by_name():
    wanted = chosen(" kill-broker, kill-rank,kill-broker,", Setting(ranks=8))
    assert [fault.name for fault in wanted] == ["kill-broker", "kill-rank"]


@pytest.mark.parametrize(
    ("names", "setting", "words"),
    [
        ("kill-rank,kill-the-cat", Setting(8), "no fault 'kill-the-cat'; there are kill-rank, "),
        ("kill-group", Setting(8), "kill-group needs --groups 2 at least"),
        ("kill-two-ranks", Setting(1), "kill-two-ranks needs --ranks 2 at least"),
    ],
)
def test_what_cannot_be_chosen_is_said(names, setting, words):
    with pytest.raises(ConfigurationError, match=words):
        chosen(names, setting)


def test_a_planned_fault_is_shown_with_its_ranks():
    shown = Counter(str(it).partition(" ")[0] for it in first(1, Setting(8), 19))
    assert set(shown) == FAULTS.keys() - {"kill-group"}
    (two,) = [str(it) for it in first(1, Setting(2), 19) if it.fault.name == "kill-two-ranks"]
    assert two == "kill-two-ranks 0 1"


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_can_be_done(name):
    assert callable(getattr(Damage, "_" + name.removesuffix("-standby").replace("-", "_")))
    assert FAULTS[name].standby == name.endswith("-standby")


def test_the_faults_are_in_the_docs():
    text = (Path(__file__).parents[3] / "docs" / "faults.md").read_text()
    assert dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", text, re.MULTILINE)) == {
        name: fault.what for name, fault in FAULTS.items()
    }
