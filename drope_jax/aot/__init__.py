"""Ahead of time: a run's step compiled for accelerators that are not here, its memory, FLOPs and roofline."""
