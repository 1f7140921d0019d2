"""The two ways a run ends on purpose; `tp_jax.cli.start` prints either as one line."""


class UserError(Exception):
    """Something the person can fix: the message names what was wrong and what would be right."""


class TrainingError(Exception):
    """Training cannot go on (a non-finite loss); what was saved before is kept."""
