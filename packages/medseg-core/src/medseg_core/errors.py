"""The one exception a user can act on, and how it finds the word that was meant."""

import difflib
from collections.abc import Iterable

LONGEST = 1500  # characters of a message; a damaged file may hold a value of megabytes


class MedsegError(Exception):
    """Something the user can mend: the message names the thing, shows the value, gives the fix; commands exit 2.

    It is one line whatever a file or its name holds: what no terminal prints is escaped, and what is too long is cut.
    """

    def __str__(self) -> str:
        message = super().__str__()
        if len(message) > LONGEST:
            message = f"{message[: LONGEST - 500]} ... {message[-400:]}"
        return printable(message)


def printable(text: str) -> str:
    """One line, whatever a file or its name held: what a terminal would obey is escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def meant(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'liver'?` for the nearest known word, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
