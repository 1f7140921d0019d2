"""Config keys and suite names of earlier versions, and their current names."""

from typing import Any

# {old key: current key}, without the leading "config."
CONFIG_KEYS = {
    "navigation": "frozenlake",
    "evaluation.num": "evaluation.adm.num",
    "evaluation.reference": "evaluation.adm.reference",
    "evaluation.inception": "evaluation.adm.inception",
    "evaluation.protocol": "evaluation.adm.protocol",
}
# Values of `tp_jax.evaluate --suite`.
SUITES = {"navigation": "frozenlake"}


def config_key_hint(key: str) -> str | None:
    """Return a hint that names the current key for an old one, or None if the key isn't old.

    Args:
      key: a config key without the leading "config.", such as "navigation.tile".
    """
    for old, new in CONFIG_KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return f"config.{key} is called config.{new}{key[len(old) :]} now"
    return None


def with_new_keys(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a config's nested fields with old keys moved to their current names."""
    fields = {k: dict(v) if isinstance(v, dict) else v for k, v in fields.items()}
    for old, new in CONFIG_KEYS.items():
        *above, last = old.split(".")
        node: Any = fields
        for name in above:
            node = node.get(name, {})
        if last not in node:
            continue
        value = node.pop(last)
        *above, last = new.split(".")
        node = fields
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    return fields
