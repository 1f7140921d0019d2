"""Names of earlier versions, and what they are called now."""

from typing import Any

# Config keys, without the leading "config.".
CONFIG_KEYS = {
    "navigation": "frozenlake",
    "evaluation.num": "evaluation.adm.num",
    "evaluation.reference": "evaluation.adm.reference",
    "evaluation.inception": "evaluation.adm.inception",
    "evaluation.protocol": "evaluation.adm.protocol",
}
# `tp_jax.evaluate --suite`.
SUITES = {"navigation": "frozenlake"}


def config_key_hint(key: str) -> str | None:
    """What to write instead of an old config key, or None where the key isn't an old one.

    Args:
      key: as "navigation.tile".
    """
    for old, new in CONFIG_KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return f"config.{key} is called config.{new}{key[len(old) :]} now"
    return None


def with_new_keys(fields: dict[str, Any]) -> dict[str, Any]:
    """A config's nested fields with the old keys moved to where they are now."""
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
