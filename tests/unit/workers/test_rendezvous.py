"""How ranks wait for each other, over a store that is a dict."""

import signal
import threading
import time
from collections import Counter

import pytest
from rankmq.schemas.errors import GroupError
from rankmq.workers.rendezvous import gather_ranks, split_address, woken


class DictStore:
    def __init__(self):
        self._numbers = Counter()
        self._lock = threading.Lock()

    def add(self, key, amount):
        with self._lock:
            self._numbers[key] += amount
            return self._numbers[key]


def test_ranks_go_on_when_the_last_has_come():
    store, gone_on = DictStore(), []

    def rank(number):
        gather_ranks(store, number, 3, time.monotonic() + 10)
        gone_on.append(number)

    threads = [threading.Thread(target=rank, args=(number,)) for number in (0, 2)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert gone_on == []
    rank(1)
    for thread in threads:
        thread.join(10)
    assert sorted(gone_on) == [0, 1, 2]


def test_who_is_missing_is_named():
    store = DictStore()
    store.add("rankmq/2", 1)
    store.add("rankmq", 1)
    with pytest.raises(GroupError, match=r"^rank 1, 3 did not join"):
        gather_ranks(store, 0, 4, time.monotonic() + 0.02)


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "no.such.host.invalid:80"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(GroupError, match="cannot meet"):
        split_address(address)


def test_names_become_numbers():
    assert split_address("localhost:5672") == ("127.0.0.1", 5672)


def test_naps_are_cut_short_and_the_alarm_is_put_back():
    before = signal.getsignal(signal.SIGALRM)
    signals = []
    with woken():
        inside = signal.signal(signal.SIGALRM, lambda *_: signals.append(time.monotonic()))
        began = time.monotonic()
        signal.pause()
        assert time.monotonic() - began < 10
    assert signals
    assert inside is not before
    assert signal.getsignal(signal.SIGALRM) is before


def test_beside_the_main_thread_nothing_is_done():
    before = signal.getsignal(signal.SIGALRM)
    seen = []

    def elsewhere():
        with woken():
            seen.append(signal.getsignal(signal.SIGALRM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(5)
    assert seen == [before]
