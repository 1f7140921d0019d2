"""The FrozenLake suite: generate walks, play them in the environment, score and show them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from tp_jax.cli.flags import output_folder, required_output_file
from tp_jax.evals.frozenlake.films import save_films
from tp_jax.evals.frozenlake.plays import OUTCOMES
from tp_jax.evals.frozenlake.task import FrozenLakeTask, make_task
from tp_jax.evals.frozenlake.walking import (
    MapSet,
    choose_maps,
    frame_generator,
    score_walks,
    walk_maps,
)
from tp_jax.evals.over_seeds import Columns, collect
from tp_jax.evals.suite import EvaluateInTraining, Suite, path_of
from tp_jax.files.atomic import Dispensable, write_json
from tp_jax.files.folders import make_folder
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.parallel.processes import run_on_first
from tp_jax.sampling.description import describe
from tp_jax.sampling.loaded import Loaded, ModelOnMesh
from tp_jax.sampling.request import (
    Request,
    make_generator,
    matmul_precision,
    open_generator,
    request_fields,
)
from tp_jax.worlds.frozenlake.settings import FrozenLakeConfig, make_canvas


@dataclasses.dataclass(frozen=True)
class WalkRequest(Request):
    """A request to generate and score walks.

    Attributes:
      num: number of maps of each size, None is 100; with `maps`, number of maps from the file, None
        is all.
      maps: file of maps; None generates random maps.
      look: start every sample from the true frame instead of the last generated frame.
      latent_steps: frames per sample, one per latent step; None is the maximum of training.
    """

    maps: epath.Path | None = None
    look: bool = False


class FrozenLakeSuite(Suite):
    """Scores goals reached, holes and illegal moves on maps that training never shows."""

    name = "frozenlake"

    def run(self, values: Mapping[str, Any]) -> None:
        """Generate and score walks, or summarise scores over seeds."""
        if values["collect"]:
            table = required_output_file("out", ".json")
            collect(epath.Path(values["collect"]), table, self.name, columns)
            return
        out, maps = output_folder("out"), path_of(values, "maps")
        walk_workdir(WalkRequest(out=out, maps=maps, look=values["look"], **request_fields(values)))

    def in_training(self, model: ModelOnMesh) -> EvaluateInTraining:
        """Return a function that generates and scores walks, always on the same maps."""
        settings = self.settings(model)
        if settings.num < 1:
            raise UserError(f"config.evaluation.frozenlake.num={settings.num}: must be 1 or more")
        seed = model.config.seed
        map_set = _maps_for(model, settings.num, seed, f"config.evaluation.suite={self.name!r}")
        generator = make_generator(model, batch_size=model.config.evaluation.batch_size)
        frames_of = frame_generator(generator, map_set)
        dispensable = Dispensable()

        def evaluate(loaded: Loaded, out: epath.Path) -> Mapping[str, Any]:
            plays, films = walk_maps(frames_of, loaded.params, map_set, seed, settings.look)
            found = score_walks(plays, map_set, seed)

            # If the first process can't write, `run_on_first` raises a WriteError on all processes.
            with dispensable.writing("pictures of walks"):
                run_on_first(lambda: save_films(out, plays, films, map_set.canvas))
            return {
                f"{group}/{name}": float(value)
                for group, values in found["model"].items()
                for name, value in values.items()
            }

        return evaluate

    def task(self, model: Loaded, seed: int) -> FrozenLakeTask:
        """Return random maps as a task."""
        maps = _maps_for(model, None, seed, f"config.evaluation.suite={self.name!r}")
        return make_task(maps, self.settings(model).look)


def _maps_for(
    model: ModelOnMesh, num: int | None, seed: int, name: str, maps: epath.Path | None = None
) -> MapSet:
    """Return the maps that a model is scored on.

    Args:
      model: the model.
      num: number of maps, as in `choose_maps`.
      seed: seed of random maps.
      name: the flag or config field that selected the suite, for messages.
      maps: file of maps; None generates random maps.

    Raises:
      UserError: the model wasn't trained on FrozenLake, or no map can be played.
    """
    if model.built.model.condition_kind != "frame" or model.config.data.source != "frozenlake":
        raise UserError(
            f"{name}: {model.workdir} was trained on {model.config.data.source}, but this suite "
            f"needs a model trained with configs/frozenlake.py"
        )
    fields = FrozenLakeConfig(**model.config.frozenlake.to_dict())
    return choose_maps(fields, make_canvas(model.config), num, seed, maps)


def walk_workdir(request: WalkRequest) -> dict[str, Any]:
    """Generate walks through maps that training never showed, play them and score them.

    Writes `scores.json`, `successes.png`, `failures.png` and `walk.gif`.

    Returns:
      The content of `scores.json`.

    Raises:
      UserError: the workdir wasn't trained on FrozenLake, or no map can be played.
    """
    if request.num is not None and request.num < 1:
        raise UserError(f"--num={request.num}: must be 1 or more")
    loaded, generator = open_generator(request)
    name = "--suite=frozenlake"
    map_set = _maps_for(loaded, request.num, request.seed, name, request.maps)
    # Make the folder first: if that fails, no time was spent on generating walks.
    make_folder(request.out, f"--out={request.out}")
    with matmul_precision(request.matmul_precision):
        frames_of = frame_generator(generator, map_set)
        plays, films = walk_maps(frames_of, loaded.params, map_set, request.seed, request.look)
    content = {
        "suite": FrozenLakeSuite.name,
        "drawing": describe(request, loaded, None) | {"maps": str(request.maps or "")},
        "refused_maps": map_set.refused,
        **score_walks(plays, map_set, request.seed),
    }
    if jax.process_index() == 0:
        # If the command is killed here, no scores of an earlier one lie beside the new films.
        (request.out / "scores.json").unlink(missing_ok=True)
        save_films(request.out, plays, films, map_set.canvas)
        write_json(request.out / "scores.json", content)
        print(as_table(content))
        say(f"wrote scores.json, successes.png, failures.png and walk.gif to {request.out}")
    return content


def columns(content: dict[str, Any], variant: str) -> Columns:
    """Convert the content of one `scores.json` to columns, for `over_seeds.collect`.

    The random walker and the oracle are columns too. They don't depend on the variant, so those of
    the first variant are used.
    """

    def rows(groups: dict[str, Any]) -> dict[str, float]:
        return {
            f"{group} {name}": float(value)
            for group, values in groups.items()
            for name, value in values.items()
        }

    names = {"model": variant, "random_walker": "random walker", "oracle": "oracle"}
    return {name: rows(content[part]) for part, name in names.items()}


def as_table(content: dict[str, Any]) -> str:
    """Return a table of outcomes in percent: one line per outcome, one column per group of maps."""
    columns = {f"model {name}": part for name, part in content["model"].items()}
    columns |= {name: content[name]["all"] for name in ("random_walker", "oracle")}
    width = max(map(len, columns)) + 2
    lines = [f"{'':14}" + "".join(f"{name:>{width}}" for name in columns)]
    for key in ("plays", *OUTCOMES, "illegal", "frames_equal"):
        cells = [
            str(part[key]) if key == "plays" else f"{100 * part[key]:.1f}"
            for part in columns.values()
        ]
        lines.append(f"{key:14}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)
