"""What the devices that share a row compute of it; that it is computed right is for the tests of the kernels."""

import numpy as np
import pytest

from drope_jax.attention.context_parallel import chunks, dealt_order


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_all_devices_see_as_many_keys(devices):
  length = 12 * devices
  visible = np.tril(np.ones((length, length), int)).sum(axis=1)  # keys that each query sees
  seen = visible[dealt_order(length, devices)].reshape(devices, -1).sum(axis=1)
  assert len(set(seen.tolist())) == 1
  assert sorted(dealt_order(length, devices)) == list(range(length))


def test_a_device_has_one_chunk_of_each_parity():
  assert [chunks(device, 3) for device in range(3)] == [(0, 5), (4, 1), (2, 3)]
