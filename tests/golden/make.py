"""Write dit.npz, gaussian.npz, sd3.npz, sd35.npz and flow.npz next to this script.

    python make.py --dit=PATH_TO_A_CLONE_OF_facebookresearch/DiT

The outputs come from public torch code. Needs torch, diffusers and timm in the versions that
README.md lists. The tests only read the files.
Letters: B batch, C channels, H height, W width, T tokens, S sampling steps.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import pathlib
import sys
from unittest import mock

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

STAND_IN = (0.9, 0.1, 0.2, 0.05)  # coefficients of `stand_in`
VELOCITY = (0.5, 0.1)  # coefficients of `velocity`
LATENT_SHAPE = (2, 2, 4, 4)  # B C H W of every sampling trajectory
SEED_250 = 250  # seed of the 250-step noise, which gaussian.npz does not store

DIT_CONFIG = {
    "depth": 3,
    "hidden_size": 48,
    "num_heads": 4,
    "patch_size": 2,
    "input_size": 8,
    "in_channels": 4,
    "num_classes": 10,
    "learn_sigma": True,
    "class_dropout_prob": 0.1,
}
SD3_CONFIG = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 24,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 16,
    "out_channels": 4,
    "pos_embed_max_size": 12,
    "dual_attention_layers": (),
    "qk_norm": None,
}
SD35_CONFIG = SD3_CONFIG | {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}


def normal(random, *shape):
    """Sample a standard normal float32 array from a RandomState."""
    return random.randn(*shape).astype(np.float32)


def randomize(model, seed):
    """Overwrite every weight, also those initialised to zero, but not the position tables.

    Each value is an odd multiple of 2^-10: never zero, exact in float32, and compressible.
    """
    random = np.random.RandomState(seed)
    state = model.state_dict()
    for name, tensor in state.items():
        if name.split(".")[-1] == "pos_embed":
            continue
        if "embedding_table" in name:
            mean, std = 0.0, 0.5
        elif name.endswith("bias"):
            mean, std = 0.0, 0.1
        elif tensor.ndim == 1:  # the scale of a norm
            mean, std = 1.0, 0.2
        else:
            mean, std = 0.0, tensor[0].numel() ** -0.5
        value = mean + std * random.randn(*tensor.shape)
        value = (np.floor(value * 512) + 0.5) / 512
        state[name] = torch.from_numpy(value.astype(np.float32))
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def weights(model):
    """The state dict as a dict of arrays with keys `w/<torch key>`."""
    return {f"w/{name}": tensor.numpy() for name, tensor in model.state_dict().items()}


def stand_in(x, timestep, coefficients=STAND_IN):
    """A formula in place of a network: x [B C H W], timestep [B] -> noise and variance [B 2C H W].

    `timestep` is on the original scale of 1000 steps, also for a respaced schedule.
    """
    a, b, c, d = coefficients
    t = timestep.float().view(-1, 1, 1, 1)
    return torch.cat([a * x + b * torch.sin(t / 100), c * x - d * t / 1000], dim=1)


def velocity(x, timestep):
    """A formula in place of a flow network: x [...], timestep = 1000 sigma -> velocity [...]."""
    a, b = VELOCITY
    return a * x + b * timestep / 1000


@contextlib.contextmanager
def torchvision_optional():
    """Mock torchvision where it is missing; timm imports it, but no layer used here calls it."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    names = [
        "torchvision" + suffix
        for suffix in (
            "",
            ".datasets",
            ".models",
            ".models.feature_extraction",
            ".ops",
            ".ops.misc",
            ".transforms",
            ".transforms.functional",
        )
    ]
    sys.modules.update({name: mock.MagicMock(name=name) for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


@contextlib.contextmanager
def injected_noise(noise):
    """Make `torch.randn_like` return noise[0], noise[1], …; fail if some of it is left unused."""
    remaining = list(torch.from_numpy(noise))
    with mock.patch.object(torch, "randn_like", lambda x: remaining.pop(0)):
        yield
    if remaining:
        raise RuntimeError(f"{len(remaining)} noise arrays were not used")


def make_dit(dit_models):
    """Arrays of dit.npz, from the DiT class."""
    model = randomize(dit_models.DiT(**DIT_CONFIG), seed=1)
    random = np.random.RandomState(2)
    x = normal(random, 3, 4, 8, 8)
    t = np.array([0, 37, 999])
    y = np.array([3, 10, 7])
    half = normal(random, 2, 4, 8, 8)
    cfg_x = np.concatenate([half, half])
    cfg_t = np.array([500, 20, 500, 20])
    cfg_y = np.array([1, 8, 10, 10])
    cfg_scale = 1.5

    inputs = [torch.from_numpy(array) for array in (x, t, y)]
    cfg_inputs = [torch.from_numpy(array) for array in (cfg_x, cfg_t, cfg_y)]
    return weights(model) | {
        "config": np.array(json.dumps(DIT_CONFIG, sort_keys=True)),
        "x": x,
        "t": t,
        "y": y,
        "t_sinusoid": model.t_embedder.timestep_embedding(inputs[1], 256).numpy(),
        "out": model(*inputs).numpy(),
        "cfg_x": cfg_x,
        "cfg_t": cfg_t,
        "cfg_y": cfg_y,
        "cfg_scale": np.array(cfg_scale, np.float32),
        "cfg_out": model.forward_with_cfg(*cfg_inputs, cfg_scale).numpy(),
    }


def sampling(loop, progressive_loop, x_start, noise, **options):
    """Run both forms of a sampling loop on `stand_in` -> samples, predicted x0 [S B C H W]."""
    start = torch.from_numpy(x_start)
    options = {"noise": start, "clip_denoised": False, "device": "cpu"} | options
    with injected_noise(noise):
        steps = list(progressive_loop(stand_in, start.shape, **options))
    with injected_noise(noise):
        final = loop(stand_in, start.shape, **options)
    samples = np.stack([step["sample"].numpy() for step in steps])
    np.testing.assert_array_equal(final.numpy(), samples[-1])
    return samples, np.stack([step["pred_xstart"].numpy() for step in steps])


def make_gaussian(create_diffusion):
    """Arrays of gaussian.npz, from DiT's diffusion package."""
    full = create_diffusion("")
    arrays = {
        "betas": full.betas,
        "alphas_cumprod": full.alphas_cumprod,
        "posterior_log_variance_clipped": full.posterior_log_variance_clipped,
    }
    spaced = {name: create_diffusion(name) for name in ("250", "50", "25", "10", "ddim50")}
    for name, diffusion in spaced.items():
        arrays[f"timesteps_{name}"] = np.array(diffusion.timestep_map)
        arrays[f"betas_{name}"] = diffusion.betas

    random = np.random.RandomState(3)
    x0 = random.uniform(-1, 1, (6, *LATENT_SHAPE[1:])).astype(np.float32)
    # The likelihood at t = 0 has special cases at both ends of the range.
    x0[:, 0, 0, 0], x0[:, 1, 0, 0] = -1, 1
    noise = normal(random, *x0.shape)
    t = np.array([0, 1, 500, 999, 0, 250])
    tensors = {"x_start": torch.from_numpy(x0), "t": torch.from_numpy(t)}
    tensors["noise"] = torch.from_numpy(noise)
    coefficients = torch.tensor(STAND_IN, requires_grad=True)
    losses = full.training_losses(lambda x, ts: stand_in(x, ts, coefficients), **tensors)
    losses["loss"].mean().backward()
    arrays |= {
        "train_x0": x0,
        "train_noise": noise,
        "train_t": t,
        "train_xt": full.q_sample(**tensors).numpy(),
        "train_loss_grad": coefficients.grad.numpy(),
    }
    for name in ("mse", "vb", "loss"):
        arrays[f"train_{name}"] = losses[name].detach().numpy()

    x_start = normal(random, *LATENT_SHAPE)
    noise_10 = normal(random, 10, *LATENT_SHAPE)
    noise_250 = normal(np.random.RandomState(SEED_250), 250, *LATENT_SHAPE)
    unused = np.zeros((50, *LATENT_SHAPE), np.float32)

    def run(name, kind, noise, **options):
        diffusion = spaced[name]
        loop = getattr(diffusion, f"{kind}_sample_loop")
        progressive_loop = getattr(diffusion, f"{kind}_sample_loop_progressive")
        return sampling(loop, progressive_loop, x_start, noise, **options)

    arrays |= {"sample_start": x_start, "sample_noise_10": noise_10}
    arrays["p_10"], arrays["p_10_x0"] = run("10", "p", noise_10)
    arrays["p_250"] = run("250", "p", noise_250)[0][-1]
    arrays["ddim50_eta0"] = run("ddim50", "ddim", unused, eta=0.0)[0]
    arrays["ddim_10_eta1"] = run("10", "ddim", noise_10, eta=1.0)[0]
    return arrays


def make_sd3(config, seed, wide):
    """Arrays of sd3.npz or sd35.npz, from diffusers; `wide` adds an input that is not square."""
    model = randomize(SD3Transformer2DModel(**config), seed)
    random = np.random.RandomState(seed + 1)
    arrays = {
        "hidden_states": normal(random, 2, config["in_channels"], 8, 8),
        "encoder_hidden_states": normal(random, 2, 5, config["joint_attention_dim"]),
        "pooled_projections": normal(random, 2, config["pooled_projection_dim"]),
        "timestep": 1000 * np.array([0.75, 0.008929], np.float32),
    }
    if wide:
        arrays["hidden_states_wide"] = normal(random, 2, config["in_channels"], 8, 12)

    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    wide_states = inputs.pop("hidden_states_wide", None)
    arrays["t_sinusoid"] = model.time_text_embed.time_proj(inputs["timestep"]).numpy()
    arrays["out"] = model(**inputs).sample.numpy()
    if wide:
        inputs["hidden_states"] = wide_states
        arrays["out_wide"] = model(**inputs).sample.numpy()
    full_config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    arrays["config"] = np.array(json.dumps(full_config, sort_keys=True))
    return weights(model) | arrays


def make_flow():
    """Arrays of flow.npz, from diffusers' Euler scheduler."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, num_train_timesteps=1000)
    arrays = {
        "train_timesteps": scheduler.timesteps.numpy(),
        "train_sigmas": scheduler.sigmas.numpy(),
    }
    for steps in (28, 10):  # 10 last: the trajectory below uses this schedule
        scheduler.set_timesteps(steps)
        arrays[f"timesteps_{steps}"] = scheduler.timesteps.numpy()
        arrays[f"sigmas_{steps}"] = scheduler.sigmas.numpy()

    x_start = normal(np.random.RandomState(8), *LATENT_SHAPE)
    x = torch.from_numpy(x_start)
    samples = []
    for timestep in scheduler.timesteps:
        x = scheduler.step(velocity(x, timestep), timestep, x).prev_sample
        samples.append(x.numpy())
    return arrays | {"euler_start": x_start, "euler_10": np.stack(samples)}


def main():
    parser = argparse.ArgumentParser(description="Regenerate the golden files.")
    parser.add_argument("--dit", required=True, help="a clone of facebookresearch/DiT")
    parser.add_argument(
        "--out", default=pathlib.Path(__file__).parent, type=pathlib.Path, help="output folder"
    )
    args = parser.parse_args()
    if not (pathlib.Path(args.dit) / "diffusion").is_dir():
        parser.error(f"--dit={args.dit} has no folder `diffusion`: give a clone of DiT")

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    sys.path.insert(0, args.dit)
    with torchvision_optional():
        dit_models = importlib.import_module("models")
    create_diffusion = importlib.import_module("diffusion").create_diffusion

    args.out.mkdir(parents=True, exist_ok=True)
    files = {
        "dit": make_dit(dit_models),
        "gaussian": make_gaussian(create_diffusion),
        "sd3": make_sd3(SD3_CONFIG, seed=4, wide=True),
        "sd35": make_sd3(SD35_CONFIG, seed=6, wide=False),
        "flow": make_flow(),
    }
    for name, arrays in files.items():
        for key, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise RuntimeError(f"{name}.npz: {key} is not finite")
        path = args.out / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {path.stat().st_size} bytes, {len(arrays)} arrays")


if __name__ == "__main__":
    main()
