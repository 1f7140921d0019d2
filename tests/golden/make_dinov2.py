"""Write dinov2.npz next to this script, from the class of facebookresearch/dinov2.

    python make_dinov2.py --dinov2=PATH_TO_A_CLONE_OF_facebookresearch/dinov2

Needs torch in the version that README.md lists. The tests only read the file.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import torch
from PIL import Image
from seeded import seeded_weights

WIDTH, DEPTH, HEADS, PATCH, SIDE, SEED = 16, 2, 2, 14, 70, 31


def published_shapes():
    """Shapes of the weights under the names of facebook/dinov2-large's model.safetensors."""
    tokens = (SIDE // PATCH) ** 2
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.position_embeddings": (1, tokens + 1, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    for i in range(DEPTH):
        block = f"encoder.layer.{i}"
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}.{name}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
        for name in ("layer_scale1", "layer_scale2"):
            shapes[f"{block}.{name}.lambda1"] = (WIDTH,)
        for name, out, into in (
            ("attention.attention.query", WIDTH, WIDTH),
            ("attention.attention.key", WIDTH, WIDTH),
            ("attention.attention.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            shapes |= {f"{block}.{name}.weight": (out, into), f"{block}.{name}.bias": (out,)}
    return shapes


def official_state(weights):
    """The same weights under the names of facebookresearch/dinov2."""
    state = {}
    for key, array in weights.items():
        for old, new in (
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("embeddings.", ""),
            ("layernorm", "norm"),
            ("encoder.layer.", "blocks."),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
            ("attention.output.dense", "attn.proj"),
        ):
            key = key.replace(old, new)
        state[key] = array
    for i in range(DEPTH):
        for kind in ("weight", "bias"):
            parts = [
                state.pop(f"blocks.{i}.attention.attention.{name}.{kind}")
                for name in ("query", "key", "value")
            ]
            state[f"blocks.{i}.attn.qkv.{kind}"] = np.concatenate(parts)
    return {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in state.items()}


def pixels(image):
    """The preprocessing of layer6ai-labs/dgm-eval, without torchvision."""
    resized = torch.from_numpy(np.array(image.resize((224, 224), Image.Resampling.BICUBIC)))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((resized.float() / 255 - mean) / std).permute(2, 0, 1)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dinov2", required=True, help="a clone of facebookresearch/dinov2")
    sys.path.insert(0, parser.parse_args().dinov2)
    from dinov2.models.vision_transformer import DinoVisionTransformer

    torch.set_num_threads(1)
    shapes = published_shapes()
    model = DinoVisionTransformer(
        img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
        mlp_ratio=4, init_values=1.0, block_chunks=0, interpolate_offset=0.1,
        interpolate_antialias=False,
    )  # fmt: skip
    model.load_state_dict(official_state(seeded_weights(shapes, SEED)))
    images = np.random.RandomState(32).randint(0, 256, (3, 20, 20, 3), np.uint8)
    batch = torch.stack([pixels(Image.fromarray(image)) for image in images])
    path = pathlib.Path(__file__).parent / "dinov2.npz"
    config = dict(
        model_type="dinov2", architectures=["Dinov2Model"], hidden_size=WIDTH,
        num_hidden_layers=DEPTH, num_attention_heads=HEADS, mlp_ratio=4, image_size=SIDE,
        patch_size=PATCH, layerscale_value=1.0,
    )  # fmt: skip
    np.savez_compressed(
        path, images=images, features=model.eval()(batch).numpy(), seed=SEED,
        shapes=np.array(json.dumps(shapes)), config=np.array(json.dumps(config)),
    )  # fmt: skip
    print(f"wrote {path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
