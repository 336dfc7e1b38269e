"""One end of a transfer as a process of its own, to be stopped and killed at a moment of its own choice.

    python -m isthmus.tests.kvtransfer.child send ENDPOINT TRANSFER_ID NUM_BLOCKS SIGNAL [sending]
    python -m isthmus.tests.kvtransfer.child receive TRANSPORT

The sender goes on to its second piece when it is told to by a line, raises SIGNAL on itself when it has written half of
it, and reports the transfer's end when it has one. Where blocks go from pool to pool, that is in the middle of the move
of the second piece (with `sending`: when it is announced, and not sent).
The receiver prints its endpoint, and takes nothing.
"""

import os
import select
import signal
import sys
import time

from isthmus.kvtransfer.open import open_receiver, open_sender
from isthmus.kvtransfer.transport import Piece, Read, Receiver, Sender
from isthmus.tests.kvtransfer.blocks import BLOCK, Source

POOLED = ("cuda_ipc", "nccl")
"""What endpoints and transports begin with that need `pool_child`."""
DELIVERY_S = 0.1


def send(endpoint: str, transfer_id: str, num_blocks: int, number: signal.Signals, sending: bool) -> None:
    first, second = num_blocks // 2, num_blocks - num_blocks // 2
    source: Source
    sender: Sender
    if endpoint.startswith(POOLED):
        from isthmus.tests.kvtransfer import pool_child

        source, sender = pool_child.open_stopping(endpoint, transfer_id, lambda: halt(number), sending=sending)
        last = source.piece(first, second, True)
    else:
        source, sender = Source(transfer_id), open_sender()
        last = Piece(first, second, BLOCK, stopping_read(source, number), True)
    sender.send(transfer_id, endpoint, source.piece(0, first))
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        sender.poll()
    sys.stdin.readline()
    sender.send(transfer_id, endpoint, last)
    deadline = time.monotonic() + 20
    while not (events := sender.poll()) and time.monotonic() < deadline:
        time.sleep(0.001)
    print(*(type(event).__name__ for event in events), flush=True)
    sys.stdin.read()
    sender.close()


def halt(number: signal.Signals) -> None:
    """Raises it on this process, and waits for it: it is delivered to any thread, and this one would run on for a
    moment."""
    os.kill(os.getpid(), number)
    time.sleep(DELIVERY_S)


def stopping_read(source: Source, number: signal.Signals) -> Read:
    def read(first_block: int, num_blocks: int, out: memoryview | None) -> memoryview:
        payload = memoryview(bytearray(num_blocks * BLOCK)) if out is None else out
        whole = source.read(first_block, num_blocks, None)
        half = len(whole) // 2
        payload[:half] = whole[:half]
        halt(number)
        payload[half:] = whole[half:]
        return payload

    return read


def receive(transport: str) -> None:
    receiver: Receiver
    if transport in POOLED:
        from isthmus.tests.kvtransfer import pool_child

        receiver = pool_child.open_receiver(transport)
    else:
        receiver = open_receiver(lambda: None, transports=[transport])
    print(receiver.endpoint, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1] == "send":
        number, *sending = sys.argv[5:]
        send(sys.argv[2], sys.argv[3], int(sys.argv[4]), signal.Signals(int(number)), bool(sending))
    else:
        receive(sys.argv[2])
