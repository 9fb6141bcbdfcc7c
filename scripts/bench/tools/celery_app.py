"""The matmul servable as a user of Celery would write it. Imported only where Celery is installed and asked for.

The settings are those that were fastest here: a classic queue, transient messages, tasks acknowledged when they are
taken. rankmq's own requests are durable all the while, and acknowledged when their answer is confirmed.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("PICKLE_PROTOCOL", "5")  # read by kombu when it is imported; arrays cost least with it

import celery
import numpy as np

__all__ = ["PREFETCH", "celery_app", "settings_in_words", "worker_arguments"]

PREFETCH = 32
_QUEUE = "rankmq.bench.celery"

Array = np.ndarray[Any, Any]


def celery_app(url: str, weight: Array) -> Any:
    """An application with one task, `matmul`.

    Args:
        url: the broker's.
        weight: of the matmul.
    """
    app = celery.Celery("rankmq.bench", broker=url, backend="rpc://")
    app.conf.update(
        task_serializer="pickle",
        result_serializer="pickle",
        accept_content=["pickle"],
        task_default_queue=_QUEUE,
        task_default_delivery_mode="transient",
        task_acks_late=False,
        task_store_errors_even_if_ignored=False,
        result_persistent=False,
        worker_prefetch_multiplier=PREFETCH,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
    )

    @app.task(name="matmul")  # type: ignore[untyped-decorator]
    def matmul(x: Array) -> Array:
        return -(x @ weight)

    return app


def worker_arguments(concurrency: int) -> list[str]:
    """The worker's command line."""
    words = f"worker --pool=prefork --concurrency={concurrency} --loglevel=ERROR"
    return [*words.split(), "--without-gossip", "--without-mingle", "--without-heartbeat"]


def settings_in_words(concurrency: int) -> str:
    """The settings, for whoever reads the figure."""
    return f"Celery {celery.__version__} (prefork {concurrency}, prefetch {PREFETCH}, pickle, rpc, early ack)"
