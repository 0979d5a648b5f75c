"""The command line: one file of commands for each noun, and the option groups that commands share."""

from cmrcnet.cli.app import entry, main

__all__ = ["entry", "main"]
