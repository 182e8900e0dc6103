"""What selection costs, beside its peers and beside a copy of the same bytes.

``python -m dynloader bench`` and ``make bench`` measure the cases that :mod:`dynloader.bench.cases`
lists.
"""
