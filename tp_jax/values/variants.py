"""The variants of a config file, as in --config=configs/shapes.py:think."""

from collections.abc import Collection

from tp_jax.messages.errors import UserError


def parse_variants(argument: str, choices: Collection[str]) -> list[str]:
    """Split what follows the colon of --config=FILE:VARIANT,VARIANT.

    Args:
      argument: the text after the colon; "" is no variant.
      choices: the variants that the config file has.

    Raises:
      UserError: a variant isn't one of the choices.

    Example:
      >>> parse_variants("think,large", ("think", "lora", "large"))
      ['think', 'large']
    """
    variants = argument.split(",") if argument else []
    for variant in variants:
        if variant not in choices:
            raise UserError(
                f"--config: unknown variant {variant!r}: choose from {', '.join(choices)}"
            )
    return variants
