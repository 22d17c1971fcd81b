"""A step of containers.py: print every name that the Python files of a directory call, one a line."""

import ast
import sys
from pathlib import Path


def main(directory: str) -> None:
    """Parse them all; a file that this Python cannot read is a SyntaxError, and the step fails."""
    for path in sorted(Path(directory).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes(), path.name)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                print(node.func.id if isinstance(node.func, ast.Name) else node.func.attr)


if __name__ == "__main__":
    main(sys.argv[1])
