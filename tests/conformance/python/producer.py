"""A producer as a user of the official client for Python writes one; see ../main.rs for what it has to do and say.

Usage: producer.py ADDRESS plain|tls once|steadily
"""

import functools
import json
import os
import sys
import threading

import grpc
from rocketmq import ClientConfiguration, Credentials, Message, Producer

MESSAGES = 100
GROUPS = ["red", "green", "blue"]
OF_A_GROUP = 20


def say(**what):
    print(json.dumps(what), flush=True)


def plain(kind, n):
    message = Message()
    message.topic = "plain"
    message.body = f"{kind}-{n}".encode()
    message.tag = "even" if n % 2 == 0 else "odd"
    message.keys = f"{kind}-key-{n}"
    message.add_property("n", str(n))
    message.add_property("language", "Python ✓")
    return message


def ordered(group, n):
    message = Message()
    message.topic = "ordered"
    message.body = f"{group}-{n}".encode()
    message.message_group = group
    return message


def once(producer):
    for n in range(MESSAGES):
        say(kind="sync", n=n, id=producer.send(plain("sync", n)).message_id)

    sent = [producer.send_async(plain("async", n)) for n in range(MESSAGES)]
    for n, future in enumerate(sent):
        say(kind="async", n=n, id=future.result(timeout=30).message_id)

    for n in range(OF_A_GROUP):
        for group in GROUPS:
            say(kind=group, n=n, id=producer.send(ordered(group, n)).message_id)

    message = ordered("red", 0)
    message.topic = "plain"
    try:
        producer.send(message)
        say(kind="conflict", refused=False)
    except Exception as error:
        say(kind="conflict", refused=True, why=str(error))


def steadily(producer):
    ended = threading.Event()

    def wait_for_the_end():
        sys.stdin.readline()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    n = 0
    while not ended.wait(0.01):
        try:
            say(kind="steady", n=n, id=producer.send(plain("steady", n)).message_id)
        except Exception as error:
            say(kind="failed", n=n, why=str(error))
        n += 1


def main():
    address, security, what = sys.argv[1:]
    if security == "tls":
        # The client takes the roots that its gRPC brings along and has no option for others.
        with open(os.environ["SSL_CERT_FILE"], "rb") as roots:
            trusting = functools.partial(grpc.ssl_channel_credentials, roots.read())
        grpc.ssl_channel_credentials = trusting
    configuration = ClientConfiguration(address, Credentials())
    producer = Producer(configuration, ("plain", "ordered"), tls_enable=security == "tls")
    producer.startup()
    say(kind="started")
    if what == "once":
        once(producer)
        say(kind="done")
        sys.stdin.readline()
    else:
        steadily(producer)
    producer.shutdown()
    say(kind="ended")


main()
