"""Given calls of any kind in any order, then the batcher gives what one that looks at every row each time would."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rankmq.engine.batch import Batch, PendingCall
from rankmq.engine.batcher import Batcher

from tests.unit.engine.waiting_calls import call, drain

LIMITS = {0: 1, 1: 3, 2: 8, 3: 3}
PATIENT = 3
"""The subgraph whose rows wait for others to fill a step."""


class Family:
    """What is left of a batch that failed: its parts, the oldest row first, and how many rows of them may run at once.

    What nobody wants any more counts until it is come upon.
    """

    def __init__(self, batch, age):
        self.age, self.rows = age, len(batch)
        self.most, self.found = self.rows, 0
        self.parts: list[list[tuple[PendingCall, int]]] = []

    def add(self, part):
        live = [owner for owner in part if not owner[0].cancelled]
        self.parts += [live] if live else []
        self.parts.sort(key=lambda part: Machine.age(part[0]))

    def clean(self):
        while self.parts and not live(self.parts[0]):
            del self.parts[0]

    def take(self, limit):
        part = self.parts.pop(0)
        taken = live(part)[: min(self.most, limit)]
        if rest := part[part.index(taken[-1]) + 1 :] if len(taken) == min(self.most, limit) else []:
            self.parts.insert(0, rest)
        return taken


def live(owners):
    return [owner for owner in owners if not owner[0].cancelled]


class Machine(RuleBasedStateMachine):
    """Against a model that looks at every row each time: a list of all waiting rows, sorted by age."""

    def __init__(self):
        super().__init__()
        self.batcher = Batcher(LIMITS)
        self.calls: list[PendingCall] = []
        self.waiting: list[tuple[PendingCall, int]] = []
        self.families: dict[tuple[int, int, int], Family] = {}  # of all that failed, by the age of the oldest row
        self.turns: list[Family] = []  # of those of which parts wait
        self.yields = False  # the newest step was of such a part
        self.overtaken: Counter[object] = Counter()  # by kind
        self.now = 0.0
        self.ripe: set[object] = set()  # kinds whose wait is over
        self.touched: set[object] = set()  # kinds of which a row was cancelled: they may wait for less than they would
        self.flying: list[Batch] = []
        self.done: list[tuple[PendingCall, int]] = []

    @rule(
        subgraph=st.integers(0, 3),
        patience=st.integers(1, 5),
        keys=st.lists(st.sampled_from("xy"), min_size=1, max_size=9),
        keyed=st.booleans(),
        ahead=st.sampled_from([0, 0, 1, 3, 100]),
    )
    def add(self, subgraph, patience, keys, keyed, ahead):
        """A call, which may overtake as many that came before it as it has head start."""
        until = self.now + patience if subgraph == PATIENT else 0.0
        own, number = keys if keyed else (), len(self.calls)
        one = call(subgraph, len(keys), own, number, head_start=ahead, waits_until=until)
        self.calls.append(one)
        self.batcher.add(one)
        self.waiting += [(one, index) for index in range(len(keys))]

    @staticmethod
    def age(owner):
        return owner[0].owner - owner[0].head_start, owner[0].owner, owner[1]

    @staticmethod
    def kind(owner):
        return owner[0].subgraph, owner[0].keys[owner[1]] if owner[0].keys else None

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds):
        self.now += seconds

    def queues(self):
        """The rows that stand in line or wait for company, by kind, the kind of the oldest first."""
        found: dict[object, list[tuple[PendingCall, int]]] = {}
        for owner in self.waiting:
            found.setdefault(self.kind(owner), []).append(owner)
        return found

    def in_line(self):
        """The kinds of which a row may go."""
        queues = self.queues()
        self.ripe &= set(queues)
        self.ripe |= {it for it in queues if any(call.waits_until <= self.now for call, _ in queues[it])}
        return [it for it in queues if it in self.ripe or len(queues[it]) >= LIMITS[it[0]]]

    @rule()
    def take(self):
        self.batcher.ripen(self.now)
        self.waiting.sort(key=self.age)
        while self.turns and not (self.turns[0].clean() or self.turns[0].parts):
            del self.turns[0]
        first = self.batcher.first()
        batch = self.batcher.take()
        assert (first is None) is (batch is None)
        if first is not None:
            assert first[0] is batch.owners[0][0]
            assert first[2] >= len(batch)
        if batch is not None and batch.apart is None:
            self.ripe |= {self.kind(batch.owners[0])} & self.touched
        line = self.in_line()
        if not line and not self.turns:
            assert batch is None
            assert not self.waiting or self.batcher.ripens < math.inf
            assert self.batcher.ripens > self.now
            return
        first_age = next((self.age(owner) for owner in self.waiting if self.kind(owner) in line), None)
        if self.turns and (first_age is None or (not self.yields and self.turns[0].age < first_age)):
            family = self.turns.pop(0)
            expected = family.take(LIMITS[family.parts[0][0][0].subgraph])
            self.turns += [family] if family.parts else []
            self.yields = True
            assert batch.apart.age == family.age
        else:
            self.yields = False
            assert batch.apart is None
            expected = self.next(line)
            self.waiting = [owner for owner in self.waiting if owner not in expected]
            self.ripe.discard(self.kind(expected[0]))
            self.touched.discard(self.kind(expected[0]))
        assert list(batch.owners) == expected
        assert {owner[0].subgraph for owner in expected} == {batch.subgraph}
        self.flying.append(batch)

    def suspects(self):
        return live(owner for family in self.turns for part in family.parts for owner in part)

    def waits_apart(self, age, part):
        family = self.families[age]
        family.add(part)
        if family.parts and family not in self.turns:
            self.turns.append(family)

    def next(self, line):
        """The oldest and its like, or, a few times, those of its subgraph that fill a step while nothing is urgent."""
        queues = self.queues()
        first, limit = line[0], LIMITS[line[0][0]]
        full = [kind for kind, rows in queues.items() if kind[0] == first[0] and len(rows) >= limit]
        urgent = any(owner[0].head_start for owner in (*self.waiting, *self.suspects()))
        chosen = first
        if first not in full and full and not urgent and self.overtaken[first] < 8:
            chosen = full[0]
            self.overtaken[first] += 1
        self.overtaken[chosen] = 0
        for kind in list(self.overtaken):
            if kind not in queues or queues[kind] == queues[chosen][:limit]:
                del self.overtaken[kind]  # with its last row it is forgotten
        return queues[chosen][:limit]

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def finish(self, data):
        batch = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        self.done += batch.owners
        if batch.apart is not None:
            batch.apart.ran()
            family = self.families[batch.apart.age]
            family.most = min(2 * family.most, family.rows)

    @precondition(lambda self: any(len(batch) == 1 and batch.apart is not None for batch in self.flying))
    @rule(data=st.data())
    def a_row_fails_by_itself(self, data):
        found = [batch for batch in self.flying if len(batch) == 1 and batch.apart is not None]
        batch = data.draw(st.sampled_from(found))
        self.flying.remove(batch)
        self.done += batch.owners
        batch.apart.failed_alone()
        family = self.families[batch.apart.age]
        family.found += 1
        family.most = 1 if family.found > 1 else family.most

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), all_of_them=st.booleans())
    def put_back(self, data, all_of_them):
        """One batch, or all of an epoch, in any order."""
        batches = data.draw(st.permutations(self.flying))
        for batch in batches if all_of_them else batches[:1]:
            self.flying.remove(batch)
            self.batcher.put_back(batch)
            if batch.apart is None:
                self.waiting += live(batch.owners)
            else:
                self.waits_apart(batch.apart.age, batch.owners)

    @precondition(lambda self: any(len(batch) > 1 for batch in self.flying))
    @rule(data=st.data())
    def split(self, data):
        batch = data.draw(st.sampled_from([batch for batch in self.flying if len(batch) > 1]))
        self.flying.remove(batch)
        suspect = data.draw(st.none() | st.integers(0, len(batch) - 1))
        self.batcher.split(batch, suspect)
        age = batch.apart.age if batch.apart is not None else self.age(batch.owners[0])
        self.families.setdefault(age, Family(batch, age))
        middle = (len(batch) + 1) // 2
        cuts = (middle, middle) if suspect is None else (suspect, suspect + 1)
        for part in (batch.owners[: cuts[0]], batch.owners[cuts[0] : cuts[1]], batch.owners[cuts[1] :]):
            self.waits_apart(age, part)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data):
        one = data.draw(st.sampled_from(self.calls))
        self.batcher.cancel(one)
        self.touched |= {self.kind((one, index)) for index in range(len(one.rows))}
        self.waiting = [owner for owner in self.waiting if owner[0] is not one]

    @invariant()
    def counts_agree(self):
        left = [*self.waiting, *self.suspects()]
        assert self.batcher.waiting_rows == len(left)
        assert len(self.batcher) == len({owner[0] for owner in left})

    def teardown(self):
        for batch in self.flying:
            self.batcher.put_back(batch)
        for batch in drain(self.batcher):
            self.done += batch.owners
        done = [owner for owner in self.done if not owner[0].cancelled]
        rows = [(one, index) for one in self.calls if not one.cancelled for index in range(len(one.rows))]
        assert sorted(done, key=self.age) == sorted(rows, key=self.age)
        assert not self.batcher._queues  # nothing is kept of keys that are gone
        assert not self.batcher._suspects._parts  # nor of batches that were searched


TestBatcherAgainstModel = Machine.TestCase
