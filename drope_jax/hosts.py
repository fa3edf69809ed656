"""The hosts of one run: they are alike when it starts, and when one is lost the others end, with one line.

Collectives wait for ever for a host that is frozen, and JAX's runtime aborts a process whose coordinator is gone, with
a stack trace. Here every host writes a beat into the key-value store of JAX's coordinator, process 0, and reads those
of the others; one that misses them for `timeout` seconds is given up. `leave` ends the process of a host that failed
without waiting for the others, which are told why.
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
_LINGER = 10.0  # seconds that a failed coordinator stays, so that the others hear why
_GRACE = 3.0  # seconds for an error of this host's own, when another has failed: often it is the same
_BEATS, _LEFT, _GONE = "drope_jax/beat/", "drope_jax/left/", "drope_jax/gone/"
_BARRIER_MS = 24 * 3600 * 1000  # who does not come is found by the watch
_numbers = itertools.count()

# How an error begins that another host's end has caused; then the watch will say which host it was.
_LOST_PEER = ("Gloo", "gloo", "NCCL", "Connection", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "oordination")


def check_alike(facts: dict[str, Any]) -> None:
  """Compares what the hosts of a run are about to do; with one process there is nothing to compare.

  Args:
    facts: plain data, the same on every host of a run; the versions and the code of this library are added.

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
  """Versions of Python and the libraries, and digests of this library's files."""
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
  """`jax.distributed.initialize` in this block makes a client that ends the process in one line if it loses process 0.

  By default the client logs what it knows and aborts. The callback that it takes instead cannot be called from Python
  (jaxlib 0.10.2: the status that it gets cannot be converted), which ends in std::terminate; so that is handled.
  """

  def lost() -> None:
    at = f" at {coordinator}" if coordinator else ""
    _end(f"the coordinator, process 0{at}, is gone, or has lost this process")

  original = _jax.get_distributed_runtime_client
  if sys.platform == "linux":
    utils.absl_set_min_log_level(3)  # the same in many lines; what is thrown in Python says it too
    _handle_terminate(lost)
    _jax.get_distributed_runtime_client = functools.partial(original, missed_heartbeat_callback=lambda *_: lost())
  try:
    yield
  finally:
    _jax.get_distributed_runtime_client = original


_kept: list[Any] = []  # C code has a pointer to it


def _handle_terminate(handler: Callable[[], None]) -> None:
  """Makes a function C++'s std::terminate_handler."""
  _kept.append(ctypes.CFUNCTYPE(None)(handler))
  ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE(_kept[-1])


_failed = threading.Event()
_watches: list["_Watch"] = []  # that of the block that is `watched`, if one is


@contextlib.contextmanager
def watched(timeout: float = TIMEOUT) -> Iterator[None]:
  """Ends this process with status 1 and one line when another host is lost, or fails, while the block runs.

  A host is lost if nothing is heard of it for `timeout` seconds. With one process nothing is watched. If the block
  fails, the other hosts are told, and `leave` must end this process.
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
  """What fails in this block is told to the other hosts before anything that waits for them is closed."""
  try:
    yield
  except UserError as error:
    for watch in _watches if not _may_be_of_a_lost_host(error) else ():
      watch.fail(error)
    raise


def _may_be_of_a_lost_host(error: BaseException) -> bool:
  return any(word in str(error) for word in _LOST_PEER)


def leave(status: int) -> None:
  """Ends the process at once if what was `watched` has failed: JAX's own end would wait for all hosts.

  The coordinator goes last: without it the others could not end as they should.
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
  """A coordinator that is gone need not be told, and one that is frozen does not hold this process up."""

  def write() -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      _client().key_value_set(key, value, allow_overwrite=True)

  thread = threading.Thread(target=write, daemon=True)
  thread.start()
  thread.join(1.0)


class _Watch:
  """Two threads: one exchanges beats with the coordinator, which may block; one looks at the clock."""

  def __init__(self, timeout: float):
    self._timeout, self.interval = timeout, min(timeout / 5, 5.0)
    self._me, self._count = jax.process_index(), jax.process_count()
    now = time.monotonic()
    self._exchanged = now
    self._heard = {index: ("", now) for index in range(self._count) if index != self._me}  # the beat, and since when
    self._left: dict[int, tuple[str, float]] = {}  # why, and since when
    self._failure = ""  # of this host
    self._stopped = threading.Event()
    for loop in (self._beat, self._judge):
      threading.Thread(target=loop, name=f"hosts{loop.__name__}", daemon=True).start()

  def tell(self, why: str) -> None:
    """The others learn that this host ends; an empty text: that it is done."""
    _set(f"{_LEFT}{self._me}", why)

  def fail(self, error: BaseException) -> None:
    """The others learn why this host ends."""
    self._failure = self._failure or " ".join(f"{error}".split())[:300] or type(error).__name__
    self.tell(self._failure)

  def stop(self) -> None:
    """This host is done: the others no longer wait for its beats, nor it for theirs."""
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
    _end(self._failure or why)  # it may be closing what waits for the others, which have gone because of it


def _end(why: str) -> NoReturn:
  """Ends this process, whatever its main thread waits for."""
  again = "the run goes on from its last checkpoint when it is started again on all hosts"
  os.write(2, f"error: {why}; {again}\n".encode())
  os._exit(1)
