"""Numbers for readers: short, with a unit, "–" for a missing value."""

from __future__ import annotations

NONE = "–"


def fixed(value: float | None, digits: int, sign: bool = False) -> str:
    """The value with ``digits`` decimals; ``sign`` shows a plus, or a typographic
    minus."""
    if value is None:
        return NONE
    shown = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return shown.replace("-", "−") if sign else shown


def count(value: float | None) -> str:
    """124000000 -> "124.0M"; three or four significant digits."""
    if value is None:
        return NONE
    for limit, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * limit:
            scaled = value / limit
            return f"{scaled:.1f}{letter}" if scaled < 1000 else f"{scaled:.0f}{letter}"
    return f"{value:.0f}" if value == int(value) else f"{value:.3g}"


def counted(number: int, noun: str) -> str:
    """ "1 run", "1,200 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(value: float | None) -> str:
    """Bytes in binary units: 9663676416 -> "9.0 GiB"."""
    if value is None:
        return NONE
    for limit, unit in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB")):
        if abs(value) >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value / 1024:.1f} KiB" if abs(value) >= 1024 else f"{value:.0f} B"


def percent(value: float | None) -> str:
    """A share: 0.352 -> "35.2%"."""
    return NONE if value is None else f"{100 * value:.1f}%"


def change(value: float | None) -> str:
    """A relative change: 0.352 -> "+35.2%"."""
    return NONE if value is None else f"{fixed(100 * value, 1, True)}%"


def level(value: float) -> str:
    """Level of a test, which may be small: "2.2%", "0.0014%"."""
    return f"{100 * value:.2g}%"


def duration(seconds: float | None) -> str:
    """65 -> "1:05", 3700 -> "1:01:40", 0.4 -> "0.4 s"."""
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    total = round(seconds)
    hours, minutes = total // 3600, total // 60 % 60
    tail = f"{total % 60:02d}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def milliseconds(seconds: float | None, digits: int = 1) -> str:
    """0.1027 -> "102.7 ms"."""
    return NONE if seconds is None else f"{1000 * seconds:.{digits}f} ms"


def gpu_hours(hours: float, price: float | None) -> str:
    """GPU hours, and what they cost if a price per hour is given."""
    money = f", {hours * price:.2f} at {price:g} per hour" if price else ""
    return f"{hours:.2f} GPU hours{money}"
