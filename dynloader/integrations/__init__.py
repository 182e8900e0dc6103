"""Adapters, one module for each framework that leaves no other way."""
