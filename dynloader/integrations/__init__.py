"""Adapters for frameworks and file formats. Importing an adapter imports its library."""
