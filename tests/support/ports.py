"""Ports for processes that meet on this machine."""

import contextlib
import random
import socket


def free_port() -> int:
  """A port that is not in use, and that Linux gives to no other socket by itself: it takes those from 32768 on."""
  for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
    with contextlib.closing(socket.socket()) as any_socket, contextlib.suppress(OSError):
      any_socket.bind(("127.0.0.1", port))
      return port
  raise OSError("no free port among a hundred")
