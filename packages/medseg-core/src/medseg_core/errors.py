"""The one exception a user can act on, and how it finds the word that was meant."""

import difflib
from collections.abc import Iterable


class MedsegError(Exception):
    """Something the user can mend: the message names the thing, shows the value, gives the fix; commands exit 2."""


def meant(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'liver'?` for the nearest known word, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
