"""The studies: every variant of every study is a valid config, and rivals cost the same."""

import dataclasses
import pathlib

import pytest
from etils import epath

from tp_jax import config as config_lib
from tp_jax.messages.errors import UserError
from tp_jax.models.flops import decoding_flops, forward_flops
from tp_jax.studies import STUDIES
from tp_jax.studies.config_files import ConfigFile, as_flag
from tp_jax.studies.costs import (
    cost_of,
    lora_rank_of_equal_flops,
    random_rank_of_equal_parameters,
    sampler_steps_of_equal_flops,
)
from tp_jax.studies.plan import Request, make_plan
from tp_jax.studies.study import BASE, Setting, Study, Variant, check_names
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.parameter_count import count_layer_parameters

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
FROZEN = {"train.trainable": "thinking"}
# name -> (config file, suites)
FILES = {
    "digits": (ConfigFile(str(CONFIGS / "quickstart.py")), ("shapes",)),
    "digits on a frozen base": (
        ConfigFile(str(CONFIGS / "quickstart.py"), (), FROZEN), ("shapes",),
    ),
    "shapes": (ConfigFile(str(CONFIGS / "shapes.py"), ("think",)), ("shapes",)),
    "frozenlake": (ConfigFile(str(CONFIGS / "frozenlake.py")), ("frozenlake",)),
}  # fmt: skip


def plan_of(name, study):
    file, suites = FILES[name]
    return make_plan(Request(study, file, 2, epath.Path("out"), suites=suites))


@pytest.mark.parametrize("study", [name for name in STUDIES if name != "compare"])
@pytest.mark.parametrize("name", FILES)
def test_every_variant_is_a_valid_config(name, study):
    plan = plan_of(name, study)
    names = [variant.name for variant in plan.study.variants]
    assert len(names) >= 2 and plan.study.reference in names
    assert not set(names) & set(plan.study.left_out)
    frozen = name in ("shapes", "digits on a frozen base")
    assert (names[0] == BASE) == (frozen or study == "rivals")
    for cell in plan.cells:
        config = plan.configs[cell.variant]
        of_base = BASE in (cell.variant, plan.study[cell.variant].run_of)
        trainable = "all" if of_base or not frozen else "thinking"
        if cell.variant != "untrained-loop":
            assert config.train.trainable == trainable
        assert cell.trains is None or f"--config.seed={cell.seed}" in cell.trains
        for needed in cell.needs:
            earlier = plan.cell(needed, cell.seed)
            assert plan.cells.index(earlier) < plan.cells.index(cell)


def test_the_flags_of_a_command_give_the_config_of_the_variant():
    """Read the flags as `tp_jax.main` does, and compare all fields."""
    from absl import flags
    from ml_collections import config_flags

    from tp_jax.cli import parsers

    assert parsers
    for name, study in [("shapes", "rivals"), ("digits", "gate_inputs"), ("frozenlake", "layers")]:
        plan = plan_of(name, study)
        for cell in plan.cells[len(plan.cells) // 2 :]:
            if cell.trains is None:
                continue
            values = flags.FlagValues()
            arguments = [a for a in cell.trains[1:] if not a.startswith("--workdir")]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("sys.argv", ["main", *arguments])
                config_flags.DEFINE_config_file("config", None, "", values)
                values(["main", *arguments])
            found, wanted = values["config"].value, plan.configs[cell.variant]
            found.seed = 0
            found.init.base = wanted.init.base
            assert config_lib.flat(found) == config_lib.flat(wanted), (study, cell.variant)


def test_rivals_on_a_frozen_base():
    plan = plan_of("shapes", "rivals")
    by_name = {variant.name: variant for variant in plan.study.variants}
    assert list(by_name) == [
        "base", "recursive", "random-gate", "lora-parameters", "lora-flops", "more-sampler-steps",
        "dense", "untrained-loop",
    ]  # fmt: skip
    base = plan.cell("base", 1)
    assert base.trains == (
        "tp_jax.main", f"--config={CONFIGS}/shapes.py", "--config.seed=1",
        "--workdir=out/cells/base/1/run",
    )  # fmt: skip
    sampled = plan.cell("more-sampler-steps", 1)
    assert sampled.trains is None and sampled.run == base.run and sampled.needs == ("base",)
    steps = by_name["more-sampler-steps"].flags["sampler_steps"]
    assert f"--sampler_steps={steps}" in sampled.evaluates["shapes"]
    for name in ("recursive", "dense", "untrained-loop"):
        assert f"--config.init.base={base.run}" in plan.cell(name, 1).trains
    loop = plan.configs["untrained-loop"]
    assert loop.model.thinking.base_every_step and loop.optimizer.learning_rate == 0
    thinking = plan.configs["recursive"].model.thinking
    dense = plan.configs["dense"].model.thinking
    assert dense.rank * dense.experts == thinking.rank * thinking.experts
    assert dense.latent_steps == thinking.latent_steps


@pytest.mark.parametrize("name", ["digits", "shapes", "frozenlake"])
def test_rivals_cost_as_much_as_thinking(name):
    model = Setting(FILES[name][0].load()).model
    thinking = model.thinking

    def with_thinking(**fields):
        fixed = dataclasses.replace(thinking, latent_steps_range=(), **fields)
        return dataclasses.replace(model, thinking=fixed)

    def flops(model):
        frames = sum(decoding_flops(model)) if model.condition_kind == "frame" else 0
        return forward_flops(model) + frames

    lora = dict(experts=1, latent_steps=1, gate="first")
    # One rank more or less is further away.
    rank = lora_rank_of_equal_flops(model)
    away = [
        abs(flops(with_thinking(**lora, rank=r)) - flops(model)) for r in (rank, rank - 1, rank + 1)
    ]
    assert min(away) == away[0]
    wide = random_rank_of_equal_parameters(model)
    wanted = count_layer_parameters(model.width, thinking)
    found = count_layer_parameters(
        model.width, dataclasses.replace(thinking, gate="random", rank=wide)
    )
    assert wide > thinking.rank
    assert abs(found - wanted) <= 6 * model.width * thinking.experts / 2
    steps = sampler_steps_of_equal_flops(model, 100)
    assert 100 < steps < 100 * thinking.latent_steps


def test_costs_are_those_of_the_model():
    """Count parameters and FLOPs of a tiny model by hand."""
    config = FILES["digits"][0].load()
    config.model.thinking.layers = (1,)
    found = cost_of(config, {})
    thinking = ThinkingConfig(**config.model.thinking.to_dict())
    assert found.thinking_parameters == count_layer_parameters(96, thinking)
    assert found.trained_parameters == found.parameters
    plain = config.copy_and_resolve_references()
    plain.model.thinking.layers = ()
    assert cost_of(plain, {}).parameters == found.parameters - found.thinking_parameters
    # Heun predicts twice in each of 20 steps, with and without the class.
    forward = forward_flops(config_lib.model_config(config))
    assert found.sample_flops == 2 * 20 * 2 * forward
    assert cost_of(config, {"sampler_steps": 5}).sample_flops == found.sample_flops / 4
    more = cost_of(config, {"latent_steps": 4})
    assert more.sample_flops > found.sample_flops and more.train_flops == found.train_flops
    config.train.trainable = "thinking"
    fine = cost_of(config, {})
    assert fine.trained_parameters == found.thinking_parameters
    assert fine.train_flops < found.train_flops


def test_latent_steps_of_frames_are_trained_as_each_variant_says():
    def ranges(study, names):
        configs = plan_of("frozenlake", study).configs
        return [configs[name].model.thinking.latent_steps_range for name in names]

    assert ranges("latent_steps_at_sampling", ("fixed", "range")) == [(), (1, 4)]
    # What is sampled with one latent step was trained with one.
    assert ranges("compare", ("recursive", "recursive-1", "random-1")) == [(), (1, 4), (1, 4)]


def test_what_makes_no_sense_is_left_out_with_a_reason():
    lake = plan_of("frozenlake", "rivals").study
    assert "a latent step shows a frame only after training" in lake.left_out["untrained-loop"]
    assert "all" in plan_of("frozenlake", "layers").study.left_out
    published = lake.with_base(None)
    assert {BASE, "more-sampler-steps"} <= published.left_out.keys()
    check_names(published)
    file = ConfigFile(str(CONFIGS / "shapes.py"))
    with pytest.raises(UserError, match=r"thinking.layers=\(\): name a config that thinks"):
        STUDIES["gate"].build(Setting(file.load()))
    with pytest.raises(UserError, match="the study compare is for"):
        STUDIES["compare"].build(Setting(FILES["digits"][0].load()))


def test_equal_variants_are_refused():
    file, suites = FILES["digits"]
    file = file.adding("", {"model.thinking.experts": 1})
    request = Request("rivals", file, 2, epath.Path("out"), suites=suites)
    # With one expert, there is no dense rival, and the others still differ.
    assert "dense" in make_plan(request).study.left_out
    file = file.adding("", {"model.thinking.latent_steps": 1, "model.thinking.gate": "first"})
    request = dataclasses.replace(request, config=file)
    with pytest.raises(UserError, match="variants recursive and lora-parameters are the same"):
        make_plan(request)


def test_names_of_variants_are_checked():
    one = Variant("one", "")
    check_names(Study("one", (one,)))
    early = Variant("two", "", run_of="one")
    for variants in [(one, one), (Variant("a/b", ""), one), (early, one)]:
        with pytest.raises(ValueError, match="can't be the name|must follow"):
            check_names(Study("one", variants))


def test_flags_are_written_as_the_command_line_reads_them():
    assert as_flag("config.model.thinking.gate_inputs", ("token",)).endswith("gate_inputs=token")
    assert as_flag("config.model.thinking.layers", ()) == "--config.model.thinking.layers=()"
    assert as_flag("config.train.offload", False) == "--config.train.offload=false"
