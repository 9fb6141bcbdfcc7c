"""Shorter ways for messages through the driver's connection: what it does for each of them is most of what one costs.

A mixin, to stand before the driver's class. Deliveries and confirms go straight to whom they are for; publishes and
acknowledgements are put together here, and what is said within one turn of the loop is written in one go. All the rest,
and what is unusual, stays with the driver.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from .amqp_content import Assembler, ack_frame, confirm_of, publish_frames
from .amqp_frames import FrameCutter, Outbox

__all__ = ["Shortcuts"]

_HEADER, _END = 2, 0xCE


class Shortcuts:
    """What stands before the driver's connection.

    Attributes:
        plain_transport: the driver's class of transports without TLS.
        without_properties: the consumers that do not want the properties of their messages, which then are None.
        confirmed: by channel, who is told what the broker says of publishes: tag, multiple, positive.
    """

    plain_transport: Any
    ioloop: Any
    bytes_sent: int
    bytes_received: int
    _transport: Any
    _channels: dict[int, Any]
    _body_max_length: int
    _frame_buffer: bytes
    _read_frame: Callable[[], tuple[int, Any]]
    _process_frame: Callable[[Any], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.confirmed: dict[int, Callable[[int, bool, bool], None]] = {}
        self.without_properties: set[str] = set()
        self._writing = threading.Lock()
        self._cutter, self._assembler, self._outbox = FrameCutter(), Assembler(), Outbox()
        self._last_words: list[Callable[[], None]] = []
        super().__init__(*args, **kwargs)

    # ------------------------------------------------------------------------------------------------------- inwards

    def _on_data_available(self, data_in: bytes) -> None:
        self.bytes_received += len(data_in)  # by which the driver knows that the broker is there
        for frame in self._cutter.feed(data_in):
            self._frame_buffer = frame
            if frame[-1] == _END and (self._is_content(frame) or self._is_confirm(frame)):
                continue
            _, found = self._read_frame()
            if found is None:
                raise ValueError("a frame that is none")
            self._process_frame(found)

    def _is_content(self, frame: bytes) -> bool:
        content = self._assembler.takes(frame)
        if content is None:
            return False
        if frame[0] == _HEADER and content.consumer_tag not in self.without_properties:
            content.properties = self._read_frame()[1].properties
        if content.is_complete:
            channel = self._channels.get(content.channel)
            if channel is not None:
                channel._on_deliver(content, content, content.body)
        return True

    def _is_confirm(self, frame: bytes) -> bool:
        found = confirm_of(frame)
        told = self.confirmed.get(found[0]) if found is not None else None
        if found is None or told is None:
            return False
        told(*found[1:])
        return True

    # ------------------------------------------------------------------------------------------------------ outwards

    def publish(
        self, channel: Any, exchange: str, key: str, body: bytes, properties: Any, message_id: Any, *, mandatory: bool
    ) -> None:
        """As the channel's `basic_publish`, with a message id in place of that of the properties."""
        frames = publish_frames(
            channel.channel_number,
            exchange,
            key,
            properties,
            message_id,
            body,
            mandatory=mandatory,
            most=self._body_max_length,
        )
        if frames is not None:
            self._output_marshaled_frames(frames)
            return
        if message_id != properties.message_id:
            properties = copy.copy(properties)
            properties.message_id = message_id
        channel.basic_publish(exchange, key, body, properties, mandatory)

    def acknowledge(self, channel: Any, tag: int, *, multiple: bool) -> None:
        """As the channel's `basic_ack`."""
        self._output_marshaled_frames((ack_frame(channel.channel_number, tag, multiple=multiple),))

    def say_last(self, work: Callable[[], None]) -> None:
        """Has something called, which may have more to say, when what was said in this turn is about to be written."""
        self._last_words.append(work)
        if len(self._last_words) == 1:
            self.ioloop.call_soon(self._flush)

    def publish_from_thread(self, channel: Any, exchange: str, key: str, body: bytes, properties: Any) -> bool:
        """The same from another thread than the loop's, which need not be woken for it.

        Returns:
            Whether it was done; if not, it is for the loop's thread.
        """
        frames = publish_frames(
            channel.channel_number,
            exchange,
            key,
            properties,
            properties.message_id,
            body,
            mandatory=False,
            most=self._body_max_length,
        )
        if frames is None:
            return False
        piece = b"".join(frames)
        with self._writing:
            transport = self._transport
            if transport is None or type(transport) is not self.plain_transport:
                return False
            sent = 0 if self._outbox else self._send_now(transport, piece)
            if sent < len(piece) and self._outbox.add(piece[sent:]):
                with suppress(RuntimeError):  # the loop has ended, and the connection with it
                    self.ioloop.call_soon_threadsafe(self._flush)
        return True

    def _output_marshaled_frames(self, marshaled_frames: Sequence[bytes]) -> None:
        with self._writing:
            for piece in marshaled_frames:
                self.bytes_sent += len(piece)
                if self._outbox.add(piece):
                    self.ioloop.call_soon(self._flush)
        if self._outbox.is_full:
            self._flush()

    def _flush(self) -> None:
        words, self._last_words = self._last_words, []
        for work in words:
            work()
        with self._writing:
            transport = self._transport
            for piece in self._outbox.take() if transport is not None else ():
                sent = self._send_now(transport, piece) if type(transport) is self.plain_transport else 0
                if sent < len(piece):
                    transport.write(piece[sent:] if sent else piece)

    def _send_now(self, transport: Any, piece: bytes) -> int:
        """How many bytes the system took; none where the transport has others to write first."""
        sock = transport._sock  # which the loop's thread may close meanwhile
        if sock is not None and not transport.get_write_buffer_size():
            with suppress(OSError):  # which whoever writes the rest meets again
                return int(sock.send(piece))
        return 0
