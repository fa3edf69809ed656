"""Reports out-of-memory errors, of the accelerator or the host, in one line with the bytes and a remedy."""

import re

import jax

# "... 1,024 bytes" of XLA and of numpy's small arrays; "... 384. GiB for an array" of numpy.
_BYTES = re.compile(r"(?:allocat\w*|memory)\D{0,40}?([\d,.]*\d|\d+\.) ?(bytes|[KMGTPE]i?B)\b", re.IGNORECASE)


def said(error: Exception, setting: str) -> str | None:
  """The message for an out-of-memory error; None for any other error.

  Args:
    setting: what halves the memory needed, in words ("half of --batch_tokens").
  """
  text = str(error)
  short = isinstance(error, MemoryError) or (
    isinstance(error, jax.errors.JaxRuntimeError) and ("RESOURCE_EXHAUSTED" in text or "Out of memory" in text)
  )
  if not short:
    return None
  found = _BYTES.search(text)
  wanted = "" if found is None else f": {_shown(found[1], found[2])} were asked for at one time"
  advice = f"; {setting} needs about half" if setting else ""
  where = "this machine" if isinstance(error, MemoryError) else "the device"
  return f"{where} is out of memory{wanted}{advice}"


def _shown(number: str, unit: str) -> str:
  if unit != "bytes":
    return f"{number.removesuffix('.')} {unit}"
  size = int(number.replace(",", "").partition(".")[0])
  return f"{size:,} bytes" if size < 2**20 else f"{size:,} bytes ({size / 2**30:,.2f} GiB)"
