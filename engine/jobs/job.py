"""An offline job: a file of rows in, a file of results out, however often what runs it ends in between.

    job = Job.create("rows.jsonl", "out", "matmul", "predict")
    job.run("amqp://user:password@host:5672/%2F")

See docs/jobs.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from ...schemas.errors import AlreadyRunning, ConfigurationError, InvalidInput, JobStopped, RankmqError
from ..address import BrokerAddress
from ..blobs import BlobStore
from ..claims import new_token
from ..client_blobs import ClientBlobs
from ..client_terms import check_lane, check_span
from .assembly import Record
from .columns import Columns, Mapped
from .desk import MANIFEST, SPOOL, Desk
from .folder import INPUT, check_free, clear, forget_bodies, results_place
from .inputs import fingerprint, open_rows, spool
from .job_blobs import JobBlobs
from .lock import JobLock
from .manifest import Manifest
from .on_thread import run_on_thread
from .places import Place, cannot
from .runner import Ending, Runner, Watch
from .spec import Counts, Spec, State
from .status import LOCK, JobStatus, status_of, summary_of
from .withdraw import withdraw
from .writers import write_errors, write_results

__all__ = ["Job"]


class Job:
    """A job, by the folder of its manifest. Whoever has the folder can look at it, run it on, or give it up.

    Args:
        folder: where its manifest is.

    Attributes:
        untold: why the engine could not be told of the last `cancel`; "" if it was, or had nothing of the job.

    Raises:
        ConfigurationError: there is no job in this folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        manifest = Manifest(self.folder / MANIFEST, reading=True)
        self._spec = manifest.spec
        manifest.close()
        self.untold = ""
        self._runner: Runner | None = None
        self._stopped = threading.Event()

    def __repr__(self) -> str:
        return f"Job({str(self.folder)!r})"

    @property
    def id(self) -> str:
        """Its id."""
        return self._spec.id

    @classmethod
    def create(
        cls,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str],
        servable: str,
        method: str,
        *,
        version: int = 0,
        columns: Sequence[str] = (),
        results: str | None = None,
        lane: str = "low",
        base64: bool = False,
        rows_per_request: int | None = None,
        request_bytes: int = 1 << 20,
        line_bytes: int = 16 << 20,
        deadline: float | None = None,
        manifest: str | os.PathLike[str] | None = None,
    ) -> Job:
        """Makes a job, and runs nothing yet.

        Args:
            source: the input, a path or anything that fsspec opens: .jsonl, .npz, .npy, .parquet, or a folder of .npy
                files, a row each; "-" for JSON lines on standard input, which are kept in the job's folder first.
            output: the folder for the results, a path or anything that fsspec opens.
            servable: the servable's name.
            method: a method or pipeline of it.
            version: the servable's version; 0 is the newest.
            columns: which column is which input, each "input=column" or "input=column:dtype"; nothing: each column is
                the input of its name.
            results: the name of the results' file in `output`, whose suffix says its kind: .jsonl, .npz, .npy,
                .parquet, or a folder, whose name ends with a slash; of the input's kind if None.
            lane: "high", "normal" or "low".
            base64: tensors in JSON lines have dtype, shape and base64, and are no nested lists.
            rows_per_request: as many rows travel together; None adapts to how fast they are done.
            request_bytes: about the most bytes that travel together, four times as many where they go past the broker;
                a larger row travels alone.
            line_bytes: a longer line of JSON fails.
            deadline: seconds that a request may take once it has begun; past it its rows are sent one by one, and one
                that takes longer by itself fails. None: as long as it takes.
            manifest: a folder on this machine for what is on record of the job; needed where `output` is not on it.

        Raises:
            ConfigurationError: an input that is not there, empty, or not what its name says; an output that is taken; a
                column that there is not.
            InvalidInput: a lane that does not exist, no servable or method, no rows in a request, or a deadline that
                is no time.
        """
        check_lane(lane)
        check_span("deadline", deadline)
        for word, value in (("servable", servable), ("method", method)):
            if not value:
                raise InvalidInput(f"the {word} has no name")
        if rows_per_request is not None and rows_per_request < 1:
            raise InvalidInput(f"{rows_per_request} rows per request: 1 at least")
        place = Place.of(output)
        if manifest is None and place.local is None:
            raise ConfigurationError(f"{place} is not on this machine: name a folder that is for the job's record")
        folder = Path(manifest).absolute() if manifest is not None else Path(place.name)
        again = check_free(folder, place)
        mapped = [Mapped.parse(it) for it in columns]
        made = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(cannot(f"{folder} cannot be made", error)) from None
        try:
            if os.fspath(source) == "-":
                spool(folder / INPUT)
                source = folder / INPUT
            origin = Place.of(source)
            rows = open_rows(origin, most_bytes=line_bytes)
            Columns(mapped, rows.columns)
            target = results_place(place, results, origin)
            spec = Spec(
                source=origin.name,
                fingerprint=fingerprint(origin),
                servable=servable,
                method=method,
                version=version,
                lane=lane,
                columns=tuple(map(str, mapped)),
                results=target.name,
                errors=place.within("errors.jsonl").name,
                summary=place.within("summary.json").name,
                base64=base64,
                rows_per_request=rows_per_request,
                most_bytes=request_bytes,
                most_row_bytes=line_bytes,
                claims=new_token(),
                deadline=deadline,
                folder=str(folder),
            )
            if again:
                clear(folder)
            Manifest.create(folder / MANIFEST, spec, Counts(total=rows.total, size=rows.size)).close()
        except BaseException:
            if made:
                (folder / INPUT).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
        return cls(folder)

    def run(
        self,
        broker_url: str | BrokerAddress,
        *,
        watch: Watch = lambda counts, under_way: None,
        connect_timeout: float = 10.0,
        reconnect_timeout: float = 120.0,
        patience: float = 3600.0,
        window: int = 256,
        results: str | None = None,
        deadline: float | None = None,
        blob_store: str | None = None,
        inline_limit: int = 1 << 20,
    ) -> JobStatus:
        """Runs it to its end, or on to it: what is on record is not computed again. Blocks.

        Args:
            broker_url: amqp[s]://user:password@host:port/vhost.
            watch: told now and then how far it is, on another thread.
            connect_timeout: seconds to go on trying to reach the broker.
            reconnect_timeout: the same, once it had been reached.
            patience: seconds without any answer after which it ends, to be resumed.
            window: the most requests under way; it adapts below that.
            results: another name for the results' file.
            deadline: another one than `create` was given; it counts for what is under way as well.
            blob_store: where large tensors go past the broker, as for `Client`; it must be the engine's.
            inline_limit: largest tensor within a message, in bytes, where there is a blob store.

        Returns:
            How it is then: completed, cancelled, or in progress if `stop` was called.

        Raises:
            AlreadyRunning: somebody runs it, with pid and host.
            JobStopped: it cannot go on now, and can be resumed.
            OperatorError: the broker cannot be used.
            ProducerError: the broker went away, or nothing is answered.
            ConfigurationError: a blob store that cannot be.
            InvalidInput: a deadline that is no time.
        """
        check_span("deadline", deadline)
        address = BrokerAddress.parse(broker_url) if isinstance(broker_url, str) else broker_url
        options: dict[str, Any] = {
            "connect_timeout": connect_timeout,
            "reconnect_timeout": reconnect_timeout,
            "patience": patience,
            "window": window,
            "watch": watch,
            "renew": deadline is not None,  # what is under way has none, or another one
        }
        blobs = None
        if blob_store:
            store = BlobStore(blob_store)
            store.open()
            blobs = JobBlobs(ClientBlobs(store, inline_limit))
        with JobLock(self.folder / LOCK):
            if results is not None:
                self._rename(results)
            if deadline is not None:
                self._change(deadline=deadline)
            state = status_of(self.folder).state
            if state in ("completed", "cancelled"):
                self._clear()
            elif state == "finalizing" or self._answered(lambda desk: Runner(desk, address, **options), blobs):
                self._finish()
        return self.status()

    def stop(self) -> None:
        """Has `run`, on another thread, end soon; what it has is on record."""
        self._stopped.set()
        if self._runner is not None:
            self._runner.stop()

    def status(self) -> JobStatus:
        """How it is, whoever runs it."""
        return status_of(self.folder)

    def cancel(self, broker_url: str | BrokerAddress | None = None, *, connect_timeout: float = 3.0) -> JobStatus:
        """Gives it up for good; the results of the rows that are done are written. Does not wait for who runs it.

        Where nobody does, the engine is told to give up what was sent of it; if it could not be, `untold` says why.

        Args:
            broker_url: amqp[s]://user:password@host:port/vhost; None: the engine is not told.
            connect_timeout: seconds to go on trying to reach it.

        Raises:
            ConfigurationError: it has ended, or no such URL can be.
            JobStopped: the results cannot be written, and it is not given up.
        """
        address = BrokerAddress.parse(broker_url) if isinstance(broker_url, str) else broker_url
        self.untold = ""
        try:
            self._give_up(address, connect_timeout)
        except AlreadyRunning:
            self._ask_cancel()  # it looks every second
            if self.status().runner is None:  # it has ended meanwhile
                with contextlib.suppress(AlreadyRunning):
                    self._give_up(address, connect_timeout)
        return self.status()

    def _give_up(self, address: BrokerAddress | None, timeout: float) -> None:
        with JobLock(self.folder / LOCK):
            state = self.status().state
            if state in ("completed", "cancelled"):
                raise ConfigurationError(f"{self.id} is {state}: there is nothing to cancel")
            self._set_state("cancelling")
            self._finish(back="finalizing" if state == "finalizing" else "failed")
            with closing(Manifest(self.folder / MANIFEST)) as manifest:
                keys = manifest.pending()
            self.untold = withdraw(address, self._spec.id, keys, timeout=timeout)

    # ------------------------------------------------------------------------------------------------------ a run

    def _answered(self, runner: Callable[[Desk], Runner], blobs: JobBlobs | None) -> bool:
        """Has all rows answered; gives whether the job is to be finished, as it is too when it was given up."""
        try:
            ending = self._ending(runner, blobs)
        except RankmqError as error:
            self._note(error, "failed")
            raise
        if ending == "cancelled":
            self._set_state("cancelling")
        return ending != "stopped"

    def _ending(self, runner: Callable[[Desk], Runner], blobs: JobBlobs | None) -> Ending:
        desk = Desk(self.folder, blobs=blobs)
        try:
            self._set_state("in_progress")
            _ = desk.reader  # opened now: what is wrong with it is said before anything else
            self._runner = runner(desk)
            return "stopped" if self._stopped.is_set() else run_on_thread(self._runner)
        finally:
            self._runner = None
            desk.close()

    def _finish(self, back: State | None = None) -> None:
        """Writes what there is to write, and says that the job has ended.

        Args:
            back: its state where that cannot be done: then it is not given up any more, if it was.
        """
        cancelled = status_of(self.folder).state == "cancelling"
        if not cancelled:
            self._set_state("finalizing")
        try:
            self._write(self._stopped.is_set if back is None else lambda: False, cancelled=cancelled)
        except RankmqError as error:
            self._note(error, back or ("failed" if cancelled else "finalizing"))
            raise
        self._clear()

    def _write(self, stopped: Callable[[], bool], *, cancelled: bool) -> None:
        record = Record(self.folder, stopped)
        try:
            manifest = record.manifest
            spec, counts = manifest.spec, manifest.counts
            if not cancelled and counts.ended != counts.planned:
                raise JobStopped(
                    f"{counts.planned} rows were read, and {counts.ended} are on record: this is a defect of rankmq"
                )
            write_results(Place(spec.results), record.results, base64=spec.base64)
            write_errors(Place(spec.errors), manifest.failures())
            told = summary_of(spec, "cancelled" if cancelled else "completed", counts)
            with Place(spec.summary).writing() as file:
                file.write(json.dumps(told, indent=2).encode() + b"\n")
            manifest.set_state("cancelled" if cancelled else "completed")
        finally:
            record.close()

    def _clear(self) -> None:
        """The replies have become results."""
        (self.folder / SPOOL).unlink(missing_ok=True)
        forget_bodies(self._spec)

    def _rename(self, results: str) -> None:
        spec = self._spec
        folder = Place(spec.errors.rpartition("/")[0])
        place = results_place(folder, results, Place(spec.source))
        with closing(Manifest(self.folder / MANIFEST)) as manifest:
            if manifest.state == "completed":
                raise ConfigurationError(f"{self.id} is completed: its results are in {spec.results}")
        self._change(results=place.name)

    def _change(self, **changes: Any) -> None:
        """Has it do something else than before: where its results go, or how long a request may take."""
        with closing(Manifest(self.folder / MANIFEST)) as manifest:
            manifest.set_spec(msgspec.structs.replace(manifest.spec, **changes))

    def _set_state(self, state: Any) -> None:
        with closing(Manifest(self.folder / MANIFEST)) as manifest:
            manifest.set_state(state)

    def _ask_cancel(self) -> None:
        with closing(Manifest(self.folder / MANIFEST)) as manifest:
            manifest.ask_cancel()

    def _note(self, error: RankmqError, state: State) -> None:
        """Takes down why it ended, as far as there is room for it."""
        with contextlib.suppress(RankmqError), closing(Manifest(self.folder / MANIFEST)) as manifest:
            if manifest.state == "cancelling":
                manifest.ask_cancel(asked=False)
            manifest.set_state(state, error.message, error.way if isinstance(error, JobStopped) else "resume")
