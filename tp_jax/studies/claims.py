"""What the paper claims, what its reviewers asked, and what we add: which variant is better.

A verdict follows from the numbers alone: a claim holds if the whole 95 % interval of the paired
difference is on its side.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim that one variant of a study is better than another.

    Attributes:
      text: the claim.
      origin: whose it is: "paper"; "reviewers", who asked for the comparison; or "ours".
      study: the study that tests it.
      better, worse: names of its variants.
    """

    text: str
    origin: str
    study: str
    better: str
    worse: str


def _rival(text: str, origin: str, worse: str) -> Claim:
    return Claim(f"Recursive sparse thinking is better than {text}", origin, "rivals", "recursive",
                 worse)  # fmt: skip


CLAIMS = (
    _rival("the base", "paper", "base"),
    _rival("plain LoRA with as many parameters", "paper", "lora-parameters"),
    _rival("plain LoRA with as many FLOPs", "reviewers", "lora-flops"),
    _rival("more sampler steps with as many FLOPs", "ours", "more-sampler-steps"),
    _rival("looping the frozen attention without training", "ours", "untrained-loop"),
    _rival("recursion with one dense expert of the same total rank", "paper", "dense"),
    Claim("A learned gate is better than random experts", "reviewers", "gate", "learned", "random"),
    Claim(
        "A learned gate is better than random experts with as many parameters",
        "ours", "gate", "learned", "random-wide",
    ),
    Claim(
        "Two latent steps are better than one",
        "paper", "latent_steps_by_experts", "T2-M2", "T1-M2",
    ),
    Claim("Two experts are better than one", "paper", "latent_steps_by_experts", "T2-M2", "T2-M1"),
    Claim(
        "Five latent steps and experts are better than two",
        "paper", "latent_steps_by_experts", "T5-M5", "T2-M2",
    ),
    Claim("Experts should see modulated tokens (Mod)", "paper", "modulate", "with", "without"),
    Claim(
        "The base projection should enter at the last latent step only",
        "paper", "base", "last", "every",
    ),
    Claim("The gate should see time and condition too", "paper", "gate_inputs", "all", "token"),
    Claim("Several blocks should think, not one", "paper", "layers", "config", "middle"),
    Claim(
        "The gate should read the token before adaLN",
        "ours", "gate_token", "unmodulated", "modulated",
    ),
    Claim(
        "Trained with a range of T, more latent steps at sampling are better",
        "ours", "latent_steps_at_sampling", "range", "range-T1",
    ),
    Claim(
        "Training is better with every latent step supervised",
        "ours", "latent_steps_at_sampling", "supervised", "fixed",
    ),
    Claim("A trained halting unit is better than no halting", "ours", "halting", "ponder", "none"),
)  # fmt: skip
# What was not tested, and why.
NOT_TESTED = (
    (
        "ImageNet 256, FID 2.34 → 2.27",
        "needs ImageNet, DiT-XL/2 and accelerators",
        "configs/imagenet256.py",
    ),
    (
        "GenEval 67.9 → 71.2 and DPG-Bench 85.65 → 85.88",
        "needs Stable Diffusion 3, captioned images and accelerators",
        "configs/sd3_coco.py",
    ),
)


def pairs_of(study: str, reference: str, variants: Sequence[str]) -> list[tuple[str, str]]:
    """Return which pairs of variants a study compares: all with the reference, and its claims.

    Args:
      study: name of the study.
      reference: its reference.
      variants: its variants.
    """
    pairs = [(name, reference) for name in variants if name != reference]
    for claim in CLAIMS:
        if claim.study == study and {claim.better, claim.worse} <= set(variants):
            pairs.append((claim.better, claim.worse))
    return list(dict.fromkeys(pairs))


def verdict(difference: Mapping[str, Any] | None, higher_is_better: bool) -> str:
    """Say what a difference shows about a claim.

    Args:
      difference: of the variant that should be better, minus the other; None if it wasn't
        measured. `interval` is [low, high] or None.
      higher_is_better: of the scores.

    Returns:
      "holds", "the opposite holds", "can't tell" or "not measured".
    """
    if difference is None or difference["interval"] is None:
        return "not measured"
    low, high = difference["interval"]
    if not higher_is_better:
        low, high = -high, -low
    if low > 0:
        return "holds"
    return "the opposite holds" if high < 0 else "can't tell"


def find_difference(
    results: Mapping[str, Any], measure: str, variant: str, than: str
) -> Mapping[str, Any] | None:
    """Return the difference of two variants in the results of a study; None if it isn't there."""
    found = results["differences"].get(measure, ())
    return next((d for d in found if (d["variant"], d["than"]) == (variant, than)), None)


def config_of(results: Mapping[str, Any]) -> str:
    """Return the config file of a study with the fields that all variants share."""
    fields = [f"`{name}={value}`" for name, value in results.get("fields", {}).items()]
    return " with ".join([results["config"], *([", ".join(fields)] if fields else [])])


def claims_page(studies: Mapping[str, Mapping[str, Any]], folder: str) -> list[str]:
    """Return the lines of the part of the results page that answers the claims.

    Args:
      studies: {name of the file: results of a study}; may be empty.
      folder: path of the folder of the files from the page, such as "studies/".
    """
    lines = [
        "## Which claims hold at this size",
        "",
        "Each claim says that one variant is better than another. It holds if the whole 95 % "
        "interval of the paired difference, over seeds and where possible over examples, is on its "
        "side. Differences smaller than half the width of this interval could not have been seen.",
        "",
        "| claim | whose | measured | difference | 95 % interval | verdict | half-width |",
        "|---|---|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        rows = [
            _claim_row(claim, name, content, measure, folder)
            for name, content in sorted(studies.items())
            if content["study"] == claim.study
            for measure in content["measures"]
        ]
        rows = [row for row in rows if row]
        if not rows:
            command = f"--study={claim.study}"
            rows = [f"| {claim.text} | {claim.origin} | not measured yet (`{command}`) | | | | |"]
        lines += rows
    lines += [
        "",
        "Not tested here, because it needs data and chips that we don't have. The same studies run "
        "on them:",
        "",
        "| the paper's result | why not | command |",
        "|---|---|---|",
    ]
    for result, why, config in NOT_TESTED:
        command = f"python -m tp_jax.ablate --study=rivals --config={config} --out=runs/rivals"
        lines.append(f"| {result} | {why} | `{command}` |")
    if studies:
        lines += ["", "### Studies", ""]
    for name, content in sorted(studies.items()):
        version = content["commit"] or f"tp_jax {content['versions']['tp_jax']}"
        lines.append(
            f"- [{name}]({folder}{name}.md): {content['what']}; {config_of(content)}, "
            f"{len(content['seeds'])} seeds, {version}"
        )
    return lines


def _claim_row(
    claim: Claim, name: str, content: Mapping[str, Any], measure: str, folder: str
) -> str | None:
    described = content["measures"][measure]
    found = find_difference(content, measure, claim.better, claim.worse)
    if found is None:
        return None
    where = f"[{content['config'].rpartition('/')[2]}]({folder}{name}.md), {described['title']}"
    where += f", {found['seeds']} seed{'s' * (found['seeds'] > 1)}"
    factor = described["factor"]
    interval = "none from one seed"
    half = ""
    if found["interval"]:
        interval = " … ".join(f"{factor * end:+.3g}" for end in found["interval"])
        half = f"± {factor * found['half_width']:.2g}"
    said = verdict(found, described["higher_is_better"])
    cells = (
        claim.text,
        claim.origin,
        where,
        f"{factor * found['mean']:+.3g}",
        interval,
        said,
        half,
    )
    return f"| {' | '.join(cells)} |"
