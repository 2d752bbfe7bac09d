"""A consumer as a user of the official client for Python writes one; see ../main.rs for what it has to do and say.

Usage: consumer.py ADDRESS plain|tls simple|push GROUP TOPIC tag|sql EXPRESSION
"""

import collections
import functools
import json
import os
import sys
import threading

import grpc
from rocketmq import (ClientConfiguration, ConsumeResult, Credentials, FilterExpression, MessageListener, PushConsumer,
                      SimpleConsumer)
from rocketmq.grpc_protocol import FilterType

POLL_SECONDS = 5
lock = threading.Lock()


def say(**what):
    with lock:
        print(json.dumps(what), flush=True)


def say_message(message, **more):
    say(kind="message", id=message.message_id, topic=message.topic, body=message.body.decode(), tag=message.tag,
        keys=sorted(message.keys or []), properties=dict(message.properties), group=message.message_group,
        attempt=message.delivery_attempt, **more)


class Listener(MessageListener):
    def __init__(self):
        self.calls = collections.Counter()

    def consume(self, message):
        with lock:
            self.calls[message.message_id] += 1
            fails = self.calls[message.message_id] <= int(message.properties.get("fails", "0"))
        say_message(message, failed=fails)
        return ConsumeResult.FAILURE if fails else ConsumeResult.SUCCESS


def tried(kind, what):
    try:
        what()
        say(kind=kind, ok=True)
    except Exception as error:
        say(kind=kind, ok=False, why=str(error))


def obey(consumer):
    held = {}
    for line in sys.stdin:
        words = line.split()
        if words[0] == "receive":
            messages = []
            try:
                messages = consumer.receive(int(words[1]), int(words[2]))
            except Exception as error:
                say(kind="failed", why=str(error))
            for message in messages:
                held[message.message_id] = message
                say_message(message)
            say(kind="received", count=len(messages))
        elif words[0] == "ack":
            tried("acked", lambda: consumer.ack(held[words[1]]))
        elif words[0] == "change":
            tried("changed", lambda: consumer.change_invisible_duration(held[words[1]], int(words[2])))
        else:
            return


def main():
    address, security, kind, group, topic, language, expression = sys.argv[1:]
    if security == "tls":
        # The client takes the roots that its gRPC brings along and has no option for others.
        with open(os.environ["SSL_CERT_FILE"], "rb") as roots:
            trusting = functools.partial(grpc.ssl_channel_credentials, roots.read())
        grpc.ssl_channel_credentials = trusting
    configuration = ClientConfiguration(address, Credentials())
    wanted = {topic: FilterExpression(expression, FilterType.SQL if language == "sql" else FilterType.TAG)}
    tls = security == "tls"
    if kind == "simple":
        consumer = SimpleConsumer(configuration, group, wanted, await_duration=POLL_SECONDS, tls_enable=tls)
    else:
        consumer = PushConsumer(configuration, group, Listener(), wanted, tls_enable=tls)
    consumer.startup()
    say(kind="started")
    if kind == "simple":
        obey(consumer)
    else:
        sys.stdin.readline()
    consumer.shutdown()
    say(kind="ended")


main()
