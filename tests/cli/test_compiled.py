"""Programs that commands compile are kept: where, and whose choice comes first."""

import jax
import pytest

from drope_jax.cli import compiled

NAMES = (
  "jax_compilation_cache_dir",
  "jax_compilation_cache_max_size",
  "jax_enable_compilation_cache",
  "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def setting(monkeypatch, tmp_path):
  """Sets one of JAX's options; afterwards all are as before."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  before = {name: getattr(jax.config, name) for name in NAMES}
  yield jax.config.update
  for name, value in before.items():
    jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache_apart_for_each_cpu(setting, tmp_path, monkeypatch):
  setting("jax_compilation_cache_dir", None)
  compiled.keep()
  here = compiled.directory()
  assert here.is_relative_to(tmp_path) and jax.config.jax_compilation_cache_dir == str(here)
  assert 0 < jax.config.jax_compilation_cache_max_size < 1e10
  assert 0 < jax.config.jax_persistent_cache_min_compile_time_secs < 0.03  # a checkpoint's digests take 0.035 s each
  monkeypatch.setattr(compiled, "_cpu", lambda: "another")
  assert compiled.directory() != here and compiled.directory().parent == here.parent


def test_a_directory_or_a_refusal_that_is_set_stays(setting):
  setting("jax_compilation_cache_dir", "elsewhere")
  compiled.keep()
  assert jax.config.jax_compilation_cache_dir == "elsewhere"
  setting("jax_compilation_cache_dir", None)
  setting("jax_enable_compilation_cache", False)
  compiled.keep()
  assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize(
  ("name", "value"), [("jax_persistent_cache_min_compile_time_secs", 5.0), ("jax_compilation_cache_max_size", 1000)]
)
def test_a_limit_of_the_environment_stays(setting, monkeypatch, name, value):
  setting("jax_compilation_cache_dir", None)
  setting(name, value)  # as JAX has read it from the environment when it was imported
  monkeypatch.setenv(name.upper(), str(value))
  compiled.keep()
  assert getattr(jax.config, name) == value
  assert jax.config.jax_compilation_cache_dir == str(compiled.directory())
