"""Messages on their way over AMQP, to and from their frames. Pure: bytes in, bytes out.

What is done for each message, by hand: the driver goes a long way for it. What is rare (other methods, header tables,
unusual properties) is left to the driver.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any

__all__ = ["Assembler", "Content", "ack_frame", "confirm_of", "publish_frames"]

_METHOD, _HEADER, _BODY = 1, 2, 3
_PAYLOAD = 7
_AROUND = 8
_END = b"\xce"
_DELIVER = bytes.fromhex("003c003c")
_ACK, _NACK = bytes.fromhex("003c0050"), bytes.fromhex("003c0078")

_HEAD = struct.Struct(">BHL")
_TAG = struct.Struct(">QB")
_CHANNEL = struct.Struct(">H")
_SIZE = struct.Struct(">Q")
_ACK_FRAME = struct.Struct(">BHLHHQBB")
_CONTENT_HEADER = struct.Struct(">BHLHHQH")
_TIMESTAMP = struct.Struct(">Q")

_LONGEST = 255


class Content:
    """A message that is being delivered. It stands for the driver's method and header frame as well.

    Args:
        frame: of its method.
        channel: on which it comes.

    Attributes:
        channel: its number.
        consumer_tag: whose it is.
        delivery_tag: what to acknowledge it by.
        redelivered: whether somebody had it before.
        exchange: where it had been published.
        routing_key: with which key.
        size: of its body, in bytes; -1 before the header frame has come.
        left: how many of them are still to come.
        properties: for whoever decodes them.
        body: its bytes, when it is complete.
    """

    __slots__ = (
        *("body", "channel", "consumer_tag", "delivery_tag", "exchange", "fragments", "left"),
        *("properties", "redelivered", "routing_key", "size"),
    )

    def __init__(self, frame: bytes, channel: int) -> None:
        self.channel = channel
        start = _PAYLOAD + 5
        end = start + frame[start - 1]
        self.consumer_tag = frame[start:end].decode(errors="replace")
        self.delivery_tag, bits = _TAG.unpack_from(frame, end)
        self.redelivered = bool(bits & 1)
        start = end + 10
        end = start + frame[start - 1]
        self.exchange = frame[start:end].decode(errors="replace")
        start = end + 1
        self.routing_key = frame[start : start + frame[end]].decode(errors="replace")
        self.size = -1
        self.left = 0
        self.fragments: list[bytes] = []
        self.properties: Any = None
        self.body = b""

    @property
    def method(self) -> Content:
        """What the driver expects of a method frame."""
        return self

    @property
    def is_complete(self) -> bool:
        """Whether all of it is there."""
        return self.size >= 0 and not self.left


class Assembler:
    """Puts the messages of a connection together from their frames, channel by channel."""

    def __init__(self) -> None:
        self._open: dict[int, Content] = {}

    def takes(self, frame: bytes) -> Content | None:
        """Whether a frame is part of a delivery.

        Args:
            frame: whole, with its end octet, which has been checked.

        Returns:
            The delivery that it is part of, None for any other frame. Its properties are still to be decoded, from the
            frame of kind 2.

        Raises:
            ValueError: frames that do not go together.
        """
        kind = frame[0]
        (channel,) = _CHANNEL.unpack_from(frame, 1)
        if kind == _METHOD:
            before = self._open.pop(channel, None) if self._open else None
            if frame[_PAYLOAD : _PAYLOAD + 4] != _DELIVER:
                return None  # a channel that closes leaves what had not come whole
            if before is not None:
                raise ValueError("a delivery begins within another")
            self._open[channel] = content = Content(frame, channel)
            return content
        found = self._open.get(channel)
        if found is None:
            return None
        if kind == _HEADER:
            if found.size >= 0:
                raise ValueError("a second header frame")
            (found.size,) = _SIZE.unpack_from(frame, _PAYLOAD + 4)
            found.left = found.size
        elif kind == _BODY:
            found.left -= len(frame) - _AROUND
            if found.size < 0 or found.left < 0:
                raise ValueError("a body before its header, or longer than it says")
            found.fragments.append(frame[_PAYLOAD:-1])
        else:
            return None
        if not found.left:
            del self._open[channel]
            fragments = found.fragments
            found.body = fragments[0] if len(fragments) == 1 else b"".join(fragments)
        return found


def confirm_of(frame: bytes) -> tuple[int, int, bool, bool] | None:
    """What the broker says of publishes.

    Returns:
        The channel, the tag of the publish, whether all before it are meant too, whether it has them; None for any
        other frame.
    """
    if frame[0] != _METHOD:
        return None
    method = frame[_PAYLOAD : _PAYLOAD + 4]
    if method != _ACK and method != _NACK:  # a tuple would be built each time
        return None
    tag, bits = _TAG.unpack_from(frame, _PAYLOAD + 4)
    return _CHANNEL.unpack_from(frame, 1)[0], tag, bool(bits & 1), method == _ACK


def ack_frame(channel: int, tag: int, *, multiple: bool) -> bytes:
    """The frame that acknowledges a delivery."""
    return _ACK_FRAME.pack(_METHOD, channel, 13, 60, 80, tag, multiple, 0xCE)


@lru_cache(maxsize=1024)
def _publish_method(channel: int, exchange: str, key: str, *, mandatory: bool) -> bytes:
    names = [name.encode() for name in (exchange, key)]
    if max(map(len, names)) > _LONGEST:
        raise ValueError("longer than 255 bytes")
    payload = struct.pack(">HHH", 60, 40, 0) + b"".join(bytes([len(name)]) + name for name in names)
    payload += bytes([mandatory])
    return _HEAD.pack(_METHOD, channel, len(payload)) + payload + _END


def publish_frames(
    channel: int, exchange: str, key: str, properties: Any, message_id: Any, body: bytes, *, mandatory: bool, most: int
) -> list[bytes] | None:
    """The frames of a publish.

    Args:
        channel: its number.
        exchange: where to.
        key: with which key.
        properties: of the message, by their AMQP names.
        message_id: instead of theirs.
        body: its bytes.
        mandatory: whether it comes back where no queue is bound for it.
        most: bytes of a body that a frame may have.

    Returns:
        The frames; None where there is something unusual about it, for the driver to do, or to refuse.
    """
    it = properties
    if not (
        it.headers is None
        and it.content_encoding is None
        and it.priority is None
        and it.expiration is None
        and it.user_id is None
        and it.cluster_id is None
    ):
        return None
    flags = 0
    parts: list[bytes] = []
    try:
        method = _publish_method(channel, exchange, key, mandatory=mandatory)
        for flag, value in (
            (0x8000, it.content_type),
            (0x1000, it.delivery_mode),
            (0x0400, it.correlation_id),
            (0x0200, it.reply_to),
            (0x0080, message_id),
            (0x0040, it.timestamp),
            (0x0020, it.type),
            (0x0008, it.app_id),
        ):
            if value is None:
                continue
            flags |= flag
            if flag == 0x1000:
                parts.append(bytes((value,)))
            elif flag == 0x0040:
                parts.append(_TIMESTAMP.pack(value))
            else:
                text = value.encode()
                parts += (bytes((len(text),)), text)
    except (AttributeError, TypeError, ValueError, struct.error):
        return None
    packed = b"".join(parts)
    header = _CONTENT_HEADER.pack(_HEADER, channel, 14 + len(packed), 60, 0, len(body), flags) + packed + _END
    if len(body) <= most:
        if not body:
            return [method, header]
        head = _HEAD.pack(_BODY, channel, len(body))
        return [method + header + head, body, _END]
    frames = [method + header]
    for start in range(0, len(body), most):
        piece = body[start : start + most]
        frames += (_HEAD.pack(_BODY, channel, len(piece)), piece, _END)
    return frames
