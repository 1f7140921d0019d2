"""Write the report of an analysis: `report.html`, one file that needs nothing else."""

import dataclasses
import shlex

from etils import epath

from tp_jax.analysis import embedding, page
from tp_jax.analysis.document import Document
from tp_jax.analysis.figures import ANALYSIS_FIGURES, write_figures
from tp_jax.analysis.findings import find
from tp_jax.analysis.sections import SECTIONS, Section
from tp_jax.analysis.tables import Table, worst_table
from tp_jax.files.atomic import write_text

# The page's size, and what is kept for everything but pictures and tables.
MAX_BYTES = 2_900_000
FILE_NAME = "report.html"


def write_report(document: Document, folder: epath.Path) -> None:
    """Draw the figures of an analysis, and write its report.

    The report loads nothing and has no script. Pictures that would make it larger than 3 MB are
    made smaller in it; the files in the folder stay as they are.

    Args:
      document: the content of `analysis.json`; parts may be null or missing.
      folder: has the pictures that the document names; gets the figures as PNG files, and
        `report.html`.

    Raises:
      WriteError: a file can't be written.
    """
    drawn = write_figures(document, folder)
    pictures: dict[str, embedding.Picture] = {}
    for name in ANALYSIS_FIGURES:
        if name in drawn and (picture := embedding.read(drawn[name])):
            pictures[name] = picture
    missing = []
    for name in _picture_names(document):
        path = folder / name
        picture = embedding.read(path.read_bytes()) if path.exists() else None
        if picture is None:
            missing.append((name, "the file isn't there, or isn't a PNG"))
        else:
            pictures[name] = picture
    empty = {name: dataclasses.replace(one, data=b"") for name, one in pictures.items()}
    room = MAX_BYTES - len(_body(document, empty, missing).encode())
    fitted = embedding.fit(pictures, room * 3 // 4)  # base64 makes 4 bytes of 3.
    missing += [(name, "it is too large for this page") for name in pictures if name not in fitted]
    title = "How the model thinks"
    write_text(folder / FILE_NAME, page.page(title, _body(document, fitted, missing)))


def _picture_names(document: Document) -> list[str]:
    """Return the file names of the pictures that the document names, each once."""
    samples = document.get("samples") or {}
    names = [samples.get("image"), *(samples.get("maps") or {}).values()]
    for key in ("interventions", "worst"):
        names += [one.get("image") for one in document.get(key) or []]
    return list(dict.fromkeys(name for name in names if name))


def _body(
    document: Document, pictures: dict[str, embedding.Picture], missing: list[tuple[str, str]]
) -> str:
    """Return the content of the page.

    Args:
      document: the analysis.
      pictures: figures by name and other pictures by file name.
      missing: pictures that aren't shown, and why.
    """
    shown = [section for section in SECTIONS if section.figure in pictures]
    numbers = {section.figure: i for i, section in enumerate(shown, 1)}
    return "\n".join([
        _head(document),
        _summary(document, numbers),
        _samples(document, pictures),
        *(_section(document, section, pictures, numbers) for section in SECTIONS),
        _interventions(document, pictures),
        _worst(document, pictures),
        _left_out(document, missing, [s.question for s in SECTIONS if s not in shown]),
        _made(document),
    ])  # fmt: skip


def _head(document: Document) -> str:
    run = document["run"]
    blocks = len(document.get("blocks") or {})
    return "<h1>How the model thinks</h1>" + page.paragraph(
        f"What the gate of {run['workdir']} does at train step {run['train_step']}: {blocks} "
        f"thinking {'block' if blocks == 1 else 'blocks'}, {run['experts']} "
        f"{'expert' if run['experts'] == 1 else 'experts'} each, {run['latent_steps']} latent "
        f"{'step' if run['latent_steps'] == 1 else 'steps'}; {run['num']} samples.",
        soft=True,
    )


def _summary(document: Document, numbers: dict[str, int]) -> str:
    def answer(text: str, section: str) -> str:
        if section in numbers:
            return f"{page.text(text)} {page.link(section, f'Figure {numbers[section]}')}"
        return page.text(text)

    pairs = [(one.question, answer(one.answer, one.section)) for one in find(document)]
    if not pairs:
        return page.paragraph("There are too few numbers for a summary; see what was left out.")
    return f'<div class="summary">{page.definitions(pairs)}</div>'


def _section(
    document: Document,
    section: Section,
    pictures: dict[str, embedding.Picture],
    numbers: dict[str, int],
) -> str:
    name, table = section.figure, section.table(document)
    if name not in pictures:
        return ""
    caption = f"Figure {numbers[name]}. {section.reading}"
    return "\n".join([
        page.heading(section.question, name),
        page.figure(pictures[name], f"{section.question} {section.reading}", caption, drawn=True),
        page.folded_table(table) if table else "",
    ])  # fmt: skip


def _interventions(document: Document, pictures: dict[str, embedding.Picture]) -> str:
    """Return the pictures of the interventions; their figure and table are a section."""
    samples = pictures.get((document.get("samples") or {}).get("image") or "")
    return "\n".join(
        page.figure(
            pictures[one["image"]],
            f"Samples of the unchanged model and with the intervention {one['name']}",
            _intervention_caption(one),
        )
        for one in document.get("interventions") or []
        if one.get("image") in pictures and pictures[one["image"]] != samples
    )


def _intervention_caption(intervention: dict) -> str:
    text = f"{intervention['name']}: {intervention['what']}"
    if intervention.get("difference") is not None:
        text += f" · difference {intervention['difference']:.2f} grey levels"
    if intervention.get("score") is not None:
        text += f" · {intervention.get('score_name') or 'score'} {intervention['score']:.4g}"
    return text


def _samples(document: Document, pictures: dict[str, embedding.Picture]) -> str:
    samples = document.get("samples") or {}
    parts = []
    if samples.get("image") in pictures:
        image = pictures[samples["image"]]
        parts.append(page.figure(image, "Samples of the model", "The first samples."))
    for block, name in (samples.get("maps") or {}).items():
        if name in pictures:
            caption = f"Block {block}: which expert each token takes, beside the picture."
            parts.append(page.figure(pictures[name], f"Maps of experts, block {block}", caption))
    if not parts:
        return ""
    return "\n".join(
        [page.heading("The pictures, and which expert each token takes", "samples"), *parts]
    )


def _worst(document: Document, pictures: dict[str, embedding.Picture]) -> str:
    table = worst_table(document)
    if table is None:
        return ""
    parts = [
        page.heading("Which samples are worst?", "worst"),
        page.paragraph("The samples with the lowest scores, with their routing."),
    ]
    for one in document["worst"]:
        if one.get("image") in pictures:
            score = "" if one.get("score") is None else f" · score {one['score']:.4g}"
            parts.append(
                page.figure(pictures[one["image"]], f"Sample: {one['what']}", one["what"] + score)
            )
    return "\n".join([*parts, page.folded_table(table)])


def _left_out(document: Document, missing: list[tuple[str, str]], questions: list[str]) -> str:
    items = [
        f"{page.text(one['part'])}: {page.text(one['why'])}"
        for one in document.get("left_out") or []
    ]
    items += [f"{page.text(name)}: {page.text(why)}" for name, why in missing]
    if questions:
        items.append(f"Questions without an answer here: {page.text(' '.join(questions))}")
    content = page.bullets(items) if items else page.paragraph("Nothing.")
    return page.heading("What was left out, and why", "left_out") + content


def _made(document: Document) -> str:
    run = document["run"]
    epsilon = run.get("halting_epsilon")
    command = shlex.join([
        "python", "-m", "tp_jax.analyze", f"--workdir={run['workdir']}", f"--num={run['num']}",
        f"--latent_steps={run['latent_steps']}", f"--seed={run['seed']}",
        *([f"--halting_epsilon={epsilon}"] if epsilon is not None else []),
    ])  # fmt: skip
    names = {
        "version": "version of tp_jax",
        "model": "model",
        "source": "data",
        "train_step": "train step",
        "gate": "gate",
        "experts": "experts",
        "trained_latent_steps": "latent steps in training",
        "latent_steps": "latent steps here",
        "halting": "halting in training",
        "halting_epsilon": "--halting_epsilon here",
        "sampler": "sampler",
        "sampler_steps": "sampler steps",
        "guidance_scale": "guidance scale",
        "num": "samples",
        "seed": "seed",
    }
    rows = [(name, run.get(key)) for key, name in names.items()]
    return "\n".join([
        page.heading("How it was made", "made"),
        f"<p><code>{page.text(command)}</code></p>",
        page.table(Table(("setting", "value"), rows)),
        page.paragraph(
            "All numbers are in analysis.json beside this page. Timesteps are the sampler's, and a "
            "latent step is one turn of the recursion inside a block.",
            soft=True,
        ),
    ])  # fmt: skip
