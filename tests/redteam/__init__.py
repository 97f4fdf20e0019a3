"""Attacks that others have seen, each tried against the real thing; see `cases`."""
