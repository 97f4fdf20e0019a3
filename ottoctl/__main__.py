"""`python -m ottoctl`."""

from __future__ import annotations

from ottoctl.main import main

main()
