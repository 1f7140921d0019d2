"""The report of an analysis in headless Chromium, where it is installed."""

import re
import shutil
import subprocess

import pytest
from analysis_documents import make_document, write_pictures
from etils import epath

from tp_jax.analysis.report import write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
# The page's own width and that of the part of it which can be scrolled to, written into the title.
MEASURE = """<script>
addEventListener("load", () => {
  const broken = [...document.images].filter((image) => !image.complete || !image.naturalWidth);
  document.title = [innerWidth, document.documentElement.scrollWidth, broken.length].join(" ");
});
</script>"""


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_no_horizontal_overflow_in_a_browser(width, tmp_path):
    document = make_document(
        blocks=("4", "8"), experts=16, latent_steps=5, groups=["w" * 300, "<b>猫</b>", "b"]
    )
    write_pictures(document, tmp_path, (900, 200))
    document["run"]["workdir"] = "gs://" + "long" * 100
    write_report(document, epath.Path(tmp_path))
    text = (tmp_path / "report.html").read_text()
    # The page's policy forbids scripts. Every table is opened.
    text = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("<details>", "<details open>")
    # Headless windows can't be narrower than 500 pixels, so the page is measured in a frame.
    inner, outer = tmp_path / "inner.html", tmp_path / "outer.html"
    inner.write_text(text.replace("</body>", MEASURE + "</body>"))
    outer.write_text(
        f'<iframe id="f" src="inner.html" style="width:{width}px;height:800px;border:0"></iframe>'
        '<p id="result"></p><script>setInterval(() => {'
        "result.textContent = f.contentDocument.title }, 100)</script>"
    )
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu",
            "--allow-file-access-from-files", "--virtual-time-budget=20000",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,1000", "--dump-dom", outer.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'<p id="result">(\d+) (\d+) (\d+)</p>', done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    inner_width, scrolled, broken = map(int, found.groups())
    assert inner_width == width
    assert scrolled <= width
    assert broken == 0
