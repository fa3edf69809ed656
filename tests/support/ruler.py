"""What the tests of RULER share: a haystack, and the published tasks."""

from drope_jax.evaluate.haystack import read_essays

ESSAY = read_essays(None)
# Of NVIDIA/RULER's scripts/synthetic.yaml: haystack, kind of key and value, how many keys, values and queries.
PUBLISHED = {
  "niah_single_1": ("noise", "words", "numbers", 1, 1, 1),
  "niah_single_2": ("essay", "words", "numbers", 1, 1, 1),
  "niah_single_3": ("essay", "words", "uuids", 1, 1, 1),
  "niah_multikey_1": ("essay", "words", "numbers", 4, 1, 1),
  "niah_multikey_2": ("needle", "words", "numbers", 1, 1, 1),
  "niah_multikey_3": ("needle", "uuids", "uuids", 1, 1, 1),
  "niah_multivalue": ("essay", "words", "numbers", 1, 4, 1),
  "niah_multiquery": ("essay", "words", "numbers", 4, 1, 4),
}
