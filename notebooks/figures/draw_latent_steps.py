"""Draw what the latent steps of a FrozenLake model do: frames and the experts of the tokens.

python notebooks/figures/draw_latent_steps.py WORKDIR [--seed=0 --maps=2]

WORKDIR is trained with configs/frozenlake.py. Writes latent_steps.png beside this file.
"""

import argparse
import dataclasses
import pathlib

import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

import tp_jax
from tp_jax.evals.frozenlake.walking import choose_maps, frame_generator
from tp_jax.pictures.grids import to_uint8
from tp_jax.sampling.request import make_generator
from tp_jax.worlds.frozenlake.settings import FrozenLakeConfig, make_canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--maps", type=int, default=2, help="number of maps")
    arguments = parser.parse_args()
    model = tp_jax.Model.load(arguments.workdir)
    loaded = model.loaded
    fields = FrozenLakeConfig(**loaded.config.frozenlake.to_dict())
    canvas = make_canvas(loaded.config)
    map_set = choose_maps(fields, canvas, 50, arguments.seed)
    # The largest maps, whose walks are longest.
    places = sorted(map_set.places, key=lambda place: -len(place.desc))[: arguments.maps]
    map_set = dataclasses.replace(map_set, places=places)
    first = np.stack([canvas.draw(place.desc, (0, 0), place.corner) for place in places])
    conditions = {"label": np.zeros(len(places), np.int32), "frame": 2 * first - 1}
    generator = frame_generator(make_generator(loaded), map_set)
    # One batch: frames [B, T, S, S, 3] and, for the one thinking layer, experts [1, T, B, N].
    ((frames, (_, routing)),) = generator.traces(loaded.params, conditions, arguments.seed)
    (experts,) = (trace.expert for trace in routing.values())

    steps, side = frames.shape[1], int(np.sqrt(experts.shape[-1]))
    figure, axes = plt.subplots(
        2 * len(places), steps + 1, figsize=(1.5 * (steps + 1), 3.1 * len(places)), squeeze=False
    )
    colours = ListedColormap(["#3a6ea5", "#f2a541", "#6b8e5a", "#a5557a"][: model.thinking.experts])
    for axis in axes.flat:
        axis.axis("off")
    for row in range(len(places)):
        above, below = axes[2 * row], axes[2 * row + 1]
        above[0].imshow(first[row])
        above[0].set_title("given frame" if row == 0 else "", fontsize=9)
        for t in range(steps):
            above[t + 1].imshow(to_uint8(frames[row, t]))
            above[t + 1].set_title(f"latent step {t + 1}" if row == 0 else "", fontsize=9)
            chosen = experts[0, t, row].reshape(side, side)
            below[t + 1].imshow(chosen, cmap=colours, vmin=0, vmax=model.thinking.experts - 1)
        below[0].text(0.5, 0.5, "expert of\neach token", ha="center", va="center", fontsize=9)
    figure.tight_layout(pad=0.4)
    out = pathlib.Path(__file__).with_name("latent_steps.png")
    figure.savefig(out, dpi=100, metadata={"Software": None})
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
