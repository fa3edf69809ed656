"""A process that measures for its parent (measuring.Worker), which sends it requests as lines of JSON.

The first line names a function and its arguments. The function returns a description, which is sent back, and a second
function that measures. Every later line holds arguments for the second function, and is answered with its result.
"""

import importlib
import json
import os
import signal
import sys


def main() -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then closes stdin
  replies = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # output of libraries must not be taken for a reply

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
