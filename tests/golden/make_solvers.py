"""Write solvers.npz next to this script: trajectories of diffusers' DPM-Solver++.

    python make_solvers.py

Needs torch and diffusers in the versions that README.md lists. The tests only read the file.
Letters: B batch, C channels, H height, W width, S sampling steps.
"""

import argparse
import pathlib

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler

LATENT_SHAPE = (2, 2, 4, 4)  # B C H W
STEPS = (10, 20)
SHIFT = 3.0


def predict_noise(x, timestep):
    """A formula in place of a network: x [...], timestep in 0 … 999 -> noise [...]."""
    return x / (1 + 0.002 * x * x) + 0.001 * torch.sin(timestep.float() / 100)


def velocity(x, timestep):
    """A formula in place of a network: x [...], timestep = 1000 sigma -> velocity [...]."""
    t = timestep.float() / 1000
    return x * (1 + t) / (1 + x * x) + 0.1 * t


def run(scheduler, predict, start, noise=None):
    """Return every sample of a trajectory, [S B C H W]."""
    x, samples = torch.from_numpy(start), []
    for number, timestep in enumerate(scheduler.timesteps):
        given = {} if noise is None else {"variance_noise": torch.from_numpy(noise[number])}
        x = scheduler.step(predict(x, timestep), timestep, x, **given).prev_sample
        samples.append(x.numpy())
    return np.stack(samples)


def flow_sigmas(steps):
    """Return the sigmas of FlowMatchEulerDiscreteScheduler, with the final 0."""
    shifted = lambda sigma: SHIFT * sigma / (1 + (SHIFT - 1) * sigma)  # noqa: E731
    return np.append(shifted(np.linspace(1.0, shifted(1 / 1000), steps)), 0.0)


def flow_scheduler(steps, **options):
    """Return the solver with these sigmas, which it doesn't compute itself."""
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT, **options
    )
    scheduler.set_timesteps(steps)
    sigmas = flow_sigmas(steps)
    scheduler.sigmas = torch.from_numpy(sigmas.astype(np.float32))
    scheduler.timesteps = torch.from_numpy((1000 * sigmas[:-1]).astype(np.float32))
    return scheduler


def make_solvers():
    """Arrays of solvers.npz."""
    random = np.random.RandomState(11)
    start = random.randn(*LATENT_SHAPE).astype(np.float32)
    arrays = {"start": start}
    for steps in STEPS:
        # The timesteps of facebookresearch/DiT's respacing.
        timesteps = np.round(np.linspace(0, 999, steps)).astype(int)[::-1].copy()
        scheduler = DPMSolverMultistepScheduler(
            beta_start=1e-4, beta_end=0.02, beta_schedule="linear", final_sigmas_type="zero"
        )
        scheduler.set_timesteps(timesteps=timesteps.tolist())
        arrays[f"timesteps_{steps}"] = scheduler.timesteps.numpy()
        arrays[f"gaussian_{steps}"] = run(scheduler, predict_noise, start)
        arrays[f"flow_{steps}"] = run(flow_scheduler(steps), velocity, start)
    noise = random.randn(10, *LATENT_SHAPE).astype(np.float32)
    scheduler = flow_scheduler(10, algorithm_type="sde-dpmsolver++", solver_order=1)
    return arrays | {"noise": noise, "flow_sde_10": run(scheduler, velocity, start, noise)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = pathlib.Path(__file__).parent
    parser.add_argument("--out", default=folder, type=pathlib.Path, help="output folder")
    path = parser.parse_args().out / "solvers.npz"
    np.savez_compressed(path, **make_solvers())
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
