"""Signals where Python's own way is too late: while a command imports its libraries, and a second Ctrl-C.

| when                                    | what happens                                    | exit status             |
|-----------------------------------------|-------------------------------------------------|-------------------------|
| a command imports its libraries         | one line; nothing has begun                     | 143 SIGTERM, 130 Ctrl-C |
| it works                                | cli/frame.py; in training distributed.sigterm   | 0                       |
| a second Ctrl-C, a second or more later | one line; it ends at once, what was saved stays | 130                     |

The first two of `experiments.train` have the status that `--stopped_status` asks for.

A program that imports this library is left alone, but for the second Ctrl-C while `train` runs.
"""

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

NAMES = {signal.SIGTERM: "by SIGTERM", signal.SIGINT: "by Ctrl-C"}
_APART = 1.0  # seconds: `timeout` and some shells send one signal to a process and again to its group
_blocks: list[None] = []  # of ends_at_second_ctrl_c, one within the other
_first: list[float] = []  # when the first Ctrl-C in the outermost of them came


def while_importing() -> None:
  """Ends a command of ours that a signal stops while its libraries are imported; does nothing in other programs.

  Python sets argv[0] to "-m" while it imports the package of a module that it runs.
  """
  ours = any(word.startswith((f"{__name__.partition('.')[0]}.", "experiments.")) for word in sys.orig_argv)
  if sys.argv[:1] != ["-m"] or not ours or threading.current_thread() is not threading.main_thread():
    return
  for number in NAMES:
    if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` and shells leave it for jobs in the background
      signal.signal(number, _end)
  unblock()


def _end(number: int, frame: FrameType | None) -> None:
  asked_for = re.search(r"--stopped[_-]status[= ](\d+)", " ".join(sys.orig_argv))  # no flag is parsed yet
  _leave(f"stopped {NAMES[signal.Signals(number)]}", int(asked_for[1]) if asked_for else 128 + number)


def block() -> None:
  """Signals wait until `unblock`: for the start of another program in this process, which inherits this."""
  signal.pthread_sigmask(signal.SIG_BLOCK, NAMES)


def unblock() -> None:
  signal.pthread_sigmask(signal.SIG_UNBLOCK, NAMES)


@contextlib.contextmanager
def ends_at_second_ctrl_c() -> Iterator[None]:
  """In this block a second Ctrl-C ends the process, even while the main thread is in native code or waits.

  What the first one does is up to the handlers; only a process's main thread can listen.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  read, write = socket.socketpair()
  read.setblocking(True)  # whatever socket.setdefaulttimeout says (evaluate/harness_call.py)
  write.setblocking(False)
  before = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
  _blocks.append(None)
  listener = threading.Thread(target=_listen, args=(read,), name="second Ctrl-C", daemon=True)
  listener.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    write.close()  # which ends the thread
    listener.join()
    _blocks.pop()
    if not _blocks:
      _first.clear()


def _listen(read: socket.socket) -> None:
  with read:
    while numbers := read.recv(64):
      if signal.SIGINT not in numbers:
        continue
      now = time.monotonic()
      if _first and now - _first[0] >= _APART:
        _leave("stopped at once by a second Ctrl-C; what was saved before stays", 130)
      _first[:] = _first or [now]


def _leave(why: str, status: int) -> None:
  os.write(2, f"{why}\n".encode())
  os._exit(status)
