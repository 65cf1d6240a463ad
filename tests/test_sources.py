import json
import pickle

import cv2
import numpy as np
import psutil
import pytest
from commands import Command
from PIL import Image, ImageOps
from products import SIZE, draw_noise, load_source, normal_image, write_product, write_sources
from torch.utils.data import DataLoader, Dataset

from detect.data import augmentations
from detect.data.augmentations import NUM_OPERATIONS, OPERATIONS, augmented
from detect.data.samples import BlendedDataset
from detect.data.source_words import parse_parts
from detect.data.sources import (
    SOURCES,
    TEXTURE_OPACITY,
    Anomaly,
    AnomalySource,
    LoadedPart,
    Part,
    open_source,
)
from detect.images import ImagePool
from synth.base.errors import UserError
from synth.base.progress import no_bars
from synth.blend import OPACITY
from synth.data.baselines import shifted
from synth.data.foreground import EVERYTHING
from synth.images import write_png

NORMAL = normal_image(0)
SIZE_BYTES = SIZE[0] * SIZE[1] * 3


def picture(seed, size=(24, 40)):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (size[1], size[0])), np.uint8)


@pytest.fixture
def textures(tmp_path):
    for n in range(4):
        write_png(tmp_path / f"dtd/images/kind{n % 2}/{n}.png", picture(n))
    return tmp_path / "dtd"


def draws(source, count, normal=NORMAL, seed=0):
    return [source(np.random.default_rng([seed, n]), normal) for n in range(count)]


# Kinds


def test_noise_is_uniform_over_all_levels():
    normal = np.zeros((64, 64, 3), np.uint8)
    levels = draw_noise(np.random.default_rng(0), normal).image.ravel()
    assert levels.dtype == np.uint8
    assert (levels.min(), levels.max()) == (0, 255)
    assert abs(levels.mean() - 127.5) < 4 * np.sqrt((256**2 - 1) / 12 / levels.size)


@pytest.mark.parametrize("grey", [True, False])
def test_noise_and_textures_are_as_grey_as_the_product(textures, grey):
    for part in (Part("noise"), Part("textures", textures)):
        images = [d.image for d in draws(load_source(part, grey=grey), 20)]
        assert all((image[..., :1] == image).all() for image in images) == grey


def test_sia_images_are_drawn_as_they_are_at_the_size(tmp_path):
    folder = write_sources(tmp_path / "sia")
    source = load_source(Part("sia", folder), size=(20, 24), grey=True)
    normal = np.zeros((20, 24, 3), np.uint8)
    drawn = draws(source, 100, normal)
    assert drawn[0].image.shape == (20, 24, 3)
    found = {tuple(d.image[0, 0]) for d in drawn}
    colours = {
        tuple(np.random.default_rng(i).integers(0, 256, 3, dtype=np.uint8)) for i in range(6)
    }
    assert found == colours
    assert {d.opacity for d in drawn} == {OPACITY}


def test_textures_are_drawn_from_all_files_and_changed_each_time(textures, monkeypatch):
    source = load_source(Part("textures", textures))
    drawn = draws(source, 60)
    assert {d.opacity for d in drawn} == {TEXTURE_OPACITY}
    assert len({d.image.tobytes() for d in drawn}) >= 55  # three operations may change nothing
    monkeypatch.setattr(augmentations, "NUM_OPERATIONS", 0)
    plain = {d.image.tobytes() for d in draws(source, 60)}
    files = {cv2.resize(picture(n), SIZE[::-1]).shape for n in range(4)}
    assert files == {(*SIZE, 3)}
    assert len(plain) == 4


def test_cutpaste_is_the_normal_image_jittered_and_shifted():
    source = load_source(Part("cutpaste"), grey=True)
    for n, anomaly in enumerate(draws(source, 5)):
        again = shifted(NORMAL, np.random.default_rng([0, n]), True).image
        assert np.array_equal(anomaly.image, again)
        # Jitter of grey keeps the order of levels; undoing the shift must give it back.
        flat, wanted = anomaly.image[..., 0].astype(int), NORMAL[..., 0].astype(int)
        spectra = np.fft.fft2(flat - flat.mean()).conj() * np.fft.fft2(wanted - wanted.mean())
        y, x = np.unravel_index(np.fft.ifft2(spectra).real.argmax(), SIZE)
        back = np.roll(flat, (y, x), (0, 1))
        assert np.corrcoef(back.ravel(), wanted.ravel())[0, 1] > 0.99


# Mixtures


def constant(level, opacity):
    return LoadedPart(lambda rng, normal: np.full_like(normal, level), opacity, 0)


def test_mixture_draws_each_part_by_its_weight_with_its_opacity(tmp_path, textures):
    sia = write_sources(tmp_path / "sia")
    opened = open_source([Part("sia", sia, 3), Part("textures", textures, 1)])
    assert opened.shares == (0.75, 0.25)
    drawn = draws(opened.load(SIZE, False, no_bars), 2000)
    share = np.mean([d.opacity == TEXTURE_OPACITY for d in drawn])
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2000)
    plain = [len(np.unique(d.image.reshape(-1, 3), axis=0)) == 1 for d in drawn[:200]]
    assert plain == [d.opacity == OPACITY for d in drawn[:200]]
    parts = opened.config["parts"]
    assert [(p["kind"], p["share"], p["opacity"]) for p in parts] == [
        ("sia", 0.75, [0.5, 1.0]),
        ("textures", 0.25, [0.2, 1.0]),
    ]
    assert json.loads(json.dumps(opened.config)) == opened.config


@pytest.mark.parametrize("opacity", [(0.2, 1.0), (0.5, 1.0), (0.9, 0.9)])
def test_blending_keeps_to_the_opacity_of_the_source(opacity):
    normals = np.zeros((3, *SIZE, 3), np.uint8)
    white = constant(255, opacity)._replace(until=1.0)
    data = BlendedDataset(normals, EVERYTHING, AnomalySource([white]), seed=0, anomalous_share=1.0)
    samples = [data[n] for n in range(200)]
    deltas = np.array([s.image.amax().item() / 255 for s in samples])
    assert opacity[0] - 0.003 <= deltas.min() <= opacity[0] + 0.02
    assert opacity[1] - 0.02 <= deltas.max() <= opacity[1] + 0.003


def test_draws_depend_on_the_generator_alone(tmp_path, textures):
    sia = write_sources(tmp_path / "sia")
    parts = [Part("sia", sia), Part("textures", textures), Part("noise"), Part("cutpaste")]
    source = load_source(*parts)
    copy = pickle.loads(pickle.dumps(source))  # as a spawned worker gets it
    ones = [d.image.tobytes() for d in draws(source, 40)]
    others = [source(np.random.default_rng([0, n]), NORMAL) for n in reversed(range(40))][::-1]
    assert ones == [d.image.tobytes() for d in others]
    assert ones == [d.image.tobytes() for d in draws(copy, 40)]
    assert ones != [d.image.tobytes() for d in draws(source, 40, seed=1)]


# Images in memory


def test_pool_keeps_to_its_bytes_and_draws_the_same(textures):
    paths = sorted(textures.rglob("*.png"))
    free = ImagePool(paths, SIZE, no_bars)
    tight = ImagePool(paths, SIZE, no_bars, cache_bytes=2 * SIZE_BYTES + 1)
    assert (len(free.kept), len(tight.kept)) == (4, 2)
    for n in range(30):
        one, other = (p.draw(np.random.default_rng(n), NORMAL) for p in (free, tight))
        assert np.array_equal(one, other)


def test_mixture_shares_the_bytes(tmp_path, textures, monkeypatch):
    monkeypatch.setattr("detect.data.sources.CACHE_BYTES", 4 * SIZE_BYTES)
    sia = write_sources(tmp_path / "sia")
    source = load_source(Part("sia", sia), Part("textures", textures))
    kept = [source.parts[0].draw.__self__.kept, source.parts[1].draw.pool.kept]
    assert [len(images) for images in kept] == [2, 2]


class Footprint(Dataset):
    """How many bytes of its own a worker has after it has read the whole pool."""

    def __init__(self, pool):
        self.pool = pool

    def __getitem__(self, number):
        before = psutil.Process().memory_full_info().uss
        total = sum(int(image.sum()) for image in self.pool.kept)
        return psutil.Process().memory_full_info().uss - before, total


def test_workers_share_one_copy(textures):
    pool = ImagePool(sorted(textures.rglob("*.png")), SIZE, no_bars)
    pool.kept = np.random.default_rng(0).integers(0, 256, (64, 512, 1024, 1), dtype=np.uint8)
    loader = DataLoader(Footprint(pool), sampler=[0], num_workers=1, multiprocessing_context="fork")
    ((grown, total),) = list(loader)
    assert int(total) == pool.kept.sum(dtype=np.int64)
    assert int(grown) < pool.kept.nbytes / 4


def test_source_is_loaded_once(textures, monkeypatch):
    opened = open_source([Part("textures", textures)])
    first = opened.load(SIZE, False, no_bars)
    monkeypatch.setattr("detect.images.read_image", None)
    assert opened.load(SIZE, False, no_bars) is first


# Augmentation


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_pixels_and_nothing_else(name):
    image = picture(3)
    before = image.copy()
    results = [OPERATIONS[name](image, np.random.default_rng(n)) for n in range(20)]
    assert np.array_equal(image, before)
    assert {(r.shape, r.dtype) for r in results} == {(image.shape, np.dtype(np.uint8))}
    assert any((r != image).any() for r in results)
    again = OPERATIONS[name](image, np.random.default_rng(5))
    assert np.array_equal(again, results[5])


def test_operations_equal_their_definitions():
    image, pil = picture(3), Image.fromarray(picture(3))
    rng = np.random.default_rng
    changed = 0
    for n in range(40):
        solarized = np.asarray(ImageOps.solarize(pil, int(rng(n).integers(32, 129))))
        got = augmentations.solarize(image, rng(n))
        changed += np.array_equal(got, solarized)
        assert np.array_equal(got, solarized) or np.array_equal(got, image)
    assert 10 <= changed <= 30
    assert np.array_equal(augmentations.invert(image, rng(1)), np.asarray(ImageOps.invert(pil)))
    bits = int(rng(1).integers(1, 9))
    kept = image & np.uint8(~((1 << (8 - bits)) - 1) & 0xFF)
    assert np.array_equal(augmentations.posterize(image, rng(1)), kept)
    powers = rng(1).uniform(0.5, 2, 3)
    assert np.abs(255 * (image / 255) ** powers - augmentations.gamma(image, rng(1))).max() <= 0.501
    low, high = image.min((0, 1)).astype(float), image.max((0, 1)).astype(float)
    stretched = (image - low) * 255 / (high - low)
    whole = next(n for n in range(500) if rng(n).integers(0, 21) == 0)
    assert np.abs(stretched - augmentations.autocontrast(image, rng(whole))).max() <= 1
    cut = next(n for n in range(500) if rng(n).integers(0, 21) == 20)
    black = (augmentations.autocontrast(image, rng(cut)) == 0).mean((0, 1))
    assert (black >= 0.19).all()  # a fifth of each channel's pixels


def test_rotation_leaves_no_black_corner():
    image = np.full((40, 40, 3), 200, np.uint8)
    for n in range(10):
        assert (augmentations.rotate(image, np.random.default_rng(n)) == 200).all()


def test_the_official_ways_are_the_published_ones():
    image = np.full((40, 40, 3), 200, np.uint8)
    corners = [augmentations.OFFICIAL["rotate"](image, np.random.default_rng(n)) for n in range(10)]
    assert any((corner == 0).any() for corner in corners)
    grey = np.repeat(80 + picture(3)[..., :1] // 3, 3, axis=2)  # nothing is cut
    for n in range(30):  # every colour space keeps grey grey, and changes it along its ramp
        got = augmentations.brightness_of_a_colour_space(grey, np.random.default_rng(n)).astype(int)
        assert np.ptp(got, axis=2).max() <= 4
        order = np.argsort(grey[..., 0], axis=None)
        assert (np.diff(got[..., 0].ravel()[order]) >= -4).all()
    pixel = np.full((1, 1, 3), (200, 40, 40), np.uint8)
    for n in range(30):  # hue stays where levels are not cut
        got = augmentations.brightness_of_a_colour_space(pixel, np.random.default_rng(n))[0, 0]
        assert got[0] > max(got[1], got[2])


def test_a_source_draws_the_official_way_when_asked(textures):
    source = open_source([Part("textures", textures)]).load(SIZE, False, no_bars)
    normal = picture(0)
    ours = [source(np.random.default_rng(n), normal).image for n in range(20)]
    theirs = [source.as_official()(np.random.default_rng(n), normal).image for n in range(20)]
    different = [not np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert any(different)
    assert not all(different)  # three of ten operations, of which two differ


def test_three_different_operations_are_applied(monkeypatch):
    used = []

    def counted(name, operation):
        return lambda image, rng: (used.append(name), operation(image, rng))[1]

    spied = {name: counted(name, operation) for name, operation in OPERATIONS.items()}
    monkeypatch.setattr(augmentations, "OPERATIONS", spied)
    for n in range(200):
        used.clear()
        augmented(picture(1), np.random.default_rng(n))
        assert len(used) == len(set(used)) == NUM_OPERATIONS == 3


# What is typed


def test_words_become_parts(tmp_path):
    folders = {"sia": tmp_path, "textures": None}
    assert parse_parts(["sia"], folders) == (Part("sia", tmp_path, 1.0),)
    assert parse_parts(["sia=0.5", "noise=.25"], folders) == (
        Part("sia", tmp_path, 0.5),
        Part("noise", None, 0.25),
    )
    for words, message in [
        (["sla"], "--source: no 'sla'; allowed: sia, textures, noise, cutpaste, defects"),
        (["sia", "sia=2"], "--source: sia twice"),
        (["sia=0"], "'0' is no weight"),
        (["sia=-1"], "'-1' is no weight"),
        (["sia=nan"], "'nan' is no weight"),
        (["sia=many"], "'many' is no weight"),
        (["noise"], "--sia: not used with --source noise"),
        ([], "--source: none given"),
    ]:
        with pytest.raises(UserError, match=message):
            parse_parts(words, folders)


# Bad input


def refused(part, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source([part]).load(SIZE, False, no_bars)
    assert "\n" not in str(caught.value)


def test_folders_that_are_missing_empty_or_of_another_kind(tmp_path, textures):
    sia = write_sources(tmp_path / "sia")
    (tmp_path / "empty").mkdir()
    refused(Part("sia"), "--sia: missing")
    refused(Part("textures"), "--textures: missing")
    refused(Part("sia", tmp_path / "empty"), "found none")
    refused(Part("sia", textures), "found none")
    refused(Part("textures", tmp_path / "empty"), "no image files below it")
    refused(Part("textures", tmp_path / "nowhere"), "no such folder")
    refused(Part("textures", sia), f"{sia} is an SIA folder; give it with --sia")
    refused(Part("noise", sia), "noise has no folder")


def test_sia_folder_of_another_version_or_without_rows(tmp_path):
    sia = write_sources(tmp_path / "sia")
    header = json.loads((sia / "sia.json").read_text())
    (sia / "sia.json").write_text(json.dumps(header | {"format": 2}))
    refused(Part("sia", sia), "format 2, this version reads format 1; update siaforge, or make")
    (sia / "sia.json").write_text(json.dumps(header | {"kind": "blended"}))
    refused(Part("sia", sia), "kind is 'blended', expected 'source'")
    (sia / "sia.json").write_text(json.dumps(header))
    (sia / "metadata.jsonl").write_text("")
    refused(Part("sia", sia), "no rows")


def test_sia_folder_with_a_broken_shard(tmp_path):
    sia = write_sources(tmp_path / "sia")
    shard = sia / "shards/000.json"
    whole = shard.read_text()
    shard.write_text(whole[: len(whole) // 2])
    refused(Part("sia", sia), "000.json: damaged")
    shard.write_text(whole.replace('"done"', '"started"'))
    refused(Part("sia", sia), "shard 0 lacks")
    shard.write_text(whole)
    (sia / "images/000/000003.png").write_bytes(b"")
    refused(Part("sia", sia), r"1 of 6 images cannot be read.*000003\.png")
    (sia / "images/000/000003.png").unlink()
    refused(Part("sia", sia), "shard 0 lacks 1 images")


def test_texture_that_cannot_be_read(textures):
    (textures / "images/kind0/0.png").write_bytes(b"no image")
    refused(Part("textures", textures), r"1 of 4 images cannot be read.*0\.png")


def test_every_kind_can_be_opened(tmp_path, textures):
    write_png(tmp_path / "defects/images/0.png", picture(0))
    write_png(tmp_path / "defects/masks/0.png", np.eye(24, 40, dtype=np.bool_))
    folders = {"sia": write_sources(tmp_path / "sia"), "textures": textures}
    folders["defects"] = tmp_path / "defects"
    for kind in SOURCES:
        source = load_source(Part(kind, folders.get(kind)))
        anomaly = source(np.random.default_rng(0), NORMAL)
        assert isinstance(anomaly, Anomaly)
        shape = NORMAL.shape[:2] if anomaly.mask is None else anomaly.mask.shape
        assert anomaly.image.shape == (*shape, 3)
        assert anomaly.image.dtype == np.uint8


def test_a_mixture_from_the_shell(tmp_path, textures, monkeypatch, capsys):
    run = Command(monkeypatch, capsys)
    product = write_product(tmp_path / "widget")
    sia = write_sources(tmp_path / "sia", category="gadget")
    words = ("detect", "train", "--root", product, "--backbone", "resnet10t", "--backbone-weights")
    words += ("random", "--size", 32, 32, "--batch-size", 4, "--num-steps", 1, "--precision")
    words += ("fp32", "--out", tmp_path / "out", "--sia", sia, "--method", "realnet")
    mixture = ("--source", "sia=3", "textures", "noise=.5", "--textures", textures)
    ended = run(*words, *mixture)
    assert ended.code == 0, ended
    assert f"warning: {sia} is of category gadget, the normal images of widget" in ended.err
    config = json.loads((tmp_path / "out/config.json").read_text())["source"]
    shares = [(part["kind"], round(part["share"], 3)) for part in config["parts"]]
    assert shares == [("sia", 0.667), ("textures", 0.222), ("noise", 0.111)]
    ended = run(
        "detect", "evaluate", "--root", product, "--model", tmp_path / "out", "--out", tmp_path
    )
    assert ended.code == 0, ended
    assert "RealNet on a mixture" in ended.out
    results = json.loads((tmp_path / "results.json").read_text())
    assert "4 photographs of textures" in results["protocol"]["Anomaly source"]
    assert "--textures: not used" in run.refused(*words, "--textures", textures)
