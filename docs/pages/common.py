"""What the pages share: the notice, table cells, and the explanations below struct fields."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

NOTICE = "<!-- Written by docs/generate.py from the code. Change the code's docstrings, then run `make docs`. -->\n"


def field_docs(module: ModuleType) -> dict[tuple[str, str], str]:
    """(struct, field) → the string below the field."""
    docs = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, [*node.body[1:], None], strict=True):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                docs[node.name, field.target.id] = inspect.cleandoc(str(below.value.value))
    return docs


def cell(text: str) -> str:
    """Text for a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")
