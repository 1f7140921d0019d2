"""What a variant costs: parameters, and analytic FLOPs of training and sampling.

Also the ranks and sampler steps at which two variants cost the same.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.diffusion import SamplerConfig
from tp_jax.models import TransformerConfig
from tp_jax.thinking.parameter_count import count_layer_parameters


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one run of a variant costs.

    Attributes:
      parameters: number of parameters of the model.
      trained_parameters: number of those that are trained.
      thinking_parameters: number of those in thinking layers.
      train_flops: FLOPs of all train steps, forward and backward.
      sample_flops: FLOPs of generating one sample, with guidance if it is used. Every latent step
        of every token is counted, also where halting stops some.
    """

    parameters: int
    trained_parameters: int
    thinking_parameters: int
    train_flops: float
    sample_flops: float


def cost_of(config: ConfigDict, flags: Mapping[str, Any]) -> Cost:
    """Return the cost of training with a config, and of sampling with these flags.

    Args:
      config: a whole config that `config.build` accepts.
      flags: sampling flags, of which `latent_steps` and `sampler_steps` change the cost.
    """
    # These import jax.
    from tp_jax.diffusion.samplers import SAMPLERS
    from tp_jax.models import build_model
    from tp_jax.models.flops import train_step_flops
    from tp_jax.models.parameters import abstract_params

    model, fields = config_lib.model_config(config), config.train
    sampler = SamplerConfig(**config.sampling.to_dict())
    parts = {
        name: sum(leaf.size for leaf in _leaves(part))
        for name, part in abstract_params(build_model(model)).items()
    }
    thinking = parts.get("thinking", 0)
    latent_steps = flags.get("latent_steps", model.thinking.latent_steps)
    sampled = _with_thinking(model, latent_steps=latent_steps)
    predictions = flags.get("sampler_steps", sampler.steps)
    predictions *= SAMPLERS[sampler.sampler].predictions_per_step
    predictions *= 1 + (sampler.guidance_scale != 1)
    return Cost(
        parameters=sum(parts.values()),
        trained_parameters=thinking if fields.trainable == "thinking" else sum(parts.values()),
        thinking_parameters=thinking,
        train_flops=fields.steps
        * train_step_flops(
            model,
            fields.batch_size,
            fields.trainable,
            deep_supervision=fields.deep_supervision > 0,
        ),
        sample_flops=predictions * _prediction_flops(sampled),
    )


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


def random_rank_of_equal_parameters(model: TransformerConfig) -> int:
    """Return the rank at which random experts have as many parameters as with the learned gate."""
    width, thinking = model.width, model.thinking
    learned = dataclasses.replace(thinking, gate="learned")
    without = dataclasses.replace(thinking, gate="random")
    gate = count_layer_parameters(width, learned) - count_layer_parameters(width, without)
    return thinking.rank + max(round(gate / (6 * width * thinking.experts)), 0)


def lora_rank_of_equal_flops(model: TransformerConfig) -> int:
    """Return the rank at which plain LoRA makes one prediction as expensive as the thinking model.

    A LoRA has 12·D FLOPs per token and rank. Recursion also repeats attention, which a LoRA
    doesn't, so the rank is larger than T·r.
    """
    thinking = model.thinking
    lora = _with_thinking(model, experts=1, latent_steps=1, gate="first", rank=1)
    missing = _prediction_flops(model) - _prediction_flops(lora)
    per_rank = len(thinking.layers) * 12 * model.width * model.tokens
    return max(1 + round(missing / per_rank), 1)


def sampler_steps_of_equal_flops(model: TransformerConfig, steps: int) -> int:
    """Return how many sampler steps the model without thinking takes for as many FLOPs.

    Args:
      model: the model with thinking. If latent steps are decoded to frames, the model without
        thinking has one latent step.
      steps: number of sampler steps of the model with thinking.
    """
    frames = model.condition_kind == "frame"
    plain = _with_thinking(model, latent_steps=1) if frames else _with_thinking(model, layers=())
    return round(steps * _prediction_flops(model) / _prediction_flops(plain))


def _with_thinking(model: TransformerConfig, **fields: Any) -> TransformerConfig:
    """Return a model with other fields of thinking, for one number of latent steps."""
    thinking = dataclasses.replace(model.thinking, latent_steps_range=(), **fields)
    return dataclasses.replace(model, thinking=thinking)


def _prediction_flops(model: TransformerConfig) -> float:
    """Return the FLOPs of one prediction of one sample, with the frames of all latent steps."""
    from tp_jax.models.flops import decoding_flops, forward_flops  # It imports jax.

    decoding = sum(decoding_flops(model)) if model.condition_kind == "frame" else 0.0
    return forward_flops(model) + decoding
