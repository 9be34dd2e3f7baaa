"""SIGINT and SIGTERM ask a run to end its step, to save its state, and to say how to resume."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from deepclust_ext.training import Trainer
from deepclust_ext.training.stop import Stopped


@contextmanager
def stopping(trainer: Trainer) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM stop a run after its step, and a second one end the process at once.

    The exception that is then raised has the signal's exit status, 130 or 143, as its attribute ``status``. Outside the
    main thread signals cannot be caught, and keep their handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, received = os.getpid(), []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What is ignored, as SIGINT is in the background of a script, stays so.
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a process that loads images, which this one ends
            return
        received.append(number)
        trainer.stop = True
        for each, handler in before.items():
            signal.signal(each, handler)
        print("stopping after this step; once more to end at once", file=sys.stderr, flush=True)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    except Stopped as error:
        if received:  # none where another rank was asked to stop
            error.status = 128 + received[0]
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
