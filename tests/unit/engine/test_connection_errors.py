"""Each error of the driver becomes one of ours."""

from __future__ import annotations

import inspect
import ssl

import pika
import pika.data
import pika.exceptions
import pytest
from pika.adapters.utils import connection_workflow
from pika.connection import Connection as PikaConnection
from rankmq.engine.connection import map_error
from rankmq.schemas.errors import (
    AlreadyRunning,
    BrokerRefused,
    BrokerUnavailable,
    ConfigurationError,
    ConnectionLost,
    InternalError,
    LimitExceeded,
)


def everything_that_pika_raises() -> list[type[BaseException]]:
    return [
        kind
        for module in (pika.exceptions, connection_workflow)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__ == module.__name__
    ]


MADE = {
    "AMQPConnectorPhaseErrorBase": (OSError("refused"),),
    "AMQPConnectorSocketConnectError": (OSError("refused"),),
    "AMQPConnectorTransportSetupError": (ssl.SSLError(1, "bad"),),
    "AMQPConnectorAMQPHandshakeError": (pika.exceptions.ProbableAuthenticationError("x"),),
    "AMQPConnectionWorkflowFailed": ([OSError("refused")],),
    "UnroutableError": ([],),
    "NackError": ([],),
    **dict.fromkeys(
        ["ConnectionClosed", "ConnectionClosedByBroker", "ConnectionClosedByClient"], (320, "CONNECTION_FORCED")
    ),
    **dict.fromkeys(["ChannelClosed", "ChannelClosedByBroker", "ChannelClosedByClient"], (404, "NOT_FOUND")),
}


KNOWN = """
    AMQPChannelError AMQPConnectionError AMQPConnectionWorkflowAborted AMQPConnectionWorkflowFailed
    AMQPConnectionWorkflowWrongState AMQPConnectorAMQPHandshakeError AMQPConnectorAborted
    AMQPConnectorException AMQPConnectorPhaseErrorBase AMQPConnectorSocketConnectError
    AMQPConnectorStackTimeout AMQPConnectorTransportSetupError AMQPConnectorWrongState AMQPError
    AMQPHeartbeatTimeout AuthenticationError BodyTooLongError ChannelClosed ChannelClosedByBroker
    ChannelClosedByClient ChannelError ChannelWrongStateError ConnectionBlockedTimeout ConnectionClosed
    ConnectionClosedByBroker ConnectionClosedByClient ConnectionOpenAborted ConnectionWrongStateError
    ConsumerCancelled DuplicateConsumerTag DuplicateGetOkCallback IncompatibleProtocolError
    InvalidChannelNumber InvalidFieldTypeException InvalidFrameError MethodNotImplemented NackError
    NoFreeChannels ProbableAccessDeniedError ProbableAuthenticationError ProtocolSyntaxError
    ProtocolVersionMismatch ReentrancyError ShortStringTooLong StreamLostError UnexpectedFrameError
    UnroutableError UnsupportedAMQPFieldException
"""


def test_the_driver_has_no_exceptions_that_nobody_has_thought_of():
    assert {kind.__name__ for kind in everything_that_pika_raises()} <= set(KNOWN.split())


@pytest.mark.parametrize("kind", everything_that_pika_raises(), ids=lambda kind: kind.__name__)
def test_every_exception_of_the_driver_is_mapped_on_purpose(kind):
    ours = map_error(kind(*MADE.get(kind.__name__, ("words",))))
    assert type(ours) is not InternalError
    assert ours.message
    assert "\n" not in ours.message


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionResetError("reset"), BrokerUnavailable),
        (TimeoutError(), BrokerUnavailable),
        (ssl.SSLCertVerificationError(1, "expired"), BrokerRefused),
        (ssl.SSLZeroReturnError(6, "closed"), BrokerUnavailable),
        (ssl.SSLError(1, "handshake"), BrokerRefused),
        (pika.exceptions.ConnectionClosedByBroker(403, "ACCESS_REFUSED"), BrokerRefused),
        (pika.exceptions.ConnectionClosedByBroker(530, "NOT_ALLOWED - vhost gone"), BrokerRefused),
        (pika.exceptions.ConnectionClosedByBroker(541, "INTERNAL_ERROR"), BrokerUnavailable),
        (pika.exceptions.AMQPConnectionError(ConnectionRefusedError(111, "refused")), BrokerUnavailable),
        (pika.exceptions.ChannelClosedByBroker(403, "ACCESS_REFUSED - access to queue"), BrokerRefused),
        (pika.exceptions.ChannelClosedByBroker(405, "RESOURCE_LOCKED"), AlreadyRunning),
        (pika.exceptions.ChannelClosedByBroker(406, "PRECONDITION_FAILED - inequivalent arg"), ConfigurationError),
        (pika.exceptions.ChannelClosedByBroker(406, "delivery acknowledgement timed out"), ConnectionLost),
        (
            pika.exceptions.ChannelClosedByBroker(406, "message size 3 is larger than max size 2"),
            LimitExceeded,
        ),
        (pika.exceptions.ChannelClosedByBroker(504, "CHANNEL_ERROR"), ConnectionLost),
        (ConfigurationError("ours already"), ConfigurationError),
        (ZeroDivisionError("a defect"), InternalError),
    ],
    ids=repr,
)
def test_errors_become_ours(error, kind):
    assert type(map_error(error)) is kind


def test_the_driver_is_still_the_one_that_headers_are_mended_for():
    """`_read_frame` and `_frame_buffer` are pika's own affairs, which we lean on."""
    assert "frame.decode_frame(self._frame_buffer)" in inspect.getsource(PikaConnection._read_frame)
