"""Grids: what people write, what it costs, and that each cell is the picture its settings give alone."""

import csv
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from diffv2ir.axes import AXES, GridError, label, parse_axis, suggestion
from diffv2ir.grid import MAX_CELLS, best, plan, run
from diffv2ir.imaging import ImageError
from diffv2ir.metadata import restore
from diffv2ir.settings import GenerationSettings
from diffv2ir.sheets import CellsZip, draw, name_of, save_sheet, table

SETTINGS = GenerationSettings(steps=2, resolution=64, sampler="dpmpp_2m", seed=5)
ORANGE, GRAY = (255, 140, 0), (225, 225, 225)


def values(axis, text, styles=()):
    return list(parse_axis(axis, text, styles).values)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1,2,3", [1, 2, 3]),
        (" 1.5 , .5,\n2.", [1.5, 0.5, 2]),
        ("1-5", [1, 2, 3, 4, 5]),
        ("3-1", [3, 2, 1]),
        ("1-5 (+2)", [1, 3, 5]),
        ("1-6(2)", [1, 3, 5]),
        ("10-5 (-3)", [10, 7]),
        ("0-1 (+0.1)", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        ("1-10 [5]", [1, 3.25, 5.5, 7.75, 10]),
        ("0-1 [4]", [0, 0.3333, 0.6667, 1]),
        ("2, 4-6", [2, 4, 5, 6]),
        ("7-9 [1]", [7]),
        ("1-3, 2, 5", [1, 2, 3, 5]),
    ],
)
def test_numbers_as_people_write_them(text, expected):
    assert values("text_scale", text) == expected


def test_evenly_spaced_whole_numbers_are_those_of_other_plots():
    assert values("steps", "1-10 [5]") == [1, 3, 5, 7, 10]
    assert values("steps", "1-3 [5]") == [1, 2, 3]
    assert all(isinstance(value, int) for value in values("seed", "1-100 [7]"))


def test_names_and_switches():
    assert values("sampler", "ddim, Euler_Ancestral") == ["ddim", "euler_ancestral"]
    assert values("style", "NIR, general", ("general", "nir")) == ["nir", "general"]
    assert values("caption", "on, OFF") == [True, False]
    assert label("caption", False) == "caption off" and label("style", "nir") == "style nir"
    assert label("text_scale", 7.0) == "s_T 7" and label("seed", 123456789) == "seed 123456789"


@pytest.mark.parametrize(
    "axis, text, words",
    [
        ("text_scale", "", "s_T: no values given; write 1,2,3"),
        ("text_scale", "much", "s_T: 'much' is neither a number nor a range; write 1,2,3"),
        ("text_scale", "1-5 (-1)", r"s_T: .* never gets from 1 to 5; write 1-5 \(\+1\)"),
        ("text_scale", "1-5 (+0)", r"never gets from 1 to 5; write 1-5 \(\+1\)"),
        ("text_scale", "-1", "text_scale must be a number, 0 or more, got -1"),
        ("steps", "0-3", "steps must be a whole number from 1 to 500, got 0"),
        ("steps", "1-2 (+0.5)", "steps must be a whole number from 1 to 500, got 1.5"),
        ("steps", "1-9 [0]", "steps: '1-9 .0.' must ask for 1 to 1000 values, got 0"),
        ("seed", "0-100000", "seed: '0-100000' has 100001 values, more than 1000"),
        ("seed", "1-900, 1001-1900", "seed: more than 1000 values"),
        ("sampler", "best", "sampler: 'best' is none of euler_ancestral, dpmpp_2m, unipc, ddim"),
        ("style", "flir", "style: 'flir' is none of general, nir"),
        ("style", " ", "style: no values given; write one or more of general, nir"),
        ("map", "maybe", "map: 'maybe' is none of on, off"),
        ("depth", "1", "the axis must be one of visible_scale, "),
    ],
)
def test_what_is_not_understood_is_named(axis, text, words):
    with pytest.raises(GridError, match=words):
        parse_axis(axis, text, ("general", "nir"))


@given(st.text("0123456789.,-+()[] \n²٣onf", max_size=30))
def test_any_text_gives_values_or_a_grid_error(text):
    try:
        found = values("visible_scale", text)
    except GridError as error:
        assert "s_V" in str(error) or "visible_scale" in str(error)
    else:
        assert found and all(value >= 0 for value in found) and len(set(found)) == len(found)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20, unique=True))
def test_a_list_is_that_list(numbers):
    assert values("seed", ", ".join(map(str, numbers))) == numbers


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 90))
def test_a_range_is_what_counting_gives(first, last, step):
    """In hundredths, whose sums floats do not get right."""
    sign = 1 if last >= first else -1
    text = f"{first / 100}-{last / 100} ({'+' if sign > 0 else '-'}{step / 100})"
    assert values("text_scale", text) == [number / 100 for number in range(first, last + sign, sign * step)]


@given(st.integers(0, 99), st.integers(100, 200), st.integers(2, 50))
def test_evenly_spaced_values_start_and_end_where_asked(first, last, count):
    found = values("text_scale", f"{first}-{last} [{count}]")
    assert (found[0], found[-1], len(found)) == (first, last, count)
    gaps = [after - before for before, after in zip(found, found[1:], strict=False)]
    assert max(gaps) - min(gaps) < 0.001


@pytest.mark.parametrize("name", AXES)
def test_suggested_values_can_be_used(name):
    text = suggestion(name, SETTINGS, ("general", "nir"))
    assert len(plan(SETTINGS, [(name, text)], ("general", "nir")).cells) >= 2


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("edge_radius", 16, "8, 16, 25"),
        ("edge_radius", 0, "0, 2.5, 5"),
        ("visible_scale", 1.5, "0.8, 1.5, 3"),
        ("text_scale", 20, "10, 20"),
        ("gain_control", 0.3, "0.15, 0.3, 0.6"),
        ("steps", 8, "4, 8, 16"),
        ("steps", 1, "1, 2"),
    ],
)
def test_suggested_numbers_are_around_the_one_in_use(name, value, expected):
    assert suggestion(name, SETTINGS.replace(**{name: value})) == expected


@pytest.mark.parametrize(
    "axes, words",
    [
        ([], "one to three axes, got 0"),
        ([("steps", "1")] * 4, "one to three axes, got 4"),
        ([("steps", "1"), ("steps", "2")], "steps is on two axes"),
        ([("text_scale", "1,2"), ("steps", "5, 501")], "steps must be a whole number from 1 to 500, got 501"),
        ([("style", "general, nir")], "'nir' is none of general, night"),
        ([("seed", "1-9"), ("steps", "1-9")], f"81 cells are more than the {MAX_CELLS} that are allowed"),
        ([("caption", "on, off")], "caption: there is none to switch on"),
    ],
)
def test_every_cell_is_checked_before_the_first(axes, words):
    with pytest.raises(GridError, match=words):
        plan(SETTINGS, axes, ("general", "night"), has_caption=False)


def test_as_many_cells_as_allowed():
    assert len(plan(SETTINGS, [("seed", "1-8"), ("steps", "1-8")]).cells) == MAX_CELLS == 64
    with pytest.raises(GridError, match="4 cells are more than the 3"):
        plan(SETTINGS, [("seed", "1-4")], max_cells=3)


def test_a_grid_has_one_seed():
    cells = plan(SETTINGS.replace(seed=None), [("text_scale", "1,2,3")]).cells
    assert len({cell.settings.seed for cell in cells}) == 1 and cells[0].settings.seed is not None


def test_the_first_axis_are_the_columns():
    grid = plan(SETTINGS, [("text_scale", "1,2"), ("seed", "7,8")])
    assert [cell.place for cell in grid.cells] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [(cell.settings.text_scale, cell.settings.seed) for cell in grid.cells] == [(1, 7), (2, 7), (1, 8), (2, 8)]


def test_a_cell_is_as_the_page_has_it_where_no_axis_says():
    cells = plan(SETTINGS, [("caption", "on, off")], use_caption=False, use_map=False).cells
    assert [(cell.caption, cell.map) for cell in cells] == [(True, False), (False, False)]
    assert not plan(SETTINGS, [("seed", "1")], has_caption=False).cells[0].caption


def condition(pipe, photo, asked=None):
    def give(caption, map_):
        if asked is not None:
            asked.append((caption, map_))
        return pipe.prepare(photo, "a tree" if caption else "", None if map_ else False, 64)

    return give


@pytest.mark.parametrize(
    "scales",
    [dict(visible_scale=1.5, segmentation_scale=1.2), dict(visible_scale=0, segmentation_scale=0.1)],
    ids=["usual", "weights that rounding keeps from zero"],
)
def test_evaluations_are_those_that_are_made(pipe, photo, scales):
    settings = SETTINGS.replace(**scales)
    grid = plan(settings, [("caption", "on,off"), ("map", "on,off"), ("text_scale", "0, 1.2, 3")])
    results = list(run(pipe, grid, condition(pipe, photo)))
    assert [result.cell.evaluations for result in results] == [result.output.evaluations for result in results]
    assert grid.evaluations == sum(result.output.evaluations for result in results)
    assert len({cell.evaluations for cell in grid.cells}) > 1


def test_evaluations_of_well_known_cells():
    def of(**scales):
        return plan(SETTINGS.replace(**scales), [("caption", "on")]).evaluations

    assert of(visible_scale=1.5, segmentation_scale=2, text_scale=7.5) == 2 * 4
    assert of(visible_scale=1.5, segmentation_scale=1.5, text_scale=7.5) == 2 * 3
    assert of(visible_scale=1, segmentation_scale=1, text_scale=1) == 2 * 1


def test_each_cell_is_the_picture_of_its_settings(pipe, photo):
    asked = []
    grid = plan(SETTINGS, [("text_scale", "0,3"), ("style", "night,general"), ("map", "on,off")], pipe.styles)
    results = {result.cell.place: result for result in run(pipe, grid, condition(pipe, photo, asked))}
    assert len(results) == 8 and sorted(asked) == [(True, False), (True, True)]
    for cell in grid.cells:
        alone = pipe(photo, cell.settings, "a tree", None if cell.map else False)
        assert results[cell.place].output.image.tobytes() == alone.image.tobytes()
        assert results[cell.place].output.settings == cell.settings and cell.settings.seed == 5


def test_a_style_is_put_in_place_once(pipe, photo, monkeypatch):
    changes, put = [], pipe.set_style
    monkeypatch.setattr(pipe, "set_style", lambda style: (changes.append(style), put(style)))
    grid = plan(SETTINGS.replace(steps=1), [("style", "night,general"), ("text_scale", "0,3")], pipe.styles)
    assert [cell.settings.style for cell in grid.cells] == ["night", "general"] * 2
    assert len(list(run(pipe, grid, condition(pipe, photo)))) == 4
    assert list(dict.fromkeys(changes)) == ["night", "general"] and changes == sorted(changes, reverse=True)


def test_elsewhere_than_on_a_cpu_seeds_share_a_batch(pipe, photo, monkeypatch):
    """Which cells would share one: the pipeline itself stays on the CPU."""
    sizes, generate = [], pipe.generate_batch
    monkeypatch.setattr(
        pipe, "generate_batch", lambda *arguments: (sizes.append(len(arguments[0])), generate(*arguments))[1]
    )
    monkeypatch.setattr("diffv2ir.grid._batch_size", lambda pipe: 4)
    grid = plan(SETTINGS.replace(steps=1), [("seed", "1-5"), ("map", "on,off")])
    results = list(run(pipe, grid, condition(pipe, photo)))
    assert sizes == [4, 1, 4, 1]
    assert all(result.output.seed == result.cell.settings.seed for result in results)
    assert all((result.output.segmentation is not None) == result.cell.map for result in results)


@pytest.mark.parametrize(("when", "finished"), [((0, 0), 0), ((3, 1), 3), ((3, 0), 3), ((3, 2), 4), ((3, 3), 4)])
def test_a_stop_keeps_what_is_finished(pipe, photo, when, finished):
    """Before a cell, in the middle, and after the last step, when the cell is whole."""
    stopped = []

    def callback(done, step, total):
        stopped.append((done, step) >= when)
        return not stopped[-1]

    grid = plan(SETTINGS.replace(steps=2), [("text_scale", "0-9")])
    results = list(run(pipe, grid, condition(pipe, photo), callback))
    assert len(results) == finished and not any(result.output.cancelled for result in results)
    for result in results[3:]:
        alone = pipe(photo, result.cell.settings, "a tree")
        assert result.output.image.tobytes() == alone.image.tobytes()


def test_what_the_bundle_cannot_do_is_told_before_the_first_cell(pipe, photo):
    asked = []
    grid = plan(SETTINGS, [("style", "general, absent")])
    with pytest.raises(GridError, match="'absent' is none of general, night"):
        list(run(pipe, grid, condition(pipe, photo, asked)))
    assert asked == []


def test_a_real_picture_of_another_section_is_told_before_the_first_cell(pipe, photo, monkeypatch):
    grid, square = plan(SETTINGS, [("seed", "1,2")]), Image.new("L", (64, 64))
    monkeypatch.setattr(pipe, "generate_batch", None)
    with pytest.raises(ImageError, match="another aspect ratio"):
        list(run(pipe, grid, condition(pipe, photo), real=square))


@pytest.fixture(scope="module")
def compared(_loaded, photo):
    """A grid of three seeds, and its results against the picture of the second."""
    real = next(run(_loaded, plan(SETTINGS, [("seed", "2")]), condition(_loaded, photo))).output.image
    grid = plan(SETTINGS, [("seed", "1,2,3")])
    return grid, list(run(_loaded, grid, condition(_loaded, photo), real=real))


@pytest.mark.parametrize("measure", ["ssim", "psnr"])
def test_the_nearest_to_the_real_picture_is_the_best(compared, measure, pipe, photo):
    grid, results = compared
    assert best(results, measure).cell.values == (2,)
    assert best(list(run(pipe, grid, condition(pipe, photo))), measure) is None


def test_the_table(compared):
    rows = list(csv.DictReader(io.StringIO(table(compared[1]))))
    told = [(row["cell"], row["seed"], row["caption"], row["map"], row["best"]) for row in rows]
    assert told == [("1", "1", "a tree", "on", ""), ("2", "2", "a tree", "on", "ssim"), ("3", "3", "a tree", "on", "")]
    assert float(rows[1]["ssim"]) == 1 and float(rows[0]["ssim"]) < 1 and rows[1]["psnr"] == "inf"
    for row, result in zip(rows, compared[1], strict=True):
        assert int(row["evaluations"]) == result.output.evaluations and float(row["seconds"]) > 0
        assert {name: row[name] for name in SETTINGS.to_dict()} == {
            name: str(value) for name, value in result.output.settings.to_dict().items()
        }


def test_cells_in_a_zip_tell_how_they_were_made(compared, tmp_path):
    with CellsZip(tmp_path / "cells.zip") as archive:
        for result in compared[1]:
            archive.add(result)
    with zipfile.ZipFile(tmp_path / "cells.zip") as archive:
        assert archive.namelist() == ["1.png", "2.png", "3.png"]
        archive.extractall(tmp_path)
    assert restore(tmp_path / "3.png").settings == SETTINGS.replace(seed=3)


def test_a_kept_result_is_small(compared):
    small = compared[1][0].small(20)
    assert max(small.output.image.size) == 20 and small.output.levels is None and small.scores
    assert compared[1][0].output.image.size == (90, 70)


def colours(image):
    return {colour: count for count, colour in image.getcolors(1 << 20)}


def grays(image):
    return colours(image).get(GRAY, 0)


def test_the_sheet_has_a_place_for_every_cell(pipe, photo):
    grid = plan(SETTINGS, [("text_scale", "0,1,3"), ("seed", "1,2"), ("caption", "on,off")])
    results = list(run(pipe, grid, condition(pipe, photo)))
    whole, part = draw(grid, results, longest=40), draw(grid, results[:5], longest=40)
    assert whole.size == part.size
    assert grays(part) - grays(whole) > 6 * 40 * 31  # seven places are empty
    with pytest.raises(ValueError, match="no cell is finished"):
        draw(grid, [])
    assert name_of(grid.cells[-1]) == "3-2-2"


def corner(sheet, picture):
    """Where a sheet shows a gray picture, pixel by pixel; exactly once."""
    pixels, wanted = np.asarray(sheet.convert("L")), np.asarray(picture)
    found = (sliding_window_view(pixels, wanted.shape[1], axis=1) == wanted[0]).all(-1)
    height, width = wanted.shape
    [place] = [(x, y) for y, x in np.argwhere(found) if (pixels[y : y + height, x : x + width] == wanted).all()]
    return place


def test_cells_are_in_their_places(pipe, photo):
    grid = plan(SETTINGS, [("text_scale", "0,3"), ("seed", "1,2"), ("style", "night,general")], pipe.styles)
    results = list(run(pipe, grid, condition(pipe, photo)))
    corners = {result.cell.place: corner(draw(grid, results), result.output.image) for result in results}
    lefts, tops = [sorted({place[axis] for place in corners.values()}) for axis in (0, 1)]
    assert len(lefts) == 2 and len(tops) == 4 and lefts[1] - lefts[0] > 90 and min(np.diff(tops)) > 70
    for (column, row, sheet), place in corners.items():
        assert place == (lefts[column], tops[2 * sheet + row])


def test_every_legend_has_room(pipe, photo):
    """Names longer than a tile move the columns apart instead of running into one another."""
    narrow, wide = (
        draw(grid, list(run(pipe, grid, condition(pipe, photo))), longest=10)
        for grid in (plan(SETTINGS, [("sampler", names)]) for names in ("ddim, unipc", "ddim, euler_ancestral"))
    )
    assert wide.width > 2 * 100 and wide.width > narrow.width


def test_the_best_cell_has_a_frame(compared, pipe, photo):
    grid, results = compared
    plain = list(run(pipe, grid, condition(pipe, photo)))
    framed = draw(grid, results, longest=40)
    assert ORANGE in colours(framed) and ORANGE not in colours(draw(grid, plain, longest=40))
    left = min(x for x in range(framed.width) for y in range(framed.height) if framed.getpixel((x, y)) == ORANGE)
    assert framed.width / 3 - 20 < left < 2 * framed.width / 3


def test_the_saved_sheet_says_that_it_is_generated(compared, tmp_path):
    grid, results = compared
    save_sheet(draw(grid, results), tmp_path / "grid.png", grid)
    with Image.open(tmp_path / "grid.png") as opened:
        assert opened.mode == "RGB"
        assert "not a measurement" in opened.info["Description"] and '"seed": [1, 2, 3]' in opened.info["Description"]
