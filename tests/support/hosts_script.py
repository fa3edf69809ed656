"""Run by test_hosts.py as one of two processes: `PORT INDEX FACTS`; the facts are compared."""

import json
import sys

from drope_jax import distributed, hosts
from drope_jax.errors import ConfigError

if __name__ == "__main__":
  port, index, facts = sys.argv[1:]
  distributed.initialise(f"127.0.0.1:{port}", 2, int(index), timeout=60, host_timeout=30)
  try:
    with hosts.watched(30):
      hosts.check_alike({"config": {"steps": 3, "seed": 0}})
      hosts.check_alike(json.loads(facts))
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    hosts.leave(2)
