"""Write evals.json, resize_tf1.npz and resize_torch.npz next to this script.

    python make_evals.py --guided_diffusion=PATH_TO_A_CLONE_OF_openai/guided-diffusion
    python make_evals.py --torch

The first command needs tensorflow, scipy, requests and tqdm, the second torch, in the versions that
README.md lists. The evaluator is imported unchanged; features and class weights from formulas
replace its network.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from feature_formula import SIZES, class_weights, features, image  # noqa: E402

# name -> (rows, factor). Multiplied by 64, squared norms overflow float16.
CASES = {"2000": (2000, 1), "2000_overflow": (2000, 64), "10000": (10_000, 1)}
SEEDS, SHIFT = (1, 2), 0.3  # seeds of reference and sample; shift of the sample
SIDE, STRIDE = 299, 13  # side of the resized image; every 13th row and column is stored


def make_evaluator(path):
    """The evaluator without its network, and with the class weights of the formula."""
    sys.path.insert(0, str(path))
    import evaluator
    import tensorflow.compat.v1 as tf

    evaluator._create_feature_graph = lambda images: (images, images)
    evaluator._create_softmax_graph = lambda x: tf.nn.softmax(tf.matmul(x, class_weights()))
    with tf.Graph().as_default():
        return evaluator.Evaluator(tf.Session())


def scores(evaluator, rows, factor):
    """The scores of one case; for the overflow case only those that depend on distances."""
    reference = factor * features(SEEDS[0], rows)
    sample = factor * features(SEEDS[1], rows, SHIFT)
    precision, recall = evaluator.compute_prec_recall(reference, sample)
    found = {"precision": precision, "recall": recall}
    if factor == 1:
        statistics = [evaluator.compute_statistics(x) for x in (sample, reference)]
        found["fid"] = float(statistics[0].frechet_distance(statistics[1]))
        found["inception_score"] = evaluator.compute_inception_score(sample)
        found["inception_score_split_600"] = evaluator.compute_inception_score(sample, 600)
    return found


def distances_to_origin(evaluator):
    """Squared distances of 16 rows to zero: they show the order in which float16 is summed."""
    block = evaluator.manifold_estimator.distance_block
    rows = features(SEEDS[0], 16)
    return block.pairwise_distances(rows, np.zeros_like(rows[:1]))[:, 0].tolist()


def tf1_resize(images):
    """Resize float images [B H W C] in [0, 255] by ResizeBilinear, as TensorFlow 1 graphs do."""
    import tensorflow as tf

    return tf.raw_ops.ResizeBilinear(
        images=images, size=[SIDE, SIDE], align_corners=False, half_pixel_centers=False
    ).numpy()


def torch_resize(images):
    """Resize with half-pixel centres, as pytorch-fid does."""
    import torch

    resized = torch.nn.functional.interpolate(
        torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        size=(SIDE, SIDE),
        mode="bilinear",
        align_corners=False,
    )
    return resized.numpy().transpose(0, 2, 3, 1)


def write_resized(path, resize):
    """Store every 13th row and column of each resized image: key HxW, [23, 23, 3] float32."""
    resized = {
        f"{height}x{width}": resize(image(height, width)[None].astype(np.float32))[0]
        for height, width in SIZES
    }
    np.savez_compressed(path, **{k: v[::STRIDE, ::STRIDE] for k, v in resized.items()})
    print(f"{path.name}: {path.stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description="Regenerate the golden scores.")
    parser.add_argument(
        "--guided_diffusion", type=pathlib.Path, help="a clone of openai/guided-diffusion"
    )
    parser.add_argument("--torch", action="store_true", help="write only resize_torch.npz")
    parser.add_argument("--out", default=HERE, type=pathlib.Path, help="output folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.torch:
        write_resized(args.out / "resize_torch.npz", torch_resize)
        return
    folder = (args.guided_diffusion or pathlib.Path()) / "evaluations"
    if not (folder / "evaluator.py").is_file():
        parser.error(f"{folder} has no evaluator.py: give a clone of guided-diffusion")
    write_resized(args.out / "resize_tf1.npz", tf1_resize)
    evaluator = make_evaluator(folder)
    found = {"distances_to_origin": distances_to_origin(evaluator)}
    for name, (rows, factor) in CASES.items():
        found[name] = scores(evaluator, rows, factor)
        if not np.isfinite(list(found[name].values())).all():
            raise RuntimeError(f"{name}: {found[name]} is not finite")
        print(name, found[name], flush=True)
    (args.out / "evals.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
