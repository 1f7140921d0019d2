"""Write the pages of results, the gallery of README.md and the badges of the notebooks.

python notebooks/make_gallery.py [--quickstart=DIR] [--outputs=DIR] [--install=ADDRESS]

Everything is written from the files in notebooks/results: `SUITE.json` of launch/compare.sh,
`quickstart.json` of `tp_jax.sample --show_thinking`, `paper.json`, the pictures, and
`studies/NAME.json` of `tp_jax.ablate`.
"""

import argparse
import base64
import dataclasses
import io
import json
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tp_jax.evals.over_seeds import as_table
from tp_jax.pictures.reading import COMPARISON, GRID, ROUTING, THINKING
from tp_jax.studies.claims import claims_page

ROOT = pathlib.Path(__file__).parents[1]
START = "<!-- This part is written by notebooks/make_gallery.py. -->"
END = "<!-- Here ends what notebooks/make_gallery.py writes. -->"
# A larger picture in a notebook makes it slow to open on a phone.
LARGEST_PICTURE = 60_000
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
# Files of `tp_jax.sample --show_thinking` by their names in notebooks/results.
QUICKSTART = {
    "quickstart.json": THINKING,
    "quickstart-grid.png": GRID,
    "quickstart-comparison.png": COMPARISON,
    "quickstart-routing.png": ROUTING,
}


@dataclasses.dataclass(frozen=True)
class Headline:
    """Which numbers of a suite's results the README shows.

    Attributes:
      title: what is measured.
      row: the row of the results.
      base, thinking: the variants without and with recursion.
      control, control_name: the variant that tests what thinking is worth, and what it is.
    """

    title: str
    row: str
    base: str
    thinking: str
    control: str
    control_name: str


HEADLINES = {
    "shapes": Headline(
        "Shapes, hard scenes, correct images", "overall mean", "base", "think", "lora",
        "plain LoRA with as many parameters",
    ),
    "frozenlake": Headline(
        "FrozenLake, earlier recipe, goal reached", "all goal", "single", "recursive-1", "random-1",
        "recursion with experts chosen at random",
    ),
}  # fmt: skip
# What the pictures of a suite show; the others are shown with the name of their file.
CAPTIONS = {
    "frozenlake-successes": "Generated walks that reach the goal, each above the environment's own",
    "frozenlake-failures": "Generated walks that don't reach the goal",
    "frozenlake-walk": "One walk, as generated (left) and as the environment plays it (right)",
}
LATENT_STEPS = (
    "latent_steps.png",
    "FrozenLake: the model sees the first frame, and each latent step decodes to the agent's next "
    "move. The maps show which of two experts each of the 5×5 tokens used",
)


# Results


def read_results(folder: pathlib.Path) -> dict[str, Any]:
    """Return the content of each results file, {name: content}."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def percent(scores: dict[str, Any], row: str) -> str:
    """Return a score in percent, with its standard deviation over seeds if there are several."""
    spread = f" ± {100 * scores['std'][row]:.1f}" if row in scores["std"] else ""
    return f"{100 * scores['mean'][row]:.1f}{spread} %"


def verdict(content: dict[str, Any], headline: Headline) -> str:
    """Say whether thinking and its control differ by more than the spread over seeds."""
    variants, row = content["variants"], headline.row
    thinking, control = variants[headline.thinking], variants[headline.control]

    def compared(other: dict[str, Any]) -> str:
        away = thinking["mean"][row] - other["mean"][row]
        if row not in thinking["std"] or row not in other["std"]:
            return f"{100 * away:+.1f} points from one seed"
        spread = (thinking["std"][row] ** 2 + other["std"][row] ** 2) ** 0.5
        size = "more than" if abs(away) > spread else "within"
        return f"{100 * away:+.1f} points, {size} the spread over seeds (± {100 * spread:.1f})"

    name = headline.title.partition(",")[0]
    return (
        f"{name}: thinking changes the score by {compared(variants[headline.base])}. Compared with "
        f"{headline.control_name} ({percent(control, row)}), the change is {compared(control)}."
    )


def suites(results: dict[str, Any]) -> dict[str, Any]:
    """Return the results that compare variants over seeds."""
    return {name: content for name, content in results.items() if "variants" in content}


def results_table(results: dict[str, Any], folder: str) -> list[str]:
    """Return the lines of the README's table of results, and what follows from it."""
    lines = [
        "| | without recursion | recursive sparse thinking | source |",
        "|---|---|---|---|",
    ]
    paper = results.get("paper", {"rows": []})
    for row in paper["rows"]:
        lines.append(f"| {row['work']} | {row['without']} | {row['with']} | {paper['source']} |")
    verdicts = []
    for name, content in sorted(suites(results).items(), reverse=True):
        if name in HEADLINES:
            headline, variants = HEADLINES[name], content["variants"]
            base, thinking = (
                percent(variants[variant], headline.row)
                for variant in (headline.base, headline.thinking)
            )
            seeds = f"[{len(content['seeds'])} seeds]({folder}{name}.md)"
            lines.append(f"| {headline.title} | {base} | {thinking} | {seeds} |")
            verdicts.append(verdict(content, headline))
    return [*lines, "", " ".join(verdicts)]


def quickstart_captions(content: dict[str, Any]) -> dict[str, str]:
    """Return the captions of the quickstart's pictures, {name of the file: text}."""
    steps, trained = content["latent_steps"], content["trained_latent_steps"]
    away = content["grey_levels_from_without_thinking"]
    fewer = {k: v for k, v in content["grey_levels_from_latent_steps"].items() if int(k) < steps}
    compared = "".join(f", and T = {k} by {v:.1f}" for k, v in fewer.items())
    kept = " and ".join(f"{v:.0%} in block {k}" for k, v in content["kept_experts"].items())
    kept = f" From one latent step to the next, {kept} keep their expert." if kept else ""
    return {
        "quickstart-grid.png": f"Digits of the quickstart after {content['train_step']:,} train "
        f"steps, by class ({content['sampler']}, {content['sampler_steps']} sampler steps, "
        f"guidance scale {content['guidance_scale']:g})",
        "quickstart-comparison.png": f"The same noise without thinking and with up to {steps} "
        f"latent steps (trained with {trained}). From T = {steps}, pixels without thinking differ "
        f"by {away:.1f} of 255 grey levels{compared}",
        "quickstart-routing.png": f"Which of {content['experts']} experts each token took, by "
        f"block, timestep and latent step.{kept}",
    }


def picture(path: str, caption: str) -> list[str]:
    """Return the lines of a picture with its caption."""
    caption = caption.rstrip(".")
    return ["", f"![{caption.partition('. ')[0]}]({path})<br>*{caption}.*"]


def gallery(results: dict[str, Any]) -> str:
    """Return the part of README.md between the two markers."""
    folder = "notebooks/results/"
    lines = [START, "## Results", "", *results_table(results, folder)]
    lines[-1] += f" More pictures and numbers: [{folder}README.md]({folder}README.md)."
    if "quickstart" in results:
        name = "quickstart-comparison.png"
        lines += picture(folder + name, quickstart_captions(results["quickstart"])[name])
    lines += picture(f"notebooks/figures/{LATENT_STEPS[0]}", LATENT_STEPS[1])
    return "\n".join([*lines, END])


def results_page(results: dict[str, Any], folder: pathlib.Path) -> str:
    """Return notebooks/results/README.md."""
    lines = [
        "# Results",
        "",
        "Written by `python notebooks/make_gallery.py` from the files in this folder, and not by "
        "hand; [the notebooks' README](../README.md#the-results) says how the files are made.",
        "",
        *results_table(results, ""),
        "",
        *claims_page(read_results(folder / "studies"), "studies/"),
    ]
    if "quickstart" in results:
        lines += ["", "## quickstart"]
        for name, caption in quickstart_captions(results["quickstart"]).items():
            lines += picture(name, caption)
    for suite, content in suites(results).items():
        lines += ["", f"## {suite}", "", *as_table(summary_rows(content)).splitlines(), ""]
        table = f"[All rows]({suite}.md)" if (folder / f"{suite}.md").exists() else "All rows"
        lines += [f"{table}, and [every seed]({suite}.json)."]
        for file in sorted(folder.glob(f"{suite}-*")):
            lines += picture(file.name, CAPTIONS.get(file.stem, file.stem))
    return "\n".join(lines) + "\n"


def summary_rows(content: dict[str, Any]) -> dict[str, Any]:
    """Return the results with the rows of the first group only, such as "overall" or "all"."""
    first = next(iter(next(iter(content["variants"].values()))["mean"])).partition(" ")[0]

    def kept(rows: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in rows.items() if name.partition(" ")[0] == first}

    variants = {
        name: scores | {"mean": kept(scores["mean"]), "std": kept(scores["std"])}
        for name, scores in content["variants"].items()
    }
    return content | {"variants": variants}


# Notebooks


def read_install(notebook: dict[str, Any]) -> str:
    """Return the value of the notebook's variable `install`."""
    found = re.search(_INSTALL, _source(_parameters(notebook)), re.M)
    if not found:
        raise SystemExit('error: the cell of the parameters has no line `install = "…"`')
    return json.loads(found[1])


_INSTALL = r'^install = ("[^"\n]*")'
_GITHUB = r"git\+https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?@([\w./-]+)"


def _parameters(notebook: dict[str, Any]) -> dict[str, Any]:
    tagged = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", ())]
    (cell,) = tagged
    return cell


def _source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def badge(install: str, path: str) -> str:
    """Return a Colab badge for a notebook; "" unless tp_jax is installed from a commit on GitHub.

    Args:
      install: what the notebook installs, such as git+https://github.com/OWNER/NAME@COMMIT.
      path: the notebook's path in the repository.
    """
    found = re.fullmatch(_GITHUB, install)
    if not found:
        return ""
    address = f"https://colab.research.google.com/github/{found[1]}/blob/{found[2]}/{path}"
    return f"[![Open in Colab]({BADGE})]({address})"


def with_install(notebook: dict[str, Any], path: str, install: str) -> dict[str, Any]:
    """Return a notebook with this value of `install`, and the badge that belongs to it."""
    changed = json.loads(json.dumps(notebook))
    cell, head = _parameters(changed), changed["cells"][0]
    value = json.dumps(install, ensure_ascii=False)
    text = re.sub(_INSTALL, lambda _: f"install = {value}", _source(cell), flags=re.M)
    cell["source"] = text.splitlines(keepends=True)
    title = re.sub(r"^\[!\[Open in Colab\].*\n\n", "", _source(head))
    shown = badge(install, path)
    head["source"] = (f"{shown}\n\n{title}" if shown else title).splitlines(keepends=True)
    return changed


def with_pictures(notebook: dict[str, Any], executed: dict[str, Any]) -> dict[str, Any]:
    """Return a notebook with the small pictures of a run of it, and no other output."""
    outputs = {cell.get("id"): cell.get("outputs", []) for cell in executed["cells"]}
    changed = json.loads(json.dumps(notebook))
    for cell in changed["cells"]:
        if cell["cell_type"] == "code":
            cell["execution_count"] = None
            cell["outputs"] = list(_pictures(outputs.get(cell["id"], [])))
    return changed


def _pictures(outputs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for output in outputs:
        image = output.get("data", {}).get("image/png")
        if not image:
            continue
        text = _smaller(image if isinstance(image, str) else "".join(image))
        if len(text) <= LARGEST_PICTURE:
            yield {"data": {"image/png": text}, "metadata": {}, "output_type": "display_data"}


def _smaller(picture: str) -> str:
    """Return a PNG in base64, if it has at most 256 colours with a palette: the same pixels."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        if image.mode != "RGB":
            return picture
        pixels = np.asarray(image)
    colours, index = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) > 256:
        return picture
    smaller = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8)).convert("P")
    smaller.putpalette(colours.tobytes())
    buffer = io.BytesIO()
    smaller.save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def as_text(notebook: dict[str, Any]) -> str:
    """Return the content of a notebook's file, as Jupyter writes it."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


# Pages


def pages(
    root: pathlib.Path, install: str | None = None, outputs: pathlib.Path | None = None
) -> dict[pathlib.Path, str]:
    """Return what each file that this script writes should hold.

    Args:
      root: the root of the repository.
      install: a new value of the notebooks' variable `install`; None keeps it.
      outputs: a folder with runs of the notebooks, whose pictures are taken; None keeps those that
        the notebooks have.
    """
    folder, readme = root / "notebooks" / "results", root / "README.md"
    results = read_results(folder)
    before, _, rest = readme.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"error: {readme} lacks the two markers {START} and {END}")
    found = {
        readme: before + gallery(results) + after,
        folder / "README.md": results_page(results, folder),
    }
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        run = outputs / path.name if outputs else path
        if run.exists():
            notebook = with_pictures(notebook, json.loads(run.read_text()))
        value = read_install(notebook) if install is None else install
        name = str(path.relative_to(root).as_posix())
        found[path] = as_text(with_install(notebook, name, value))
    return found


def main() -> None:
    """Parse the flags, and write all files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quickstart", type=pathlib.Path, help="pictures of launch/quickstart.sh")
    parser.add_argument("--outputs", type=pathlib.Path, help="runs of the notebooks by papermill")
    parser.add_argument("--install", help="what the notebooks install; empty for nothing")
    given = parser.parse_args()
    if given.quickstart:
        for name, source in QUICKSTART.items():
            shutil.copyfile(given.quickstart / source, ROOT / "notebooks" / "results" / name)
    for path, text in pages(ROOT, given.install, given.outputs).items():
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
