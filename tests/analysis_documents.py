"""Analysis documents with known or random numbers, and their pictures, for tests of the report."""

import io

import numpy as np
from PIL import Image


def png(width, height, seed=0):
    """Return a picture of noise, which compresses badly."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def entry(bits, chance=0.001):
    """Return the information of one variable that is `bits` above chance."""
    return {
        "bits": bits + chance,
        "corrected": bits,
        "permuted_mean": chance,
        "permuted_high": 2 * chance,
    }


def shares(rng, *shape):
    values = rng.dirichlet(np.full(shape[-1], 2.0), shape[:-1])
    return values.tolist()


def make_block(rng, steps, latent_steps, experts, groups, grid, tokens):
    def uniform(*shape):
        return rng.uniform(0.1, 0.9, shape).tolist()

    place = rng.dirichlet(np.full(experts, 2.0), (latent_steps, *grid))
    several = latent_steps > 1
    return {
        "entropy": uniform(steps, latent_steps),
        "kept": uniform(steps, latent_steps - 1) if several else None,
        "use": shares(rng, steps, latent_steps, experts),
        "use_by_group": shares(rng, groups, latent_steps, experts) if groups else None,
        "use_by_place": np.moveaxis(place, -1, 1).tolist(),
        "latent_steps": rng.uniform(1, latent_steps, steps).tolist(),
        "latent_steps_by_place": rng.uniform(1, latent_steps, grid).tolist(),
        "information": {
            "timestep": entry(0.5),
            "group": entry(0.02) if groups else None,
            "place": entry(0.03),
            "content": entry(0.04),
            "latent_step": entry(0.05) if several else None,
        },
        "effective_experts": rng.uniform(1, experts, latent_steps).tolist(),
        "dead_experts": [[] for _ in range(latent_steps)],
        "similarity": {
            name: (np.eye(experts) + 0.2 * (1 - np.eye(experts))).tolist() for name in "qkv"
        },
        "moves": uniform(steps, latent_steps - 1) if several else None,
        "ratios": uniform(steps, latent_steps - 2) if latent_steps > 2 else None,
        "together": uniform(steps) if several else None,
        "trajectories": [
            {
                "timestep": float(t),
                "explained": [0.6, 0.2],
                "points": rng.normal(size=(tokens, latent_steps, 2)).cumsum(1).tolist(),
                "expert": rng.integers(0, experts, (tokens, latent_steps)).tolist(),
            }
            for t in (1.0, 0.5, 0.1)
        ],
    }


def make_document(
    blocks=("12",), steps=6, latent_steps=3, experts=2, groups=("cat", "dog", "owl"), grid=(4, 4),
    tokens=20, seed=0,
):  # fmt: skip
    """Return a document with random numbers, complete for its sizes."""
    rng = np.random.default_rng(seed)
    return {
        "run": {
            "workdir": "runs/x", "train_step": 3000, "num": 100, "seed": 0, "sampler": "euler",
            "sampler_steps": steps, "guidance_scale": 1.5, "latent_steps": latent_steps,
            "trained_latent_steps": "2", "model": "dit", "source": "digits", "gate": "learned",
            "groups": list(groups), "group_kind": "class" if groups else None,
            "grid": list(grid), "experts": experts, "version": "0.1.0",
        },
        "timesteps": np.linspace(1, 0.05, steps).tolist(),
        "blocks": {
            block: make_block(rng, steps, latent_steps, experts, len(groups), grid, tokens)
            for block in blocks
        },
        "interventions": [
            {"name": "thinking off", "what": "the base alone", "difference": 7.25, "score": 0.5,
             "score_name": "accuracy", "image": "thinking_off.png"},
            {"name": "random route", "what": "experts drawn at random", "difference": 3.5,
             "score": 0.75, "score_name": "accuracy", "image": "random_route.png"},
        ],
        "samples": {
            "image": "samples.png", "maps": {block: f"maps_{block}.png" for block in blocks}
        },
        "worst": [{"image": "worst_0.png", "what": "a red circle", "score": 0.125}],
        "left_out": [{"part": "ratios", "why": "it needs three latent steps"}],
    }  # fmt: skip


def write_pictures(document, folder, size=(64, 40)):
    """Write the pictures that a document names."""
    names = [document["samples"]["image"], *document["samples"]["maps"].values()]
    names += [one["image"] for one in document["interventions"] + document["worst"]]
    for i, name in enumerate(names):
        (folder / name).write_bytes(png(*size, seed=i))
    return names


def without_data(document):
    """Return the document with null in the place of every statistic and picture."""
    return {
        "run": document["run"] | {"group_kind": None, "groups": []},
        "timesteps": document["timesteps"],
        "blocks": {block: dict.fromkeys(found) for block, found in document["blocks"].items()},
        "interventions": [],
        "samples": {"image": None, "maps": {}},
        "worst": [],
        "left_out": [{"part": "all", "why": "nothing was measured"}],
    }
