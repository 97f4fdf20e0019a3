"""One thing that is wrong with a workflow."""

from __future__ import annotations

from typing import NamedTuple

from ottod.settings.yaml_source import DataPath


class Finding(NamedTuple):
    """What is wrong, where in the workflow's data, and what would mend it. `key`: at the field's name."""

    path: DataPath
    message: str
    mend: str
    key: bool = False
