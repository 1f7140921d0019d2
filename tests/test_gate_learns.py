"""The gate finds each token's best expert in a task where it is known.

Each token has a hidden class, which can be read from it, and the experts are fixed, different,
random linear maps. The target of a token of class m is the output of expert m. Only the gate
trains, by the draws, the weights and the dispatch of a thinking layer.

B samples, N tokens, D width, M experts; the rank of the experts is D.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tp_jax.parallel.randomness import stream_key
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.dispatch import get_dispatch
from tp_jax.thinking.experts import Experts
from tp_jax.thinking.gate import (
    GateRandomness,
    choose_experts,
    draw_routing,
    gate_logits,
    init_gate,
)
from tp_jax.thinking.recursion import layer_norm

B, N, D = 8, 16, 8
NORM = {"scale": jnp.ones(D), "bias": jnp.zeros(D)}
UNUSED = jnp.zeros((B, D))  # The gate reads the token only.


@dataclasses.dataclass(frozen=True)
class Task:
    """Experts, and tokens whose best expert is known.

    Attributes:
      config: of the thinking layer.
      means: [M, D] of the tokens of each class, orthogonal, 4 standard deviations long.
      experts: A is the identity, and B [M, 3, D, D] is random.
    """

    config: ThinkingConfig
    means: jax.Array
    experts: Experts

    def sample(self, key):
        """Return tokens [B, N, D] and their classes [B, N]."""
        class_key, noise_key = jax.random.split(key)
        classes = jax.random.randint(class_key, (B, N), 0, self.config.experts)
        return self.means[classes] + jax.random.normal(noise_key, (B, N, D)), classes

    def gate(self, params, tokens, draw=None):
        """Run the gate on LN(tokens)."""
        normed = layer_norm(NORM, tokens)
        return choose_experts(params, self.config, normed, UNUSED, UNUSED, draw)

    def outputs(self, tokens, expert, weight):
        """Run the experts: [B, N, 3, D]."""
        dispatch = get_dispatch(self.config, B, N, D, jnp.dtype("float32"))
        return dispatch(tokens, expert, weight, self.experts)

    def losses(self, tokens, classes, expert, weight):
        """Return the squared error of each token, [B, N]."""
        wanted = self.outputs(tokens, classes, jnp.ones((B, N)))
        return jnp.square(self.outputs(tokens, expert, weight) - wanted).sum((2, 3))

    def loss(self, params, tokens, classes, draw):
        """Return the loss of a train step, with the draw of training."""
        chosen = self.gate(params, tokens, draw)
        return self.losses(tokens, classes, chosen.expert, chosen.weight).mean()

    def draw(self, seed, train_step):
        """Return the gate's random numbers of a train step, as a thinking layer draws them."""
        key = stream_key(seed, "routing", train_step)
        return draw_routing(GateRandomness(key, jnp.arange(B)), self.config, 0, 1, N)[0]


def make_task(experts, seed=0, **fields):
    config = ThinkingConfig(
        experts=experts, rank=D, gate_width=16, gate_inputs=("token",), dispatch="dense", **fields
    )
    keys = jax.random.split(jax.random.key(100 + seed))
    means = 4 * jnp.linalg.qr(jax.random.normal(keys[0], (D, D)))[0][:experts]
    lora_a = jnp.broadcast_to(jnp.eye(D)[:, None], (experts, D, 3, D))
    lora_b = jax.random.normal(keys[1], (experts, 3, D, D)) / np.sqrt(D)
    return Task(config, means, Experts(lora_a, lora_b))


def train_gate(task, seed, updates, learning_rate):
    """Train a new gate; only the gate has parameters."""
    optimizer = optax.adam(learning_rate)
    params = init_gate(jax.random.key(seed), task.config, D)

    def update(state, train_step):
        params, opt_state = state
        tokens, classes = task.sample(stream_key(seed, "data", train_step))
        gradient = jax.grad(task.loss)(params, tokens, classes, task.draw(seed, train_step))
        changes, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, changes), opt_state), None

    state = (params, optimizer.init(params))
    return jax.lax.scan(update, state, jnp.arange(updates))[0][0]


def accuracy(task, params, seed=0, batches=16, draw=False):
    """Return the share of held-out tokens that are routed to the expert of their class."""

    def right(batch):
        tokens, classes = task.sample(stream_key(seed, "held out", batch))
        drawn = task.draw(seed, batch) if draw else None
        return (task.gate(params, tokens, drawn).expert == classes).mean()

    return jax.lax.map(right, jnp.arange(batches)).mean()


@pytest.mark.parametrize("experts", [2, 4])
def test_a_learned_gate_finds_the_expert_of_each_token(experts):
    task = make_task(experts)
    assert task.config.temperature == 5

    @jax.jit
    def run(seed):
        return accuracy(task, train_gate(task, seed, 300, 1e-2))

    assert run(0) > 0.95


@pytest.mark.parametrize("experts", [2, 4])
def test_a_random_gate_is_right_for_one_token_in_m(experts):
    task = make_task(experts, gate="random")
    # 2,048 tokens: the standard error is 1.1 points or less.
    assert accuracy(task, None, draw=True) == pytest.approx(1 / experts, abs=0.04)


def test_the_gradient_points_to_a_lower_expected_loss():
    """At τ = 5, for untrained gates: against the gradient of Σ_m p_m L_m, which is exact."""
    task = make_task(4)

    def expected_loss(params, tokens, classes):
        logits = gate_logits(params, layer_norm(NORM, tokens), UNUSED, UNUSED)
        each = [
            task.losses(tokens, classes, jnp.full((B, N), m), jnp.ones((B, N))) for m in range(4)
        ]
        # The Gumbel noise draws expert m with probability softmax(logits)_m, whatever τ is.
        return (jax.nn.softmax(logits) * jnp.stack(each, -1)).sum(-1).mean()

    @jax.jit
    def cosine(seed):
        params = init_gate(jax.random.key(seed), task.config, D)
        tokens, classes = task.sample(stream_key(seed, "data"))
        found = jax.grad(task.loss)(params, tokens, classes, task.draw(seed, 0))
        exact = jax.grad(expected_loss)(params, tokens, classes)
        a, b = (jax.flatten_util.ravel_pytree(tree)[0] for tree in (found, exact))
        return a @ b / jnp.sqrt((a @ a) * (b @ b))

    cosines = np.array([cosine(seed) for seed in range(10)])
    assert cosines.min() > 0
    assert cosines.mean() > 0.3
