"""Files that are whole, and records of which a crash may have cut off the last."""

import json

import pytest

from drope_jax.errors import FileError
from drope_jax.files import append_json_lines, holds_something, read_json_lines, replace_whole, write_json

RECORDS = [{"step": 1, "text": "line\u2028separator"}, {"step": 2}]
WHOLE = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)


def test_a_file_is_replaced_whole(tmp_path):
  path = tmp_path / "file"
  replace_whole(path, "old")
  inode = path.stat().st_ino
  replace_whole(str(path), b"\xff")
  assert path.read_bytes() == b"\xff" and path.stat().st_ino != inode
  assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
  write_json({"a": 1}, tmp_path / "file")
  with pytest.raises(TypeError):
    write_json({"a": object()}, tmp_path / "file")
  assert json.loads((tmp_path / "file").read_text()) == {"a": 1}


def test_a_draft_that_a_crash_left_is_nothing(tmp_path):
  (tmp_path / "config.json.draft").touch()
  assert not holds_something(tmp_path) and not holds_something(tmp_path / "absent")


@pytest.mark.parametrize(
  ("text", "torn", "expected"),
  [
    (WHOLE, "drop", RECORDS),
    ("", "drop", []),
    (WHOLE + '{"step": 3}', "drop", RECORDS),
    (WHOLE + '{"st', "drop", RECORDS),
    (WHOLE + "\n" + '{"step": 3}', "read", [*RECORDS, {"step": 3}]),
    (WHOLE + '{"st', "skip", RECORDS),
    ('{"st\n' + WHOLE, "skip", RECORDS),
    ("\0\0" + WHOLE, "skip", RECORDS[1:]),
  ],
)
def test_records_are_read(tmp_path, text, torn, expected):
  (tmp_path / "file").write_text(text)
  assert read_json_lines(tmp_path / "file", torn) == expected


@pytest.mark.parametrize(
  ("content", "torn", "named"),
  [
    (('{"st\n' + WHOLE).encode(), "drop", "file:1: not JSON"),
    ((WHOLE + '{"st').encode(), "read", "file:3: not JSON"),
    (WHOLE.encode() + b"\xff\n", "drop", "file:3: not JSON"),
    (b"[" * 100_000 + b"\n", "drop", "file:1: not JSON"),
    (None, "drop", "file: cannot be read"),
  ],
)
def test_what_is_no_record_is_named(tmp_path, content, torn, named):
  if content is not None:
    (tmp_path / "file").write_bytes(content)
  with pytest.raises(FileError, match=named):
    read_json_lines(tmp_path / "file", torn)


@pytest.mark.parametrize("before", ["", WHOLE, WHOLE + '{"st', '{"st'])
def test_records_are_appended_to_whole_lines(tmp_path, before):
  path = tmp_path / "folder" / "file"
  path.parent.mkdir()
  path.write_text(before)
  append_json_lines([{"step": 3}], path)
  assert read_json_lines(path) == [*(RECORDS if WHOLE in before else []), {"step": 3}]
  append_json_lines([{"step": 3}], tmp_path / "absent" / "file")
  assert (tmp_path / "absent" / "file").read_text() == '{"step": 3}\n'
