"""Formats x oddities x expected result: every combination is equal to its source, or refused by a typed error."""
