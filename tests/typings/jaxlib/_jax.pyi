"""What the type checker must know of jaxlib, which ships no stubs."""

from typing import Any

class Device:
    id: int
    process_index: int
    platform: str
    device_kind: str
    slice_index: int
    def memory_stats(self) -> dict[str, int] | None: ...

def __getattr__(name: str) -> Any: ...
