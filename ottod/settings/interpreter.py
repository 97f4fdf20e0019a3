"""The interpreter that runs this installation, and how another process of Otto is started with it.

`python -m` alone looks for modules in the working directory before all others. That is where agents write, and what
they leave there must not become a part of a process that nothing confines.
"""

from __future__ import annotations

import sys


def program(module: str, *arguments: str) -> list[str]:
    """The command line of a module of Otto's, whatever lies where it is started.

    Like this process it finds modules where PYTHONPATH says, unless the interpreter is isolated, as the Debian
    package's is: then what it starts is isolated too. Source: python(1), options -I and -P.
    """
    return [sys.executable, "-I" if sys.flags.isolated else "-P", "-m", module, *arguments]
