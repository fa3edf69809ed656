"""The hosts of one run: checks that they agree when it starts, and ends all, with one line, when one is lost.

Collectives wait forever for a frozen host, and JAX's runtime aborts a process that has lost its coordinator, with a
stack trace. Here every host writes a heartbeat into the key-value store of JAX's coordinator, process 0, and reads
those of the others; a host without a new heartbeat for `timeout` seconds is given up. `leave` ends the process of a
host that failed, without waiting for the others, which learn the reason.
"""

import contextlib
import ctypes
import functools
import hashlib
import itertools
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax._src import distributed as jax_distributed  # its key-value store has no public name
from jax._src.lib import _jax, utils

from drope_jax.errors import ConfigError, UserError
from drope_jax.serialization import differences, library_versions

TIMEOUT = 100  # seconds
_LINGER = 10.0  # seconds that a failed coordinator stays alive, so that the others learn the reason
_GRACE = 3.0  # seconds to wait for an error of this host when another has failed: often they have the same cause
_BEATS, _LEFT, _GONE = "drope_jax/beat/", "drope_jax/left/", "drope_jax/gone/"
_BARRIER_MS = 24 * 3600 * 1000  # practically unlimited: the watch finds hosts that do not arrive
_numbers = itertools.count()

# Errors that may be caused by the loss of another host contain one of these; the watch then says which host it was.
_LOST_PEER = ("Gloo", "gloo", "NCCL", "Connection", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "oordination")


def check_alike(facts: dict[str, Any]) -> None:
  """Checks that all hosts of a run are about to do the same; does nothing with one process.

  Args:
    facts: plain data that must be the same on every host; library versions and a digest of our code are added.

  Raises:
    ConfigError: on every host, naming the first field in which a host differs from process 0.
  """
  if jax.process_count() == 1:
    return
  client, folder = _client(), f"drope_jax/facts/{next(_numbers)}/"
  text = json.dumps({**facts, **_software()}, sort_keys=True)
  client.key_value_set(f"{folder}of/{jax.process_index()}", text)
  client.key_value_set(f"{folder}digest/{jax.process_index()}", hashlib.sha256(text.encode()).hexdigest())
  client.wait_at_barrier(f"{folder}set", _BARRIER_MS)
  digests = {int(key.rpartition("/")[2]): value for key, value in client.key_value_dir_get(f"{folder}digest/")}
  other = next((index for index in sorted(digests) if digests[index] != digests[0]), None)
  found = []
  if other is not None:
    theirs, ours = (json.loads(client.blocking_key_value_get(f"{folder}of/{one}", 60_000)) for one in (0, other))
    found = differences(theirs, ours)
  client.wait_at_barrier(f"{folder}compared", _BARRIER_MS)
  if found:
    field, _, values = found[0].partition(": ")
    values = values.replace(" there, ", " on process 0, ").removesuffix(" here") + f" on process {other}"
    more = f" (and {len(found) - 1} more differences)" if len(found) > 1 else ""
    raise ConfigError(f"the hosts of this run are not alike: {field} is {values}{more}")


def _software() -> dict[str, Any]:
  """The versions of Python and of the libraries, and digests of this library's files."""
  package = Path(__file__).parent
  code = {
    str(path.relative_to(package)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    for path in sorted(package.rglob("*.py"))
  }
  return {"versions": {"python": platform.python_version(), **library_versions()}, "code": code}


def _client() -> Any:
  client = jax_distributed.global_state.client
  assert client is not None, "several processes are connected through jax.distributed"
  return client


@contextlib.contextmanager
def quiet_loss(coordinator: str | None) -> Iterator[None]:
  """A client that `jax.distributed.initialize` creates in this block ends with one line if it loses process 0.

  By default the client logs many lines and aborts. It accepts a callback instead, but cannot call a Python function
  (jaxlib 0.10.2: its status argument cannot be converted) and calls std::terminate, which is therefore handled too.
  """

  def lost() -> None:
    at = f" at {coordinator}" if coordinator else ""
    _end(f"the coordinator, process 0{at}, is gone, or has lost this process")

  original = _jax.get_distributed_runtime_client
  if sys.platform == "linux":
    utils.absl_set_min_log_level(3)  # it would log the same in many lines; Python exceptions report it too
    _handle_terminate(lost)
    _jax.get_distributed_runtime_client = functools.partial(original, missed_heartbeat_callback=lambda *_: lost())
  try:
    yield
  finally:
    _jax.get_distributed_runtime_client = original


_kept: list[Any] = []  # keeps the callback alive, to which C++ has a pointer


def _handle_terminate(handler: Callable[[], None]) -> None:
  """Installs a function as C++'s std::terminate_handler."""
  _kept.append(ctypes.CFUNCTYPE(None)(handler))
  ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE(_kept[-1])


_failed = threading.Event()
_watches: list["_Watch"] = []  # the watch of the active `watched` block, if any


@contextlib.contextmanager
def watched(timeout: float = TIMEOUT) -> Iterator[None]:
  """While the block runs, ends this process with status 1 and one line if another host is lost or fails.

  A host is lost if it has no new heartbeat for `timeout` seconds. With one process this does nothing. If the block
  fails, the other hosts are told the reason, and `leave` must end this process.
  """
  if jax.process_count() == 1:
    yield
    return
  watch = _Watch(timeout)
  _watches[:] = [watch]
  try:
    yield
    watch.stop()
  except BaseException as error:
    if _may_be_of_a_lost_host(error):
      time.sleep(timeout + 3 * watch.interval)  # by then the watch has ended this process, if a host was lost
    watch.fail(error)
    _failed.set()
    raise


@contextlib.contextmanager
def telling() -> Iterator[None]:
  """Tells the other hosts of a failure in this block at once, before closing anything that waits for them."""
  try:
    yield
  except UserError as error:
    for watch in _watches if not _may_be_of_a_lost_host(error) else ():
      watch.fail(error)
    raise


def _may_be_of_a_lost_host(error: BaseException) -> bool:
  return any(word in str(error) for word in _LOST_PEER)


def leave(status: int) -> None:
  """Ends the process at once if a `watched` block has failed, since JAX's own shutdown would wait for all hosts.

  The coordinator ends last, because the others need it to end properly.
  """
  if not _failed.is_set():
    return
  sys.stdout.flush()
  sys.stderr.flush()
  if jax.process_index() == 0:
    deadline = time.monotonic() + _LINGER
    while len(_client().key_value_dir_get(_GONE)) < jax.process_count() - 1 and time.monotonic() < deadline:
      time.sleep(0.1)
    time.sleep(0.5)
  else:
    _set(f"{_GONE}{jax.process_index()}", "")
  os._exit(status)


def _set(key: str, value: str) -> None:
  """Writes to the key-value store, waiting at most a second, and ignoring a coordinator that is gone."""

  def write() -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      _client().key_value_set(key, value, allow_overwrite=True)

  thread = threading.Thread(target=write, daemon=True)
  thread.start()
  thread.join(1.0)


class _Watch:
  """Two threads: one exchanges heartbeats with the coordinator, which may block; the other watches the clock."""

  def __init__(self, timeout: float):
    self._timeout, self.interval = timeout, min(timeout / 5, 5.0)
    self._me, self._count = jax.process_index(), jax.process_count()
    now = time.monotonic()
    self._exchanged = now
    self._heard = {
      index: ("", now) for index in range(self._count) if index != self._me
    }  # the last heartbeat, and when it was new
    self._left: dict[int, tuple[str, float]] = {}  # the reason, and when it was read
    self._failure = ""  # the reason of this host's own failure
    self._stopped = threading.Event()
    for loop in (self._beat, self._judge):
      threading.Thread(target=loop, name=f"hosts{loop.__name__}", daemon=True).start()

  def tell(self, why: str) -> None:
    """Tells the others why this host ends; an empty text means that it is done."""
    _set(f"{_LEFT}{self._me}", why)

  def fail(self, error: BaseException) -> None:
    """Tells the others that this host has failed with `error`."""
    self._failure = self._failure or " ".join(f"{error}".split())[:300] or type(error).__name__
    self.tell(self._failure)

  def stop(self) -> None:
    """Ends the watch, because this host is done; the others no longer expect its heartbeats."""
    self._stopped.set()
    self.tell("")

  def _beat(self) -> None:
    client = _client()
    for number in itertools.count():
      if self._stopped.is_set():
        return
      try:
        client.key_value_set(f"{_BEATS}{self._me}", str(number), allow_overwrite=True)
        beats, left = client.key_value_dir_get(_BEATS), client.key_value_dir_get(_LEFT)
      except jax.errors.JaxRuntimeError:  # the coordinator does not answer; the clock runs
        time.sleep(self.interval)
        continue
      self._exchanged = now = time.monotonic()
      for key, beat in beats:
        index = int(key.rpartition("/")[2])
        if index != self._me and self._heard[index][0] != beat:
          self._heard[index] = (beat, now)
      for key, why in left:
        self._left.setdefault(int(key.rpartition("/")[2]), (why, now))
      time.sleep(self.interval)

  def _judge(self) -> None:
    while not self._stopped.wait(0.1) and not _failed.is_set():
      now = time.monotonic()
      for index, (_, since) in self._heard.items():
        why, left = self._left.get(index, (None, now))
        if why and now - left > _GRACE:
          self._give_up(f"process {index} of {self._count} has failed: {why}")
        if why is None and now - since > self._timeout:
          quiet = now - self._exchanged > self._timeout
          lost = 0 if quiet else index
          what = " (the coordinator)" if lost == 0 else ""
          self._give_up(f"process {lost} of {self._count}{what} has not been heard of for {self._timeout:g} s")

  def _give_up(self, why: str) -> NoReturn:
    self.tell(self._failure or "another host was lost")
    _set(f"{_GONE}{self._me}", "")
    _end(self._failure or why)  # if this host failed first, the others ended because of it


def _end(why: str) -> NoReturn:
  """Ends this process with one line, whatever its main thread is waiting for."""
  again = "the run goes on from its last checkpoint when it is started again on all hosts"
  os.write(2, f"error: {why}; {again}\n".encode())
  os._exit(1)
