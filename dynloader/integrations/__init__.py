"""Adapters for frameworks and file formats, one module each. Each module imports its library."""
