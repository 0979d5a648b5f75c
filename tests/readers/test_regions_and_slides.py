"""Pairs per region and per slide: polygons, stacks of slides, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cmrcnet import ArraySlide, Spots, read_section, synthetic_cohort
from cmrcnet.datasets.cohort_files import write_slide
from cmrcnet.errors import BadInput, BadOption, ScaleError, SectionError, ShapeMismatch, UnknownName
from cmrcnet.readers.polygons import inside, read_polygons, read_region_spots
from cmrcnet.slides.slide_stack import SlideStack

WHITE = ArraySlide(np.full((400, 600, 3), 255, np.uint8), 1.0, "white")


def square(left, top, side, name="r1", **more):
    corners = [[left, top], [left + side, top], [left + side, top + side], [left, top + side], [left, top]]
    return {"type": "Feature", "id": name, "geometry": {"type": "Polygon", "coordinates": [corners]}} | more


def write(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def test_the_features_of_a_spot_are_the_mean_of_its_locations():
    spots = Spots(("a", "b"), np.zeros((2, 2)), 55.0, members=([[1, 1]], [[2, 2], [3, 3], [4, 4]]))
    values = np.array([[10.0, 0], [1, 2], [2, 4], [3, 6]])
    np.testing.assert_array_equal(spots.pooled(values), [[10, 0], [2, 4]])
    np.testing.assert_array_equal(spots.pooled(values[1:], slice(1, 2)), [[2, 4]])
    turned = spots.take([1, 0])
    np.testing.assert_array_equal(turned.location_px, [[2, 2], [3, 3], [4, 4], [1, 1]])
    assert turned.first_location.tolist() == [0, 3, 4]
    plain = Spots(("a",), [[5, 5]], 55.0)
    np.testing.assert_array_equal(plain.pooled(values[:1]), values[:1])
    with pytest.raises(ShapeMismatch, match="1 of them without a location"):
        Spots(("a", "b"), np.zeros((2, 2)), 55.0, members=([[1, 1]], []))


def test_locations_lie_inside_their_polygon_and_outside_its_hole(tmp_path):
    feature = square(0, 0, 200)
    feature["geometry"]["coordinates"].append([[50, 50], [150, 50], [150, 150], [50, 150], [50, 50]])
    path = write(tmp_path / "r.geojson", feature, square(310, 110, 4, "small"), square(550, 350, 100, "edge"))
    spots = read_region_spots(path, WHITE, pitch_um=50.0)
    assert spots.barcodes == ("r1", "small", "edge")
    ring, small, edge = spots.members
    assert len(ring) == 12  # of 4 x 4, without the 2 x 2 in the hole
    assert len(small) == 1
    np.testing.assert_allclose(small, [[312, 112]], atol=2)
    assert (edge < [600, 400]).all()
    np.testing.assert_allclose(spots.centre_px[0], [100, 100])


@pytest.mark.parametrize(
    ("feature", "error", "words"),
    [
        (square(900, 900, 50), SectionError, "lies outside the image"),
        (square(0, 0, 50) | {"id": None}, BadInput, "feature 1 has no name"),
        (square(0, 0, 50) | {"geometry": {"type": "Point", "coordinates": [1, 2]}}, BadInput, "is a Point"),
        (square(0, 0, 50) | {"geometry": {"type": "Polygon", "coordinates": [[[1, 2]]]}}, BadInput, "three corners"),
        (square(0, 0, 50) | {"geometry": {"type": "Polygon", "coordinates": None}}, BadInput, "three corners"),
        (7, BadInput, "has no name"),
    ],
)
def test_a_bad_region_is_refused(tmp_path, feature, error, words):
    with pytest.raises(error, match=words):
        read_region_spots(write(tmp_path / "r.geojson", feature), WHITE)


def test_a_name_may_stand_among_the_properties_and_parts_belong_together(tmp_path):
    parts = [square(0, 0, 10)["geometry"]["coordinates"], square(50, 50, 10)["geometry"]["coordinates"]]
    feature = {"geometry": {"type": "MultiPolygon", "coordinates": parts}, "properties": {"name": "tumour"}}
    ((name, polygons),) = read_polygons(write(tmp_path / "r.geojson", feature))
    assert (name, len(polygons)) == ("tumour", 2)
    path = write(tmp_path / "r.geojson", square(0, 0, 90, "a"), square(9, 9, 90, "a"))
    with pytest.raises(SectionError, match="repeat"):
        read_region_spots(path, WHITE)


def test_a_region_between_the_locations_has_one_inside_of_it(tmp_path):
    around = [[10, 10], [40, 10], [40, 14], [14, 14], [14, 36], [40, 36], [40, 40], [10, 40], [10, 10]]
    thin = square(0, 0, 1, "c-shape")
    thin["geometry"]["coordinates"] = [around]
    over = square(0, 0, 1, "over-the-edge")
    over["geometry"]["coordinates"] = [[[598, 10], [700, 10], [700, 12], [598, 12]]]
    path = write(tmp_path / "r.geojson", thin, over)
    spots = read_region_spots(path, WHITE, pitch_um=200.0)
    for (_, polygons), members in zip(read_polygons(path), spots.members, strict=True):
        assert len(members) == 1
        assert inside(members, polygons).all()
        assert (members < [600, 400]).all()
    with pytest.raises(SectionError, match="or has no area"):
        read_region_spots(write(tmp_path / "r.geojson", square(7, 7, 0)), WHITE, pitch_um=200.0)


def test_regions_of_qupath_are_matched_by_their_readable_names(tmp_path):
    Image.fromarray(np.full((400, 600, 3), 200, np.uint8)).save(tmp_path / "he.png")
    named = [
        square(200 * i, 0, 200, f"3f1c-{i}", properties={"name": name}) for i, name in enumerate(("tumour", "stroma"))
    ]
    write(tmp_path / "r.geojson", *named)
    options = {"image": tmp_path / "he.png", "mpp": 1.0, "spot_diameter_um": 50.0, "table_kind": "continuous"}
    for names in (["stroma", "tumour"], ["3f1c-1", "3f1c-0"]):
        pd.DataFrame({"id": names, "CD3": [2.5, 1.5]}).to_csv(tmp_path / "t.csv", index=False)
        section = read_section(tmp_path / "t.csv", spots=tmp_path / "r.geojson", **options)
        assert section.spots.barcodes == tuple(names)
        np.testing.assert_allclose(section.spots.centre_px, [[300, 100], [100, 100]])


def test_a_table_of_regions_is_matched_by_name(tmp_path):
    Image.fromarray(np.full((400, 600, 3), 200, np.uint8)).save(tmp_path / "he.png")
    write(tmp_path / "r.geojson", square(0, 0, 200, "r1"), square(200, 0, 200, "r2"), square(400, 0, 100, "unused"))
    pd.DataFrame({"id": ["r2", "r1"], "CD3": [2.5, 1.5]}).to_csv(tmp_path / "t.csv", index=False)
    options = {"image": tmp_path / "he.png", "mpp": 1.0, "spot_diameter_um": 50.0, "table_kind": "continuous"}
    section = read_section(tmp_path / "t.csv", spots=tmp_path / "r.geojson", **options)
    assert section.spots.barcodes == ("r2", "r1")
    assert [len(each) for each in section.spots.members] == [16, 16]
    np.testing.assert_allclose(section.spots.centre_px, [[300, 100], [100, 100]])
    assert section.counts.toarray().tolist() == [[2.5], [1.5]]
    pd.DataFrame({"id": ["x", "y", "z"], "CD3": [2.5, 1.5, 1]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(SectionError, match="rows have no polygon"):
        read_section(tmp_path / "t.csv", spots=tmp_path / "r.geojson", **options)


def test_a_stack_reads_each_slide_where_it_lies():
    random = np.random.default_rng(0)
    slides = [ArraySlide(random.integers(0, 255, (30, wide, 3), np.uint8), 20.0, f"s{wide}") for wide in (40, 50)]
    stack = SlideStack(slides, "both")
    assert (stack.width_px, stack.height_px) == (50, 85)
    np.testing.assert_array_equal(stack.read(0, 0, 40, 30), slides[0].read(0, 0, 40, 30))
    np.testing.assert_array_equal(stack.read(10, 55, 40, 30), slides[1].read(10, 0, 40, 30))
    crossing = stack.read(-2, 20, 50, 40)
    np.testing.assert_array_equal(crossing[:10], slides[0].read(-2, 20, 50, 10))
    assert (crossing[10:35] == 255).all()
    np.testing.assert_array_equal(crossing[35:], slides[1].read(-2, 0, 50, 5))
    with pytest.raises(ScaleError, match="table need one scale"):
        SlideStack([slides[0], ArraySlide(np.zeros((9, 9, 3), np.uint8), 1.0, "x")], "both")


@pytest.fixture
def slides(tmp_path):
    for number, section in enumerate(synthetic_cohort(patients=4, spots=6, genes=24, mpp=2.0)):
        write_slide(section.slide, tmp_path / f"s{number}.png")
    frame = pd.DataFrame({"id": list("abcd"), "image": [f"s{i}.png" for i in range(4)]})
    return frame.assign(patient=["p1", "p1", "p2", "p3"], group=["g1", "g1", "g2", "g2"], CRP=[1.0, 2, 3, 4])


def test_a_table_of_slides_is_read_group_by_group(tmp_path, slides):
    slides.to_csv(tmp_path / "slides.csv", index=False)
    options = {"format": "slide_table", "mpp": 2.0, "spot_diameter_um": 100.0, "table_kind": "continuous"}
    section = read_section(tmp_path / "slides.csv", library="g2", **options)
    assert (section.name, section.spots.barcodes, section.genes) == ("g2", ("c", "d"), ("CRP",))
    assert section.patients_within == ("p2", "p3")
    assert section.counts.toarray().ravel().tolist() == [3, 4]
    upper, lower = section.spots.members
    assert len(upper) > 4
    height = section.slide.slides[0].height_px
    assert upper[:, 1].max() < height < height + 250 <= lower[:, 1].min()
    with pytest.raises(BadOption, match="one of g1, g2"):
        read_section(tmp_path / "slides.csv", **options)
    with pytest.raises(UnknownName, match="g3"):
        read_section(tmp_path / "slides.csv", library="g3", **options)
    slides.assign(patient=["p1", "p1", "p1", "p3"]).to_csv(tmp_path / "slides.csv", index=False)
    with pytest.raises(BadInput, match="patient p1 is in several groups"):
        read_section(tmp_path / "slides.csv", library="g2", **options)
    slides.assign(slide=list("efgh")).to_csv(tmp_path / "slides.csv", index=False)
    with pytest.raises(BadInput, match="both a column id and a column slide"):
        read_section(tmp_path / "slides.csv", library="g2", **options)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_names_in_a_table_of_slides_stay_text_and_are_never_empty(tmp_path, slides, ending):
    options = {"format": "slide_table", "mpp": 2.0, "spot_diameter_um": 100.0, "table_kind": "continuous"}
    path = tmp_path / f"slides.{ending}"

    def store(**columns):
        made = slides.assign(**columns).rename(columns={"id": "Slide", "group": "Group", "patient": "Patient"})
        made.to_csv(path, index=False) if ending == "csv" else made.to_parquet(path)

    store(id=["007", "1e5", "08", "9"], patient=["01", "01", "1", "2"], group=["1", "1", "02", "02"])
    assert read_section(path, library="1", **options).spots.barcodes == ("007", "1e5")
    assert read_section(path, library="02", **options).spots.barcodes == ("08", "9")
    for column, cells in (("group", [1, 1, 2, None]), ("patient", [1, 1, 2, None])):
        store(**{column: cells})
        with pytest.raises(BadInput, match=f"row 4 below the header has an empty {column}"):
            read_section(path, library="2" if column == "group" else "g2", **options)
    store(group=np.array([1.0, 1.0, 2.0, 2.0]))
    if ending == "parquet":
        assert read_section(path, library="2", **options).spots.barcodes == ("c", "d")
