"""Train step, forward pass and sampling of a config on this machine's devices, as contenders.

They run the functions that `tp_jax.main` and `tp_jax.sample` run, with random weights and data.

B samples in the batch.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.data import abstract_batch
from tp_jax.models import build_model
from tp_jax.models.flops import forward_flops, train_step_flops
from tp_jax.models.parameters import Params, abstract_params, init_params
from tp_jax.parallel.mesh import check_batch_size, create_mesh
from tp_jax.parallel.randomness import stream_key
from tp_jax.parallel.sharding import batch_sharding, replicated, tree_shardings
from tp_jax.performance.measure import Contender, Timed
from tp_jax.performance.programs import predictions
from tp_jax.performance.traced_flops import traced_flops
from tp_jax.sampling.generator import Generator
from tp_jax.thinking.gate import GateRandomness
from tp_jax.thinking.layer import ThinkingOptions
from tp_jax.train.setup import Program, build, check_batches
from tp_jax.train.state import TrainState, make_state


@dataclasses.dataclass
class Training:
    """A train step with a state and a batch of random numbers.

    Attributes:
      program: the train step, and shapes and shardings of its state.
      state: the state before the next step.
      batch: the batch of every step, on the devices.
      call: runs one step and returns its metrics.
      facts: seconds of tracing and compiling, and bytes of memory.
    """

    program: Program
    state: TrainState
    batch: Any
    call: Callable[[], Any]
    facts: dict[str, Any]


def plain(config: ConfigDict) -> ConfigDict:
    """Return a config of the base model: without thinking, trained as a whole."""
    return changed(config, layers=(), trainable="all")


def changed(config: ConfigDict, trainable: str | None = None, **thinking: Any) -> ConfigDict:
    """Return a copy of a config with other fields of `config.model.thinking`.

    Args:
      config: the config.
      trainable: `config.train.trainable`; None keeps it.
      thinking: the fields.
    """
    copy = config.copy_and_resolve_references()
    copy.model.thinking.update(thinking)
    if trainable:
        copy.train.trainable = trainable
        # A base is required for training thinking alone. It isn't read: the weights are random.
        copy.init.base = "random" if trainable == "thinking" else ""
    return copy.lock()


def describe_model(config: ConfigDict) -> str:
    """Return what the time depends on, such as "dit 12×384, 256 tokens, float32, batch 8"."""
    model = config_lib.model_config(config)
    tokens = f"{model.tokens}{f' + {model.text.tokens}' if model.text else ''} tokens"
    extra = "" if model.remat == "dots" else f", remat {model.remat}"
    return (
        f"{config.model.kind} {model.depth}×{model.width}, {tokens}, {model.dtype}{extra}, "
        f"batch {config.train.batch_size}"
    )


def prepare_training(config: ConfigDict) -> Training:
    """Compile the train step of a config, and make its state and a batch.

    Raises:
      UserError: the config is wrong, or its batch doesn't divide over the devices.
    """
    built = config_lib.build(config)
    mesh = create_mesh(config.mesh)
    check_batches(config, mesh)
    model = build_model(built.model)
    program = build(config, model, built.objective, mesh)
    trainable, seed = config.train.trainable, config.seed

    def initial() -> TrainState:
        return make_state(init_params(model, seed), program.optimizer, trainable)

    shapes = abstract_batch(config, model)
    with jax.set_mesh(mesh):
        compiled, facts = compile_step(lambda: program.step.trace(program.abstract, shapes))
    state: TrainState = jax.jit(initial, out_shardings=program.shardings)()
    batch = random_arrays(shapes, batch_sharding(mesh), built.model.classes)
    index = np.arange(config.train.batch_size, dtype=np.int32)
    batch["index"] = jax.device_put(index, batch_sharding(mesh))

    def call() -> Any:
        training.state, metrics = compiled(training.state, batch)
        return metrics

    training = Training(program, state, batch, call, facts)
    return training


def train_contender(name: str, config: ConfigDict, **fields: Any) -> Contender:
    """Return the train step of a config; one call is one step.

    Args:
      name: of the contender.
      config: its config.
      fields: other fields of the contender.
    """
    built, batch_size = config_lib.build(config), config.train.batch_size

    def prepare() -> Timed:
        training = prepare_training(config)
        return Timed(training.call, training.facts)

    flops = train_step_flops(
        built.model,
        batch_size,
        config.train.trainable,
        deep_supervision=config.train.deep_supervision > 0,
    )
    return Contender(name, prepare, images=batch_size, flops=flops, **fields)


def forward_contender(name: str, config: ConfigDict, **fields: Any) -> Contender:
    """Return the forward pass of a config's model, as in sampling; one call is one batch."""
    batch_size = config.train.batch_size

    def program(built: config_lib.Built, model: nn.Module, mesh: Mesh) -> tuple[Any, ...]:
        cut = batch_sharding(mesh)
        shapes = abstract_batch(config, model)

        def apply(params: Params, x: jax.Array, timestep: jax.Array, condition: Any) -> jax.Array:
            index = jnp.arange(batch_size, dtype=jnp.int32)
            randomness = GateRandomness(jax.random.key(0), index, train=False)
            options = ThinkingOptions(randomness)
            return model.apply({"params": params}, x, timestep, condition, options)[0]

        # The data that is diffused has as many channels as the output has, or half of them.
        x = random_arrays(shapes["x"], cut)
        timestep = random_arrays(jax.ShapeDtypeStruct((batch_size,), np.float32), cut)
        condition = random_arrays(shapes["condition"], cut, built.model.classes)
        return jax.jit(apply, out_shardings=cut), x, timestep, condition

    return _inference_contender(name, config, program, 1, **fields)


def sample_contender(name: str, config: ConfigDict, **fields: Any) -> Contender:
    """Return sampling without decoding, by `config.sampling`; one call is one batch."""
    batch_size = config.train.batch_size

    def program(built: config_lib.Built, model: nn.Module, mesh: Mesh) -> tuple[Any, ...]:
        cut = batch_sharding(mesh)
        generator = Generator(model, built.objective, built.sampler, mesh, batch_size)
        shapes = model.example_condition(batch_size)
        key = jax.jit(
            lambda: stream_key(config.seed, "generation"), out_shardings=replicated(mesh)
        )()
        index = jax.device_put(np.arange(batch_size, dtype=np.int32), cut)
        return generator.compiled(), key, index, random_arrays(shapes, cut, built.model.classes)

    count = predictions(config_lib.build(config).sampler)
    return _inference_contender(name, config, program, count, **fields)


def _inference_contender(
    name: str,
    config: ConfigDict,
    program: Callable[[config_lib.Built, nn.Module, Mesh], tuple[Any, ...]],
    passes: int,
    **fields: Any,
) -> Contender:
    """Return a contender that runs a program of a model with random parameters.

    Args:
      name: of the contender.
      config: its config.
      program: (built config, model, mesh) -> a jitted function of the parameters and other inputs,
        and these inputs.
      passes: number of forward passes of the model in one call.
      fields: other fields of the contender.
    """
    built, batch_size = config_lib.build(config), config.train.batch_size

    def prepare() -> Timed:
        mesh = create_mesh(config.mesh)
        check_batch_size(mesh, "config.train.batch_size", batch_size)
        model = build_model(built.model)
        shardings = tree_shardings(abstract_params(model), mesh)
        params = jax.jit(lambda: init_params(model, config.seed), out_shardings=shardings)()
        jitted, *inputs = program(built, model, mesh)
        with jax.set_mesh(mesh):
            compiled, facts = compile_step(lambda: jitted.trace(params, *inputs))
        return Timed(lambda: compiled(params, *inputs), facts)

    flops = batch_size * passes * forward_flops(built.model)
    return Contender(name, prepare, images=batch_size, flops=flops, **fields)


def random_arrays(shapes: Any, sharding: NamedSharding, classes: int = 0) -> Any:
    """Return arrays with these shapes: normal numbers, or labels if they are integers.

    Args:
      shapes: tree of shapes and dtypes.
      sharding: of every array.
      classes: number of classes.
    """
    rng = np.random.default_rng(0)

    def leaf(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(shape.dtype, jnp.integer):
            array = rng.integers(0, max(classes, 1), shape.shape)
        else:
            array = rng.standard_normal(shape.shape, np.float32)
        return jax.device_put(array.astype(shape.dtype), sharding)

    return jax.tree.map(leaf, shapes)


def random_weights(shapes: Any) -> Any:
    """Return random weights in host memory, scaled so that activations stay finite."""
    rng = np.random.default_rng(0)

    def leaf(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = np.float32(np.prod(shape.shape[:-1]) ** -0.5)
        return rng.standard_normal(shape.shape, np.float32) * scale

    return jax.tree.map(leaf, shapes)


def compile_step(trace: Callable[[], jax.stages.Traced]) -> tuple[Any, dict[str, Any]]:
    """Trace and compile a function.

    Returns:
      The compiled function, and facts: the seconds that each took; the FLOPs of the program, with
      recomputation and with experts that a dense dispatch computes in vain; and the bytes of its
      arguments, results and temporary arrays on one device, where the compiler reports them.
    """
    started = time.perf_counter()
    traced = trace()
    after = time.perf_counter()
    compiled = traced.lower().compile()
    facts = {"trace_seconds": after - started, "compile_seconds": time.perf_counter() - after}
    facts["program_flops"] = traced_flops(traced.jaxpr)
    analysis = compiled.memory_analysis()
    if analysis is not None:
        held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
        facts["program_bytes"] = held - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes
    return compiled, facts
