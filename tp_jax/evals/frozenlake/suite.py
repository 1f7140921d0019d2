"""Navigation of a trained workdir: drawn, read, played, scored, and shown.

T latent steps of a drawing, S pixels of a frame's side.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

from tp_jax.diffusion.samplers import sample_noise
from tp_jax.evals.frozenlake.plays import (
    OUTCOMES,
    Place,
    Play,
    score,
    test_places,
    walk_as_oracle,
    walk_randomly,
)
from tp_jax.files.atomic import make_folder, write_json
from tp_jax.files.jsonl import read_text
from tp_jax.messages.errors import UserError
from tp_jax.messages.progress import progress_bar, say
from tp_jax.models.latent_step_frames import decode_latent_steps
from tp_jax.parallel.mesh import BATCH_AXES
from tp_jax.pictures.galleries import make_filmstrips
from tp_jax.pictures.grids import to_uint8
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.request import Request, describe, matmul_precision, open_generator
from tp_jax.thinking import RoutingNoise, ThinkingOptions
from tp_jax.worlds.frozenlake.frames import Canvas
from tp_jax.worlds.frozenlake.maps import check_map, find, walk
from tp_jax.worlds.frozenlake.settings import NavigationConfig, canvas_of

# Maps of each size, where not said.
NUM = 100
# Filmstrips of each kind that are drawn, and frames of the GIF a second.
SHOWN, GIF_RATE = 8, 2


@dataclasses.dataclass(frozen=True)
class Navigation(Request):
    """Walks to draw and score; the flags of `tp_jax.evaluate --suite=navigation`.

    Attributes:
      num: maps of each size; None is 100.
      maps: a file of maps, one row a line and an empty line between two; None draws them at random.
      look: see the real lake after every drawing, instead of the first frame alone.
      latent_steps: moves that a drawing has; None is as many as training had at most.
    """

    maps: epath.Path | None = None
    look: bool = False


@dataclasses.dataclass(frozen=True)
class FrameGenerator(Generator):
    """Draws the frames of all latent steps, [B, T, S, S, C] in [-1, 1].

    Attributes:
      read_sigma: noise level at which latent steps are decoded: what was drawn last is noised so
        far again.
    """

    read_sigma: float = 0.1

    def draw(self, params, key, index, condition):
        """As `Generator.draw`, with an axis of latent steps."""
        x = super().draw(params, key, index, condition)
        key, model_key = jax.random.split(jax.random.fold_in(key, 1))
        noise = sample_noise(key, index, 0, x.shape[1:])
        sigma = jnp.full(len(x), self.read_sigma)
        x = self.objective.noised(x, noise, sigma)
        options = ThinkingOptions(RoutingNoise(model_key, index, train=False), self.latent_steps)
        frames, _ = decode_latent_steps(self.model, params, x, 1000 * sigma, condition, options)
        return frames.swapaxes(0, 1)


def navigate(task: Navigation) -> dict[str, Any]:
    """Draws walks through maps that training never showed, plays and scores them.

    Writes `scores.json`, `successes.png`, `failures.png` and `walk.gif` into a folder.

    Raises:
      UserError: the workdir isn't one of FrozenLake, or there is no map to be played.
    """
    if task.num is not None and task.num < 1:
        raise UserError(f"--num={task.num}: must be 1 or more")
    loaded, generator = open_generator(task)
    if not loaded.built.model.thinking.layers or loaded.config.data.source != "frozenlake":
        raise UserError(
            f"--workdir={task.workdir} was trained on {loaded.config.data.source}: --suite="
            f"navigation wants one of configs/frozenlake.py"
        )
    trained = loaded.config.model.thinking.latent_steps
    if (task.latent_steps or 0) > trained:
        say(
            f"--latent_steps={task.latent_steps}: training had up to {trained}, and what is drawn "
            f"beyond is seldom right; give {trained} or fewer"
        )
    fields = NavigationConfig(**loaded.config.navigation.to_dict())
    canvas = canvas_of(loaded.config)
    places, refused = _places(task, fields, canvas)
    # Before walking, so that it isn't lost for want of a folder.
    make_folder(task.out, f"--out={task.out}")
    shallow = {f.name: getattr(generator, f.name) for f in dataclasses.fields(generator)}
    # Not more than there are to draw, as far as the devices can share them.
    shards = int(np.prod([loaded.mesh.shape[axis] for axis in BATCH_AXES]))
    shallow["batch_size"] = min(task.batch_size, -(-len(places) // shards) * shards)
    frames_of = FrameGenerator(**shallow, read_sigma=fields.read_sigma)
    with matmul_precision(task.matmul_precision):
        plays, films = _walk(frames_of, loaded.params, places, canvas, task)
    content = {
        "suite": "navigation",
        "drawing": describe(task, loaded, None) | {"maps": str(task.maps or "")},
        "refused_maps": refused,
        "model": score(plays, fields.unseen_sizes),
    }
    rng = np.random.default_rng(task.seed)
    content["random_walker"] = score([walk_randomly(p, rng) for p in places], fields.unseen_sizes)
    content["oracle"] = score([walk_as_oracle(p, canvas) for p in places], fields.unseen_sizes)
    if jax.process_index() == 0:
        _show(task.out, plays, films, canvas)
        write_json(task.out / "scores.json", content)
        print(as_table(content))
        say(f"scores, filmstrips and a GIF: {task.out}")
    return content


def _places(task: Navigation, fields: NavigationConfig, canvas: Canvas) -> tuple[list[Place], int]:
    if task.maps is None:
        num = NUM if task.num is None else task.num
        sizes = (*fields.sizes, *fields.unseen_sizes)
        return test_places(sizes, fields.frozen, canvas, num, task.seed), 0
    places, refused = [], 0
    for number, block in enumerate(_blocks(read_text(task.maps)), 1):
        reason = check_map(block, canvas.most)
        if reason:
            refused += 1
            say(f"{task.maps}: map {number} {reason}; it is left out")
        else:
            places.append(Place(block, (0, 0)))
    if not places:
        raise UserError(
            f"--maps={task.maps} has no map that can be played, of {refused}: rows of S, F, H and "
            f"G, an empty line between maps"
        )
    return places[: task.num], refused


def _blocks(text: str) -> list[tuple[str, ...]]:
    """Lines between empty ones."""
    lines = [line.strip() for line in text.splitlines()]
    return [tuple(group) for filled, group in itertools.groupby(lines, bool) if filled]


@dataclasses.dataclass
class _Film:
    """The frames that a play was given, and those that it should have been, each [S, S, 3]."""

    first: np.ndarray
    drawn: list[np.ndarray] = dataclasses.field(default_factory=list)
    true: list[np.ndarray] = dataclasses.field(default_factory=list)


def _walk(
    generator: FrameGenerator,
    params: Any,
    places: Sequence[Place],
    canvas: Canvas,
    task: Navigation,
) -> tuple[list[Play], list[_Film]]:
    """Plays all places: drawing after drawing, each from the last frame of the one before."""
    plays = [Play(place) for place in places]
    seen = [canvas.draw(play.place.desc, play.cell, play.place.corner) for play in plays]
    films = [_Film(frame) for frame in seen]
    drawing = 0
    with progress_bar(len(plays), "walking", "map") as bar:
        while going := [i for i, play in enumerate(plays) if play.outcome is None]:
            # Always whole batches, so that there is one shape to compile.
            rows = np.resize(going, -(-len(going) // generator.batch_size) * generator.batch_size)
            batches = generator.batches(
                params,
                {
                    "label": np.zeros(len(plays), np.int32),
                    "frame": 2 * np.stack(seen).astype(np.float32) - 1,
                },
                # Each drawing has noise of its own.
                int(np.random.SeedSequence([task.seed, drawing]).generate_state(1)[0]),
                rows=rows,
                numbers=rows,
            )
            drawn = np.concatenate(list(batches))[: len(going)]
            for i, frames in zip(going, (drawn + 1) / 2, strict=True):
                play, place = plays[i], plays[i].place
                shape = len(place.desc), len(place.desc[0])
                for frame, cell in zip(
                    frames, walk(place.desc, play.cell, len(frames)), strict=True
                ):
                    films[i].drawn.append(frame)
                    films[i].true.append(canvas.draw(place.desc, cell, place.corner))
                play.take([canvas.read(frame, shape, place.corner) for frame in frames])
                seen[i] = (
                    canvas.draw(place.desc, play.cell, place.corner)
                    if task.look
                    else np.clip(frames[-1], 0, 1)
                )
                bar.update(play.outcome is not None)
            drawing += 1
    return plays, films


def _show(out: epath.Path, plays: Sequence[Play], films: Sequence[_Film], canvas: Canvas) -> None:
    """Filmstrips of good and bad plays, of every outcome some, and an animated walk.

    The walk is as it was drawn, and beside it as the environment played it.
    """
    order = sorted(range(len(plays)), key=lambda i: -len(plays[i].cells))
    good = [i for i in order if plays[i].outcome == "goal"]
    by_outcome = [[i for i in order if plays[i].outcome == name] for name in OUTCOMES[1:]]
    bad = [group[k] for k in range(SHOWN) for group in by_outcome if k < len(group)]
    for name, chosen in (("successes", good[:SHOWN]), ("failures", bad[:SHOWN])):
        path = out / f"{name}.png"
        if not chosen:
            # None of an earlier run's.
            path.unlink(missing_ok=True)
            continue
        strips = []
        for i in chosen:
            count, film = len(plays[i].cells), films[i]
            # The font has no ×.
            size, outcome = plays[i].place.size.replace("×", "x"), plays[i].outcome
            title = f"{size}, {count} frames: {outcome.replace('_', ' ')} (above drawn, below true)"
            pairs = [[film.first, *film.drawn[:count]], [film.first, *film.true[:count]]]
            strips.append((title, plays[i].outcome == "goal", [_pixels(row) for row in pairs]))
        make_filmstrips(strips).save(path)
    if good or bad:
        i = (good or bad)[0]
        count = len(plays[i].cells)
        place, cells = plays[i].place, [find(plays[i].place.desc, "S"), *plays[i].cells]
        played = [canvas.draw(place.desc, cell, place.corner) for cell in cells]
        pairs = zip(
            _pixels([films[i].first, *films[i].drawn[:count]]), _pixels(played), strict=True
        )
        zoom = max(1, 240 // (canvas.cells * canvas.tile))
        between = np.full((canvas.cells * canvas.tile, 1, 3), 255, np.uint8)
        beside = [np.concatenate((drawn, between, true), axis=1) for drawn, true in pairs]
        pictures = [
            Image.fromarray(both.repeat(zoom, axis=0).repeat(zoom, axis=1)) for both in beside
        ]
        with (out / "walk.gif").open("wb") as file:
            pictures[0].save(
                file, format="gif", save_all=True, append_images=pictures[1:],
                duration=1000 // GIF_RATE, loop=0,
            )  # fmt: skip


def _pixels(frames: Sequence[np.ndarray]) -> np.ndarray:
    return to_uint8(2 * np.stack(frames) - 1)


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
