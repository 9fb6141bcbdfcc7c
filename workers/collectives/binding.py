"""The compiled library, as Python sees it. Numbers and orders here are those of native/interface.cc."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ...schemas.errors import CollectivesUnavailable

__all__ = ["DTYPES", "KINDS", "REDUCTIONS", "Fault", "FaultKind", "Native"]

FaultKind = Literal["dead", "timeout", "aborted", "left", "mismatch", "unsupported", "not_open", "refused"]
DTYPES = (
    *("none", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
)
KINDS = ("none", "all_reduce", "all_gather", "broadcast", "reduce_scatter", "barrier")
REDUCTIONS = ("none", "sum", "max", "min")

_FAULTS: tuple[FaultKind, ...] = get_args(FaultKind)
_MESSAGE_ROOM = 1024


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a group no longer works, as this rank has first met it.

    Attributes:
        kind: "dead": the process of a rank has ended; "timeout": a rank did not come; "aborted": a rank was told to
            give up; "left": a rank has closed the group; "mismatch": the ranks call different collectives;
            "unsupported": a collective that cannot be done; "not_open": no group was open; "refused": it cannot be
            joined.
        rank: the rank at fault, None if it is none in particular.
        message: one line.
    """

    kind: FaultKind
    rank: int | None
    message: str


class Native:
    """The functions of the library; MindSpore, which opens the same file, shares its state.

    Args:
        library: its path.

    Raises:
        CollectivesUnavailable: it cannot be loaded.
    """

    def __init__(self, library: Path) -> None:
        try:
            functions = ctypes.CDLL(str(library))
        except OSError as error:
            raise CollectivesUnavailable(f"the compiled library cannot be loaded: {error}") from None
        int_, u64, pointer, text = ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_char_p
        rank = ctypes.POINTER(int_)
        self.segment_bytes = functions.rankmq_segment_bytes
        self.segment_bytes.argtypes, self.segment_bytes.restype = (int_, u64), u64
        self.wait_for_all = functions.rankmq_wait_for_all
        self.wait_for_all.argtypes = (int_,)
        self.give_up_waiting = functions.rankmq_give_up_waiting
        self.give_up_waiting.argtypes, self.give_up_waiting.restype = (int_,), None
        self.begin_step = functions.rankmq_begin_step
        self.begin_step.argtypes, self.begin_step.restype = (u64,), None
        self.run = functions.rankmq_run
        self.run.argtypes = (int_, int_, int_, int_, u64, pointer, pointer)
        self.abort = functions.rankmq_abort
        self.abort.restype = None
        self.close = functions.rankmq_close
        self.close.restype = None
        self._open = functions.rankmq_open
        self._open.argtypes = (int_, int_, int_, u64, int_, rank, text, u64)
        self._fault = functions.rankmq_fault
        self._fault.argtypes = (rank, text, u64)

    def open(self, file: int, rank: int, size: int, slot_bytes: int, timeout_ms: int) -> Fault | None:
        """Takes a rank's place in the group whose memory a descriptor holds; None if it has."""
        where, text = ctypes.c_int(), ctypes.create_string_buffer(_MESSAGE_ROOM)
        kind = self._open(file, rank, size, slot_bytes, timeout_ms, where, text, _MESSAGE_ROOM)
        return _fault(kind, where.value, text.value)

    def fault(self) -> Fault | None:
        """The first fault since the group was opened."""
        where, text = ctypes.c_int(), ctypes.create_string_buffer(_MESSAGE_ROOM)
        return _fault(self._fault(where, text, _MESSAGE_ROOM), where.value, text.value)


def _fault(kind: int, rank: int, message: bytes) -> Fault | None:
    if kind == 0:
        return None
    return Fault(_FAULTS[kind - 1], rank if rank >= 0 else None, message.decode("utf-8", "replace"))
