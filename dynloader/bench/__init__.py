"""Benchmarks that compare selection with other libraries and with a memory copy.

``python -m dynloader bench`` and ``make bench`` measure the cases that :mod:`dynloader.bench.cases`
lists.
"""
