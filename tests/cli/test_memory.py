"""Out of memory: one line with the bytes and what halves them."""

import jax
import numpy as np
import pytest

from drope_jax.cli import memory

SETTING = "half of --batch_tokens"
JAX = jax.errors.JaxRuntimeError


@pytest.mark.parametrize(
  ("error", "named"),
  [
    (
      JAX("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."),
      "17,179,869,184 bytes (16.00",
    ),
    (JAX("RESOURCE_EXHAUSTED: Out of memory allocating 1024 bytes."), "1,024 bytes"),
    (JAX("INTERNAL: Error dispatching computation: Out of memory allocating 1161084278931456 bytes."), "1,161,084,278"),
    (JAX("RESOURCE_EXHAUSTED: Attempting to allocate 3.50GiB. There are 1.2GiB free."), "3.50 GiB"),
    (MemoryError(), "this machine is out of memory"),
  ],
)
def test_the_line_has_the_bytes_and_the_setting(error, named):
  line = memory.said(error, SETTING)
  assert named in line and SETTING in line and "\n" not in line


def test_what_numpy_says_is_understood():
  with pytest.raises(MemoryError) as caught:
    np.zeros(2**45, np.int64)
  assert "256 TiB" in memory.said(caught.value, SETTING)


def test_other_errors_are_not_of_memory():
  assert memory.said(JAX("INVALID_ARGUMENT: 3 bytes"), SETTING) is None
