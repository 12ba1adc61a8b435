"""What an unknown name may be a misspelling of, for every message that refuses one."""

from collections.abc import Iterable
from difflib import get_close_matches


def hint(name: str, known: Iterable[str], prefix: str = "") -> str:
    """``"; nearest: A, B"``, each after ``prefix``, to go on in a message; or ``""``.

    All that differ by a letter or two, at most three; else the best, if it is near.
    """
    choices = list(known)
    near = get_close_matches(name, choices, n=3, cutoff=0.85)
    near = near or get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"; nearest: {', '.join(prefix + one for one in near)}" if near else ""
