"""Ahead-of-time compilation of a run's step for accelerators that are not present: memory, FLOPs and roofline."""
