"""Ports for processes that meet on this machine."""

import contextlib
import socket


def free_port() -> int:
  """A port that is not in use."""
  with contextlib.closing(socket.socket()) as any_socket:
    any_socket.bind(("127.0.0.1", 0))
    return any_socket.getsockname()[1]
