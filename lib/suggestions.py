"""Suggestions of known names, for messages that refuse an unknown one."""

from collections.abc import Iterable
from difflib import get_close_matches


def hint(name: str, known: Iterable[str], prefix: str = "") -> str:
    """``"; nearest: A, B"``, each with ``prefix``, to append to a message; or ``""``.

    Up to three names that differ by a letter or two, else the best one, if near.
    """
    choices = list(known)
    near = get_close_matches(name, choices, n=3, cutoff=0.85)
    near = near or get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"; nearest: {', '.join(prefix + one for one in near)}" if near else ""
