"""Write tp_jax/diffusion/accuracy.md: the error of each sampler, ours and that of diffusers.

    PYTHONPATH=tests python tests/sampler_table.py

Needs torch and diffusers. The data are the mixture of Gaussians of mixture.py, for which the best
prediction is known, so that all of the error is the sampler's.
"""

import pathlib
import warnings

import mixture
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)

from tp_jax.diffusion.gaussian import respaced_timesteps

FOLDER = pathlib.Path(__file__).parents[1] / "tp_jax" / "diffusion"
STEPS = (5, 10, 20, 40, 80, 160)
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
NUM, NUM_NOISY = 512, 50_000


def flow_prediction(x, sigma):
    return (x - mixture.best_data(x, 1 - sigma, sigma)) / sigma


def noise_prediction(x, alphas_cumprod):
    alpha, sigma = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
    return (x - alpha * mixture.best_data(x, alpha, sigma)) / sigma


def use_our_sigmas(scheduler, steps):
    """Give a solver the noise levels that we sample flows with."""
    scheduler.set_timesteps(steps)
    sigmas = mixture.OBJECTIVES["flow"].schedule(steps)
    scheduler.sigmas = torch.from_numpy(sigmas)
    scheduler.timesteps = torch.from_numpy(1000 * sigmas[:-1])
    return scheduler


def flow_scheduler(sampler, steps, eta):
    if sampler == "euler" and not eta:
        return use_our_sigmas(FlowMatchEulerDiscreteScheduler(shift=1.0), steps)
    if sampler == "heun":
        # Two of its steps are one of ours; its own noise levels differ a little.
        scheduler = FlowMatchHeunDiscreteScheduler(shift=1.0)
        scheduler.set_timesteps(steps)
        return scheduler
    order = {"algorithm_type": "sde-dpmsolver++", "solver_order": 1} if eta else {}
    return use_our_sigmas(
        DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, **order
        ),
        steps,
    )


def gaussian_scheduler(sampler, steps):
    timesteps = respaced_timesteps(1000, steps, "even")[::-1].tolist()
    if sampler == "ddim":
        scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True)
        scheduler.set_timesteps(steps)
        # It finds the next timestep by subtraction, so that it needs evenly spaced ones.
        return scheduler
    scheduler = DPMSolverMultistepScheduler(**BETAS, final_sigmas_type="zero")
    scheduler.set_timesteps(timesteps=timesteps)
    return scheduler


def theirs(kind, sampler, steps, start, eta=0.0):
    """The ends [N, D] of a scheduler of diffusers from noise [N, D]."""
    torch.manual_seed(0)
    table = mixture.OBJECTIVES["gaussian"].tables().alphas_cumprod
    scheduler = flow_scheduler(sampler, steps, eta) if kind == "flow" else None
    scheduler = scheduler or gaussian_scheduler(sampler, steps)
    options = {"eta": eta} if sampler == "ddim" else {}
    x = torch.from_numpy(start)
    for timestep in scheduler.timesteps:
        t = float(timestep)
        found = x.numpy()
        output = (
            flow_prediction(found, t / 1000)
            if kind == "flow"
            else noise_prediction(found, table[int(t)])
        )
        x = scheduler.step(torch.from_numpy(output), timestep, x, **options).prev_sample
    return x.numpy()


def rows():
    """Each row: objective, sampler, η, predictions per step, errors of ours and of theirs."""
    start = np.random.default_rng(0).normal(size=(NUM, 2))
    for kind, sampler, predictions in (
        ("flow", "euler", 1), ("flow", "heun", 2), ("flow", "dpmpp_2m", 1),
        ("gaussian", "ddim", 1), ("gaussian", "dpmpp_2m", 1),
    ):  # fmt: skip
        exact = mixture.exact(kind, start)
        both = [
            [mixture.error_of_ends(draw(kind, sampler, steps, start), exact) for steps in STEPS]
            for draw in (mixture.ours, theirs)
        ]
        yield kind, sampler, 0.0, predictions, *both
    start = np.random.default_rng(1).normal(size=(NUM_NOISY, 2))
    for kind, sampler in (("flow", "euler"), ("gaussian", "ddim")):
        both = [
            [mixture.error_of_covariance(draw(kind, sampler, steps, start, 1.0)) for steps in STEPS]
            for draw in (mixture.ours, theirs)
        ]
        yield kind, sampler, 1.0, 1, *both


def line(kind, sampler, eta, predictions, whose, errors):
    name = f"`{sampler}`" + (f", η = {eta:g}" if eta else "")
    values = " | ".join(f"{error:.2g}" for error in errors)
    return f"| {kind} | {name} | {predictions} | {whose} | {values} |"


def main():
    warnings.simplefilter("ignore")
    head = " | ".join(map(str, STEPS))
    table = ["| objective | sampler | predictions per step | | " + f"{head} |", "|---" * 10 + "|"]
    for kind, sampler, eta, predictions, *both in rows():
        for whose, errors in zip(("tp_jax", "diffusers"), both, strict=True):
            table.append(line(kind, sampler, eta, predictions, whose, errors))
    (FOLDER / "accuracy.md").write_text(INTRODUCTION + "\n".join(table) + "\n")
    print("\n".join(table))


INTRODUCTION = """# Error of the samplers

Written by `PYTHONPATH=tests python tests/sampler_table.py`. The data are a mixture of three
Gaussians in the plane, and the model predicts perfectly, so that all of the error is the sampler's.
The columns are numbers of sampler steps. Without noise (η = 0) the error is the root mean square
distance to the end of the exact flow from the same noise; the standard deviation of the data is
about 0.8. With noise it is the relative error of the covariance of 50,000 samples, of which about
0.01 is chance. `ddim` of diffusers has timesteps of its own; all others have the same noise levels.

"""

if __name__ == "__main__":
    main()
