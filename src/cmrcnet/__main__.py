"""``python -m cmrcnet`` is ``cmrcnet``."""

from cmrcnet.cli import entry

if __name__ == "__main__":
    entry()
