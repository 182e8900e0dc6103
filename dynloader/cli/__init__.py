"""The commands of ``python -m dynloader``."""
