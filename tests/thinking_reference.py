"""A slow reference of one thinking layer, to test the package's layer against.

It implements the equations of the paper (arXiv 2604.25299) independently: it imports nothing from
`tp_jax` and uses only loops over samples, latent steps, tokens and heads with elementary array
operations, without scan, vmap, jit or library attention. It computes in the dtype of its inputs and
is differentiable by `jax.grad`.

Axes: B samples, N vision tokens, L text tokens, D width (heads * hd), M experts, r rank,
T latent steps; n is any number of tokens.
"""

import math

import jax
import jax.numpy as jnp


def matmul(a, b):
    """Multiply at full precision; the default on accelerators is TF32 or bfloat16."""
    return jnp.matmul(a, b, precision="highest")


def softmax(z):
    """Softmax over the last axis."""
    e = jnp.exp(z - jnp.max(z, axis=-1, keepdims=True))
    return e / jnp.sum(e, axis=-1, keepdims=True)


def layer_norm(a, params, eps=1e-6):
    """LayerNorm of one token `a` [D] with the biased variance, then a learned scale and bias."""
    centered = a - jnp.mean(a)
    return centered / jnp.sqrt(jnp.mean(centered**2) + eps) * params["scale"] + params["bias"]


def gate_logits(inputs, params):
    """Run the gate's MLP on one token: project each input, add, SiLU, project to M logits.

    Args:
        inputs: {kind: [D]} for the kinds of `gate_inputs`.
        params: {kind: {"kernel", "bias"}} for those kinds and for "out".
    """
    hidden = 0.0
    for kind, x in inputs.items():
        hidden = hidden + matmul(x, params[kind]["kernel"]) + params[kind]["bias"]
    silu = hidden * 0.5 * (1.0 + jnp.tanh(0.5 * hidden))  # h·sigmoid(h) without overflow of exp
    return matmul(silu, params["out"]["kernel"]) + params["out"]["bias"]


def route(logits, noise, temperature):
    """Route one token: its expert m, straight-through weight w and probabilities p [M].

    Training (noise [M]): m is the argmax of logits + noise; w has the value 1 and the gradient of
    p_m. Sampling (noise is None): m is the argmax of the logits, and w is the constant 1.
    """
    z = logits if noise is None else logits + noise
    p = softmax(z / temperature)
    m = jnp.argmax(z)
    winner = p[m]
    w = 1.0 if noise is None else 1.0 + winner - jax.lax.stop_gradient(winner)
    return m, w, p


def attention(vision, text, heads, qk_norm):
    """Attention of one sample over its vision tokens, then its text tokens.

    Args:
        vision: (q, k, v), each [N, D].
        text: (q, k, v), each [L, D], or None.
        heads: number of heads; each is a contiguous slice of D.
        qk_norm: None, or (q [n, heads, hd], k, "vision" or "text") -> (q, k).

    Returns:
        [N + L, D]: the concatenated heads, before the output projection.
    """
    parts = []
    for kind, qkv in (("vision", vision), ("text", text)):
        if qkv is not None:
            q, k, v = (x.reshape(x.shape[0], heads, -1) for x in qkv)
            if qk_norm is not None:
                q, k = qk_norm(q, k, kind)
            parts.append((q, k, v))
    q, k, v = (jnp.concatenate(x, axis=0) for x in zip(*parts, strict=True))
    outputs = []
    for h in range(heads):
        scores = matmul(q[:, h], k[:, h].T) / math.sqrt(q.shape[-1])
        outputs.append(matmul(softmax(scores), v[:, h]))
    return jnp.concatenate(outputs, axis=-1)


def thinking_attention(
    vision,
    scale,
    shift,
    time,
    condition,
    params,
    base,
    text=None,
    *,
    heads,
    latent_steps,
    temperature=5.0,
    gumbel=None,
    gate="learned",
    random_experts=None,
    gate_inputs=("token", "time", "condition"),
    gate_token="modulated",
    unmodulated=None,
    modulate=True,
    base_input="modulated",
    base_every_step=False,
    share_across_steps=True,
    qk_norm=None,
    halts=None,
):
    """The attention of one thinking layer, computed token by token.

    Args:
        vision: x̃ [B, N, D], the vision tokens after the block's adaLN.
        scale, shift: parameters of that adaLN, [B, D]; Mod(u) = (1 + scale) u + shift.
        time, condition: embeddings that the gate reads in addition to the token, [B, D].
        params: {"norm": {"scale" [D], "bias" [D]},
            "gate": {"token" | "time" | "condition" | "out": {"kernel", "bias"}},
            "experts": {"lora_a" [M, D, 3, r], "lora_b" [M, 3, r, D]}}; the axis of 3 is q, k, v.
            "gate" is read only for the learned gate. Without `share_across_steps` both expert
            arrays have a leading axis of at least `latent_steps`.
        base: the frozen projections W of one sample, x [N, D] -> (q, k, v), each [N, D].
        text: (q_c, k_c, v_c), each [B, L, D], or None.
        heads: attention heads; 1 / sqrt(D / heads) scales the scores.
        latent_steps: T, at least 1.
        temperature: τ of the Gumbel-softmax.
        gumbel: noise [T, B, N, M] when training; None when sampling.
        gate: "learned", "first" or "random".
        random_experts: [T, B, N] int, for the random gate.
        gate_inputs: the inputs of the learned gate.
        gate_token: the gate reads LN(ã) ("modulated") or LN(unmodulated + ã - x̃) ("unmodulated").
        unmodulated: the vision tokens before the block's adaLN [B, N, D].
        modulate: u = Mod(LN(ã)) or, if False, u = LN(ã).
        base_input: at the last latent step W is applied to x̃ ("modulated") or x̃ + u ("recursed").
        base_every_step: W is applied at every latent step t, to its input ã^{t-1}; at the last one
            unless `base_input` is "recursed".
        share_across_steps: if False, latent step t < T uses the experts with index t - 1, and T
            the last ones.
        qk_norm: None, or (q [n, heads, hd], k, "vision" or "text") -> (q, k).
        halts: None, or (t, b, n, ã^{t-1} [D], ã^t [D]) -> bool, asked for every token that hasn't
            halted, after the latent steps t = 1 … T-1. A token for which it is True keeps ã^t and,
            until the end, the Δ and u of latent step t; its expert is then M.

    Returns:
        A dict: "vision" [B, N, D] and "text" [B, L, D] or None are the attention of latent step T
        before the output projection; "experts" [T, B, N] int; "probabilities" [T, B, N, M] of the
        gate (one-hot at expert 0 for "first", uniform for "random"); "noiseless", the same without
        noise and temperature; "tokens" [T, B, N, D], where tokens[t] is ã^t and tokens[0] is x̃.

    Raises:
        ValueError: `gate` or `base_input` is not one of the above.
    """
    if gate not in ("learned", "first", "random"):
        raise ValueError(f"gate={gate!r}: expected 'learned', 'first' or 'random'")
    if base_input not in ("modulated", "recursed"):
        raise ValueError(f"base_input={base_input!r}: expected 'modulated' or 'recursed'")
    lora_a, lora_b = params["experts"]["lora_a"], params["experts"]["lora_b"]
    num_samples, num_tokens, _ = vision.shape
    num_experts = lora_a.shape[-4]
    embeddings = {"time": time, "condition": condition}  # y

    samples = []
    for b in range(num_samples):
        x = vision[b]
        text_qkv = None if text is None else tuple(projection[b] for projection in text)
        tokens = x  # ã⁰ = x̃
        halted, kept = [False] * num_tokens, [None] * num_tokens
        trace = {"experts": [], "probabilities": [], "noiseless": [], "tokens": []}

        for t in range(1, latent_steps + 1):
            last = t == latent_steps
            step_a, step_b = lora_a, lora_b
            if not share_across_steps:
                index = lora_a.shape[0] - 1 if last else t - 1
                step_a, step_b = lora_a[index], lora_b[index]

            inputs, experts, probabilities, noiseless = [], [], [], []
            deltas = ([], [], [])  # of q, k and v
            reads = []
            for n in range(num_tokens):
                if halted[n]:
                    read, u, delta = kept[n]
                    for i in range(3):
                        deltas[i].append(delta[i])
                    reads.append(read)
                    inputs.append(u)
                    experts.append(jnp.asarray(num_experts))
                    probabilities.append(jnp.full(num_experts, jnp.nan, dtype=x.dtype))
                    noiseless.append(probabilities[-1])
                    continue
                reads.append(tokens[n])
                normed = layer_norm(tokens[n], params["norm"])
                u = (1.0 + scale[b]) * normed + shift[b] if modulate else normed

                if gate == "first":
                    m, w, p = jnp.asarray(0), 1.0, jnp.eye(num_experts, dtype=x.dtype)[0]
                elif gate == "random":
                    m, w = jnp.asarray(random_experts[t - 1, b, n]), 1.0
                    p = jnp.full(num_experts, 1.0 / num_experts, dtype=x.dtype)
                else:
                    seen = normed
                    if gate_token == "unmodulated":
                        seen = layer_norm(unmodulated[b, n] + tokens[n] - x[n], params["norm"])
                    gate_input = {"token": seen} | {k: v[b] for k, v in embeddings.items()}
                    gate_input = {kind: gate_input[kind] for kind in gate_inputs}
                    noise = None if gumbel is None else gumbel[t - 1, b, n]
                    logits = gate_logits(gate_input, params["gate"])
                    m, w, p = route(logits, noise, temperature)
                noiseless.append(softmax(logits) if gate == "learned" else p)

                expert_a, expert_b = step_a[m], step_b[m]
                for i in range(3):  # Δ = w (u A_m) B_m
                    deltas[i].append(w * matmul(matmul(u, expert_a[:, i]), expert_b[i]))
                inputs.append(u)
                experts.append(m)
                probabilities.append(p)
                kept[n] = tokens[n], u, [delta[-1] for delta in deltas]

            qkv = tuple(jnp.stack(delta) for delta in deltas)
            if last or base_every_step:
                base_x = jnp.stack(reads) if base_every_step else x
                if last and base_input == "recursed":
                    base_x = x + jnp.stack(inputs)
                qkv = tuple(delta + frozen for delta, frozen in zip(qkv, base(base_x), strict=True))
            joint = attention(qkv, text_qkv, heads, qk_norm)

            trace["experts"].append(jnp.stack(experts))
            trace["probabilities"].append(jnp.stack(probabilities))
            trace["noiseless"].append(jnp.stack(noiseless))
            trace["tokens"].append(tokens)
            if not last:
                moved = joint[:num_tokens] + x  # the residual goes to x̃, not to ã^{t-1}
                moved = [tokens[n] if halted[n] else moved[n] for n in range(num_tokens)]
                if halts is not None:
                    for n in range(num_tokens):
                        halted[n] = halted[n] or bool(halts(t, b, n, tokens[n], moved[n]))
                tokens = jnp.stack(moved)

        sample = {name: jnp.stack(steps) for name, steps in trace.items()}
        samples.append(sample | {"vision": joint[:num_tokens], "text": joint[num_tokens:]})

    result = {"vision": jnp.stack([sample["vision"] for sample in samples]), "text": None}
    if text is not None:
        result["text"] = jnp.stack([sample["text"] for sample in samples])
    for name in ("experts", "probabilities", "noiseless", "tokens"):
        result[name] = jnp.stack([sample[name] for sample in samples], axis=1)
    return result
