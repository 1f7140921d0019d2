"""ADM scores of image files, with a small stand-in for the Inception network."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import run_entry
from etils import epath
from stand_in_extractor import (
    REFERENCE,
    SAMPLE,
    make_extractor,
    network,
    random_images,
    save_npz,
    save_pngs,
)

from tp_jax.evals.adm import manifold, suite
from tp_jax.evals.adm import reference as reference_lib
from tp_jax.evals.adm import scores as adm
from tp_jax.evals.adm.metrics import frechet_distance, inception_score, moments
from tp_jax.evals.adm.reference import (
    complete_reference,
    compute_statistics,
    read_reference,
    save_statistics,
)
from tp_jax.evals.adm.suite import ScoreRequest, score_images
from tp_jax.messages.errors import UserError

# References and scores


def measured(extractor, images):
    """Statistics of the features of these images."""
    return compute_statistics([images], len(images), extractor, "test")


def gaussian(rows):
    """Mean and covariance."""
    return rows.mean(axis=0), np.cov(rows, rowvar=False)


def expected_scores(extractor, sample, reference):
    """The scores, computed from all features at once."""
    a, b = (next(make_extractor(batch_size=200).batches([x])) for x in (sample, reference))
    fid, sfid = (
        frechet_distance(*gaussian(x.astype(np.float64)), *gaussian(y.astype(np.float64)))
        for x, y in ((a.pool, b.pool), (a.spatial, b.spatial))
    )
    precision, recall = manifold.precision_recall(b.pool, a.pool)
    return dict(
        fid=fid,
        sfid=sfid,
        inception_score=inception_score(a.logits),
        precision=precision,
        recall=recall,
    )


def check_scores(found, expected, **changes):
    found = dataclasses.asdict(found)
    for name, value in (expected | changes).items():
        assert found[name] == (value if value is None else pytest.approx(value, rel=1e-4)), name


@pytest.fixture(scope="module")
def expected(extractor):
    return expected_scores(extractor, SAMPLE, REFERENCE)


def published(extractor, path, images=None):
    """Write a reference as OpenAI publishes them: statistics, and optionally some of the images."""
    found = measured(extractor, REFERENCE)
    return save_npz(
        path,
        mu=found.pool.mean,
        sigma=found.pool.covariance,
        mu_s=found.spatial.mean,
        sigma_s=found.spatial.covariance,
        **({} if images is None else dict(arr_0=images)),
    )


def evaluated(extractor, path, sample=SAMPLE):
    """Scores of the samples against a reference file."""
    return adm.score_batches(iter(np.split(sample, [7, 20])), 50, read_reference(path), extractor)


def test_scores_against_images(extractor, expected, tmp_path):
    found = evaluated(extractor, save_npz(tmp_path / "a.npz", arr_0=REFERENCE))
    check_scores(found, expected, count=50, reference_count=60)
    assert found.protocol == "adm" and found.inception == "stand-in 1"
    assert found.reference == "a.npz"
    assert found.notes == ("Inception Score: the last split has 50 images instead of 5000",)


def test_statistics_are_accumulated_in_groups_of_features(extractor, monkeypatch):
    whole = measured(extractor, REFERENCE)
    monkeypatch.setattr(reference_lib, "MIN_GROUP", 24)
    seen = []
    monkeypatch.setattr(reference_lib, "moments", lambda x: seen.append(len(x)) or moments(x))
    found = measured(extractor, REFERENCE)
    assert seen[::2] == [24, 24, 12]
    np.testing.assert_array_equal(found.features, whole.features)
    np.testing.assert_allclose(found.spatial.covariance, whole.spatial.covariance, rtol=1e-9)
    assert found.inception_score == pytest.approx(whole.inception_score)


def test_scores_against_a_published_file(extractor, expected, tmp_path):
    found = evaluated(extractor, published(extractor, tmp_path / "a.npz", REFERENCE[:40]))
    with_40 = expected_scores(extractor, SAMPLE, REFERENCE[:40])
    from_images = {name: with_40[name] for name in ("precision", "recall")}
    check_scores(found, expected, **from_images, reference_count=None)


def test_scores_against_a_published_file_without_images(extractor, expected, tmp_path):
    found = evaluated(extractor, published(extractor, tmp_path / "a.npz"))
    check_scores(found, expected, precision=None, recall=None)
    assert "precision, recall: a.npz has neither images nor features" in found.notes


def test_scores_against_saved_statistics(extractor, expected, tmp_path):
    path = epath.Path(tmp_path / "a.npz")
    save_statistics(path, measured(extractor, REFERENCE), extractor, (16, 16))
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    check_scores(evaluated(extractor, path), expected, reference_count=60)


def test_pytorch_fid_has_no_sfid(expected, tmp_path):
    extractor = make_extractor(protocol="pytorch-fid")
    found = evaluated(extractor, save_npz(tmp_path / "a.npz", arr_0=REFERENCE))
    assert found.protocol == "pytorch-fid" and found.sfid is None
    assert "sFID: not defined by pytorch-fid" in found.notes
    # The protocols resize differently, so their scores differ slightly.
    assert found.fid == pytest.approx(expected["fid"], rel=0.1)
    assert found.fid != pytest.approx(expected["fid"], rel=1e-5)


def test_statistics_of_pytorch_fid_are_read(tmp_path):
    extractor = make_extractor(protocol="pytorch-fid")
    pool = measured(extractor, REFERENCE).pool
    found = evaluated(extractor, save_npz(tmp_path / "a.npz", mu=pool.mean, sigma=pool.covariance))
    assert found.fid > 0 and found.precision is None
    assert "a.npz doesn't record the protocol it was made with" in found.notes


def test_scores_of_a_set_against_itself_are_perfect(extractor, tmp_path):
    found = evaluated(extractor, save_npz(tmp_path / "a.npz", arr_0=SAMPLE))
    assert abs(found.fid) < 1e-6 and abs(found.sfid) < 1e-6
    assert found.precision == found.recall == 1


def test_too_few_images_are_noted_or_refused(extractor, tmp_path):
    path = save_npz(tmp_path / "a.npz", arr_0=REFERENCE)
    found = evaluated(extractor, path, SAMPLE[:3])
    assert found.precision is None and found.fid > 0
    assert (
        "precision, recall: need more than 3 samples and more than 3 reference images"
        in found.notes
    )
    assert any(
        note.startswith("samples: 3 images for 16 features, so the cov") for note in found.notes
    )
    with pytest.raises(UserError, match="a covariance needs at least 2 images, found 1"):
        evaluated(extractor, path, SAMPLE[:1])
    with pytest.raises(UserError, match="there are no samples: give at least 2"):
        adm.score_batches(iter([]), 50, read_reference(path), extractor)


def refuse_to_run(*args):
    raise AssertionError("an image was read before the reference was checked")


def test_references_that_do_not_fit_are_refused_before_any_computation(extractor, tmp_path):
    saved = epath.Path(tmp_path / "saved.npz")
    save_statistics(saved, measured(extractor, REFERENCE), extractor, (16, 16))
    idle = dict(network=refuse_to_run)

    def check(match, path, size=16, **fields):
        other = dataclasses.replace(extractor, **(idle | fields))
        with pytest.raises(UserError, match=match):
            evaluated(other, path, random_images(20, size))

    made = "saved.npz was made with"
    check(
        f"{made} protocol adm, not pytorch-fid: set --protocol=adm", saved, protocol="pytorch-fid"
    )
    check(
        rf"{made} other Inception weights \(it has stand-in 1, these are x\)", saved, identity="x"
    )
    check("images are 8×8, but those of saved.npz are 16×16: use a reference", saved, size=8)
    old = published(extractor, tmp_path / "old.npz", REFERENCE[:9])
    check("old.npz was made with protocol adm, not", old, protocol="pytorch-fid")
    check("images are 8×8, but those of old.npz are 16×16", old, size=8)
    narrow = save_npz(tmp_path / "narrow.npz", mu=np.zeros(7), sigma=np.eye(7))
    check("narrow.npz has 7 pool features, but the network has 16: use", narrow, network=network)


def test_files_that_are_no_references_are_refused(tmp_path):
    def check(match, **arrays):
        with pytest.raises(UserError, match=match):
            read_reference(save_npz(tmp_path / "a.npz", **arrays))

    eye = np.eye(3)
    check("a.npz has the arrays x but neither mu nor arr_0: give images", x=eye)
    check(r"mu is \[3\] and sigma is missing", mu=eye[0])
    check(
        r"mu is \[3\] and sigma is \[2, 3\], but the shapes must be \[D\] and \[D, D\]",
        mu=eye[0],
        sigma=eye[:2],
    )
    check("mu or sigma isn't finite", mu=eye[0], sigma=np.nan * eye)
    check("a.npz is damaged", mu=np.array([None]), sigma=eye)
    (tmp_path / "a.npz").write_text("text")
    with pytest.raises(UserError, match="a.npz can't be read as an npz"):
        read_reference(epath.Path(tmp_path / "a.npz"))
    with pytest.raises(UserError, match="no such file or folder"):
        read_reference(epath.Path(tmp_path / "b.npz"))


def test_complete_reference_is_not_read_again(extractor, tmp_path):
    path = save_npz(tmp_path / "a.npz", arr_0=REFERENCE)
    reference = complete_reference(read_reference(path), extractor)
    path.unlink()
    assert adm.score_batches(iter([SAMPLE]), 50, reference, extractor).fid > 0


# The suite and the entry


@pytest.fixture
def inception(monkeypatch, extractor):
    """Use the stand-in network in place of the weights in the given folder."""

    def load(folder, protocol, batch_size):
        return dataclasses.replace(extractor, protocol=protocol, batch_size=batch_size)

    monkeypatch.setattr(suite, "load_extractor", load)


def test_the_suite_writes_scores_and_statistics(inception, expected, tmp_path, capsys):
    folder = save_pngs(tmp_path / "samples", SAMPLE)
    task = ScoreRequest(
        samples=folder,
        reference=save_npz(tmp_path / "a.npz", arr_0=REFERENCE),
        inception=epath.Path("inception"),
        out=epath.Path(tmp_path / "new" / "scores.json"),
        save_statistics=epath.Path(tmp_path / "statistics.npz"),
        batch_size=16,
    )
    check_scores(score_images(task), expected)
    table = capsys.readouterr().out
    assert f"fid             {expected['fid']:.4f}\n" in table and "protocol        adm\n" in table
    written = json.loads(task.out.read_text())
    assert written["fid"] == pytest.approx(expected["fid"])
    assert written["samples"] == str(folder) and written["count"] == 50
    assert written["suite"] == "adm" and written["protocol"] == "adm"
    assert set(written["versions"]) >= {"tp_jax", "jax", "numpy", "scipy", "device"}
    saved = read_reference(task.save_statistics)
    assert saved.size == (16, 16) and saved.identity == "stand-in 1"
    assert saved.statistics.inception_score == pytest.approx(expected["inception_score"])


def test_saving_statistics_needs_no_reference(inception, expected, tmp_path):
    task = ScoreRequest(
        samples=save_npz(tmp_path / "a.npz", arr_0=SAMPLE),
        reference=None,
        inception=epath.Path("inception"),
        save_statistics=epath.Path(tmp_path / "b.npz"),
        num=20,
    )
    scores = score_images(task)
    assert scores.fid is None and scores.reference is None and scores.count == 20
    assert read_reference(task.save_statistics).statistics.count == 20


def test_statistics_of_samples_are_saved_also_if_the_reference_is_damaged(inception, tmp_path):
    # Damaged images in the reference are found only after the samples were evaluated.
    path = save_npz(tmp_path / "a.npz", arr_0=REFERENCE)
    data = bytearray(path.read_bytes())
    data[5000] ^= 255
    path.write_bytes(data)
    task = ScoreRequest(
        samples=save_npz(tmp_path / "b.npz", arr_0=SAMPLE),
        reference=path,
        inception=epath.Path("inception"),
        save_statistics=epath.Path(tmp_path / "c.npz"),
    )
    with pytest.raises(UserError, match="a.npz: arr_0 is damaged at or before row 59"):
        score_images(task)
    assert read_reference(task.save_statistics).statistics.count == 50


BASIC = ["--samples={a}", "--reference={a}", "--inception={none}"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (BASIC[1:], "--samples is missing: FILE.npz with arr_0"),
        (BASIC[:2], "--inception is missing: a folder written by"),
        ([BASIC[0], BASIC[2]], "--reference is missing: give one, or --save_statistics=FILE.npz"),
        ([*BASIC, "--suite=fid"], "--suite='fid' is unknown: choose one of adm"),
        ([*BASIC, "--protocol=tf"], "protocol 'tf' is unknown: choose one of adm, pytorch-fid"),
        ([*BASIC, "--num=51"], "--num=51: .*a.npz has 50 images: give 2 to 50"),
        ([*BASIC, "--num=1"], "--num=1: .*give 2 to 50"),
        (["--samples={one}", *BASIC[1:]], "one.npz has 1 image: scores need at least 2"),
        ([*BASIC, "--num=few"], "--num=few.*int"),
        ([*BASIC, "--batch_size=6"], "batch_size=6 does not divide .*multiple of 4"),
        ([*BASIC, "--out={folder}"], "--out=.*is a folder: name a file"),
        ([*BASIC, "--save_statistics={a}/b.npz"], "--save_statistics=.*can't be created.*another"),
        ([*BASIC, "--sample=x"], "'sample'. Did you mean: .*samples"),
        (["--samples={none}", *BASIC[1:]], "nowhere: there is no such file or folder"),
        ([BASIC[0], "--reference={none}", BASIC[2]], "nowhere: there is no such file or folder"),
        (["--samples={small}", *BASIC[1:]], "images are 8×8, but those of a.npz are 16×16"),
    ],
)
def test_wrong_flags_and_files_are_refused(arguments, match, inception, refused, tmp_path):
    place = tmp_path / "place"
    names = dict(
        a=save_npz(place / "a.npz", arr_0=SAMPLE),
        small=save_npz(place / "small.npz", arr_0=random_images(4, side=8)),
        one=save_npz(place / "one.npz", arr_0=SAMPLE[:1]),
        none=place / "nowhere",
        folder=place / "folder",
    )
    (place / "folder").mkdir()
    refused("evaluate", *(argument.format(**names) for argument in arguments), match=match)


def test_entry_writes_and_prints_scores(inception, expected, tmp_path):
    code, stdout, _ = run_entry(
        "evaluate",
        f"--samples={save_npz(tmp_path / 'a.npz', arr_0=SAMPLE)}",
        f"--reference={save_npz(tmp_path / 'b.npz', arr_0=REFERENCE)}",
        f"--out={tmp_path / 'c.json'}",
        "--inception=x",
        "--batch_size=4",
    )
    assert code == 0
    assert f"recall          {expected['recall']:.4f}\n" in stdout
    assert json.loads((tmp_path / "c.json").read_text())["fid"] == pytest.approx(expected["fid"])
