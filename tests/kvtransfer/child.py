"""One end of a transfer as a process of its own, to be stopped and killed at a moment of its own choice.

    python -m isthmus.tests.kvtransfer.child send ENDPOINT TRANSFER_ID NUM_BLOCKS SIGNAL
    python -m isthmus.tests.kvtransfer.child receive TRANSPORT

The sender goes on to its second piece when it is told to by a line, raises SIGNAL on itself when it has written half of
it, and reports the transfer's end when it has one.
The receiver prints its endpoint, and takes nothing.
"""

import os
import select
import signal
import sys
import time

from isthmus.kvtransfer.open import open_receiver, open_sender
from isthmus.kvtransfer.transport import Piece
from isthmus.tests.kvtransfer.blocks import BLOCK, Source


def send(endpoint: str, transfer_id: str, num_blocks: int, number: signal.Signals) -> None:
    source, sender = Source(transfer_id), open_sender()

    def stop_in_the_middle(first_block: int, num_blocks: int, out: memoryview | None) -> memoryview:
        payload = memoryview(bytearray(num_blocks * BLOCK)) if out is None else out
        whole = source.read(first_block, num_blocks, None)
        half = len(whole) // 2
        payload[:half] = whole[:half]
        os.kill(os.getpid(), number)
        payload[half:] = whole[half:]
        return payload

    sender.send(transfer_id, endpoint, source.piece(0, num_blocks // 2))
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        sender.poll()
    sys.stdin.readline()
    sender.send(
        transfer_id, endpoint, Piece(num_blocks // 2, num_blocks - num_blocks // 2, BLOCK, stop_in_the_middle, True)
    )
    deadline = time.monotonic() + 20
    while not (events := sender.poll()) and time.monotonic() < deadline:
        time.sleep(0.001)
    print(*(type(event).__name__ for event in events), flush=True)
    sys.stdin.read()
    sender.close()


def receive(transport: str) -> None:
    receiver = open_receiver(lambda: None, transports=[transport])
    print(receiver.endpoint, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2], sys.argv[3], int(sys.argv[4]), signal.Signals(int(sys.argv[5])))
    else:
        receive(sys.argv[2])
