"""Formatting of numbers and names."""

from __future__ import annotations

import math
import unicodedata


def digits(value: float, count: int = 3) -> str:
    """Format with ``count`` significant digits, but keep all integer digits; NaN gives ""."""
    if math.isnan(value):
        return ""
    if value == 0 or abs(value) >= 10**count - 0.5:
        return f"{value:,.0f}"
    return f"{value:#.{count}g}".rstrip(".")


def percent(share: float) -> str:
    """Format a share as a percentage; NaN gives ""."""
    return "" if math.isnan(share) else f"{digits(100 * share)} %"


def shown(text: str, limit: int = 48) -> str:
    """Truncate to ``limit`` characters, and replace those that XML or a figure cannot hold."""
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return "".join("\ufffd" if _is_unprintable(character) else character for character in text)


def _is_unprintable(character: str) -> bool:
    # XML, and so SVG, forbids control characters, lone surrogates and noncharacters.
    return unicodedata.category(character) in ("Cc", "Cs", "Cn", "Zl", "Zp")
