"""Errors for the user: one line each, whatever a file has put into them."""

import pytest

from drope_jax.errors import CheckpointError, ConfigError, FileError


@pytest.mark.parametrize("kind", [ConfigError, FileError, CheckpointError])
def test_a_message_is_one_line_that_can_be_printed(kind):
  message = str(kind("key 'a\nb\r\x00\ud800' of ümläut 日本 🜁"))
  assert message == r"key 'a\nb\r\x00\ud800' of ümläut 日本 🜁"
  assert message.encode().decode() == message
