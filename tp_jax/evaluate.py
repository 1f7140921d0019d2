"""Scores: python -m tp_jax.evaluate --suite=adm --samples=FILE.npz|DIR --reference=FILE …

With --sweep it scores a workdir instead: every guidance scale with every number of latent steps,
and the base model beside them. Benchmarks of prompts, and FrozenLake:

  --suite=shapes --workdir=W --out=DIR                draws and scores; --samples=DIR scores alone
  --suite=navigation --workdir=W --out=DIR [--maps=FILE] [--look]   draws, plays and scores
  --suite=shapes|navigation --collect=ROOT --out=FILE.json   mean and spread of launch/compare.sh
  --suite=geneval|dpg --make --workdir=W --prompts=P --out=DIR      images for the official scorers
  --suite=geneval --results=FILE.jsonl [--prompts=P]                their results
  --suite=dpg --results=FILE [--questions=dpg_bench.csv]
  --suite=geneval --score --samples=DIR --detector=DIR --clip=DIR --results=FILE.jsonl
"""

import jax
from absl import flags
from etils import epath

from tp_jax.cli import start
from tp_jax.cli.flags import integers, numbers, required
from tp_jax.evals import SUITES, run_suite, verdicts
from tp_jax.evals import over_seeds as collecting
from tp_jax.evals import prompted as benchmarks
from tp_jax.evals.adm.suite import Task
from tp_jax.evals.adm.sweep import Sweep, run_sweep
from tp_jax.evals.frozenlake import suite as navigating
from tp_jax.messages.errors import UserError

flags.DEFINE_string(
    "suite",
    "adm",
    "adm (FID, sFID, Inception Score, precision, recall), shapes, geneval, dpg or navigation",
)
flags.DEFINE_string("samples", None, "FILE.npz with arr_0 (uint8, NHWC), or a folder of PNGs")
flags.DEFINE_string("reference", None, "published statistics, images, or a saved statistics file")
flags.DEFINE_string("inception", None, "a folder written by tp_jax.convert --kind=inception")
flags.DEFINE_string("protocol", "adm", "adm or pytorch-fid: how images are resized for Inception")
flags.DEFINE_string("out", None, "FILE.json for the scores; a folder for --sweep")
flags.DEFINE_string("save_statistics", None, "FILE.npz, to be a --reference later")
flags.DEFINE_integer("batch_size", 64, "images at once; doesn't change the scores", 1)
flags.DEFINE_integer("num", None, "the first so many samples, all by default; 50000 for --sweep")

flags.DEFINE_boolean("make", False, "draw a benchmark's images")
flags.DEFINE_string("collect", None, "shapes, navigation: a folder of VARIANT/SEED/scores.json")
flags.DEFINE_string("maps", None, "navigation: a file of maps; random ones by default")
flags.DEFINE_boolean("look", False, "navigation: see the lake anew after every drawing")
flags.DEFINE_boolean("score", False, "geneval: judge images here, with Mask2Former and CLIP")
flags.DEFINE_string("prompts", None, "your copy of GenEval's metadata or of DPG's prompts")
flags.DEFINE_string("questions", None, "dpg: your copy of dpg_bench.csv")
flags.DEFINE_string("results", None, "what the official scorer wrote; with --score, to be written")
flags.DEFINE_string("detector", None, "--score: folder of Mask2Former's weights")
flags.DEFINE_string("clip", None, "--score: folder of CLIP's weights")
flags.DEFINE_integer("samples_per_prompt", None, "--make: as the benchmark has them by default")
flags.DEFINE_string("negative_prompt", "", "--make: what guidance leads away from")
flags.DEFINE_float("guidance_scale", None, "--make: the config's by default")
flags.DEFINE_string("sampler", None, "--make: the config's by default")
flags.DEFINE_integer("height", None, "--make: of the images in pixels; as trained by default")
flags.DEFINE_integer("width", None, "--make: of the images in pixels; as trained by default")
flags.DEFINE_boolean("thinking", True, "--make: --nothinking draws with the base model alone")
flags.DEFINE_boolean("truncate", False, "--make: cut prompts longer than the encoder takes")
flags.DEFINE_string("text", None, "--make: folder of the text encoders; the config's by default")

flags.DEFINE_boolean("sweep", False, "score a workdir over guidance scales and latent steps")
flags.DEFINE_string("workdir", None, "--sweep, --make, shapes: a folder that was trained in")
flags.DEFINE_list("guidance_scales", ["1", "1.25", "1.5", "2", "3"], "--sweep: as 1,1.5,2")
flags.DEFINE_list("latent_steps", ["1", "2", "4"], "T of the recursion; --make takes one")
flags.DEFINE_integer("seed", 0, "--sweep, --make: of the noise", 0, 2**32 - 1)
flags.DEFINE_integer("checkpoint", None, "--sweep, --make: its train_step; the newest by default")
flags.DEFINE_string("base", None, "--sweep: base checkpoint or workdir; what it began from")
flags.DEFINE_string(
    "autoencoder", None, "--sweep, --make: the folder that decodes; the config's by default"
)

flags.DEFINE_integer("sampler_steps", None, "--sweep, --make: number of sampler steps")
flags.DEFINE_integer("guidance_channels", None, "--sweep, --make: first channels that are guided")
flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "--sweep, --make: that the model computes in"
)
flags.DEFINE_enum(
    "matmul_precision", None, ["default", "high", "highest"], "--sweep, --make: on TPUs and GPUs"
)


def main() -> None:
    values = flags.FLAGS.flag_values_dict()
    if values["sweep"]:
        sweep(values)
        return
    known = (*SUITES, *benchmarks.BENCHMARKS, "navigation")
    if values["suite"] not in known:
        raise UserError(f"suite {values['suite']!r} is unknown: choose one of {', '.join(known)}")
    if values["suite"] == "navigation":
        run_navigation(values)
        return
    refuse(values["suite"], present("maps", "look"))
    if values["suite"] in benchmarks.BENCHMARKS:
        run_benchmark(values)
        return
    run_suite(
        values["suite"],
        Task(
            samples=epath.Path(required("samples")),
            inception=epath.Path(required("inception")),
            **{
                name: epath.Path(values[name]) if values[name] else None
                for name in ("reference", "out", "save_statistics")
            },
            **{name: values[name] for name in ("protocol", "batch_size", "num")},
        ),
    )


def run_benchmark(values: dict) -> None:
    def path(name: str) -> epath.Path | None:
        return epath.Path(values[name]) if values[name] else None

    suite = values["suite"]
    given = [name for name in ("make", "score", "results", "collect") if values[name]]
    allowed = {"geneval": ("make", "score", "results"), "dpg": ("make", "results")}
    refuse(suite, [name for name in given if name not in allowed.get(suite, ("make", "collect"))])
    if len(given) > 1 and set(given) != {"score", "results"}:
        raise UserError(f"--{given[0]} and --{given[1]} don't go together: give one")
    if suite == "shapes" and values["collect"]:
        collecting.collect(epath.Path(values["collect"]), epath.Path(required("out")), suite)
    elif suite == "shapes" and not (values["workdir"] or values["make"]):
        verdicts.score_shapes(epath.Path(required("samples")), epath.Path(required("out")))
    elif values["make"] or suite == "shapes":
        images = epath.Path(required("out"))
        images = images if values["make"] else images / "images"
        make_images(values, images, path("prompts"))
        if not values["make"] and jax.process_index() == 0:
            verdicts.score_shapes(images, images.parent)
    elif suite == "dpg":
        results = epath.Path(required("results"))
        verdicts.score_dpg(results, path("questions"), path("out"))
    else:
        results, weights = epath.Path(required("results")), {}
        if values["score"]:
            names = ("samples", "detector", "clip")
            weights = {name: epath.Path(required(name)) for name in names}
        verdicts.score_geneval(results, path("prompts"), path("out"), **weights)


def make_images(values: dict, out: epath.Path, prompts: epath.Path | None) -> None:
    names = ("suite", "negative_prompt", "height", "width", "text", "truncate", "thinking")
    benchmarks.make(
        benchmarks.Make(
            out=out,
            prompts=prompts,
            samples=values["samples_per_prompt"],
            **request(values),
            **{name: values[name] for name in names},
        )
    )


def run_navigation(values: dict) -> None:
    out = epath.Path(required("out"))
    others = (
        "make", "score", "results", "prompts", "samples", "negative_prompt", "height", "width",
        "thinking", "truncate", "text",
    )  # fmt: skip
    refuse("navigation", present(*others))
    if values["collect"]:
        collecting.collect(epath.Path(values["collect"]), out, "navigation")
        return
    maps = epath.Path(values["maps"]) if values["maps"] else None
    task = navigating.Navigation(out=out, maps=maps, look=values["look"], **request(values))
    navigating.navigate(task)


def present(*names: str) -> list[str]:
    """Those flags that were given."""
    return [name for name in names if flags.FLAGS[name].present]


def refuse(suite: str, given: list[str]) -> None:
    """Raises a UserError for flags that a suite has no use for."""
    for name in given:
        raise UserError(f"--{name} isn't for --suite={suite}: see --help")


def request(values: dict) -> dict:
    """What every drawing of a workdir is asked for."""
    steps = integers("latent_steps") if flags.FLAGS["latent_steps"].present else (None,)
    if len(steps) > 1:
        raise UserError("--latent_steps: give one number; a --sweep takes several")
    names = ("num", "seed", "batch_size", "checkpoint", "dtype", "matmul_precision", "autoencoder")
    return {
        "workdir": epath.Path(required("workdir")),
        "sampler_changes": {
            "sampler": values["sampler"],
            "steps": values["sampler_steps"],
            "guidance_scale": values["guidance_scale"],
            "guidance_channels": values["guidance_channels"],
        },
        "latent_steps": steps[0],
        **{name: values[name] for name in names},
    }


def sweep(values: dict) -> None:
    names = (
        "seed", "batch_size", "protocol", "checkpoint", "base", "autoencoder", "dtype",
        "matmul_precision",
    )  # fmt: skip
    run_sweep(
        Sweep(
            **{
                name: epath.Path(required(name))
                for name in ("workdir", "out", "reference", "inception")
            },
            guidance_scales=numbers("guidance_scales"),
            latent_steps=integers("latent_steps"),
            sampler_changes={
                name: values[flag]
                for name, flag in (("steps", "sampler_steps"), ("guidance_channels",) * 2)
                if values[flag] is not None
            },
            num=50_000 if values["num"] is None else values["num"],
            **{name: values[name] for name in names},
        )
    )


if __name__ == "__main__":
    start.run(main, __doc__)
