"""A process that measures one thing: it is told what by its parent (measuring.Worker), a line of JSON at a time.

The first line names a function and its arguments; that returns what it is (for the record), and a function that
measures. Every later line holds arguments of the latter, and is answered with what it returned.
"""

import importlib
import json
import os
import signal
import sys


def main() -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then closes stdin
  replies = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # whatever a library prints is no reply

  def reply(content: dict) -> None:
    replies.write(json.dumps(content) + "\n")
    replies.flush()

  job = json.loads(sys.stdin.readline())
  module, name = job["function"].split(":")
  about, measure = getattr(importlib.import_module(module), name)(**job["arguments"])
  reply(about)
  for line in sys.stdin:
    reply(measure(**json.loads(line)))


if __name__ == "__main__":
  main()
