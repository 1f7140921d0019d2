"""Speed: python -m tp_jax.bench [--what=train,forward --config=configs/bench.py:DiT-B/4 …].

Measures this machine; peers in PyTorch take turns with tp_jax. performance/README.md explains the
results. Without --config it measures DiT-S/2 on CPUs and DiT-XL/2 on accelerators.
"""

from typing import Annotated

from absl import flags

from tp_jax.cli import start
from tp_jax.cli.flags import Names, define, define_config, output_file
from tp_jax.performance.benchmarks import BENCHMARKS, DEFAULT
from tp_jax.values import Choice, Range
from tp_jax.values.kinds import Path

define_config("a config file, such as configs/bench.py:DiT-B/4 or configs/imagenet256.py")
define(
    "what",
    Annotated[tuple[str, ...], Choice(*BENCHMARKS)],
    DEFAULT,
    "; ".join(f"{name}: {text}" for name, text in BENCHMARKS.items()),
)
Numbers = Annotated[tuple[int, ...], Range(1, 1000)]
define("repetitions", Annotated[int, Range(1, 10_000)], 5, "how often each one takes its turn")
define(
    "seconds",
    Annotated[float, Range(0, 10**6)],
    1.0,
    "the least time of a repetition; short calls are repeated",
)
define("peer_dit", Path, None, "a checkout of facebookresearch/DiT, to measure beside a DiT")
define(
    "peers",
    Annotated[Names, Choice("eager", "compile")],
    ("eager", "compile"),
    "how the peers in PyTorch run; () measures none",
)
define("experts", Numbers, (2, 8, 64), "the numbers M of experts that `dispatch` measures")
define("latent_steps", Numbers, (1, 2, 5), "the numbers T of latent steps that `dispatch` measures")
define("json", Path, None, "FILE.json for the rows; rows that it has already aren't measured again")
define("report", Path, None, "FILE.md for the rows of this run and of --json, as Markdown")


def main() -> None:
    from etils import epath

    from tp_jax.performance import bench

    values = flags.FLAGS.flag_values_dict()
    bench.prepare_process()
    bench.run_bench(
        bench.BenchOptions(
            values["what"],
            start.required_config() if values["config"] else bench.standard_for_device(),
            values["repetitions"],
            values["seconds"],
            epath.Path(values["peer_dit"]) if values["peer_dit"] else None,
            values["peers"],
            values["experts"],
            values["latent_steps"],
            json=output_file("json", ".json"),
            report=output_file("report", ".md"),
        )
    )


if __name__ == "__main__":
    start.run(main, __doc__, keeps_programs=False)
