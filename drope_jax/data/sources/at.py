"""Maps a path to a source, for `--data=PATH` and `DataConfig.directory`.

| PATH                                                    | source                                                  |
|---------------------------------------------------------|---------------------------------------------------------|
| a directory with dataset_info.json, or a TFDS name      | TFDS, with its own splits                               |
| a directory with meta.json of token shards              | Tokens                                                  |
| a directory of .parquet, .jsonl, .txt or array_record   | the source of that format, including subfolders         |
| one such file, or a pattern (`web/*.jsonl.zst`)         | the source of that format                               |
| PATH#NAME                                               | the documents are in this column, field or feature      |
| PATH,heldout=PATH,fit=PATH                              | Splits: text to measure on, and to fit temperatures on  |
| TFDS,heldout=SPLIT,fit=SPLIT                            | likewise, by names of its splits (`validation`)         |
| PATH,bad=skip                                           | SkipBad: documents that are not text are skipped        |

A source without splits of its own, for which none are named, becomes Cut: 1 % is held out, and 1 % is for fitting.
Paths in a bucket (gs://, s3://) work in the same way; they need gcsfs or s3fs.
"""

import dataclasses
import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from drope_jax.data.sources.array_record import ArrayRecord
from drope_jax.data.sources.combined import Cut, Splits
from drope_jax.data.sources.files import below, check_reachable, fixed_part
from drope_jax.data.sources.jsonl import JSONL
from drope_jax.data.sources.parquet import Parquet
from drope_jax.data.sources.prepared import INFO, TFDS, prepared_directory
from drope_jax.data.sources.skip import SkipBad
from drope_jax.data.sources.source import Source
from drope_jax.data.sources.text import Text
from drope_jax.data.sources.tokens import META, Tokens
from drope_jax.errors import ConfigError
from drope_jax.files import is_local

_KINDS = {
  "parquet": re.compile(r"\.parquet$", re.IGNORECASE),
  "jsonl": re.compile(
    r"\.(jsonl|ndjson|json)(\.gz|\.zst)?$", re.IGNORECASE
  ),  # C4 is released as .json.gz, of JSON lines
  "text": re.compile(r"\.(txt|md|rst)(\.gz|\.zst)?$", re.IGNORECASE),
  "array_record": re.compile(r"\.(array_record|arrayrecord)(-\d{5}-of-\d{5})?$", re.IGNORECASE),
}
_SPLIT = re.compile(r"\w+(\[.*\])?")  # a split of TFDS, or a slice of one
_SUFFIXES = ".parquet, .jsonl, .txt, .array_record, or the first three of them as .gz or .zst"
_LOOSE = (ArrayRecord, JSONL, Parquet, Text)  # sources of files that match a pattern
_PARTS = re.compile(r",(heldout|fit|bad)=")


def source_at(path: str) -> Source:
  """The source of the documents at `path`, see the module's docstring.

  Raises:
    ConfigError: naming the path, if there is nothing, or files of several kinds.
  """
  whole, *rest = _PARTS.split(str(path))
  named = dict(zip(rest[::2], rest[1::2], strict=True))
  if len(named) < len(rest) // 2 or not all(named.values()):
    raise ConfigError(f"{path}: heldout=, fit= and bad= stand there once each, each with a value")
  bad = named.pop("bad", "refuse")
  if bad not in ("refuse", "skip"):
    raise ConfigError(f"{path}: bad={bad}; allowed: refuse, skip")
  source = _single(whole)
  wrap = SkipBad if bad == "skip" else _same
  if named:
    heldout, fit = (wrap(_part(named[part], source)) if part in named else None for part in ("heldout", "fit"))
    return Splits(wrap(source), heldout, fit)
  return wrap(source) if isinstance(source, TFDS) else Cut(wrap(source))


def folders_of(dataset: str | Source) -> list[tuple[Path, str]]:
  """The local folders that are read recursively, each with the pattern of file names that are read.

  In a folder that the user names, all files match, because files of another kind would make the next reading fail.
  """
  if isinstance(dataset, Source):
    return [(fixed_part(pattern), Path(pattern).name) for pattern in _patterns(dataset) if "**" in pattern]
  whole, *rest = _PARTS.split(dataset)
  found = []
  for path in (whole, *(path for name, path in zip(rest[::2], rest[1::2], strict=True) if name != "bad")):
    place = epath.Path(path if epath.Path(path).exists() else path.partition("#")[0]).expanduser()
    if is_local(place) and place.is_dir():
      found += [(Path(place), "*")] if isinstance(_single(path), _LOOSE) else []
    elif is_local(place) and "**" in path:
      found.append((fixed_part(str(place)), place.name))
  return found


def _patterns(value: Any) -> Iterator[str]:
  """The local patterns of a source and of the sources it is made of."""
  if isinstance(value, _LOOSE) and is_local(value.glob):
    yield value.glob
  elif isinstance(value, tuple):
    for one in value:
      yield from _patterns(one)
  elif isinstance(value, Source) and dataclasses.is_dataclass(value):
    for field in dataclasses.fields(value):
      yield from _patterns(getattr(value, field.name))


def _same(source: Source) -> Source:
  return source


def _part(path: str, whole: Source) -> Source:
  """The source of a path, or of a split of `whole` given by name."""
  if isinstance(whole, TFDS) and _SPLIT.fullmatch(path) and not epath.Path(path).exists():
    return whole.part(path)
  return _single(path)


def _single(path: str) -> Source:
  check_reachable(path)
  name = ""
  if not epath.Path(path).expanduser().exists():  # a file name may contain a #
    path, _, name = path.partition("#")
  place = epath.Path(path).expanduser()
  prepared = prepared_directory(path)
  if prepared is not None:
    return TFDS(path, feature=name or "text")
  if (place / META).exists():
    _refuse_column(name, path, "token shards")
    return Tokens(path)
  if place.is_dir():
    pattern, kind = _in_directory(place)
  elif place.exists() or any(character in path for character in "*?["):
    pattern, kind = glob.escape(path) if place.exists() else path, _kind(path) or ""
    if not kind:
      raise ConfigError(f"{path}: its name does not say what it is; known are {_SUFFIXES}")
  else:
    raise ConfigError(
      f"{path}: no dataset here (there is no {INFO}; nor is it a file, a pattern, or the name of a dataset "
      "that TFDS has prepared)"
    )
  return _of_kind(kind, pattern, name)


def _kind(name: str) -> str | None:
  return next((kind for kind, pattern in _KINDS.items() if pattern.search(name)), None)


def _of_kind(kind: str, pattern: str, name: str) -> Source:
  match kind:
    case "parquet":
      return Parquet(pattern, **({"column": name} if name else {}))
    case "jsonl":
      return JSONL(pattern, **({"field": name} if name else {}))
    case "text":
      _refuse_column(name, pattern, "text")
      return Text(pattern)
    case _:
      _refuse_column(name, pattern, "array_record")
      return ArrayRecord(pattern)


def _refuse_column(name: str, path: str, kind: str) -> None:
  if name:
    raise ConfigError(f"{path}#{name}: {kind} has no columns; leave #{name} out")


def _in_directory(directory: epath.Path) -> tuple[str, str]:
  """The pattern of a directory's documents, and their kind. Raises ConfigError if there are none, or several kinds."""
  found: set[tuple[str, str]] = set()  # kind and suffix
  splits: set[str] = set()
  for path in below(directory):
    kind = None if path.name in _NO_DATA else _kind(path.name)
    if kind is not None:
      found.add((kind, _suffix(path.name)))
      words = re.split(r"[-_.]", path.name.removesuffix(_suffix(path.name)))
      splits |= {words[0], words[-1], path.relative_to(directory).parts[0]}
  if not found:
    raise ConfigError(f"{directory}: no dataset here (there is no {INFO}, and no file of {_SUFFIXES})")
  if len(found) > 1:
    ways = ", ".join(f"{directory}/**/*{suffix}" for _, suffix in sorted(found))
    raise ConfigError(f"{directory}: holds files of several kinds; name those that you want by a pattern: {ways}")
  others = sorted(splits & {"test", "validation", "valid", "val", "eval", "dev", "heldout", "fit"})
  if "train" in splits and others:
    raise ConfigError(
      f"{directory}: holds several splits ({', '.join(['train', *others])}); name those that you want, as "
      f"{directory}/**/train*,heldout={directory}/**/{others[0]}*"
    )
  ((kind, suffix),) = found
  return f"{glob.escape(str(directory))}/**/*{suffix}", kind


_NO_DATA = frozenset({"README.md", "LICENSE.txt", "dataset_infos.json", "state.json", "tokenizer.json"})


def _suffix(name: str) -> str:
  """The suffix, as a pattern, by which files like this one are found."""
  if _KINDS["array_record"].search(name):
    return ".array*record*"
  suffixes = [part for part in Path(name).suffixes if part.lower() in (".gz", ".zst")]
  return "".join([Path(name.removesuffix("".join(suffixes))).suffix, *suffixes])
