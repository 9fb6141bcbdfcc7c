"""A short run of the fuzzer with the suite; `python -m tests.fuzz.decoder` is the long one."""

from tests.fuzz.decoder import FLAT_BYTES, run


def test_mutated_messages_give_typed_errors_and_take_no_memory():
    tally, grown = run(40_000, seed=7, say=False)
    assert sum(tally.values()) >= 40_000
    assert {"undecodable", "input read", "input: invalid_input", "limit_exceeded"} <= tally.keys()
    assert grown < FLAT_BYTES
