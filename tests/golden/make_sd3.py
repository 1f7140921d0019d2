"""Write sd3_original.npz and sd3_text.npz next to this script, from diffusers and transformers.

    python make_sd3.py

Needs torch, diffusers and transformers in the versions that README.md lists. The tests only read
the files.
"""

import argparse
import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from make import SD35_CONFIG, normal
from seeded import seeded_weights
from tiny_text import PROMPTS, T5_WIDTH, write_repository

T5_TOKENS = 12


def original_shapes(config):
    """Shapes of a state dict with the original key names, without its position table."""
    head = config["attention_head_dim"]
    width = head * config["num_attention_heads"]
    outputs = config["patch_size"] ** 2 * config["out_channels"]
    shapes = {"x_embedder.proj.weight": (width, config["in_channels"], 2, 2)}
    shapes["x_embedder.proj.bias"] = (width,)

    def linear(key, inputs, outputs):
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = (outputs, inputs), (outputs,)

    for name, inputs in (("t", 256), ("y", config["pooled_projection_dim"])):
        linear(f"{name}_embedder.mlp.0", inputs, width)
        linear(f"{name}_embedder.mlp.2", width, width)
    linear("context_embedder", config["joint_attention_dim"], width)
    for layer in range(config["num_layers"]):
        last = layer == config["num_layers"] - 1
        dual = layer in config["dual_attention_layers"]
        for side in ("x", "context"):
            at = f"joint_blocks.{layer}.{side}_block."
            ends = last and side == "context"
            chunks = 2 if ends else 9 if dual and side == "x" else 6
            linear(at + "adaLN_modulation.1", width, chunks * width)
            for attention in ("attn", "attn2") if dual and side == "x" else ("attn",):
                linear(f"{at}{attention}.qkv", width, 3 * width)
                shapes[f"{at}{attention}.ln_q.weight"] = (head,)
                shapes[f"{at}{attention}.ln_k.weight"] = (head,)
                if not ends:
                    linear(f"{at}{attention}.proj", width, width)
            if not ends:
                linear(at + "mlp.fc1", width, 4 * width)
                linear(at + "mlp.fc2", 4 * width, width)
    linear("final_layer.linear", width, outputs)
    linear("final_layer.adaLN_modulation.1", width, 2 * width)
    return shapes


def make_original(seed):
    """Arrays of sd3_original.npz, from weights in the original layout that diffusers converts."""
    model, shapes = SD3Transformer2DModel(**SD35_CONFIG), original_shapes(SD35_CONFIG)
    state = {key: torch.from_numpy(a) for key, a in seeded_weights(shapes, seed).items()}
    state["pos_embed"] = model.state_dict()["pos_embed.pos_embed"]
    model.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(state))
    model.eval().requires_grad_(False)
    random = np.random.RandomState(seed + 1)
    arrays = {
        "hidden_states": normal(random, 2, SD35_CONFIG["in_channels"], 8, 8),
        "encoder_hidden_states": normal(random, 2, 5, SD35_CONFIG["joint_attention_dim"]),
        "pooled_projections": normal(random, 2, SD35_CONFIG["pooled_projection_dim"]),
        "timestep": 1000 * np.array([0.75, 0.008929], np.float32),
    }
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return arrays | {
        "shapes": np.array(json.dumps(shapes)),
        "seed": np.array(seed),
        "gain": np.array(1.0),
        "out": model(**inputs).sample.numpy(),
    }


def make_text():
    """Arrays of sd3_text.npz, from diffusers' pipeline for encoding prompts."""
    arrays = {"prompts": np.array(json.dumps(PROMPTS))}
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        write_repository(folder, seeded_weights)
        clip, t5 = transformers.CLIPTextModelWithProjection, transformers.T5EncoderModel
        load = transformers.AutoTokenizer.from_pretrained
        pipeline = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(**SD35_CONFIG | {"joint_attention_dim": T5_WIDTH}),
            scheduler=None,
            vae=None,
            text_encoder=clip.from_pretrained(folder / "text_encoder").eval(),
            tokenizer=load(folder / "tokenizer"),
            text_encoder_2=clip.from_pretrained(folder / "text_encoder_2").eval(),
            tokenizer_2=load(folder / "tokenizer_2"),
            text_encoder_3=t5.from_pretrained(folder / "text_encoder_3").eval(),
            tokenizer_3=load(folder / "tokenizer_3"),
        )
    prompts = list(PROMPTS)
    for name in ("", "_without_t5"):
        if name:
            pipeline.text_encoder_3 = None
        text, _, pooled, _ = pipeline.encode_prompt(
            prompts,
            prompts,
            prompts,
            device="cpu",
            do_classifier_free_guidance=False,
            max_sequence_length=T5_TOKENS,
        )
        arrays |= {f"text{name}": text.detach().numpy(), f"pooled{name}": pooled.detach().numpy()}
    return arrays


def main():
    parser = argparse.ArgumentParser(description="Regenerate the golden files.")
    parser.add_argument("--out", default=pathlib.Path(__file__).parent, type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name, arrays in {"sd3_original": make_original(70), "sd3_text": make_text()}.items():
        path = args.out / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {path.stat().st_size} bytes, {len(arrays)} arrays")


if __name__ == "__main__":
    main()
