"""Wrong values for every config field and every flag, and what the commands make of them."""

import collections
import contextlib
import dataclasses
import pathlib
import shutil

import pytest
from absl import flags
from conftest import run_entry, snapshot, tiny_config
from small_configs import tiny_frozenlake, tiny_shapes

from tp_jax.config import default, flat

HUGE = (str(2**31), str(2**70), "1e308", "9" * 5000)
NUMBERS = ("", "soon", "nan", "inf", "-inf", "-1", *HUGE, "None", "1,2", "()", "1 2")
TEXTS = (
    "", "nowhere/at/all", "nan", "-1", *HUGE, "None", "a\nb", "a\0b", "é🙂", " x ", '"x"', "\udcff",
    "~nobody-of-this-name/x", "$TP_JAX_UNSET/x", "file:///x", "http://x/y", "C:\\x",
)  # fmt: skip
# What is tried, by the kind of the field or flag. Most of it is wrong for most fields.
VALUES = {
    int: (*NUMBERS, "1.5", "2e3", "true"),
    float: (*NUMBERS, "true"),
    bool: ("", "maybe", "nan", "-1", "2", "None", str(2**70), "1.0"),
    str: TEXTS,
    tuple: (
        "", "nan,", "(nan,)", "('nan',)", "nan,nan", "inf,inf", "1e999,1e999", "-1,", "-1,-1",
        f"{2**31},", f"{2**70},", "1e308,1e308", "'a',", "(1,", "None", "{}", "[[1]]", "1,1",
        "True,", "()", "a b", "x", "1 2", "0.5,0.1", "1,,2", "9" * 5000,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """A command line with one value that may be wrong.

    Attributes:
      entry: name of the command.
      base: name of the command line without the value.
      name: the flag or config field, such as "config.seed".
      value: the text that it is given.
      arguments: the whole command line.
    """

    entry: str
    base: str
    name: str
    value: str
    arguments: tuple[str, ...]

    def __str__(self):
        return f"{self.entry} ({self.base}) --{self.name}={self.value[:30]!r}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a case: "accepted", "refused", or a "fault"; and the error message."""

    kind: str
    text: str = ""


class Stop(SystemExit):
    """Raised in place of the work that follows the checks of a command."""


def stop(*args, **kwargs):
    raise Stop(0)


# Configs


def digits():
    config = tiny_config()
    config.data.source = "synthetic"
    return config


def gaussian():
    config = default("dit", "gaussian")
    for name in ("model", "train", "optimizer", "checkpoint", "data"):
        config[name].update(digits()[name])
    config.sampling.steps = 3
    return config


def lake():
    config = tiny_frozenlake()
    config.evaluation.suite = "frozenlake"
    config.evaluation.frozenlake.num = 2
    return config


def shapes():
    config = tiny_shapes()
    config.evaluation.suite = "shapes"
    config.evaluation.shapes.num = 2
    return config


def adm():
    config = digits()
    config.evaluation.suite = "adm"
    config.evaluation.adm.update(reference="nowhere.npz", inception="nowhere")
    return config


# name -> (config, the sections whose fields are tried with it)
CONFIGS = {
    "digits": (digits, ("",)),
    "gaussian": (gaussian, ("diffusion", "sampling")),
    "lake": (lake, ("frozenlake", "evaluation.frozenlake", "model.thinking")),
    "shapes": (
        shapes,
        ("model", "shapes", "evaluation.shapes", "text", "autoencoder", "diffusion"),
    ),
    "adm": (adm, ("evaluation.adm.protocol", "evaluation.adm.inception")),
}


def write_configs(folder):
    """Write a config file for each of `CONFIGS`; return the folder."""
    folder.mkdir(exist_ok=True)
    for name in CONFIGS:
        text = f"from sweep import CONFIGS\n\nget_config = CONFIGS[{name!r}][0]\n"
        (folder / f"{name}.py").write_text(text)
    return folder


def config_cases(base, values=VALUES):
    """Yield (field, default, value) for the fields that are tried with one of `CONFIGS`."""
    build, sections = CONFIGS[base]
    for field, value in flat(build()).items():
        if field.startswith(sections):
            yield from ((field, value, text) for text in values[type(value)])


# Flags

KINDS = {"int": int, "float": float, "bool": bool, "tuple": tuple}
LIST = "comma separated list of strings"  # in versions before `tp_jax.cli.parsers`


def defined_flags(entry, *arguments):
    """Return the flags of an entry as {name: kind}, without running it."""
    before, found = set(flags.FLAGS), {}

    def collect(main, usage, **options):
        if options.get("define_flags"):
            options["define_flags"]()
        found.update({name: flags.FLAGS[name].flag_type() for name in flags.FLAGS})
        raise Stop(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tp_jax.cli.start.run", collect)
        run_entry(entry, *arguments)
    kinds = {name: KINDS.get(kind, str) for name, kind in found.items() if name not in before}
    return kinds | {name: tuple for name in kinds if found[name] == LIST}


def flag_cases(entry, base, arguments):
    """Yield a case and the kind of its flag, for each flag of an entry and each value of its kind.

    Args:
      entry: name of the command.
      base: name of the command line.
      arguments: {flag: value} of the command line.
    """
    suite = [f"--suite={arguments['suite']}"] if "suite" in arguments else []
    for name, kind in defined_flags(entry, *suite).items():
        for value in VALUES[kind]:
            given = {**arguments, name: value}
            line = tuple(f"--{flag}={text}" for flag, text in given.items())
            yield Case(entry, base, name, value, line), kind


# Outcomes

# (command line, flag) -> what its message names, where one flag changes what another must be.
OTHER_NAMES = {(suite, "collect"): "--out" for suite in ("frozenlake", "digits", "validation")}


def run(case, watched):
    """Run a case. What it writes is a fault if it is refused; it is removed if it is accepted.

    Args:
      case: the case.
      watched: the folder that the command may write to.
    """
    before = snapshot(watched)
    try:
        code, _, stderr = run_entry(case.entry, *case.arguments)
    except (Exception, RecursionError) as error:
        return Outcome("fault", f"traceback, {type(error).__name__}: {str(error)[:150]!r}")
    written = [path for path in snapshot(watched) if path not in before]
    for path in sorted(written, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    if code == 0:
        return Outcome("accepted")
    if code != 2 or len(lines) != 1 or "Traceback" in stderr:
        return Outcome("fault", f"exit code {code}: {stderr[-300:]!r}")
    if written:
        return Outcome("fault", f"wrote {[path.name for path in written]}: {lines[0][:200]}")
    if len(lines[0]) > 500:
        return Outcome("fault", f"{len(lines[0])} characters: {lines[0][:200]}")
    return Outcome("refused", lines[0])


def names_it(case, line):
    """Return whether an error message names the flag or field, or the file that it was given.

    A flag or field that is left empty may be missing, or let another one be needed.
    """
    name = case.name.rpartition(".")[2].removesuffix("s")
    value, other = case.value[:50], OTHER_NAMES.get((case.base, case.name), name)
    return name in line or other in line or not value or value in line or repr(value)[1:-1] in line


def judge(case, watched, baseline):
    """Run a case, and check that the message of a refusal names what is wrong.

    Args:
      case: the case.
      watched: as for `run`.
      baseline: the outcome of the command line without the value. If a command can't succeed in a
        test, the same message with the value means that the value is accepted.
    """
    outcome = run(case, watched)
    if outcome.kind == "refused" and outcome.text == baseline.text:
        return Outcome("accepted")
    if outcome.kind == "refused" and not names_it(case, outcome.text):
        return Outcome("fault", f"the name is missing: {outcome.text}")
    return outcome


@contextlib.contextmanager
def only_checks(loaded=None):
    """Let commands end with exit code 0 where their work would begin.

    Args:
      loaded: {workdir: `Loaded`}, so that no checkpoint is read again.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tp_jax.train.loop.build", stop)
        patch.setattr("tp_jax.performance.bench.find_groups", stop)
        patch.setattr("tp_jax.studies.run.write_study", stop)
        patch.setattr("tp_jax.sampling.generator.Generator.batches", stop)
        patch.setattr("tp_jax.sampling.generator.Generator.traces", stop)
        patch.setattr("tp_jax.evals.validation.losses.Validation.losses", stop)
        if loaded:
            from tp_jax.sampling import request

            load = request.load

            def load_once(workdir, train_step=None, **options):
                known = loaded.get(str(workdir))
                same = train_step is None and not any(
                    options.get(name) for name in ("dtype", "autoencoder", "text")
                )
                return known if known and same else load(workdir, train_step, **options)

            patch.setattr(request, "load", load_once)
            patch.setattr("tp_jax.evals.adm.sweep.load", load_once)
        yield


def command_lines(folder, workdirs):
    """Return {base: (entry, {flag: value})}; together they have the flags of all entries.

    Args:
      folder: for the files that they name.
      workdirs: {"digits": a trained workdir, "shapes": one of a text-to-image model}.
    """
    configs, new = write_configs(folder / "configs"), "new"
    config = str(configs / "digits.py")
    sampling = {"workdir": workdirs["digits"], "num": "4", "batch_size": "4"}
    making = {"make": "true", "workdir": workdirs["shapes"], "num": "2", "batch_size": "4"}
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        from tp_jax.evals.shapes.scores import make_prompts

        assert make_prompts()
        shutil.copy(pathlib.Path(__file__), folder / "weights.safetensors")
        prompts.write_text('{"tag": "single_object", "include": [], "prompt": "a photo"}\n')
    evaluate = "evaluate"
    return {
        "main": ("main", {"config": config, "workdir": new}),
        "prepare": ("prepare", {"config": config, "workdir": new}),
        "convert": (
            "convert",
            {"kind": "dit", "source": str(folder / "weights.safetensors"), "out": new},
        ),
        "export": ("export", {"workdir": workdirs["digits"], "out": new}),
        "bench": ("bench", {"what": "prepare", "json": "new.json"}),
        "aot": ("aot", {"config": config, "topology": "v5e:2x2", "json": "new.json"}),
        "sample": ("sample", {**sampling, "out": "new.npz"}),
        "analyze": ("analyze", {**sampling, "out": new}),
        "ablate": (
            "ablate",
            {"study": "gate", "config": config, "seeds": "2", "suites": "shapes", "out": new},
        ),
        "adm": (
            evaluate,
            {"suite": "adm", "samples": str(folder), "reference": "r.npz", "inception": "i"},
        ),
        "adm sweep": (
            evaluate,
            {"suite": "adm", "sweep": "true", "workdir": workdirs["digits"], "out": new,
             "reference": "r.npz", "inception": "i", "batch_size": "4"},
        ),
        "geneval": (evaluate, {"suite": "geneval", "results": "nowhere.jsonl"}),
        "geneval make": (
            evaluate, {"suite": "geneval", **making, "out": new, "prompts": str(prompts)},
        ),
        "geneval2": (
            evaluate, {"suite": "geneval2", "results": "nowhere.json", "prompts": "nowhere.jsonl"},
        ),
        "dpg": (evaluate, {"suite": "dpg", "results": "nowhere.txt"}),
        "shapes": (evaluate, {"suite": "shapes", **making, "out": new}),
        "shapes collect": (evaluate, {"suite": "shapes", "collect": "nowhere", "out": "new.json"}),
        "frozenlake": (evaluate, {"suite": "frozenlake", **sampling, "out": new}),
        "digits": (evaluate, {"suite": "digits", **sampling, "out": new}),
        "validation": (
            evaluate,
            {"suite": "validation", "workdir": workdirs["shapes"], "batch_size": "4", "out": new},
        ),
    }  # fmt: skip


def count(outcomes):
    """Return the number of outcomes of each kind."""
    return dict(collections.Counter(outcome.kind for _, outcome in outcomes))
