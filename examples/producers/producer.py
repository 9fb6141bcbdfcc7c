"""Asks the pipeline of examples/matmul with pika and msgpack, without rankmq's own library.

pip install pika msgpack numpy
RANKMQ_BROKER_URL=amqp://user:password@host:5672/%2F python producer.py [SERVABLE METHOD [LANE [SECONDS]]]
"""

import os
import sys
import time
import uuid

import msgpack
import numpy as np
import pika
from pika.exceptions import AMQPError, ConnectionClosed, NackError, StreamLostError

REPLIES = "amq.rabbitmq.reply-to"  # RabbitMQ's own: no queue to declare; consume before publishing, on the same channel
GRACE = 5  # seconds after the deadline in which its error may still come


def main(url, servable="matmul", method="predict", lane="normal", seconds="60"):
    ones = np.ones((128, 96), np.float32)
    tensor = {"dtype": ones.dtype.name, "shape": ones.shape, "data": ones.tobytes()}
    request = {"v": 1, "servable": servable, "method": method, "instances": [{"x": tensor, "y": tensor}]}
    question = pika.BasicProperties(
        message_id=str(uuid.uuid4()),  # the request: published again under it, it is not computed again
        correlation_id=str(uuid.uuid4()),  # our question: comes back in the reply
        reply_to=REPLIES,
        content_type="application/msgpack",
        delivery_mode=2,
        headers={"rankmq-deadline": int(1000 * (time.time() + float(seconds)))},
    )
    for tries_left in (2, 1, 0):
        try:
            reply = ask(url, f"{servable}.{lane}", msgpack.packb(request), question)
            break
        except (ConnectionClosed, StreamLostError):  # and what became of it? the same once more
            if not tries_left:
                raise
    for error in [reply["error"], *(failed["error"] for failed in reply["errors"])]:
        if error:
            sys.exit(f"{error['code']}: {error['message']}")
    for name, output in reply["outputs"][0].items():
        print(name, np.frombuffer(output["data"], output["dtype"]).reshape(output["shape"]), sep="\n")


def ask(url, routing_key, body, question):
    replies = {}

    def on_reply(_channel, _method, properties, body):
        replies[properties.correlation_id] = msgpack.unpackb(body)

    deadline = question.headers["rankmq-deadline"] / 1000
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()  # basic_publish returns when the broker has the request
        channel.basic_consume(REPLIES, on_reply, auto_ack=True)
        question.expiration = str(max(1, int(1000 * (deadline - time.time()))))  # past it the broker drops it, too
        try:
            channel.basic_publish("rankmq.requests", routing_key, body, question)
            while question.correlation_id not in replies and time.time() < deadline + GRACE:
                connection.process_data_events(time_limit=1)
        finally:
            if question.correlation_id not in replies and connection.is_open:  # Ctrl-C, say: no work for nobody
                unwanted = pika.BasicProperties(correlation_id=question.message_id)
                connection.channel().basic_publish("rankmq.cancel", "", b"", unwanted)
    return replies.get(question.correlation_id) or sys.exit("no reply in time")


if __name__ == "__main__":
    try:
        main(os.environ.get("RANKMQ_BROKER_URL") or sys.exit("RANKMQ_BROKER_URL names no broker"), *sys.argv[1:])
    except NackError:
        sys.exit("the broker refused the request: its queue is full")
    except AMQPError as error:
        sys.exit(f"broker: {error!r}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
