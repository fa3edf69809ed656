"""Writes the pages of docs/reference that are made from the code: `python docs/_ext/reference.py`.

With `--json` it writes nothing, and prints the pages, and what the commands declare, for the tests.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import commands_page  # noqa: E402
import config_page  # noqa: E402

if __name__ == "__main__":
  commands = commands_page.collect()
  pages = {"commands": commands_page.page(commands), "config": config_page.page()}
  if "--json" in sys.argv:
    print(json.dumps({"pages": pages, "commands": {name: found._asdict() for name, found in commands.items()}}))
  else:
    for name, text in pages.items():
      (ROOT / "docs" / "reference" / f"{name}.md").write_text(text)
