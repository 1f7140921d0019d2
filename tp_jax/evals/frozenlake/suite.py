"""FrozenLake: walks that a workdir draws, read, played in the environment, scored, and shown."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from tp_jax.cli.flags import required
from tp_jax.evals.frozenlake.films import save_films
from tp_jax.evals.frozenlake.plays import OUTCOMES
from tp_jax.evals.frozenlake.walking import (
    MapSet,
    choose_maps,
    frame_generator,
    score_walks,
    walk_maps,
)
from tp_jax.evals.over_seeds import Columns, collect
from tp_jax.evals.suite import EvaluateInTraining, Suite, path_of
from tp_jax.files.atomic import write_json
from tp_jax.files.folders import make_folder
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import say
from tp_jax.parallel.processes import run_on_first
from tp_jax.sampling.loaded import Loaded, ModelOnMesh
from tp_jax.sampling.request import (
    Request,
    describe,
    make_generator,
    matmul_precision,
    open_generator,
    request_fields,
)
from tp_jax.worlds.frozenlake.settings import FrozenLakeConfig, make_canvas


@dataclasses.dataclass(frozen=True)
class WalkRequest(Request):
    """Walks to draw and score.

    Attributes:
      num: maps of each size; None is 100.
      maps: a file of maps; None draws them at random.
      look: draw every time from the true frame, instead of from the last drawn one.
      latent_steps: moves that a drawing has; None is as many as training had at most.
    """

    maps: epath.Path | None = None
    look: bool = False


class FrozenLakeSuite(Suite):
    """Goals reached, holes and illegal moves, on maps that training never shows."""

    name = "frozenlake"

    def run(self, values: Mapping[str, Any]) -> None:
        """Walks, or collects."""
        out = epath.Path(required("out"))
        if values["collect"]:
            collect(epath.Path(values["collect"]), out, self.name, columns)
            return
        maps = path_of(values, "maps")
        walk_workdir(WalkRequest(out=out, maps=maps, look=values["look"], **request_fields(values)))

    def in_training(self, model: ModelOnMesh) -> EvaluateInTraining:
        """Walks the same maps each time."""
        settings = self.settings(model)
        if settings.num < 1:
            raise UserError(f"config.evaluation.frozenlake.num={settings.num}: must be 1 or more")
        seed = model.config.seed
        map_set = _maps_for(model, settings.num, seed, f"config.evaluation.suite={self.name!r}")
        generator = make_generator(model, batch_size=model.config.evaluation.batch_size)
        frames_of = frame_generator(generator, map_set)

        def evaluate(loaded: Loaded, out: epath.Path) -> Mapping[str, Any]:
            plays, films = walk_maps(frames_of, loaded.params, map_set, seed, settings.look)
            found = score_walks(plays, map_set, seed)

            def show() -> None:
                make_folder(out, str(out))
                save_films(out, plays, films, map_set.canvas)

            # Where the first process can't write, all have to stop.
            run_on_first(show)
            return {
                f"{group}/{name}": float(value)
                for group, values in found["model"].items()
                for name, value in values.items()
            }

        return evaluate


def _maps_for(
    model: ModelOnMesh, num: int | None, seed: int, name: str, maps: epath.Path | None = None
) -> MapSet:
    """The maps that a model is scored on.

    Args:
      name: the flag or field that asks for the suite, for the message.

    Raises:
      UserError: the model doesn't draw from frames of FrozenLake, or there is no map.
    """
    if model.built.model.condition_kind != "frame" or model.config.data.source != "frozenlake":
        raise UserError(
            f"{name}: {model.workdir} was trained on {model.config.data.source}, but this suite "
            f"wants a model of configs/frozenlake.py"
        )
    fields = FrozenLakeConfig(**model.config.frozenlake.to_dict())
    return choose_maps(fields, make_canvas(model.config), num, seed, maps)


def walk_workdir(task: WalkRequest) -> dict[str, Any]:
    """Draws walks through maps that training never showed, plays and scores them.

    Writes `scores.json`, `successes.png`, `failures.png` and `walk.gif` into a folder.

    Raises:
      UserError: the workdir isn't one of FrozenLake, or there is no map to be played.
    """
    if task.num is not None and task.num < 1:
        raise UserError(f"--num={task.num}: must be 1 or more")
    loaded, generator = open_generator(task)
    name = "--suite=frozenlake"
    map_set = _maps_for(loaded, task.num, task.seed, name, task.maps)
    trained = loaded.built.model.thinking.latent_steps
    if (task.latent_steps or 0) > trained:
        say(
            f"--latent_steps={task.latent_steps}: training had up to {trained}, and what is drawn "
            f"beyond is seldom right; give {trained} or fewer"
        )
    # Before walking, so that it isn't lost for want of a folder.
    make_folder(task.out, f"--out={task.out}")
    with matmul_precision(task.matmul_precision):
        frames_of = frame_generator(generator, map_set)
        plays, films = walk_maps(frames_of, loaded.params, map_set, task.seed, task.look)
    content = {
        "suite": FrozenLakeSuite.name,
        "drawing": describe(task, loaded, None) | {"maps": str(task.maps or "")},
        "refused_maps": map_set.refused,
        **score_walks(plays, map_set, task.seed),
    }
    if jax.process_index() == 0:
        save_films(task.out, plays, films, map_set.canvas)
        write_json(task.out / "scores.json", content)
        print(as_table(content))
        say(f"scores, filmstrips and a GIF: {task.out}")
    return content


def columns(content: dict[str, Any], variant: str) -> Columns:
    """The scores in one `scores.json`, for `over_seeds.collect`.

    The walkers that have nothing to learn are columns too, of whichever variant comes first.
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
    """Outcomes in percent: a line for each, a column for each group of maps and walker."""
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
