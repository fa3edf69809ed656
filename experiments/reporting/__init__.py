"""Reports and pages from records: `python -m experiments.report`, `.seeds` and `.results` are built on it."""
