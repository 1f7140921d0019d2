"""Studies that vary one or two fields of `config.model.thinking`."""

from collections.abc import Mapping
from typing import Any

from tp_jax.messages.errors import UserError
from tp_jax.studies.costs import random_rank_of_equal_parameters
from tp_jax.studies.study import THINKING, Build, Setting, Study, Variant

SIZES = (1, 2, 5)  # of T and M in the paper


def _varied(
    setting: Setting, rows: Mapping[str, tuple[str, Mapping[str, Any]]], reference: str
) -> Study:
    """Return a study of variants that set fields of thinking.

    Args:
      setting: the config.
      rows: {name: (what it is, {field of thinking: value})}.
      reference: name of the variant that the others are compared with.
    """
    setting.need_thinking()
    setting.need(*{THINKING + field for _, fields in rows.values() for field in fields})
    return Study(
        reference,
        tuple(
            Variant(name, what, {THINKING + field: value for field, value in fields.items()})
            for name, (what, fields) in rows.items()
        ),
    )


def _latent_steps_by_experts(setting: Setting) -> Study:
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    for steps in SIZES:
        for experts in SIZES:
            fields: dict[str, Any] = {"latent_steps": steps, "experts": experts}
            if setting.thinking.latent_steps_range:
                # The config's range need not contain these latent steps.
                fields["latent_steps_range"] = ()
            what = f"{steps} latent step{'s' * (steps > 1)}, {experts} expert{'s' * (experts > 1)}"
            if experts == 1:
                # One expert needs no gate, which would only add parameters.
                fields["gate"] = "first"
                what += ", no gate"
            if steps == experts == 1:
                what += ": plain LoRA"
            rows[f"T{steps}-M{experts}"] = what, fields
    return _varied(setting, rows, "T1-M1")


def _gate(setting: Setting) -> Study:
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        "learned": ("the learned gate", {"gate": "learned"}),
        "random": ("an expert at random for every token and latent step", {"gate": "random"}),
        "random-wide": (
            "the same, with a larger rank: as many parameters as with the learned gate",
            {"gate": "random", "rank": random_rank_of_equal_parameters(setting.model)},
        ),
        "first": ("always the first expert", {"gate": "first"}),
    }
    return _varied(setting, rows, "learned")


def _gate_inputs(setting: Setting) -> Study:
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        "all": ("token, time and condition", {"gate_inputs": ("token", "time", "condition")}),
        "token": ("the token alone", {"gate_inputs": ("token",)}),
        "time": ("the timestep alone", {"gate_inputs": ("time",)}),
        "token-time": ("token and timestep", {"gate_inputs": ("token", "time")}),
    }
    model = setting.model
    if not model.unconditional:
        rows["condition"] = ("the condition alone", {"gate_inputs": ("condition",)})
    study = _varied(setting, rows, "all")
    reason = "the model has no classes and no text"
    return Study(
        study.reference, study.variants, {"condition": reason} if model.unconditional else {}
    )


def _gate_token(setting: Setting) -> Study:
    rows = {
        "modulated": ("the gate reads the token after adaLN", {"gate_token": "modulated"}),
        "unmodulated": ("the gate reads the token before adaLN", {"gate_token": "unmodulated"}),
    }
    return _varied(setting, rows, "modulated")


def _modulate(setting: Setting) -> Study:
    rows = {
        "with": ("experts see modulated tokens (Mod)", {"modulate": True}),
        "without": ("experts see tokens without Mod", {"modulate": False}),
    }
    return _varied(setting, rows, "with")


def _base(setting: Setting) -> Study:
    rows = {
        "last": ("the base projection at the last latent step only", {"base_every_step": False}),
        "every": ("the base projection at every latent step", {"base_every_step": True}),
    }
    if setting.thinking.latent_steps == 1:
        raise UserError(
            "config.model.thinking.latent_steps=1: the base projection is then at every latent "
            "step anyway; set 2 or more"
        )
    return _varied(setting, rows, "last")


def _layers(setting: Setting) -> Study:
    own, depth = setting.thinking.layers, setting.model.depth
    choices = {"config": own}
    left_out: dict[str, str] = {}
    if setting.frames:
        reason = "frames are decoded from exactly one thinking block"
        left_out["all"] = reason
    else:
        choices["all"] = tuple(range(depth))
    choices |= {"first": (0,), "middle": (depth // 2,), "last": (depth - 1,)}
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, layers in choices.items():
        if layers in [fields["layers"] for _, fields in rows.values()]:
            left_out[name] = f"the same blocks as another variant: {_numbers(layers)}"
        else:
            rows[name] = (
                f"thinking in block{'s' * (len(layers) > 1)} {_numbers(layers)}",
                {"layers": layers},
            )
    study = _varied(setting, rows, "config")
    return Study(study.reference, study.variants, left_out)


def _numbers(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))


def _temperature(setting: Setting) -> Study:
    values = sorted({0.5, 1.0, 2.0, 5.0, 10.0, setting.thinking.temperature})
    rows = {f"{value:g}": (f"τ = {value:g}", {"temperature": value}) for value in values}
    return _varied(setting, rows, f"{setting.thinking.temperature:g}")


def _rank(setting: Setting) -> Study:
    own = setting.thinking.rank
    values = sorted({max(own // 4, 1), max(own // 2, 1), own, 2 * own, 4 * own})
    rows = {f"r{value}": (f"rank {value}", {"rank": value}) for value in values}
    return _varied(setting, rows, f"r{own}")


def _balance(setting: Setting) -> Study:
    rows = {
        f"{value:g}": (f"balance loss with weight {value:g}", {"balance_weight": value})
        for value in (0.0, 0.01, 0.1, 1.0)
    }
    return _varied(setting, rows, "0")


def _halting(setting: Setting) -> Study:
    setting.need_thinking()
    own = setting.thinking.halting_epsilon
    name, left_out = "threshold", {}
    variants = [
        Variant("none", "every token takes all latent steps", {THINKING + "halting": "none"}),
        Variant(
            name,
            f"a token stops when it moves by less than {own:g} of its norm",
            {THINKING + "halting": "threshold"},
        ),
    ]
    # Training ignores the threshold, so that one run shows several.
    for epsilon in sorted({0.02, 0.05, 0.1, 0.2, 0.5} - {own}):
        what = f"the same with a threshold of {epsilon:g}"
        flags = {"halting_epsilon": epsilon}
        variants.append(Variant(f"{name}-{epsilon:g}", what, flags=flags, run_of=name))
    if setting.frames:
        left_out["ponder"] = "every latent step is a move, which no token may leave out"
    else:
        what = "a trained unit stops each token"
        variants.append(Variant("ponder", what, {THINKING + "halting": "ponder"}))
    return Study("none", tuple(variants), left_out)


def _latent_steps_at_sampling(setting: Setting) -> Study:
    setting.need_thinking()
    setting.need(THINKING + "latent_steps_range", "train.deep_supervision")
    steps = setting.thinking.latent_steps
    trained = {"fixed": (f"trained with T = {steps}", {})}
    left_out: dict[str, str] = {}
    if setting.frames:
        trained = {
            name: (what, {THINKING + "latent_steps_range": numbers})
            for name, what, numbers in (
                ("fixed", f"trained with T = {steps}", ()),
                ("range", f"trained with T drawn from 1 … {steps}", (1, steps)),
            )
        }
        left_out["supervised"] = "each latent step is already trained to show a frame of its own"
        sampled = range(1, steps + 1)
    else:
        most = 2 * steps if setting.thinking.share_across_steps else steps
        trained["range"] = (
            f"trained with T drawn from 1 … {most}",
            {THINKING + "latent_steps_range": (1, most)},
        )
        if steps > 1:
            trained["supervised"] = (
                f"trained with T = {steps}, every latent step supervised",
                {"train.deep_supervision": 1.0},
            )
        else:
            left_out["supervised"] = "there is one latent step only"
        sampled = [t for t in sorted({1, steps, steps + 1, 2 * steps}) if t <= most]
    variants = []
    for name, (what, fields) in trained.items():
        variants.append(Variant(name, f"{what}, sampled with T = {steps}", fields))
        variants += [
            Variant(
                f"{name}-T{other}", f"{what}, sampled with T = {other}",
                flags={"latent_steps": other}, run_of=name,
            )
            for other in sampled
            if other != steps
        ]  # fmt: skip
    return Study("fixed", tuple(variants), left_out)


GRIDS: dict[str, Build] = {
    "latent_steps_by_experts": Build("1, 2 or 5 latent steps, experts", _latent_steps_by_experts),
    "gate": Build("a learned gate, random experts, always the first expert", _gate),
    "gate_inputs": Build("what the gate sees", _gate_inputs),
    "gate_token": Build("the gate reads the token before or after adaLN", _gate_token),
    "modulate": Build("with and without Mod", _modulate),
    "base": Build("the base projection at the last or at every latent step", _base),
    "layers": Build("which blocks think", _layers),
    "temperature": Build("τ of the Gumbel-softmax", _temperature),
    "rank": Build("rank of the experts", _rank),
    "balance": Build("weight of the balance loss", _balance),
    "halting": Build("no halting, a threshold, a trained unit", _halting),
    "latent_steps_at_sampling": Build(
        "T at sampling, trained with a fixed T, a range, or supervision", _latent_steps_at_sampling
    ),
}
