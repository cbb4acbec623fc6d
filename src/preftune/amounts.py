"""Numbers with their units, as people write them."""

from __future__ import annotations


def counted(number: int, one: str, several: str | None = None) -> str:
    """`1 row`, `2,000 rows`; with `several`, words whose plural takes more than an s: `1 row is`, `2 rows are`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def of_type(value: object) -> str:
    """`a list`, `an int`."""
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def file_size(count: int) -> str:
    """A number of bytes with its unit, in powers of a thousand."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} bytes"


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 20 s, 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def shown(value: object, most: int = 80) -> str:
    """A value in a message, cut where it is long."""
    try:
        text = repr(value)
    except Exception as error:  # of any object, and of a whole number with more digits than Python writes
        return f"{of_type(value)} ({type(error).__name__})"
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text):,} characters)"
