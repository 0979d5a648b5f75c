"""`inspect` shows the share of spots on tissue, draws them, and reports a section of which most lie beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cmrcnet.cli import app
from cmrcnet.readers.inspection import OFF, ON, inspect
from tests.readers.written_formats import cut, made_up, write_image, write_legacy

HEAD = "section,patient,counts,image,mpp,affine\n"


def stained(made):
    """The same section on a picture of glass with one square of rough pink tissue under the spots."""
    rng = np.random.default_rng(0)
    image = np.full((600, 600, 3), 240, np.uint8)
    low, high = (made.centre_px.min(axis=0) - 30).astype(int), (made.centre_px.max(axis=0) + 30).astype(int)
    patch = image[low[1] : high[1], low[0] : high[0]]
    patch[:] = np.clip(rng.normal((180, 80, 150), 30, patch.shape), 0, 255)
    return replace(made, image=image)


@pytest.fixture
def folder(tmp_path):
    made = stained(made_up())
    write_legacy(tmp_path, made)
    write_image(tmp_path / "he.png", made.image)
    return tmp_path


def test_spots_on_tissue(folder):
    found = inspect(folder / "S1_counts.tsv.gz", mpp=4)
    assert found.problems == () and found.sections[0].on_tissue == 1
    assert dict(found.rows)["spots on tissue of the image"] == "100%"


def test_a_wrong_affine_is_a_problem_and_is_drawn(folder):
    csv = folder / "cohort.csv"
    csv.write_text(f"{HEAD}S/1,A,S1_counts.tsv.gz,he.png,4,1 0 0 0 1 0\n")
    found = inspect(csv, pictures=folder / "right")
    assert found.problems == () and "100%" in found.to_text()
    right = np.asarray(Image.open(folder / "right" / "S%2F1.png"))
    csv.write_text(f"{HEAD}S1,A,S1_counts.tsv.gz,he.png,4,-1 0 590 0 -1 590\n")  # half a turn
    found = inspect(csv, pictures=folder / "wrong")
    assert (found.sections[0].on_tissue or 0) < 0.3
    assert any(
        r"are on the tissue of its image; check" in problem and "line 2 (S1)" in problem for problem in found.problems
    )
    wrong = np.asarray(Image.open(folder / "wrong" / "S1.png"))
    assert (right == ON).all(axis=2).any() and not (right == OFF).all(axis=2).any()
    assert (wrong == OFF).all(axis=2).sum() > 100
    assert inspect(csv, pixels=False).sections[0].on_tissue is None


def test_an_image_without_tissue_is_told(folder):
    write_image(folder / "S1.png", np.full((600, 600, 3), 240, np.uint8))
    found = inspect(folder / "S1_counts.tsv.gz", mpp=4)
    assert found.problems == () and found.sections[0].on_tissue is None
    assert any("No tissue is recognised" in note for note in found.notes)


def test_damaged_pixels_are_a_problem(folder):
    cut(folder / "S1.png", 0.9)
    found = inspect(folder / "S1_counts.tsv.gz", mpp=4)
    assert len(found.problems) == 1


def test_the_two_marks_differ_without_colour(folder):
    counts = folder / "S1_counts.tsv.gz"
    assert inspect(counts, mpp=4, pictures=folder / "right").problems == ()
    inspect(counts, image=folder / "he.png", mpp=4, affine=[-1, 0, 590, 0, -1, 590], pictures=folder / "wrong")
    right, wrong = (np.asarray(Image.open(folder / name / "S1.png")) for name in ("right", "wrong"))
    made = made_up()
    for x, y in np.round(made.centre_px).astype(int):  # a ring leaves the centre of its spot as it is
        assert not (right[y - 1 : y + 2, x - 1 : x + 2] == ON).all(axis=2).any()
    centres = np.round(590 - made.centre_px).astype(int)
    crossed = [(wrong[y - 1 : y + 2, x - 1 : x + 2] == OFF).all(axis=2).any() for x, y in centres]
    assert np.mean(crossed) > 0.7
    assert abs(int(np.dot(ON, (0.3, 0.6, 0.1))) - int(np.dot(OFF, (0.3, 0.6, 0.1)))) > 60  # grey tells them apart too


def test_pictures_by_command(folder, capsys):
    csv = folder / "cohort.csv"
    csv.write_text(f"{HEAD}S1,A,S1_counts.tsv.gz,he.png,4,-1 0 590 0 -1 590\n")
    command = ["inspect", str(csv), "--pictures", str(folder / "spots")]
    assert app.main(command) == 1
    assert (folder / "spots" / "S1.png").is_file() and "on the tissue" in capsys.readouterr().out
    assert app.main(command) == 2 and app.main([*command, "--overwrite"]) == 1
    one = ["inspect", str(folder / "S1_counts.tsv.gz"), "--mpp", "4", "--image", str(folder / "he.png")]
    assert app.main([*one, "--affine", "-1 0 590 0 -1 590"]) == 1
    assert app.main([*one, "--affine", "1 0 0 0 1 0"]) == 0
    capsys.readouterr()
    assert app.main([*one[:4], "--bin-um", "8"]) == 1 and "have no bins" in capsys.readouterr().out
