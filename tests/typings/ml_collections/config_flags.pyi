"""As `__init__.pyi`: what the entries use."""

from typing import Any

def DEFINE_config_file(name: str, default: str | None = ..., help_string: str = ...) -> Any: ...
