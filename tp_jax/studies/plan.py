"""Which cells a study has, and the commands that train and evaluate each of them."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.messages.errors import UserError
from tp_jax.studies import STUDIES
from tp_jax.studies.base import Base, find_base
from tp_jax.studies.config_files import ConfigFile, as_flag
from tp_jax.studies.measures import accepted_flags, suites_of
from tp_jax.studies.study import BASE, Setting, Study, Variant, check_names, with_fields
from tp_jax.workdir.record import read_config

SCORES = "scores.json"


@dataclasses.dataclass(frozen=True)
class Request:
    """The flags of `tp_jax.ablate`.

    Attributes:
      study: a key of `STUDIES`.
      config: the config, as --config=FILE[:VARIANTS] and --config.FIELD=VALUE give it.
      seeds: number of seeds, 0 … seeds - 1.
      out: folder of the study.
      base: folder with a base for every seed, ROOT/SEED; "" trains the bases or takes
        `config.init.base`.
      suites: names of evaluation suites, instead of those of the config.
      jobs: number of cells that run at the same time in this process.
    """

    study: str
    config: ConfigFile
    seeds: int
    out: epath.Path
    base: str = ""
    suites: tuple[str, ...] = ()
    jobs: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One variant from one seed.

    Attributes:
      variant, seed: which.
      folder: for the record and the log of the cell.
      run: the workdir that is evaluated.
      trains: the command of training, as arguments after `python -m`; None if the run is that of
        another cell or was given.
      train_steps: number of train steps of the run.
      evaluates: {suite: the command of its evaluation}.
      scores: {suite: the folder of its scores}.
      needs: the variants whose cells of this seed must be done before.
    """

    variant: str
    seed: int
    folder: epath.Path
    run: epath.Path
    trains: tuple[str, ...] | None
    train_steps: int
    evaluates: Mapping[str, tuple[str, ...]]
    scores: Mapping[str, epath.Path]
    needs: tuple[str, ...]

    def __str__(self) -> str:
        """Return a name for messages, such as "random, seed 3"."""
        return f"{self.variant}, seed {self.seed}"

    def trained(self) -> bool:
        """Return whether the run has reached its last train step."""
        if self.trains is None:
            return True
        folder = self.run / "checkpoints"
        steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
        return max(steps, default=-1) >= self.train_steps

    def evaluated(self, suite: str) -> bool:
        """Return whether a suite has scored the run."""
        return (self.scores[suite] / SCORES).exists()

    def done(self) -> bool:
        """Return whether the cell is trained and evaluated."""
        return self.trained() and all(map(self.evaluated, self.scores))

    def commands(self) -> list[str]:
        """Return the commands of the cell as they are typed in a shell."""
        listed = ([self.trains] if self.trains else []) + list(self.evaluates.values())
        return [shlex.join(["python", "-m", *command]) for command in listed]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study of a config, ready to run.

    Attributes:
      request: the flags.
      study: the variants, with the base if it is one of them.
      configs: the whole config of each variant, for the first seed.
      suites: the evaluation suites.
      cells: all cells, seed by seed, so that the first results are of all variants.
    """

    request: Request
    study: Study
    configs: Mapping[str, ConfigDict]
    suites: tuple[str, ...]
    cells: tuple[Cell, ...]

    def cell(self, variant: str, seed: int) -> Cell:
        """Return the cell of a variant and a seed."""
        return next(c for c in self.cells if (c.variant, c.seed) == (variant, seed))

    def measured(self, variant: str, suite: str) -> bool:
        """Return whether a suite scores a variant: it must have the variant's flags."""
        return suite in self.cell(variant, 0).scores


def make_plan(request: Request) -> Plan:
    """Check a request, and return the cells of its study.

    Raises:
      UserError: the study, the config, the base or the suites don't fit each other.
    """
    config = request.config.load()
    setting = Setting(config)
    study = STUDIES[request.study].build(setting)
    suites = suites_of(config, request.suites)
    base = None
    if setting.fine_tunes:
        base = find_base(request.config, request.base, request.seeds)
        study = study.with_base(base.variant)
    elif request.base:
        raise UserError(
            f"--base={request.base}: only a config with config.train.trainable='thinking' has a "
            f"frozen base"
        )
    check_names(study)
    files = {v.name: _config_file(v, request.config, base) for v in study.variants}
    configs: dict[str, ConfigDict] = {}
    for variant in study.variants:
        config = configs.get(variant.run_of)
        configs[variant.name] = config or _checked(files[variant.name], variant, request, base)
    _check_distinct(study, configs)
    cells = [
        _make_cell(variant, seed, request, study, files, configs, base, suites)
        for seed in range(request.seeds)
        for variant in study.variants
    ]
    return Plan(request, study, configs, suites, tuple(cells))


def _config_file(variant: Variant, file: ConfigFile, base: Base | None) -> ConfigFile:
    if base and base.file and variant.name == BASE:
        return base.file
    return file.adding(variant.config_variants, variant.fields)


def _checked(file: ConfigFile, variant: Variant, request: Request, base: Base | None) -> ConfigDict:
    """Return the whole config of a variant, or raise a UserError that names the variant."""
    given = base.run(0) if base and variant.name == BASE else None
    if given:
        return read_config(given)
    config = file.load()
    if variant.base_of:
        config = with_fields(config, {"init.base": _base_path(variant, 0, request, base)})
    try:
        config_lib.build(config)
    except UserError as error:
        raise UserError(f"variant {variant.name}: {error}") from error
    return config


def _base_path(variant: Variant, seed: int, request: Request, base: Base | None) -> str:
    """Return `config.init.base` of a cell whose base is another cell's run, or was given."""
    given = base.run(seed) if base else None
    return str(given or _run_folder(request.out, variant.base_of, seed))


def _run_folder(out: epath.Path, variant: str, seed: int) -> epath.Path:
    return out / "cells" / variant / str(seed) / "run"


def _check_distinct(study: Study, configs: Mapping[str, ConfigDict]) -> None:
    seen: dict[str, str] = {}
    for variant in study.variants:
        key = repr((config_lib.flat(configs[variant.name]), dict(variant.flags)))
        if key in seen:
            raise UserError(
                f"the variants {seen[key]} and {variant.name} are the same with this config: leave "
                f"out the --config.… flags for fields that the study varies"
            )
        seen[key] = variant.name


def _make_cell(
    variant: Variant,
    seed: int,
    request: Request,
    study: Study,
    files: Mapping[str, ConfigFile],
    configs: Mapping[str, ConfigDict],
    base: Base | None,
    suites: Sequence[str],
) -> Cell:
    source = study[variant.run_of] if variant.run_of else variant
    given = base.run(seed) if base and source.name == BASE else None
    run = given or _run_folder(request.out, source.name, seed)
    trains = None
    if not variant.run_of and given is None:
        fields: dict[str, Any] = {"seed": seed}
        if variant.base_of:
            fields["init.base"] = _base_path(variant, seed, request, base)
        trains = ("tp_jax.main", *files[variant.name].flags(fields), f"--workdir={run}")
    flags = tuple(as_flag(name, value) for name, value in variant.flags.items())
    scores = {
        suite: request.out / "scores" / suite / variant.name / str(seed)
        for suite in suites
        if set(variant.flags) <= accepted_flags(suite)
    }
    return Cell(
        variant=variant.name,
        seed=seed,
        folder=request.out / "cells" / variant.name / str(seed),
        run=run,
        trains=trains,
        train_steps=configs[variant.name].train.steps,
        evaluates={
            suite: (
                "tp_jax.evaluate",
                f"--suite={suite}",
                f"--workdir={run}",
                f"--out={folder}",
                *flags,
            )
            for suite, folder in scores.items()
        },
        scores=scores,
        needs=tuple(
            name for name in (variant.run_of, variant.base_of) if name and name != variant.name
        ),
    )
