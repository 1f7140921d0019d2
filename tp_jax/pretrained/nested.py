"""Find the weights in the checkpoint of a training script."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tp_jax.messages.errors import UserError

# Keys under which scripts store a moving average of the weights, and the weights themselves.
AVERAGES = ("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "params_ema")
WEIGHTS = ("state_dict", "model_state_dict", "model", "module", "params", "net", "weights")
# Keys under which classes of moving averages keep a list of arrays without names.
LISTS = ("shadow_params", "params")


def find_weights(
    content: Any, is_array: Callable[[Any], bool], name: str, note: Callable[[str], None]
) -> dict[str, Any]:
    """Return the weights by name; those of a moving average if there is one.

    Args:
      content: what a torch file holds.
      is_array: whether a value is an array.
      name: the file, for messages.
      note: called with what the user should know about the choice.

    Raises:
      UserError: there are no weights; the message says what there is.
    """
    found, where = _search(content, is_array, name, note)
    if not found:
        held = f": it has {_listed(content)}" if isinstance(content, Mapping) else ""
        raise UserError(f"{name} contains no state dict{held}; give a file of weights")
    if where:
        note(f"{name}: reads the weights under {where}")
    return found


def _search(
    content: Any, is_array: Callable[[Any], bool], name: str, note: Callable[[str], None]
) -> tuple[dict[str, Any] | None, str]:
    """Return the weights and the keys that lead to them, or None."""
    if not isinstance(content, Mapping):
        return None, ""
    for key in (*AVERAGES, *WEIGHTS):
        inner = content.get(key)
        listed = _unnamed(inner, is_array) if key in AVERAGES else None
        if listed:
            return _with_names(listed, content, is_array, f"{name}: {key}"), key
        found, where = _search(inner, is_array, name, note)
        if found:
            return found, f"{key}.{where}" if where else key
        if key in AVERAGES and isinstance(inner, Mapping | Sequence) and not inner:
            note(f"{name}: {key} is empty, so it isn't read")
    return {str(key): value for key, value in content.items() if is_array(value)} or None, ""


def _unnamed(inner: Any, is_array: Callable[[Any], bool]) -> list[Any] | None:
    """Return the list of arrays of a moving average that doesn't store names."""
    if isinstance(inner, Mapping):
        inner = next((inner[key] for key in LISTS if isinstance(inner.get(key), list)), None)
    return inner if isinstance(inner, list) and inner and all(map(is_array, inner)) else None


def _with_names(
    arrays: list[Any], content: Mapping[str, Any], is_array: Callable[[Any], bool], name: str
) -> dict[str, Any]:
    """Take the names of a moving average's arrays from the weights beside it, which it follows.

    Raises:
      UserError: there are none, or their shapes differ.
    """
    beside = {key: content[key] for key in WEIGHTS if key in content}
    model = _search(beside, is_array, name, _ignore)[0] or {}
    shapes = [tuple(array.shape) for array in arrays]
    if shapes != [tuple(array.shape) for array in model.values()]:
        raise UserError(
            f"{name} is a list of {len(arrays)} arrays without names, and no weights of the same "
            f"shapes are beside it: store the average as a state dict"
        )
    return dict(zip(model, arrays, strict=True))


def _ignore(_: str) -> None:
    """Take a note and drop it."""


def _listed(content: Mapping[str, Any]) -> str:
    keys = [str(key) for key in content]
    return ", ".join(keys[:5]) + (" …" if len(keys) > 5 else "") if keys else "no entries"
