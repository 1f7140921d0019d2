"""Wrong values for every config field and every flag: one line that names it, nothing written.

Fields and flags are found in the code, so a new one is tried too. `sweep.py` has the values.
"""

import pathlib

import pytest
import sweep

from tp_jax import config as config_lib
from tp_jax.evals import SUITES
from tp_jax.sampling.loaded import load
from tp_jax.values import Range, Text
from tp_jax.values.allowed import allowed

# The values of the default tests; the slow ones try all of `sweep.VALUES`.
FEW = {
    int: ("", "soon", "nan", "-1", str(2**31), str(2**70)),
    float: ("soon", "nan", "inf", "-1", "1e308"),
    bool: ("maybe",),
    str: ("None", "a\nb", "~nobody-of-this-name/x", "nowhere/at/all"),
    tuple: ("", "nan,nan", "-1,-1", f"{2**70},", "'a',", "{}", "0.5,0.1"),
}
UNBOUNDED = (
    "shift", "time_mean", "time_std", "temperature", "balance_weight", "frames_weight",
    "halting_epsilon", "ponder_weight",
    "learning_rate", "weight_decay", "clip_norm", "guidance_scale", "guidance_scales",
    "deep_supervision", "shard_gigabytes",
)  # fmt: skip
# Why a value is accepted: value -> the fields and flags that may have it.
ACCEPTED = {
    # A finite number, of which larger ones are only ever less useful.
    **dict.fromkeys([str(2**31), str(2**70), f"{2**31},", f"{2**70},"], UNBOUNDED),
    # A number that may be negative. Of a mesh axis, -1 means the remaining devices.
    **dict.fromkeys(
        ["-1", "-1,", "-1,-1"],
        (
            "time_mean",
            "grid_offset",
            "guidance_scale",
            "guidance_scales",
            "data",
            "fsdp",
            "tensor",
            "expert",
            "slices",
        ),
    ),
    # A tuple that may be empty, as if the flag weren't given.
    "()": (
        "layers",
        "unseen_sizes",
        "labels",
        "allow_change",
        "guidance_scales",
        "latent_steps",
        "latent_steps_range",
        "what",
        "peers",
        "experts",
        "suites",
        "writers",
    ),
    # Two equal numbers are a range; labels are used in turn; a sweep does the same cell once.
    "1,1": ("guidance_interval", "frozen", "labels", "guidance_scales", "latent_steps", "experts"),
    "0.5,0.1": ("guidance_scales",),
}


def why_accepted(name, value, kind):
    """Return why a value is right for a field or flag; None if it isn't."""
    last = name.rpartition(".")[2]
    if last in ACCEPTED.get(value, ()):
        return "listed above"
    if kind is str and (value == "" or value not in ("None", "a\nb", "a\0b", " x ", '"x"')):
        return "a name, or a path that isn't used or is created"
    if last == "columns" and kind is tuple:
        return "names of columns"
    if last == "negative_prompt":
        return "any text can be a prompt"
    if last == "seed" and value == str(2**31):
        return "a seed"
    return None


def check(outcomes):
    """Check that all outcomes are refusals, or acceptances with a reason."""
    wrong = [
        (str(case), outcome)
        for case, kind, outcome in outcomes
        if outcome.kind == "fault"
        or (outcome.kind == "accepted" and not why_accepted(case.name, case.value, kind))
    ]
    assert len(outcomes) > 20 and not wrong


def config_outcomes(base, values, tmp_path, monkeypatch):
    """Try the values of the fields of a config in training, up to the checks."""
    configs = sweep.write_configs(tmp_path / "configs")
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    found = []
    for field, default, value in sweep.config_cases(base, values):
        line = (f"--config={configs / base}.py", "--workdir=new", f"--config.{field}={value}")
        case = sweep.Case("main", base, f"config.{field}", value, line)
        found.append((case, type(default), sweep.judge(case, place, sweep.Outcome(""))))
    return found


def build_only(config, workdir, **options):
    config_lib.build(config)


@pytest.mark.parametrize("base", ["digits", "gaussian"])
def test_wrong_values_of_config_fields(base, tmp_path, monkeypatch):
    monkeypatch.setattr("tp_jax.train.loop.train", build_only)
    check(config_outcomes(base, FEW, tmp_path, monkeypatch))


@pytest.mark.slow
@pytest.mark.parametrize("base", sweep.CONFIGS)
def test_all_wrong_values_of_config_fields(base, tmp_path, monkeypatch):
    with sweep.only_checks():
        check(config_outcomes(base, sweep.VALUES, tmp_path, monkeypatch))


@pytest.mark.parametrize("diffusion", ["gaussian", "flow"])
@pytest.mark.parametrize("model", ["dit", "mmdit"])
def test_every_config_field_says_what_is_allowed(model, diffusion):
    found = config_lib.allowed_values(model, diffusion)
    assert found.keys() == config_lib.flat(config_lib.default(model, diffusion)).keys()
    chosen_elsewhere = ("model.kind", "diffusion.kind", "sampling.sampler", "model.thinking.layers")
    for name, annotation in found.items():
        what = allowed(annotation)
        if what.kind is not bool and name not in chosen_elsewhere:
            assert any(isinstance(each, Range | Text | tuple) for each in what.details), name


# Flags


@pytest.fixture
def lines(trained, trained_shapes, tmp_path, monkeypatch):
    """The command lines of `sweep.command_lines`, and a folder that they may write to."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    return sweep.command_lines(tmp_path, {"digits": str(trained), "shapes": str(trained_shapes)})


def flag_outcomes(lines, bases, workdirs):
    """Try the values of the flags of some command lines."""
    found, place = [], pathlib.Path()
    with sweep.only_checks({str(workdir): load(workdir) for workdir in workdirs}):
        for base in bases:
            entry, arguments = lines[base]
            given = tuple(f"--{name}={value}" for name, value in arguments.items())
            baseline = sweep.run(sweep.Case(entry, base, "", "", given), place)
            assert baseline.kind != "fault"
            for case, kind in sweep.flag_cases(entry, base, arguments):
                found.append((case, kind, sweep.judge(case, place, baseline)))
    return found


BASES = ("main", "prepare", "convert", "export", "bench", "aot", "sample", "analyze", "ablate",
         "adm", "adm sweep", "geneval", "geneval make", "geneval2", "dpg", "shapes",
         "shapes collect", "frozenlake", "digits", "validation")  # fmt: skip


def test_wrong_values_of_flags(lines, trained, monkeypatch):
    monkeypatch.setattr(sweep, "VALUES", FEW)
    # Those of the other suites are defined by the same functions.
    bases = (
        "main", "prepare", "convert", "export", "bench", "aot", "sample", "analyze", "ablate", "adm"
    )  # fmt: skip
    check(flag_outcomes(lines, bases, [trained]))


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_all_wrong_values_of_flags(base, lines, trained, trained_shapes):
    check(flag_outcomes(lines, [base], [trained, trained_shapes]))


def test_every_entry_and_suite_is_swept(lines):
    assert tuple(lines) == BASES
    entries = {path.stem for path in pathlib.Path(config_lib.__file__).parent.glob("*.py")}
    assert entries - {"__init__", "__main__", "config"} == {entry for entry, _ in lines.values()}
    assert {arguments.get("suite") for _, arguments in lines.values()} - {None} == set(SUITES)
