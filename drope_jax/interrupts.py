"""Signals that Python would handle too late: while a command imports its libraries, and a second Ctrl-C.

| when                                    | what happens                                    | exit status             |
|-----------------------------------------|-------------------------------------------------|-------------------------|
| while a command imports its libraries   | one line; nothing has begun                     | 143 SIGTERM, 130 Ctrl-C |
| while it runs                           | cli/frame.py; in training distributed.sigterm   | 0                       |
| a second Ctrl-C, a second or more later | one line; it ends at once, what was saved stays | 130                     |

For `experiments.train`, `--stopped_status` sets the status of the first two.

Programs that import this library are not affected, except for the second Ctrl-C while `train` runs.
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
_APART = 1.0  # seconds; `timeout` and some shells send a signal both to a process and to its group
_blocks: list[None] = []  # one entry per active block of ends_at_second_ctrl_c
_first: list[float] = []  # the time of the first Ctrl-C in the outermost block


def while_importing() -> None:
  """Makes a signal end a command of ours cleanly while it imports its libraries; does nothing in other programs.

  Python sets argv[0] to "-m" while it imports the package of the module to run.
  """
  ours = any(word.startswith((f"{__name__.partition('.')[0]}.", "experiments.")) for word in sys.orig_argv)
  if sys.argv[:1] != ["-m"] or not ours or threading.current_thread() is not threading.main_thread():
    return
  for number in NAMES:
    if signal.getsignal(number) is not signal.SIG_IGN:  # as set by `nohup`, and by shells for background jobs
      signal.signal(number, _end)
  unblock()


def _end(number: int, frame: FrameType | None) -> None:
  asked_for = re.search(r"--stopped[_-]status[= ](\d+)", " ".join(sys.orig_argv))  # flags are not parsed yet
  _leave(f"stopped {NAMES[signal.Signals(number)]}", int(asked_for[1]) if asked_for else 128 + number)


def block() -> None:
  """Blocks signals until `unblock`, which may be called after this process was replaced by another program."""
  signal.pthread_sigmask(signal.SIG_BLOCK, NAMES)


def unblock() -> None:
  """Delivers the signals that `block` held back."""
  signal.pthread_sigmask(signal.SIG_UNBLOCK, NAMES)


@contextlib.contextmanager
def ends_at_second_ctrl_c() -> Iterator[None]:
  """In this block a second Ctrl-C ends the process, even while the main thread is in native code or waiting.

  The effect of the first Ctrl-C is up to the signal handlers. In other threads than the main one it does nothing.
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
