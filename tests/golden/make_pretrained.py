"""Write the golden files for the readers of published weights next to this script.

    python make_pretrained.py --dit=… --sd=… --fid=…

The flags name clones of facebookresearch/DiT, CompVis/stable-diffusion and mseitzer/pytorch-fid.
Needs torch, torchvision, diffusers, timm and einops in the versions that README.md lists. The files
hold no weights: this script and the tests generate them from a seed by `seeded.py`.
"""

import argparse
import functools
import importlib
import json
import math
import pathlib
import sys
from unittest import mock

import numpy as np
import torch
from diffusers import AutoencoderKL
from seeded import seeded_images, seeded_weights
from torch import nn

DIT_CONFIG = {
    "depth": 12,
    "hidden_size": 384,
    "num_heads": 6,
    "patch_size": 2,
    "input_size": 32,
    "in_channels": 4,
    "num_classes": 1000,
}
VAE_4 = {"latent_channels": 4, "block_out_channels": [32, 64, 64], "layers_per_block": 1}
VAE_16 = {"latent_channels": 16, "block_out_channels": [32, 32, 64], "layers_per_block": 2}
VAE_REAL = {
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
ORIGINAL = {"ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "z_channels": 4}


def fill(model, seed, gain=1.0):
    """Overwrite every weight but the position tables by `seeded_weights`; set evaluation mode.

    Returns:
      The model, and the arrays from which the tests generate the same weights.
    """
    shapes = {
        key: tuple(tensor.shape)
        for key, tensor in model.state_dict().items()
        if key.split(".")[-1] != "pos_embed"
    }
    weights = seeded_weights(shapes, seed, gain)
    state = {key: torch.from_numpy(array) for key, array in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any(not key.endswith("pos_embed") for key in missing):
        raise RuntimeError(f"weights don't fit: missing {missing}, unexpected {unexpected}")
    return model.eval().requires_grad_(False), {
        "shapes": np.array(json.dumps(shapes)),
        "seed": np.array(seed),
        "gain": np.array(gain),
    }


def normal(seed, *shape):
    """Sample a standard normal float32 array from a seed."""
    return np.random.RandomState(seed).randn(*shape).astype(np.float32)


def make_dit(dit_models):
    """Arrays of dit_s2.npz, from a DiT-S/2 of the published size."""
    model, arrays = fill(dit_models.DiT(**DIT_CONFIG), seed=20)
    t, y = np.array([37]), np.array([1000])
    x = torch.from_numpy(normal(21, 1, 4, 32, 32))
    out = model(x, torch.from_numpy(t), torch.from_numpy(y)).numpy()
    config = np.array(json.dumps(DIT_CONFIG, sort_keys=True))
    return arrays | {"config": config, "x_seed": np.array(21), "t": t, "y": y, "out": out}


def make_vae(config, seed, image, latents, tile=0, **options):
    """Arrays of a diffusers AutoencoderKL; `tile` adds an image that is coded in tiles."""
    levels = len(config["block_out_channels"])
    model, arrays = fill(
        AutoencoderKL(
            **config,
            **options,
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            sample_size=tile or 32,  # the side of a tile in diffusers
        ),
        seed,
    )
    z = normal(seed + 1, *latents)
    arrays |= {"config": np.array(json.dumps(config | options)), "x": image, "z": z}
    posterior = model.encode(torch.from_numpy(image)).latent_dist
    arrays |= {"mean": posterior.mean.numpy(), "std": posterior.std.numpy()}
    arrays["decoded"] = model.decode(torch.from_numpy(z)).sample.numpy()
    if tile:
        model.enable_tiling()
        wide = seeded_images(seed + 2, 1, 56, 8)[..., :40]
        z_wide = normal(seed + 3, 1, z.shape[1], 14, 10)
        posterior = model.encode(torch.from_numpy(wide)).latent_dist
        arrays |= {"tile": np.array(tile), "x_tiled": wide, "z_tiled": z_wide}
        arrays |= {"mean_tiled": posterior.mean.numpy(), "std_tiled": posterior.std.numpy()}
        arrays["decoded_tiled"] = model.decode(torch.from_numpy(z_wide)).sample.numpy()
    return arrays


def make_original_vae(ldm):
    """Arrays of vae_original.npz, from CompVis' encoder and decoder with the original key names."""
    options = ORIGINAL | dict(
        in_channels=3, out_ch=3, resolution=16, attn_resolutions=[], double_z=True
    )
    channels = ORIGINAL["z_channels"]
    parts = {
        "encoder": ldm.Encoder(**options),
        "decoder": ldm.Decoder(**options),
        "quant_conv": nn.Conv2d(2 * channels, 2 * channels, 1),
        "post_quant_conv": nn.Conv2d(channels, channels, 1),
    }
    model, arrays = fill(nn.ModuleDict(parts), seed=50)
    x, z = seeded_images(51, 1, 16, 4), normal(52, 1, channels, 4, 4)
    moments = model["quant_conv"](model["encoder"](torch.from_numpy(x)))
    mean, log_variance = moments.chunk(2, dim=1)
    decoded = model["decoder"](model["post_quant_conv"](torch.from_numpy(z)))
    return arrays | {
        "config": np.array(json.dumps(ORIGINAL)),
        "x": x,
        "z": z,
        "mean": mean.numpy(),
        "std": (log_variance / 2).exp().numpy(),
        "decoded": decoded.numpy(),
    }


def make_inception(fid):
    """Arrays of inception.npz, from pytorch-fid's network of the published size."""
    with mock.patch.object(fid, "load_state_dict_from_url", lambda *_, **__: {}):
        load = mock.patch.object(nn.Module, "load_state_dict")
        with load:
            network = fid.fid_inception_v3()
    network, arrays = fill(network, seed=60, gain=math.sqrt(2))
    spatial = {}
    network.Mixed_6d.branch1x1.register_forward_hook(
        lambda module, inputs, output: spatial.update(out=output)
    )
    with mock.patch.object(fid, "fid_inception_v3", lambda: network):
        features = fid.InceptionV3(resize_input=False, normalize_input=False)
    x = torch.from_numpy(seeded_images(61, 2, 299, 23))
    pool = features(x)[0][:, :, 0, 0]
    first = spatial["out"][:, :7].permute(0, 2, 3, 1)
    return arrays | {
        "x_seed": np.array(61),
        "pool": pool.numpy(),
        "spatial": first.reshape(len(first), -1).numpy(),
        "logits": (pool @ network.fc.weight.T).numpy(),
    }


def main():
    parser = argparse.ArgumentParser(description="Regenerate the golden files.")
    for name in ("dit", "sd", "fid"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path, help="a clone")
    parser.add_argument("--out", default=pathlib.Path(__file__).parent, type=pathlib.Path)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    sys.path[:0] = [str(args.dit), str(args.sd), str(args.fid / "src")]
    dit_models = importlib.import_module("models")
    ldm = importlib.import_module("ldm.modules.diffusionmodules.model")
    fid = importlib.import_module("pytorch_fid.inception")

    image = functools.partial(seeded_images, batch=1, block=4)
    files = {
        "dit_s2": make_dit(dit_models),
        "vae4": make_vae(VAE_4, 30, image(31, side=16), (1, 4, 4, 6), tile=32),
        "vae16": make_vae(
            VAE_16,
            40,
            image(41, side=16),
            (1, 16, 4, 6),
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "vae_real": make_vae(VAE_REAL, 45, image(46, side=32), (1, 4, 4, 4)),
        "vae_original": make_original_vae(ldm),
        "inception": make_inception(fid),
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
