"""Asks the pipeline of examples/matmul with pika and msgpack, without rankmq's own library.

pip install pika msgpack numpy
RANKMQ_BROKER_URL=amqp://user:password@host:5672/%2F python producer.py [SERVABLE METHOD]
"""

import os
import sys
import time
import uuid

import msgpack
import numpy as np
import pika

REPLIES = "amq.rabbitmq.reply-to"  # RabbitMQ's own: no queue to declare; consume before publishing, on the same channel


def main(url, servable="matmul", method="predict", seconds=60):
    ones = np.ones((128, 96), np.float32)
    tensor = {"dtype": ones.dtype.name, "shape": ones.shape, "data": ones.tobytes()}
    request = {"v": 1, "servable": servable, "method": method, "instances": [{"x": tensor, "y": tensor}]}
    asked, replies = str(uuid.uuid4()), {}

    def on_reply(_channel, _method, properties, body):
        replies[properties.correlation_id] = msgpack.unpackb(body)

    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()  # basic_publish returns when the broker has the request
        channel.basic_consume(REPLIES, on_reply, auto_ack=True)
        properties = pika.BasicProperties(
            message_id=asked,
            correlation_id=asked,
            reply_to=REPLIES,
            content_type="application/msgpack",
            delivery_mode=2,
        )
        channel.basic_publish("rankmq.requests", servable, msgpack.packb(request), properties)
        deadline = time.monotonic() + seconds
        while asked not in replies and time.monotonic() < deadline:
            connection.process_data_events(time_limit=1)
    if asked not in replies:
        sys.exit(f"no reply within {seconds} s")
    reply = replies[asked]
    for error in [reply["error"], *(failed["error"] for failed in reply["errors"])]:
        if error:
            sys.exit(f"{error['code']}: {error['message']}")
    for name, output in reply["outputs"][0].items():
        print(name, np.frombuffer(output["data"], output["dtype"]).reshape(output["shape"]), sep="\n")


if __name__ == "__main__":
    try:
        main(os.environ.get("RANKMQ_BROKER_URL") or sys.exit("RANKMQ_BROKER_URL names no broker"), *sys.argv[1:])
    except pika.exceptions.AMQPError as error:
        sys.exit(f"broker: {error!r}")
