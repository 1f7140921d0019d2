"""What values fields, flags and arguments may have: numbers, pairs, lists."""

import re

import pytest
from bad_input_files import config_file
from conftest import run_entry, tiny_config

from tp_jax import config as config_lib
from tp_jax.diffusion import FlowConfig, GaussianConfig, SamplerConfig
from tp_jax.messages.errors import UserError
from tp_jax.models import DiTConfig, MMDiTConfig
from tp_jax.thinking import ThinkingConfig
from tp_jax.worlds.frozenlake.settings import FrozenLakeConfig

NAN, INF = float("nan"), float("inf")


# Numbers


@pytest.mark.parametrize(
    ("config_class", "field", "value", "match"),
    [
        *((SamplerConfig, "guidance_interval", pair, r"two numbers from 0 to 1, the smaller one")
          for pair in ((0.8, 0.1), (200, 800), (NAN, 1), (0, NAN), (-3, -1), (0, INF), (0.5,),
                       (0, 0.5, 1), "01", (True, 1), ("0", "1"), 0.5, (0, 1 + 1e-6))),
        *((SamplerConfig, "eta", value, r"eta=.* must be in \[0, 1\]") for value in (-1, 2, NAN)),
        *((SamplerConfig, "guidance_scale", value, "scale=.*finite") for value in (NAN, INF, 1e39)),
        (SamplerConfig, "steps", 0, "steps=0: must be 1 or more"),
        (SamplerConfig, "steps", 2.5, "steps=2.5: must be an integer"),
        (SamplerConfig, "steps", True, "steps=True: must be an integer"),
        (SamplerConfig, "steps", 2**40, "steps=1099511627776: must be 1 or more, up to 100000"),
        (SamplerConfig, "guidance_channels", -1, "guidance_channels=-1: must be 0 or more"),
        (SamplerConfig, "spacing", "odd", "spacing='odd': choose one of even, stride"),
        (SamplerConfig, "clip", 1, "clip=1: must be a boolean"),
        (GaussianConfig, "beta_start", 0.03, "beta_start must not be above beta_end"),
        (GaussianConfig, "beta_start", 0.0, r"config.diffusion.beta_start=0.0: must be in \[1e-08"),
        (GaussianConfig, "beta_end", 1.0, r"beta_end=1.0: must be in \[1e-08, 1\)"),
        (GaussianConfig, "beta_end", NAN, "beta_end=nan"),
        (GaussianConfig, "beta_end", 0.9, "leave nothing of the data"),
        (GaussianConfig, "num_timesteps", 1, "num_timesteps=1: must be 2 or more"),
        (GaussianConfig, "num_timesteps", 50_000, "leave nothing of the data"),
        *((FlowConfig, field, value, f"config.diffusion.{field}=.* must be above 0")
          for field in ("shift", "time_std") for value in (0, -1.0, NAN, INF, 1e-60)),
        *((FlowConfig, "time_mean", value, "time_mean=.*finite") for value in (NAN, -INF)),
        *((ThinkingConfig, "temperature", value, "temperature=.* above 0") for value in (0, NAN)),
        (ThinkingConfig, "balance_weight", -0.1, "balance_weight=-0.1: must be 0 or more"),
        (ThinkingConfig, "experts", 2**40, "config.model.thinking.experts=.* up to 65536"),
        (ThinkingConfig, "latent_steps", 2**20, "latent_steps=.* up to 1000"),
        (ThinkingConfig, "layers", (True,), "layers=.*give block numbers"),
        (ThinkingConfig, "layers", 3, "layers=3: give block numbers"),
        (ThinkingConfig, "gate_inputs", ("time", "time"), "names an input twice"),
        (ThinkingConfig, "gate_inputs", (), "name at least one of token"),
        (ThinkingConfig, "modulate", "maybe", "modulate='maybe': must be a boolean"),
        (ThinkingConfig, "gate", None, "gate=None: must be a text"),
        (DiTConfig, "width", 2**40, "config.model.width=.* up to 65536"),
        (DiTConfig, "num_classes", -1, "num_classes=-1: must be 0 or more"),
        (DiTConfig, "mlp_ratio", 0, "mlp_ratio=0: must be 1 or more"),
        (MMDiTConfig, "depth", 2**40, "config.model.depth=.* up to 4096"),
        (MMDiTConfig, "text_tokens", 0, "text_tokens=0: must be 1 or more"),
        (MMDiTConfig, "dual_attention_layers", -1, "dual_attention_layers=-1: must be 0 or more"),
        *((FrozenLakeConfig, "frozen", pair, "two probabilities from 0.5 to 1, the smaller")
          for pair in ((0.9, 0.6), (NAN, 0.9), (0.6, INF), (0.4, 0.9), (0.6, 1.1), (0.7,))),
        (FrozenLakeConfig, "sizes", (2**40,), "sizes=.*integers >= 2, up to 64"),
        (FrozenLakeConfig, "sizes", (3.0,), "sizes=.*integers >= 2"),
        (FrozenLakeConfig, "read_sigma", NAN, r"read_sigma=nan: must be in \(0, 1\)"),
        (FrozenLakeConfig, "frames_weight", INF, "frames_weight=inf: must be 0 or more"),
    ],
)  # fmt: skip
def test_dataclasses_made_in_python_are_checked(config_class, field, value, match):
    with pytest.raises(UserError, match=match):
        config_class(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        # Rounded to float32 this is 1: the average would never change.
        ("train.ema_decay", 0.99999999, r"in \[0, 1\) after rounding to float32"),
        ("train.condition_dropout", NAN, r"in \[0, 1\)"),
        ("optimizer.b2", 1.0, r"in \[0, 1\)"),
        ("optimizer.b1", -0.1, r"in \[0, 1\)"),
        ("optimizer.learning_rate", INF, "0 or more"),
        ("optimizer.weight_decay", -1.0, "0 or more"),
        ("optimizer.clip_norm", NAN, "0 or more"),
        ("train.hang_seconds", 1e308, r"in \[0, 1e\+09\]"),
        ("train.steps", 2**31, "up to 2147483647"),
        ("seed", 2**32, "0 or more, up to 4294967295"),
        ("data.workers", 10_000, "up to 1024"),
        ("autoencoder.dtype", "float8", "choose one of float32, bfloat16"),
        ("sampling.guidance_interval", (0.8, 0.1), "two numbers from 0 to 1"),
        ("data.split", "None", "no field takes None"),
        ("init.base", "file:///base", "such as /base,"),
    ],
)
def test_config_fields_are_checked_by_name(field, value, match):
    config = tiny_config()
    config.update_from_flattened_dict({field: value})
    name = re.escape(f"config.{field}={value!r}: ")
    with pytest.raises(UserError, match=f"^{name}.*{match}"):
        config_lib.build(config)


def test_numbers_at_their_bounds_are_accepted():
    assert SamplerConfig(guidance_interval=[0, 1], eta=1).guidance_interval == (0, 1)
    GaussianConfig(num_timesteps=2, beta_start=0.5, beta_end=0.5)
    FrozenLakeConfig(frozen=(0.5, 1))
    config = tiny_config(ema_decay=0.0)
    config.seed = 2**32 - 1
    config_lib.build(config)


# Lists


def parsed(tmp_path, *overrides):
    """Return the config that training is started with, after the command line is parsed."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tp_jax.train.loop.train", lambda config, workdir, **options: found.append(config)
        )
        arguments = [f"--config={config_file(tmp_path)}", "--workdir=w", *overrides]
        code, _, stderr = run_entry("main", *arguments)
    assert code == 0, stderr
    return found[0]


@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        (["model.thinking.layers=0", "model.thinking.layers=1"], "model.thinking.layers", (1,)),
        (["model.thinking.layers=(1,)", "model.thinking.layers=()"], "model.thinking.layers", ()),
        (["model.thinking.layers=0,1", "train.steps=3", "model.thinking.layers=2,3"],
         "model.thinking.layers", (2, 3)),
        (["model.thinking.layers=0,1,2"], "model.thinking.layers", (0, 1, 2)),
        (["model.thinking.layers=(0, 1)"], "model.thinking.layers", (0, 1)),
        (["model.thinking.layers=[2]"], "model.thinking.layers", (2,)),
        (["model.thinking.gate_inputs=token", "model.thinking.gate_inputs=time"],
         "model.thinking.gate_inputs", ("time",)),
        (["model.thinking.gate_inputs=token,time"], "model.thinking.gate_inputs",
         ("token", "time")),
        (["model.thinking.gate_inputs=('token','time')"], "model.thinking.gate_inputs",
         ("token", "time")),
        (["sampling.guidance_interval=0,1", "sampling.guidance_interval=0.2,0.5"],
         "sampling.guidance_interval", (0.2, 0.5)),
        (["train.steps=3", "train.steps=4"], "train.steps", 4),
        (["data.flip=true", "data.flip=false"], "data.flip", False),
    ],
)  # fmt: skip
def test_of_a_field_given_twice_the_last_counts(given, field, expected, tmp_path):
    (tmp_path / "flags").write_text("".join(f"--config.{each}\n" for each in given))
    overrides = [f"--config.{each}" for each in given]
    for arguments in (overrides, [f"--flagfile={tmp_path / 'flags'}"]):
        assert config_lib.flat(parsed(tmp_path, *arguments))[field] == expected


def test_of_a_list_flag_given_twice_the_last_counts(monkeypatch):
    found = []
    monkeypatch.setattr("tp_jax.sampling.draw.draw_samples", found.append)
    lists = ["--labels=0,1", "--labels=2,3"]
    assert run_entry("sample", "--workdir=w", "--out=o", *lists)[0] == 0
    monkeypatch.setattr("tp_jax.evals.adm.suite.run_sweep", found.append)
    lists = ["--guidance_scales=1", "--guidance_scales=2,3", "--latent_steps=1", "--latent_steps=4"]
    files = ["--workdir=w", "--out=o", "--reference=r", "--inception=i"]
    assert run_entry("evaluate", "--sweep", *files, *lists)[0] == 0
    sample, sweep = found
    assert sample.labels == (2, 3)
    assert (sweep.guidance_scales, sweep.latent_steps) == ((2, 3), (4,))


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("train.steps=2e3", "flag --config.train.steps=2e3: must be an integer, such as 3"),
        ("optimizer.learning_rate=fast", "learning_rate=fast: must be a number"),
        ("model.thinking.modulate=maybe", "modulate=maybe: must be a boolean: true or false"),
        ("init.base=None", "config.init.base=None: no field takes None; leave it empty"),
        ("train.samples=None", "config.train.samples=None: must be an integer"),
        ("train={'steps': 3}", "config.train={'steps': 3}: is a section of the config"),
        ("model.thinking.layers=", "layers=: is empty: give values, such as 1,2, or ()"),
        ("model.thinking.layers=1;2", "'1;2' isn't a value of a list"),
        ("model.thinking.layers=1,,2", "'' isn't a value of a list"),
        ("sampling.guidance_interval=nan,1", r"interval=\(nan, 1\): must be two numbers"),
    ],
)
def test_values_of_another_type_are_refused(override, match, refused, tmp_path):
    file = config_file(tmp_path)
    refused("main", f"--config={file}", "--workdir=new", f"--config.{override}", match=match)
