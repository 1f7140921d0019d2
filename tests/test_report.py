"""The report of an analysis: self-contained, escaped, small, complete, and true to its numbers."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from analysis_documents import entry, make_document, without_data, write_pictures
from etils import epath
from PIL import Image

from tp_jax.analysis import figures, tables, token_figures
from tp_jax.analysis.document import group_order, kept_by_chance
from tp_jax.analysis.findings import find
from tp_jax.analysis.report import write_report
from tp_jax.pictures.tables import picked

VOID = {"meta", "img", "br", "hr", "link", "input", "source"}
HOSTILE = "<script>alert('$x$')</script> & \"quoted\" 猫"


class Page(html.parser.HTMLParser):
    """Parses a page; fails if a tag isn't closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.ids = [], [], [], set()
        self.images, self.rows, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids |= {value for name, value in attrs if name == "id"}
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def report_of(document, folder):
    folder = epath.Path(folder)
    write_report(document, folder)
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert len(text.encode()) < 3_000_000
    assert "script" not in page.tags and "link" not in page.tags
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "srcset", "action", "data", "poster"):
            assert value.startswith("data:image/") or value[1:] in page.ids, value[:80]
    assert "url(" not in text and "@import" not in text
    for image in page.images:
        assert len(image["alt"]) > 10
        with Image.open(io.BytesIO(base64.b64decode(image["src"].partition("base64,")[2]))) as it:
            assert [str(n) for n in it.size] == [image["width"], image["height"]]
    return page


def answers(document):
    return {finding.question: finding.answer for finding in find(document)}


def answer(document, words):
    return next(text for question, text in answers(document).items() if words in question)


SIZES = {
    "usual": dict(),
    "one latent step": dict(latent_steps=1),
    "two latent steps": dict(latent_steps=2),
    "one expert, no groups": dict(experts=1, groups=()),
    "one timestep and token": dict(steps=1, grid=(1, 1), tokens=1),
    "three blocks, nine experts": dict(blocks=("1", "2", "3"), experts=9, latent_steps=5),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_every_figure_with_data_is_embedded(size, tmp_path):
    document = make_document(**size)
    names = write_pictures(document, tmp_path)
    page = report_of(document, tmp_path)
    expected = {*figures.ANALYSIS_FIGURES}
    latent_steps, experts = document["run"]["latent_steps"], document["run"]["experts"]
    if latent_steps == 1:
        expected -= {"kept", "moves", "ratios", "together"}
    if latent_steps == 2:
        expected -= {"ratios"}
    if not document["run"]["groups"]:
        expected -= {"use_by_group"}
    assert len(page.images) == len(expected) + len(names)
    assert page.ids >= expected | {"samples", "worst", "left_out", "made"}
    embedded = {base64.b64decode(image["src"].partition("base64,")[2]) for image in page.images}
    assert {(tmp_path / f"{name}.png").read_bytes() for name in expected} <= embedded
    if latent_steps == 1:
        assert "There is one latent step" in page.text
    assert experts > 1 or "there is one expert" in page.text.lower()


@pytest.mark.slow
def test_a_large_document(tmp_path):
    document = make_document(
        blocks=[str(i) for i in range(12)], steps=50, latent_steps=5, experts=64, grid=(16, 16),
        groups=[f"class number {i}" for i in range(1000)], tokens=100,
    )  # fmt: skip
    write_pictures(document, tmp_path, (600, 400))
    page = report_of(document, tmp_path)
    # The figures; samples, 12 maps, 2 interventions, and the worst sample.
    assert len(page.images) == len(figures.ANALYSIS_FIGURES) + 16
    assert "most different of 1000" in page.text
    for name in figures.ANALYSIS_FIGURES:
        with Image.open(tmp_path / f"{name}.png") as image:
            assert 400 < image.width < 1000 and image.height < 5200


def test_missing_parts_are_left_out(tmp_path):
    document = without_data(make_document())
    page = report_of(document, tmp_path)
    assert page.images == []
    assert "nothing was measured" in page.text
    del document["blocks"]["12"]["entropy"], document["worst"], document["interventions"]
    del document["samples"], document["left_out"]
    document["blocks"]["12"]["use"] = []
    assert report_of(document, tmp_path).images == []
    document["blocks"] = {}
    assert report_of(document, tmp_path).images == []


def test_null_inside_a_statistic(tmp_path):
    document = make_document()
    block = document["blocks"]["12"]
    block["use_by_group"][1] = [[None, None]] * 3
    block["entropy"][2][0] = block["kept"][0][0] = block["ratios"][1][0] = None
    block["similarity"]["q"] = None
    block["information"]["place"] = None
    document["interventions"][0] |= {"difference": None, "score": None}
    page = report_of(document, tmp_path)
    assert group_order(document) in ([0, 2], [2, 0])
    assert not [row for row in page.rows if row[0] == "dog"]
    assert "nan" not in re.findall(r"\w+", page.text.lower())


def test_texts_of_users_stay_texts(tmp_path):
    document = make_document(groups=[HOSTILE, "$x^{$", "\x00\n" + "long " * 100])
    write_pictures(document, tmp_path)
    document["run"] |= {"workdir": f"runs/{HOSTILE}", "model": HOSTILE, "source": HOSTILE}
    document["interventions"][0] |= {"name": "thinking off " + HOSTILE, "what": HOSTILE}
    document["interventions"][0]["score_name"] = HOSTILE
    document["worst"][0]["what"] = HOSTILE
    document["left_out"][0] = {"part": HOSTILE, "why": HOSTILE}
    page = report_of(document, tmp_path)
    assert page.text.count("<script>alert('$x$')</script>") >= 8
    assert any(HOSTILE in image["alt"] for image in page.images)
    assert any(row[0] == HOSTILE for row in page.rows)


def test_numbers_are_in_the_tables(tmp_path):
    document = make_document()
    block = document["blocks"]["12"]
    block["entropy"][0] = [0.1234, 0.2345, 0.3456]
    block["kept"][5] = [0.8765, 0.4321]
    block["use"][5] = [[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]]
    block["use_by_group"] = [[[0.1, 0.9]] * 3, [[0.5, 0.5]] * 3, [[0.56, 0.44]] * 3]
    block["information"]["timestep"] = {
        "bits": 0.321, "corrected": 0.311, "permuted_mean": 0.011, "permuted_high": 0.022,
    }  # fmt: skip
    block["effective_experts"] = [1.234, 1.5, 1.75]
    block["dead_experts"] = [[0], [], [0, 1]]
    block["similarity"] = {
        name: [[1, c], [c, 1]] for name, c in zip("qkv", (0.31, -0.41, 0.51), strict=True)
    }
    page = report_of(document, tmp_path)
    for row in (
        ["12", "1", "0.1234", "0.2345", "0.3456"],
        # By chance: 0.25·0.5 + 0.75·0.5, and 0.5·1 + 0.5·0.
        ["12", "0.05", "1 → 2", "0.8765", "0.5"],
        ["12", "0.05", "2 → 3", "0.4321", "0.5"],
        ["12", "0.05", "3", "1", "0"],
        ["owl", "12", "2", "0.56", "0.44"],
        ["12", "timestep", "0.321", "0.311", "0.011", "0.022"],
        ["12", "1", "1.234", "0"],
        ["12", "3", "1.75", "0, 1"],
        ["12", "0 and 1", "0.31", "-0.41", "0.51"],
        ["random route", "experts drawn at random", "3.5", "0.75", "accuracy"],
        ["a red circle", "0.125"],
        ["train step", "3000"],
    ):
        assert row in page.rows
    # The group that is most different comes first.
    groups = [row[0] for row in page.rows if row[0] in ("cat", "dog", "owl")]
    assert groups[:3] == ["cat"] * 3


def test_kept_by_chance():
    document = make_document(steps=4, latent_steps=3, experts=3)
    found = kept_by_chance(document, "12")
    use = document["blocks"]["12"]["use"]
    for s in range(4):
        for t in range(2):
            expected = sum(use[s][t][m] * use[s][t + 1][m] for m in range(3))
            assert found[s, t] == pytest.approx(expected)


def information(document, **bits):
    for block in document["blocks"].values():
        block["information"] = {name: entry(value) for name, value in bits.items()}
        block["effective_experts"] = [1.9]
    return document


def test_the_summary_says_what_routing_depends_on():
    document, words = make_document(), "content or only the timestep"
    information(document, timestep=0.6, group=0.0, place=0.001, content=0.0)
    assert answer(document, words).startswith("Routing follows only the timestep.")
    information(document, timestep=0.6, group=0.1, place=0.001, content=0.2)
    expected = "Routing follows mostly the timestep, and less the content and the class, but not "
    expected += "the place."
    assert answer(document, words).startswith(expected)
    information(document, timestep=0.001, content=0.5)
    assert answer(document, words).startswith("Routing follows only the content.")
    information(document, timestep=0.4, content=0.5)
    assert answer(document, words).startswith("Routing follows the content and the timestep.")
    information(document, timestep=0.02, place=0.5, content=0.4, group=0.0, latent_step=0.0)
    expected = "Routing follows mostly the place and the content, and less the timestep, but not "
    expected += "the latent step or the class."
    assert answer(document, words).startswith(expected)
    document["run"]["group_kind"] = "word"
    information(document, group=0.4)
    assert answer(document, words).startswith("Routing follows only the word.")
    information(document, timestep=0.001, content=0.0)
    assert "looks random" in answer(document, words)
    # Much information, but no more than after permuting.
    document["blocks"]["12"]["information"]["content"] = entry(0.5) | {"permuted_high": 0.6}
    assert "looks random" in answer(document, words)
    document["blocks"]["12"]["effective_experts"] = [1.0]
    assert "One expert takes nearly all tokens" in answer(document, words)


def test_blocks_with_the_same_answer_share_a_sentence():
    document = make_document(blocks=("4", "8", "12"))
    information(document, timestep=0.6)
    words = "content or only the timestep"
    assert answer(document, words) == "In all 3 blocks: routing follows only the timestep."
    document["blocks"]["8"]["information"] = {"content": entry(0.3)}
    assert answer(document, words) == (
        "Blocks 4 and 12: routing follows only the timestep. "
        "Block 8: routing follows only the content."
    )


def test_blocks_with_the_same_words_share_a_range_of_numbers():
    document = make_document(blocks=("4", "8", "12"), experts=4)
    for block, effective in zip(document["blocks"].values(), (3.9, 1.5, 3.7), strict=True):
        block["effective_experts"] = [effective] * 3
    assert answer(document, "evenly") == (
        "Blocks 4 and 12: yes (effective number 3.7 to 3.9 of 4). "
        "Block 8: no: few experts take most tokens (effective number 1.5 of 4)."
    )


def test_the_summary_follows_the_other_numbers():
    document = make_document(experts=4)
    block = document["blocks"]["12"]
    block |= {"effective_experts": [3.9, 3.9, 3.9], "dead_experts": [[], [], []]}
    assert answer(document, "evenly") == "Yes (effective number 3.9 of 4)."
    block |= {"effective_experts": [1.5, 1.5, 1.5], "dead_experts": [[2, 3], [2], [2]]}
    assert answer(document, "evenly") == (
        "No: few experts take most tokens (effective number 1.5 of 4); expert 2 is dead at every "
        "latent step."
    )
    block["kept"] = np.full((6, 2), 0.97).tolist()
    block["use"] = np.full((6, 3, 4), 0.25).tolist()
    assert answer(document, "change its mind") == (
        "Hardly: 97% of tokens keep their expert from one latent step to the next; 25% would by "
        "chance."
    )
    block["kept"] = np.full((6, 2), 0.3).tolist()
    assert answer(document, "change its mind").startswith("Often: 30% of tokens")
    block["ratios"] = np.full((6, 1), 0.5).tolist()
    assert answer(document, "converge").startswith("Yes, moves shrink")
    block["ratios"] = np.full((6, 1), 1.5).tolist()
    assert answer(document, "converge").startswith("No, moves grow")
    block["similarity"]["v"] = np.full((4, 4), 0.99).tolist()
    assert answer(document, "different things").startswith("No, they nearly agree")
    block["entropy"] = np.full((6, 3), np.log(4)).tolist()
    assert answer(document, "How sure").startswith("Hardly; its entropy is 100%")
    assert answer(document, "thinking change") == (
        "Yes: without thinking, pixels differ by 7.25 of 255 grey levels on average. Of the other "
        "interventions, “random route” changes the pictures most, by 3.50."
    )
    document["interventions"][0]["difference"] = 0.25
    assert answer(document, "thinking change").startswith("Hardly: without thinking")
    unchanged = {"name": "unchanged", "difference": 0.0, "score": 0.7, "score_name": "accuracy"}
    document["interventions"].insert(0, unchanged)
    assert answer(document, "thinking change").endswith(
        " The score (accuracy) is 70%; “thinking off” changes it most, to 50%."
    )
    document["interventions"][1]["score"] = None
    assert answer(document, "thinking change").endswith("“random route” changes it most, to 75%.")


def test_pictures_that_are_too_large_are_made_smaller(tmp_path):
    document = make_document()
    names = write_pictures(document, tmp_path, (700, 500))  # 1 MB each
    before = {name: (tmp_path / name).read_bytes() for name in names}
    page = report_of(document, tmp_path)
    assert len(page.images) == len(figures.ANALYSIS_FIGURES) + len(names)
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    assert sum("image/jpeg" in image["src"][:30] for image in page.images) == len(names)


def test_pictures_that_are_missing_or_damaged_are_named(tmp_path):
    document = make_document()
    write_pictures(document, tmp_path)
    (tmp_path / "samples.png").unlink()
    (tmp_path / "worst_0.png").write_bytes(b"no picture")
    page = report_of(document, tmp_path)
    assert "samples.png: the file isn't there, or isn't a PNG" in page.text
    assert "worst_0.png: the file isn't there, or isn't a PNG" in page.text
    assert not (tmp_path / "figure_7.png").exists()


def test_the_papers_figures(tmp_path):
    document = make_document()
    document["interventions"] += [
        document["interventions"][1] | {"name": f"T = {t}", "image": f"steps_{t}.png"}
        for t in (1, 2)
    ]
    write_pictures(document, tmp_path)
    drawn = figures.write_figures(document, epath.Path(tmp_path))
    assert drawn.keys() == figures.FIGURES.keys()
    assert drawn["figure_3"] == drawn["trajectories"]
    for name, data in drawn.items():
        assert (tmp_path / f"{name}.png").read_bytes() == data
    with Image.open(tmp_path / "figure_6.png") as image:
        assert image.size == (64, 2 * 40 + 8)


def test_use_has_the_colours_of_the_experts(tmp_path):
    """Of two experts, the first takes a quarter of the tokens, so a quarter of the areas is its."""
    document = make_document(latent_steps=1)
    document["blocks"]["12"]["use"] = np.tile([0.25, 0.75], (6, 1, 1)).tolist()
    data = figures.FIGURES["use"](document, epath.Path(tmp_path))
    pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB")).reshape(-1, 3)
    first, second = ((pixels == colour).all(1).sum() for colour in ((0, 114, 178), (230, 159, 0)))
    assert first / (first + second) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("length, zoom", [(1.0, 1), (0.05, 2), (0.004, 20), (0.0, 1)])
def test_short_moves_are_enlarged(length, zoom):
    """Tokens start at the corners of a square of side 1 and move to the right."""
    starts = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float64)
    points = np.stack([starts, starts + [length, 0]], 1)
    assert token_figures._zoom(points) == zoom


def test_picked():
    assert picked(1, 3) == [0]
    assert picked(3, 3) == [0, 1, 2]
    assert picked(10, 4) == [0, 3, 6, 9]
    assert picked(10, 1) == [9]


def test_tables_are_bounded():
    document = make_document(blocks=[str(i) for i in range(12)], steps=250, latent_steps=5)
    table = tables.use_table(document)
    assert sum(map(len, table.rows)) <= tables.MAX_CELLS
    assert re.fullmatch(r"\d+ of 250 timesteps", table.note)
    assert {row[1] for row in table.rows} >= {1.0, 0.05}
