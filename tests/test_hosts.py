"""Two real processes that compare what they are about to do. Runs of several hosts: test_multi_host.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from support.ports import free_port

from drope_jax import hosts

ROOT = Path(__file__).parents[1]


def test_two_hosts_with_other_settings_both_end_with_status_2_and_name_the_field():
  port = free_port()
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  found = [
    subprocess.Popen(
      [sys.executable, str(ROOT / "tests/support/hosts_script.py"), str(port), str(index), json.dumps(facts)],
      env=environment,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index, facts in enumerate([{"config": {"steps": 3, "seed": 0}}, {"config": {"steps": 4, "seed": 0}}])
  ]
  told = [process.communicate(timeout=200)[1] for process in found]
  said = "error: the hosts of this run are not alike: config.steps is 3 on process 0, 4 on process 1\n"
  assert [process.returncode for process in found] == [2, 2], told
  assert told == [said, said]


def test_one_process_has_nothing_to_compare_and_nobody_to_watch():
  with hosts.watched(1):
    hosts.check_alike({"config": 1})
  hosts.leave(0)  # or this process would be gone


class Store:
  """A key-value store in which the other host has written other facts."""

  def __init__(self, theirs):
    self.values, self.theirs = {}, theirs

  def key_value_set(self, key, value, allow_overwrite=False):
    assert allow_overwrite or key not in self.values
    self.values[key] = value

  def wait_at_barrier(self, name, timeout):
    if name.endswith("set"):
      self.theirs(self.values, name.removesuffix("set"))

  def key_value_dir_get(self, folder):
    return [(key, value) for key, value in self.values.items() if key.startswith(folder)]

  def blocking_key_value_get(self, key, timeout):
    return self.values[key]


@pytest.mark.parametrize(
  ("changed", "said"),
  [
    (("versions", "jax"), "versions.jax is .* on process 1"),
    (("versions", "python"), "versions.python is"),
    (("code", "train.py"), "code.train.py is"),
  ],
)
def test_other_versions_and_code_are_named(monkeypatch, changed, said):
  def write(values, folder):
    facts = json.loads(values[f"{folder}of/0"])
    facts[changed[0]][changed[1]] = "other"
    values |= {f"{folder}of/1": json.dumps(facts), f"{folder}digest/1": "other"}

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(hosts, "_client", lambda store=Store(write): store)
  with pytest.raises(hosts.ConfigError, match=said):
    hosts.check_alike({"config": 1})
