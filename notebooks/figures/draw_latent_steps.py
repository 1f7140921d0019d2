"""Draw what the latent steps of a FrozenLake model do: frames and the experts of the tokens.

python notebooks/figures/draw_latent_steps.py WORKDIR [--seed=0 --maps=2]

WORKDIR is trained with configs/frozenlake.py. Writes latent_steps.png beside this file.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

import tp_jax
from tp_jax.diffusion.samplers import sample_noise
from tp_jax.evals.frozenlake.walking import choose_maps
from tp_jax.models.latent_step_frames import decode_latent_steps
from tp_jax.parallel.randomness import stream_key
from tp_jax.sampling.request import make_generator
from tp_jax.thinking.gate import GateRandomness
from tp_jax.thinking.layer import ThinkingOptions
from tp_jax.worlds.frozenlake.settings import FrozenLakeConfig, make_canvas


def decode(model: tp_jax.Model, frames: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample what follows each frame, and decode all latent steps.

    Args:
      frames: [B, S, S, 3] in [0, 1].

    Returns:
      Frames [T, B, S, S, 3] in [0, 1], and the expert of each token [T, B, N].
    """
    loaded, index = model.loaded, np.arange(len(frames), dtype=np.int32)
    condition = {"label": np.zeros(len(frames), np.int32), "frame": 2 * frames - 1}
    generator = make_generator(loaded, batch_size=len(frames))
    batches = generator.batches(loaded.params, condition, seed)
    x = jnp.asarray(np.concatenate(list(batches)))
    sigma = jnp.full(len(x), loaded.config.frozenlake.read_sigma)
    noise_key, model_key = jax.random.split(stream_key(seed, "figure"))
    noise = sample_noise(noise_key, jnp.asarray(index), 0, x.shape[1:])
    x = loaded.built.objective.add_noise(x, noise, sigma)
    options = ThinkingOptions(GateRandomness(model_key, index, train=False), trace=True)
    decoded, found = decode_latent_steps(
        loaded.model, loaded.params, x, 1000 * sigma, condition, options
    )
    (stats,) = found.values()
    return (np.asarray(decoded) + 1) / 2, np.asarray(stats.expert)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--maps", type=int, default=2, help="number of maps")
    arguments = parser.parse_args()
    model = tp_jax.Model.load(arguments.workdir)
    fields = FrozenLakeConfig(**model.loaded.config.frozenlake.to_dict())
    canvas = make_canvas(model.loaded.config)
    places = choose_maps(fields, canvas, 50, arguments.seed).places
    # The largest maps, whose walks are longest.
    places = sorted(places, key=lambda place: -len(place.desc))[: arguments.maps]
    first = np.stack([canvas.draw(place.desc, (0, 0), place.corner) for place in places])
    frames, experts = decode(model, first.astype(np.float32), arguments.seed)

    steps, side = len(frames), int(np.sqrt(experts.shape[-1]))
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
            above[t + 1].imshow(np.clip(frames[t, row], 0, 1))
            above[t + 1].set_title(f"latent step {t + 1}" if row == 0 else "", fontsize=9)
            chosen = experts[t, row].reshape(side, side)
            below[t + 1].imshow(chosen, cmap=colours, vmin=0, vmax=model.thinking.experts - 1)
        below[0].text(0.5, 0.5, "expert of\neach token", ha="center", va="center", fontsize=9)
    figure.tight_layout(pad=0.4)
    out = pathlib.Path(__file__).with_name("latent_steps.png")
    figure.savefig(out, dpi=100, metadata={"Software": None})
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
