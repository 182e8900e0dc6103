"""Benchmarks of selection against equivalents in other libraries and against a memory copy.

``python -m dynloader bench`` and ``make bench`` measure the cases that :mod:`dynloader.bench.cases`
lists.
"""
