"""Studies that compare recursive sparse thinking with its rivals at equal cost."""

from tp_jax.messages.errors import UserError
from tp_jax.studies.costs import lora_rank_of_equal_flops, sampler_steps_of_equal_flops
from tp_jax.studies.study import BASE, THINKING, Build, Setting, Study, Variant
from tp_jax.thinking.parameter_count import matched_lora_rank

LORA = {
    THINKING + "experts": 1,
    THINKING + "latent_steps": 1,
    THINKING + "gate": "first",
    THINKING + "latent_steps_range": (),
    THINKING + "halting": "none",
}


def _rivals(setting: Setting) -> Study:
    setting.need_thinking()
    model, thinking = setting.model, setting.thinking
    left_out = {}
    known = setting.config.model.thinking
    lora = {k: v for k, v in LORA.items() if k.removeprefix(THINKING) in known}
    matched = matched_lora_rank(model.width, thinking)
    equal = lora_rank_of_equal_flops(model)
    steps = sampler_steps_of_equal_flops(model, setting.config.sampling.steps)
    if setting.frames:
        # Without a thinking block, no latent step could be decoded.
        fields = {THINKING + "latent_steps": 1, THINKING + "latent_steps_range": ()}
        one = Variant(BASE, "one latent step: no recursion", fields)
        left_out["untrained-loop"] = "a latent step shows a frame only after training"
    else:
        one = Variant(BASE, "no thinking", {THINKING + "layers": ()})
    sampled = Variant(
        "more-sampler-steps",
        f"the base with {steps} sampler steps: as many FLOPs as recursive",
        flags={"sampler_steps": steps},
        run_of=BASE,
    )
    variants = [
        one,
        Variant("recursive", "recursive sparse thinking"),
        Variant(
            "random-gate", "the same with random experts", {THINKING + "gate": "random"}
        ),
        Variant(
            "lora-parameters",
            f"plain LoRA with as many parameters (rank {matched})",
            lora | {THINKING + "rank": matched},
        ),
        sampled,
    ]  # fmt: skip
    if equal == matched:
        left_out["lora-flops"] = "it would have the same rank as lora-parameters"
    else:
        what = f"plain LoRA with as many FLOPs (rank {equal})"
        variants.insert(4, Variant("lora-flops", what, lora | {THINKING + "rank": equal}))
    if thinking.experts > 1:
        total = thinking.experts * thinking.rank
        what = f"recursion with one dense expert of the same total rank ({total})"
        dense = {"experts": 1, "rank": total, "gate": "first"}
        variants.append(Variant("dense", what, {THINKING + k: v for k, v in dense.items()}))
    else:
        left_out["dense"] = "there is one expert only"
    if steps == setting.config.sampling.steps:
        variants.remove(sampled)
        left_out[sampled.name] = "thinking costs less than one sampler step"
    if not setting.frames:
        variants.append(
            Variant(
                "untrained-loop",
                "the frozen attention looped without training: the base projection at every "
                "latent step, experts that are zero",
                {
                    THINKING + "base_every_step": True,
                    "train.trainable": "thinking",
                    # One update with learning rate 0 only writes the checkpoint.
                    "train.steps": 1,
                    "optimizer.learning_rate": 0.0,
                    "optimizer.warmup_steps": 0,
                },
                base_of=BASE,
            )
        )
    return Study("recursive", tuple(variants), left_out)


def _compare(setting: Setting) -> Study:
    source = setting.config.data.source.partition("/")[0]
    if source == "shapes":
        return Study(
            BASE,
            (
                Variant(BASE, "the base, without thinking"),
                Variant(
                    "lora", "plain LoRA with as many parameters as think",
                    config_variants="lora", base_of=BASE,
                ),
                Variant(
                    "think", "recursive sparse thinking", config_variants="think", base_of=BASE
                ),
            ),
        )  # fmt: skip
    if source != "frozenlake":
        raise UserError(
            f"the study compare is for configs/shapes.py and configs/frozenlake.py, not for "
            f"config.data.source={source!r}: choose rivals"
        )
    one = {"latent_steps": 1}
    return Study(
        "single",
        (
            Variant("recursive", "recursive sparse thinking"),
            Variant("random", "random experts, as many parameters", config_variants="random"),
            Variant("single", "one latent step: no recursion", config_variants="single"),
            Variant(
                "recursive-1", "recursive, trained for 1 to 4 moves, one move a sample",
                config_variants="any", flags=one,
            ),
            Variant(
                "random-1", "random, trained for 1 to 4 moves, one move a sample",
                config_variants="random,any", flags=one,
            ),
        ),
    )  # fmt: skip


RIVALS: dict[str, Build] = {
    "rivals": Build("recursive sparse thinking and its rivals at equal cost", _rivals),
    "compare": Build("the variants of configs/shapes.py or configs/frozenlake.py", _compare),
}
