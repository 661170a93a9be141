"""curves.svg: whole XML for any run, and nothing for none."""

from xml.etree import ElementTree

from simsiam.run.curves_file import curves_svg, write_curves
from simsiam.run.record import read_run
from tests.run.fakes import detection, pretraining

SVG = "{http://www.w3.org/2000/svg}"


def test_it_has_a_chart_of_each_figure_side_by_side_and_below(tmp_path):
    run = read_run(pretraining(tmp_path / "a"))
    assert write_curves(run)
    root = ElementTree.parse(tmp_path / "a" / "curves.svg").getroot()
    charts = root.findall(f"{SVG}svg")
    assert [chart.get("aria-label") for chart in charts] == [
        "loss",
        "kNN top-1, percent",
        "std of projections (1: even spread)",
        "effective rank",
        "learning rate",
        "pairs/s",
    ]
    places = [(float(chart.get("x")), float(chart.get("y"))) for chart in charts]
    assert len(set(places)) == 6
    width, height = float(root.get("width")), float(root.get("height"))
    for chart, (x, y) in zip(charts, places):
        assert x + float(chart.get("width")) <= width
        assert y + float(chart.get("height")) <= height
        assert chart.find(f"{SVG}g/{SVG}polyline").get("points")
    assert root.find(f"{SVG}text").text == "a - completed"
    # Colours stand in the file, since not every viewer knows variables.
    assert "var(" not in (tmp_path / "a" / "curves.svg").read_text()


def test_a_run_called_anything_is_a_whole_file(tmp_path):
    run = read_run(pretraining(tmp_path / "a<&\x07\udce9"))
    text = ElementTree.fromstring(curves_svg(run).encode()).find(f"{SVG}text").text
    assert text == "a<&?? - completed"


def test_a_link_in_its_place_is_replaced_and_what_it_names_stays(tmp_path):
    run = read_run(pretraining(tmp_path / "a"))
    (tmp_path / "mine").write_text("mine")
    (run.path / "curves.svg").symlink_to(tmp_path / "mine")
    assert write_curves(run)
    assert (tmp_path / "mine").read_text() == "mine"
    assert (run.path / "curves.svg").read_text().startswith("<svg")


def test_a_run_that_has_logged_nothing_leaves_no_file(tmp_path):
    run = detection(tmp_path / "det", trials=2)
    assert not write_curves(read_run(run))
    assert not (run / "curves.svg").exists()
