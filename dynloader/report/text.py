"""How numbers and names are shown."""

from __future__ import annotations

import math
import unicodedata


def digits(value: float, count: int = 3) -> str:
    """``value`` with ``count`` significant digits, or all before the point; NaN is ""."""
    if math.isnan(value):
        return ""
    if value == 0 or abs(value) >= 10**count - 0.5:
        return f"{value:,.0f}"
    return f"{value:#.{count}g}".rstrip(".")


def percent(share: float) -> str:
    """A share as per cent; NaN is ""."""
    return "" if math.isnan(share) else f"{digits(100 * share)} %"


def shown(text: str, limit: int = 48) -> str:
    """``text`` as a page and a figure can show it, cut after ``limit`` characters."""
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return "".join("\ufffd" if _is_unshown(character) else character for character in text)


def _is_unshown(character: str) -> bool:
    # Not allowed in XML, as SVG is: control characters, halves of surrogate pairs, noncharacters.
    return unicodedata.category(character) in ("Cc", "Cs", "Cn", "Zl", "Zp")
