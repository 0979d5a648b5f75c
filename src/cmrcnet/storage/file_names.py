"""Names of sections, patients and folds as file names, and back."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_to_bytes

from cmrcnet.errors import BadInput, BadOption

LONGEST = 200
"""Most bytes of a file name made of a name; endings are added to it, and file systems take 255."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def file_name(name: str) -> str:
    """Write a name so that every file system takes it and `name_of_file` reverses it.

    Letters, digits, ``_``, ``-``, ``.`` and spaces stay; all else becomes ``%XX``, and so do a dot or space at either
    end (hidden files, names that Windows shortens) and the first letter of a name that Windows reserves.

    Parameters
    ----------
    name : str
        Of a section, patient or fold.

    Raises
    ------
    BadOption
        The name is empty, or makes a file name of more than `LONGEST` bytes.

    Examples
    --------
    >>> file_name("S24/01187"), name_of_file("S24%2F01187")
    ('S24%2F01187', 'S24/01187')
    """
    safe = quote(name, safe=" ", errors="surrogatepass").replace("~", "%7E")
    if safe[:1] in (".", " ") or _RESERVED.match(safe):
        safe = f"%{ord(safe[0]):02X}{safe[1:]}"
    if safe[-1:] in (".", " "):
        safe = f"{safe[:-1]}%{ord(safe[-1]):02X}"
    if not 0 < len(safe) <= LONGEST:
        want = f"1 to {LONGEST} characters (a letter outside a-z counts as 3 for each of its bytes)"
        raise BadOption("name", name if len(name) <= 40 else f"{name[:40]}...", want)
    return safe


def name_of_file(stem: str) -> str:
    """Read the name that `file_name` wrote.

    Parameters
    ----------
    stem : str
        File name without its ending.

    Raises
    ------
    BadInput
        The file name was not made by `file_name`.

    Examples
    --------
    >>> name_of_file(file_name("Müller, A"))
    'Müller, A'
    """
    try:
        return unquote_to_bytes(stem).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise BadInput(stem, "the name of a section in a file name", "its %XX parts are no UTF-8") from error
