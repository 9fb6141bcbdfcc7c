"""What a job hears of the engine with each reply."""

import asyncio
from types import SimpleNamespace

from rankmq.engine.claims import CLAIMS_HEADER, ClaimFolder, new_token
from rankmq.engine.connection import Properties
from rankmq.engine.delivery import Delivery
from rankmq.engine.jobs.line import JobLine


def test_a_reply_to_what_was_sent_again_says_nothing_of_the_folder(tmp_path):
    """Such a request names none, since it goes another way than the first time."""
    loop = asyncio.new_event_loop()
    folder = ClaimFolder.make(new_token(), tmp_path)
    line = JobLine(SimpleNamespace(loop=loop), "job", "key", lambda *_: None, folder)

    def near_after(request: str, **headers: object) -> bool:
        line._on_delivery(Delivery(b"", 1, "", "", False, Properties(correlation_id=request, headers=headers or None)))
        return line.near

    assert near_after("job.0.0", **{CLAIMS_HEADER: True})
    assert near_after("job.0.1")
    assert near_after("job.16.3")
    assert not near_after("job.32.0")
    folder.leave()
    loop.close()
