"""The measures behind the cleaning stages, and what each stage drops."""

import io
import math
import os
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_data import draw_scene
from PIL import Image, ImageFilter

from diffv2ir.data import DataError, hashing
from diffv2ir.data import measure as measure_module
from diffv2ir.data.alignment import Warp, alignment, choose_threshold, warp, warp_scores
from diffv2ir.data.cleaning import STAGES, CleaningConfig, clean
from diffv2ir.data.contact import contact_sheet, evenly
from diffv2ir.data.copies import Copies
from diffv2ir.data.hashing import BITS, difference_hash
from diffv2ir.data.measure import Measures, black_border, measure, measure_all, open_infrared
from diffv2ir.data.splits import cut_scenes, join_scenes, official_report, split_by_scene
from diffv2ir.imaging import open_image


def textured(seed, size=(160, 120)):
    """Visible and infrared of shapes whose edges coincide, with other brightness and own noise."""
    generator = np.random.default_rng(seed)
    regions = np.asarray(draw_scene(seed, size)[0].convert("L"), dtype=int) // 24
    visible = generator.permutation(np.linspace(30, 230, 11))[regions]
    infrared = generator.permutation(np.linspace(30, 230, 11))[regions]
    noisy = [np.clip(values + generator.normal(0, 6, values.shape), 0, 255).astype(np.uint8)
             for values in (visible, infrared)]  # fmt: skip
    return Image.fromarray(noisy[0]).convert("RGB"), Image.fromarray(noisy[1])


def test_alignment_tells_known_shifts():
    scores = warp_scores((textured(seed) for seed in range(12)), [Warp(shift=0.01), Warp(shift=0.06)])
    assert min(scores[Warp()]) > 0 and np.mean(scores[Warp(shift=0.01)]) > 0
    assert max(scores[Warp(shift=0.06)]) < 0
    threshold, lost, found = choose_threshold(scores[Warp()], scores[Warp(shift=0.06)])
    assert max(scores[Warp(shift=0.06)]) < threshold < min(scores[Warp()]) and (lost, found) == (0, 1)


def test_alignment_does_not_see_which_side_is_brighter():
    visible, infrared = textured(3)
    inverted = Image.eval(infrared, lambda value: 255 - value)
    assert alignment(visible, inverted) == pytest.approx(alignment(visible, infrared), abs=0.02)
    assert alignment(visible, Image.new("L", visible.size, 90)) == 0


def test_threshold_of_overlapping_scores_makes_fewest_errors():
    threshold, lost, found = choose_threshold([0.1, 0.4, 0.5, 0.6], [-0.3, -0.2, 0.0, 0.2])
    assert (threshold, lost, found) == (pytest.approx(0.05), 0.0, 0.75)
    with pytest.raises(ValueError, match="at least one"):
        choose_threshold([], [1.0])


def test_warp_moves_by_what_it_says():
    image = Image.new("L", (100, 50))
    image.putpixel((40, 20), 255)
    moved = np.asarray(warp(image, Warp(shift=0.1), 0.0))
    assert np.argwhere(moved == 255).tolist() == [[20, 50]]
    assert str(Warp(shift=0.02, angle=2, scale=1.1)) == "shift 2.0%, turn 2°, scale 1.1"


def test_black_wedges_are_found_and_skies_are_not():
    photo = textured(1, (256, 200))[0]
    turned = photo.rotate(3, resample=Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", quality=90)
    assert black_border(photo) == 0
    assert black_border(Image.open(buffer)) > 0.02
    pixels = np.array(photo)
    heights = 40 + 15 * np.sin(np.arange(256) / 9)
    pixels[np.arange(200)[:, None] < heights] = 0  # a night sky over trees
    assert black_border(Image.fromarray(pixels)) == 0


def test_hash_survives_another_size_and_compression_and_tells_scenes_apart():
    images = [textured(seed)[0].filter(ImageFilter.GaussianBlur(2)) for seed in range(6)]
    copies = []
    for image in images:
        buffer = io.BytesIO()
        image.resize((100, 75)).save(buffer, "JPEG", quality=50)
        copies.append(Image.open(buffer))
    hashes = [difference_hash(image) for image in images]
    pairs = near_pairs([(value, value) for value in [*hashes, *map(difference_hash, copies)]])
    assert pairs == [(k, k + 6) for k in range(6)]


def near_pairs(hashes, near=hashing.NEAR):
    return [pair for part in hashing.near_pairs(hashes, near) for pair in zip(*(x.tolist() for x in part), strict=True)]


@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([0, 1, 7, 8, 16, 31, 32, 33, 100, 255]))
def test_bands_find_what_comparing_all_finds(seed, count, near):
    """Hashes that differ from a few by about `near` bits, some without a visible image, in parts of seven."""
    generator = np.random.default_rng(seed)

    def drawn():
        flips = generator.random((count, BITS)) < generator.choice([0, near / 2 / BITS, near / BITS, 0.5], (count, 1))
        few = generator.random((3, BITS)) < 0.5
        return [row.tobytes() for row in np.packbits(few[generator.integers(3, size=count)] ^ flips, axis=1)]

    alone = generator.random(count) < 0.3
    hashes = [(one, None if own else other) for one, other, own in zip(drawn(), drawn(), alone, strict=True)]

    def apart(one, other):
        return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()

    wanted = [
        (i, j) for j in range(count) for i in range(j)
        if apart(hashes[i][0], hashes[j][0]) <= near
        and (alone[i] or alone[j] or apart(hashes[i][1], hashes[j][1]) <= near)
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "_CHUNK", 7)
        patch.setattr(hashing, "_AT_ONCE", 300)
        for pays in (False, True):
            patch.setattr(hashing, "_pays", lambda *arguments, pays=pays: pays)
            assert near_pairs(hashes, near) == wanted


@given(st.integers(1, 30), st.data())
def test_copies_are_those_of_all_pairs(count, data):
    """Against the pairs as a list: which go, which belong together, by how few links."""
    place = st.integers(0, count - 1)
    pairs = sorted({(i, j) for i, j in data.draw(st.lists(st.tuples(place, place))) if i < j}, key=lambda p: p[::-1])
    copies = Copies(count)
    for start in range(0, count, 4):
        part = [pair for pair in pairs if start <= pair[1] < start + 4]
        copies.add(*np.array(part, dtype=int).reshape(-1, 2).T)
    goes = set()
    for i, j in pairs:
        if i not in goes:
            goes.add(j)
    assert set(copies.originals) == goes
    assert all((i, j) in pairs and i not in goes for j, i in copies.originals.items())
    names = [f"{number:02d}" for number in range(count)]
    joined = join_scenes(names, pairs)
    assert set(copies.links) <= set(pairs) and join_scenes(names, copies.links) == joined
    assert len(copies.links) == count - len(set(joined))


def bits(*on):
    flags = np.zeros(BITS, dtype=np.uint8)
    flags[list(on)] = 1
    return np.packbits(flags).tobytes()


def test_both_images_have_to_be_near_where_there_are_two():
    same, far = bits(), bits(*range(100))
    hashes = [(same, same), (same, far), (same, None), (far, None), (bits(*range(8)), bits(250))]
    assert sorted(near_pairs(hashes, near=8)) == [(0, 2), (0, 4), (1, 2), (2, 4)]
    assert near_pairs(hashes[:1] + hashes[4:], near=7) == []


def test_stages_drop_what_they_name_and_count_it_once():
    good = dict(sizes=((90, 70), (90, 70)), contrast=40.0, alignment=0.2)
    apart = [bits(*range(40 * k, 40 * k + 40)) for k in range(4)]
    measures = [
        Measures(**good, hashes=(apart[0], apart[0])),
        Measures(error="a.png: not an image"),
        Measures(**good | {"sizes": ((90, 70), (80, 70))}),
        Measures(**good | {"sizes": ((90, 63), (90, 63))}),
        Measures(**good | {"contrast": 2.9}),
        Measures(**good, black=0.01),
        Measures(**good, hashes=(apart[0], apart[0])),
        Measures(**good | {"alignment": -0.01}, hashes=(apart[1], apart[1])),
        Measures(**good, hashes=(apart[2], apart[2])),
    ]
    cleaned = clean(measures)
    assert cleaned.kept == [0, 8] and cleaned.copies == [(0, 6)] and cleaned.originals == {6: 0}
    assert cleaned.dropped == {stage: [place] for stage, place in zip(STAGES, range(1, 8), strict=True)}
    assert clean(measures, CleaningConfig(skip=("misaligned", "duplicate"))).kept == [0, 6, 7, 8]
    with pytest.raises(ValueError, match="skip must be among"):
        CleaningConfig(skip=("unreadable",))


def test_of_a_drifting_video_some_frames_stay():
    frames = [Measures(sizes=((90, 70),), contrast=9.0, hashes=(bits(*range(12 * k)), None)) for k in range(10)]
    cleaned = clean(frames, CleaningConfig(near=32))
    assert cleaned.kept == [0, 3, 6, 9]
    assert cleaned.originals == {1: 0, 2: 0, 4: 3, 5: 3, 7: 6, 8: 6}


def test_unreadable_file_and_border_are_measured(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no")
    assert "not an image" in measure(None, tmp_path / "broken.png").error
    textured(0, (90, 80))[1].save(tmp_path / "a.png")
    assert measure(None, tmp_path / "a.png", 10).sizes == ((70, 60),)
    assert "no border of 40" in measure(None, tmp_path / "a.png", 40).error


def test_scenes_of_copies_are_joined():
    scenes = ["c", "a", "b", "d", "a"]
    assert join_scenes(scenes, [(0, 2), (2, 3)]) == ["b", "a", "b", "b", "a"]


def test_split_keeps_scenes_whole_and_official_sides():
    scenes = [f"s{k // 3}" for k in range(900)]
    splits = split_by_scene(scenes, [None] * 900, 0.2)
    by_scene = dict(zip(scenes, splits, strict=True))
    assert splits == [by_scene[scene] for scene in scenes]
    share = list(by_scene.values()).count("test") / 300
    assert math.isclose(share, 0.2, abs_tol=0.07)
    fewer = split_by_scene(scenes[30:60], [None] * 30, 0.2)
    assert fewer == splits[30:60]
    assert split_by_scene(["x", "x", "y"], ["test", "test", "train"], 0.0) == ["test", "test", "train"]
    assert split_by_scene(["x", "x"], ["test", "train"], 0.0) == ["train", "train"]
    with pytest.raises(ValueError, match="test_fraction"):
        split_by_scene([], [], 1.0)


def test_official_split_is_kept_if_asked_for_and_its_loss_is_counted():
    scenes, official = ["x", "x", "x", "y", "z", "z"], ["test", "train", None, None, "test", None]
    kept = split_by_scene(scenes, official, 0.0, keep_official=True)
    assert kept == ["test", "train", "train", "train", "test", "test"]
    cut = cut_scenes(scenes, official)
    assert cut == {"x"}
    sources = ["a", "b", "a", "c", "a", "a"]
    anew = split_by_scene(scenes, official, 0.0)
    assert anew == ["train"] * 6
    assert official_report(sources, scenes, official, anew, cut) == {
        "a": {"test": 2, "test_lost": 2, "moved": 2, "cut_images": 1, "cut_scenes": 1},
        "b": {"test": 0, "test_lost": 0, "moved": 0, "cut_images": 1, "cut_scenes": 1},
    }
    assert official_report(sources, scenes, official, kept, cut)["a"]["test_lost"] == 0


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_counts_of_14_bit_are_spread(suffix, tmp_path):
    gray = np.asarray(textured(2)[1], dtype=np.uint16)
    counts = 7000 + 6 * gray
    counts[0, 0] = 0  # a dead pixel
    Image.fromarray(counts).save(tmp_path / f"a.{suffix}")
    Image.fromarray(gray * 257).save(tmp_path / f"full.{suffix}")
    Image.fromarray((8000 + gray % 3).astype(np.uint16)).save(tmp_path / f"shutter.{suffix}")
    image = open_infrared(tmp_path / f"a.{suffix}")
    spread = (gray - gray.min()) / np.ptp(gray) * 255
    assert np.abs(np.asarray(image.convert("L"), dtype=float) - spread)[1:].mean() < 6  # the ends are cut off
    assert measure(None, tmp_path / f"a.{suffix}").contrast > 40  # by the full range: 1.4
    assert measure(None, tmp_path / f"shutter.{suffix}").contrast < 3
    full = tmp_path / f"full.{suffix}"
    assert open_infrared(full).tobytes() == open_image(full).tobytes()


@pytest.fixture
def jobs(tmp_path):
    """Three pairs; counts in `reads` how often each is measured in this process."""
    jobs = []
    for number in range(3):
        visible, infrared = textured(number)
        visible.save(tmp_path / f"{number}.png")
        infrared.save(tmp_path / f"{number}_ir.png")
        jobs.append((tmp_path / f"{number}.png", tmp_path / f"{number}_ir.png", 0))
    return jobs


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_measured_is_not_measured_again(jobs, workers, tmp_path, monkeypatch):
    reads, kept = [], tmp_path / "new" / "kept.jsonl"
    monkeypatch.setattr(measure_module, "measure", lambda *job: reads.append(job) or measure(*job))
    wanted = [measure(*job) for job in jobs]
    started = measure_all(jobs, 1, kept)
    assert [next(started), next(started)] == wanted[:2]
    started.close()  # the run is stopped, and in the midst of a line
    with kept.open("a") as file:
        file.write('\n{"key": "ab')
    reads.clear()
    assert list(measure_all(jobs, 1, kept)) == wanted and reads == jobs[2:]
    reads.clear()
    textured(7)[1].save(jobs[0][1])
    broken = (None, tmp_path / "none.png", 0)
    monkeypatch.setattr(measure_module, "measure", measure)
    again = list(measure_all([*jobs, broken, (*jobs[1][:2], 5)], workers, kept))
    assert again[0] != wanted[0] and again[1:3] == wanted[1:] and again[3].error and again[4].sizes[0] == (150, 110)
    draw_scene(0)[1].save(broken[1])
    assert not list(measure_all([broken], 1, kept))[0].error  # what could not be read is tried again


def die(*job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_a_clear_error(jobs, monkeypatch):
    monkeypatch.setattr(measure_module, "measure", die)
    with pytest.raises(DataError, match="one of 2 processes that read images was killed.*fewer workers"):
        list(measure_all(jobs, 2))


def test_sheets_show_14_bits_and_are_spread_over_all(tmp_path):
    gray = np.asarray(textured(2)[1], dtype=np.uint16)
    Image.fromarray(7000 + 6 * gray).save(tmp_path / "deep.png")
    contact_sheet([((None, tmp_path / "deep.png"), "deep")], tmp_path / "sheet.jpg")
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        tile = np.asarray(sheet.crop((6 + 160, 6 + 30, 6 + 320, 6 + 130)).convert("L"))
    assert tile.std() > 30 and tile.max() > 200
    assert evenly(range(48)) == list(range(0, 48, 2)) and evenly([]) == [] and evenly("abc") == ["a", "b", "c"]
