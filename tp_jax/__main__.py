"""List the commands: python -m tp_jax."""

import ast
import pathlib


def main() -> None:
    """Print the first line of each command's docstring."""
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if f"python -m tp_jax.{path.stem}" in docstring:
            print(docstring.splitlines()[0])
    print("--help after a command lists its flags.")


if __name__ == "__main__":
    main()
