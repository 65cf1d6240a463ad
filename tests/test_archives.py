"""The published archives as they are unpacked: exact layouts, and every fault in one line."""

import json
from pathlib import Path

import pytest
from PIL import Image

from synth.base.errors import DataWarning, UserError
from synth.data.catalog import Category, categories, held_out, open_category


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    return root


def listed(category: Category, root: Path) -> list[tuple[str, str, str, str | None]]:
    return [
        (
            record.path.relative_to(root).as_posix(),
            record.split,
            record.defect,
            record.mask_path and record.mask_path.relative_to(root).as_posix(),
        )
        for record in category.records
    ]


def refusal(dataset: str, root: Path, category: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        open_category(dataset, root, category)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# mpdd


def test_mpdd(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "tubes/train/good/000.png",
        "tubes/test/good/001.png",
        "tubes/test/anomalous/000.png",
        "tubes/ground_truth/anomalous/000_mask.png",
        "connector/train/good/000.png",
    )
    assert categories("mpdd", tmp_path) == ["connector", "tubes"]
    mask = "tubes/ground_truth/anomalous/000_mask.png"
    assert listed(open_category("mpdd", tmp_path, "tubes"), tmp_path) == [
        ("tubes/train/good/000.png", "train", "good", None),
        ("tubes/test/anomalous/000.png", "test", "anomalous", mask),
        ("tubes/test/good/001.png", "test", "good", None),
    ]
    (tmp_path / mask).unlink()
    assert "000_mask.png is missing" in refusal("mpdd", tmp_path, "tubes")


# btad


@pytest.mark.parametrize(("image", "mask"), [("bmp", "png"), ("png", "png"), ("bmp", "bmp")])
def test_btad_with_its_three_mixtures_of_suffixes(tmp_path: Path, image: str, mask: str) -> None:
    tree(
        tmp_path,
        f"01/train/ok/0000.{image}",
        f"01/test/ok/0005.{image}",
        f"01/test/ko/0001.{image}",
        f"01/ground_truth/ko/0001.{mask}",
    )
    assert listed(open_category("btad", tmp_path), tmp_path) == [
        (f"01/train/ok/0000.{image}", "train", "good", None),
        (f"01/test/ko/0001.{image}", "test", "ko", f"01/ground_truth/ko/0001.{mask}"),
        (f"01/test/ok/0005.{image}", "test", "good", None),
    ]
    assert open_category("btad", tmp_path / "01").name == "01"
    (tmp_path / f"01/ground_truth/ko/0001.{mask}").unlink()
    assert "ground_truth/ko/0001.png is missing" in refusal("btad", tmp_path)


@pytest.mark.parametrize(
    ("stray", "words"),
    [
        ("01/train/ko/0001.bmp", "training images must be normal"),
        ("01/test/0001.bmp", "would not be used"),
        ("01/test/good/0001.bmp", "test images lie in ok or ko"),
    ],
)
def test_btad_refuses_images_in_other_places(tmp_path: Path, stray: str, words: str) -> None:
    tree(tmp_path, "01/train/ok/0000.bmp", "01/test/ok/0000.bmp", stray)
    assert words in refusal("btad", tmp_path)


# visa

HEADER = "object,split,label,image,mask"
SPLIT = (
    HEADER,
    "candle,train,normal,candle/Data/Images/Normal/0002.JPG,",
    "candle,train,normal,candle/Data/Images/Normal/0001.JPG,",
    "candle,test,normal,candle/Data/Images/Normal/0003.JPG,",
    "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
    "pcb1,train,normal,pcb1/Data/Images/Normal/0001.JPG,",
)


def official(root: Path, split: tuple[str, ...] = SPLIT) -> Path:
    tree(
        root,
        *(f"candle/Data/Images/Normal/000{n}.JPG" for n in (1, 2, 3)),
        "candle/Data/Images/Anomaly/000.JPG",
        "candle/Data/Masks/Anomaly/000.png",
        "pcb1/Data/Images/Normal/0001.JPG",
    )
    (root / "split_csv").mkdir(exist_ok=True)
    (root / "split_csv/1cls.csv").write_text("\n".join(split) + "\n")
    (root / "candle/image_anno.csv").write_text("image,label,mask\n")
    return root


def test_the_official_visa_archive_follows_its_split_file(tmp_path: Path) -> None:
    official(tmp_path)
    assert categories("visa", tmp_path) == ["candle", "pcb1"]
    data = "candle/Data"
    assert listed(open_category("visa", tmp_path, "candle"), tmp_path) == [
        (f"{data}/Images/Normal/0001.JPG", "train", "good", None),
        (f"{data}/Images/Normal/0002.JPG", "train", "good", None),
        (f"{data}/Images/Anomaly/000.JPG", "test", "anomaly", f"{data}/Masks/Anomaly/000.png"),
        (f"{data}/Images/Normal/0003.JPG", "test", "good", None),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("candle,train,normal,candle/Data/Images/Normal/0009.JPG,", "0009.JPG: missing, though"),
        ("candle,val,normal,candle/Data/Images/Normal/0001.JPG,", "line 2 is 'candle,val"),
        ("candle,train,ok,candle/Data/Images/Normal/0001.JPG,", "line 2 is"),
        ("candle,train,normal,candle/Data/Images/Normal/0001.JPG", "line 2 is"),
        ("candle,train,normal,candle/Data/Images/Anomaly/000.JPG,", "line 2 is"),
        ("candle,train,normal,candle/Data/Images/Normal/../../x.JPG,", "line 2 is"),
        ("candle,train,normal,/etc/passwd,", "line 2 is"),
        ("candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,", "line 2 is"),
        (SPLIT[4].replace("test", "train"), "line 2 is"),
        (SPLIT[2], "lists an image of candle twice"),
    ],
)
def test_wrong_rows_of_the_split_file_are_named(tmp_path: Path, row: str, words: str) -> None:
    official(tmp_path, (HEADER, row, *SPLIT[1:]))
    assert words in refusal("visa", tmp_path, "candle")


def test_faults_of_the_visa_archive(tmp_path: Path) -> None:
    official(tmp_path)
    tree(tmp_path, "candle/Data/Images/Normal/0777.JPG")
    assert "0777.JPG: not in" in refusal("visa", tmp_path, "candle")
    (tmp_path / "candle/Data/Images/Normal/0777.JPG").unlink()
    (tmp_path / "candle/Data/Masks/Anomaly/000.png").unlink()
    assert "its mask" in refusal("visa", tmp_path, "candle")
    (tmp_path / "split_csv/1cls.csv").write_text("image,mask\n")
    assert "the first line must be object,split" in refusal("visa", tmp_path, "candle")
    (tmp_path / "split_csv/1cls.csv").unlink()
    assert "1cls.csv: missing" in refusal("visa", tmp_path, "candle")


@pytest.mark.parametrize(("good", "bad"), [("ok", "ko"), ("good", "bad")])
def test_repacked_visa_is_recognised(tmp_path: Path, good: str, bad: str) -> None:
    tree(
        tmp_path,
        f"fryum/train/{good}/0000.JPG",
        f"fryum/test/{good}/0001.JPG",
        f"fryum/test/{bad}/000.JPG",
        f"fryum/ground_truth/{bad}/000.png",
    )
    assert categories("visa", tmp_path) == ["fryum"]
    records = listed(open_category("visa", tmp_path), tmp_path)
    mask = f"fryum/ground_truth/{bad}/000.png"
    assert (f"fryum/test/{bad}/000.JPG", "test", bad, mask) in records
    assert sorted(split for _, split, *_ in records) == ["test", "test", "train"]
    (tmp_path / mask).unlink()
    assert "000.png is missing" in refusal("visa", tmp_path)


# dagm

TRAIN = "1\n576\t0\t0576.PNG\t0\t0\n577\t1\t0577.PNG\t1\t0577_label.PNG\n578\t0\t0578.PNG\t0\t0\n"
TEST = "1\n1\t1\t0001.PNG\t1\t0001_label.PNG\n2\t0\t0002.PNG\t0\t0\n"


def dagm(root: Path, folder: str = "Class1") -> Path:
    images = ("Train/0576", "Train/0577", "Train/0578", "Train/Label/0577_label")
    images += ("Test/0001", "Test/0002", "Test/Label/0001_label")
    tree(root, *(f"{folder}/{name}.PNG" for name in images))
    (root / folder / "Train/Label/Labels.txt").write_text(TRAIN, encoding="utf-8-sig")
    (root / folder / "Test/Label/Labels.txt").write_text(TEST, encoding="utf-8-sig")
    return root


@pytest.mark.parametrize("folder", ["Class1", "Class1/Class1"])
def test_dagm_trains_on_the_normal_ones_of_its_training_images(tmp_path: Path, folder: str) -> None:
    category = open_category("dagm", dagm(tmp_path, folder))
    assert category.name == "Class1"
    assert [record.path.name for record in category.train] == ["0576.PNG", "0578.PNG"]
    assert listed(category, tmp_path / folder)[2:] == [
        ("Train/0577.PNG", "train", "defect", "Train/Label/0577_label.PNG"),
        ("Test/0001.PNG", "test", "defect", "Test/Label/0001_label.PNG"),
        ("Test/0002.PNG", "test", "good", None),
    ]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (TRAIN.replace("0\t0576.PNG", "2\t0576.PNG"), "line 2 is"),
        (TRAIN.replace("\t0577_label.PNG", ""), "line 3 is"),
        (TRAIN.replace("0577_label.PNG", "0"), "line 3 is"),
        (TRAIN.replace("0578", "0999"), "0578.PNG: not in"),
        (TRAIN + "579\t0\t0579.PNG\t0\t0\n", "0579.PNG: missing, though"),
        (TRAIN.replace("0577_label", "0578_label"), "0578_label.PNG is missing"),
    ],
)
def test_wrong_label_files_of_dagm_are_named(tmp_path: Path, labels: str, words: str) -> None:
    dagm(tmp_path)
    (tmp_path / "Class1/Train/Label/Labels.txt").write_text(labels)
    assert words in refusal("dagm", tmp_path)


def test_faults_of_the_dagm_archive(tmp_path: Path) -> None:
    dagm(tmp_path)
    tree(tmp_path, "Class1/Train/more/1.PNG")
    assert "would not be used" in refusal("dagm", tmp_path)
    (tmp_path / "Class1/Train/more/1.PNG").unlink()
    tree(tmp_path, "Class1/1.PNG")
    assert "images lie in Train and Test" in refusal("dagm", tmp_path)
    (tmp_path / "Class1/1.PNG").unlink()
    (tmp_path / "Class1/Train/Label/Labels.txt").unlink()
    assert "Labels.txt: missing" in refusal("dagm", tmp_path)


# loco

LOCO = (
    "pushpins/train/good/000.png",
    "pushpins/train/good/001.png",
    "pushpins/validation/good/000.png",
    "pushpins/test/good/000.png",
    "pushpins/test/logical_anomalies/000.png",
    "pushpins/test/structural_anomalies/000.png",
    "pushpins/ground_truth/logical_anomalies/000/000.png",
    "pushpins/ground_truth/logical_anomalies/000/001.png",
    "pushpins/ground_truth/structural_anomalies/000/000.png",
)


@pytest.mark.parametrize("inside", [False, True])
def test_loco_has_a_folder_of_masks_for_each_anomalous_image(tmp_path: Path, inside: bool) -> None:
    tree(tmp_path, *LOCO)
    category = open_category("loco", tmp_path / "pushpins" if inside else tmp_path)
    assert category.name == "pushpins"
    test, truth = "pushpins/test", "pushpins/ground_truth"
    assert listed(category, tmp_path)[3:] == [
        (f"{test}/good/000.png", "test", "good", None),
        *(
            (f"{test}/{kind}/000.png", "test", kind, f"{truth}/{kind}/000")
            for kind in ("logical_anomalies", "structural_anomalies")
        ),
    ]


@pytest.mark.parametrize(
    ("lost", "empty", "absent"),
    [
        (LOCO[8], "structural_anomalies/000.png: its masks", "its masks"),
        (LOCO[2], "validation/good: no images", "validation/good: no such folder"),
    ],
)
def test_an_incomplete_loco_archive_is_refused(
    tmp_path: Path, lost: str, empty: str, absent: str
) -> None:
    (tree(tmp_path, *LOCO) / lost).unlink()
    assert empty in refusal("loco", tmp_path)
    (tmp_path / lost).parent.rmdir()
    assert absent in refusal("loco", tmp_path)


# mvtec-ad-2

AD2 = (
    "can/train/good/000_regular.png",
    "can/train/good/001_regular.png",
    "can/validation/good/000_regular.png",
    "can/test_public/good/000_regular.png",
    "can/test_public/bad/000_shift_1.png",
    "can/test_public/ground_truth/bad/000_shift_1_mask.png",
)


def test_mvtec_ad_2_tests_on_its_public_images(tmp_path: Path) -> None:
    mask = AD2[5]
    assert listed(open_category("mvtec-ad-2", tree(tmp_path, *AD2)), tmp_path) == [
        (AD2[0], "train", "good", None),
        (AD2[1], "train", "good", None),
        (AD2[2], "held_out", "good", None),
        (AD2[4], "test", "bad", mask),
        (AD2[3], "test", "good", None),
    ]
    (tmp_path / mask).unlink()
    assert f"{mask} is missing" in refusal("mvtec-ad-2", tmp_path)


def test_images_of_mvtec_ad_2_without_labels_are_told_of(tmp_path: Path) -> None:
    tree(tmp_path, *AD2, *(f"can/test_private/{n}.png" for n in range(3)))
    tree(tmp_path, *(f"can/test_private_mixed/{n}.png" for n in range(2)))
    with pytest.warns(DataWarning, match="5 images in test_private and test_private_mixed have no"):
        category = open_category("mvtec-ad-2", tmp_path)
    assert not any("private" in record.path.as_posix() for record in category.records)


@pytest.mark.parametrize(("dataset", "names"), [("loco", LOCO), ("mvtec-ad-2", AD2)])
def test_validation_images_are_those_held_out(
    tmp_path: Path, dataset: str, names: tuple[str, ...]
) -> None:
    fit, held = held_out(open_category(dataset, tree(tmp_path, *names)))
    assert [record.path.relative_to(tmp_path).as_posix() for record in fit] == list(names[:2])
    assert [record.path.relative_to(tmp_path).as_posix() for record in held] == [names[2]]
    tree(tmp_path, names[0].replace("train/good", "validation/bad"))
    assert "training images must be normal" in refusal(dataset, tmp_path)


# real-iad


def row(image: str, kind: str = "OK", mask: str | None = None) -> dict[str, str | None]:
    return {"category": "tape", "anomaly_class": kind, "image_path": image, "mask_path": mask}


META = {"prefix": "tape/", "normal_class": "OK"}
TRAIN_ROWS = [row("OK/S2/b.jpg"), row("OK/S1/a.jpg")]
TEST_ROWS = [row("OK/S3/c.jpg"), row("NG/HS/S4/d.jpg", "HS", "NG/HS/S4/d.png")]


def real_iad(root: Path, splits: object, images: str = "realiad_1024", inner: str = "") -> Path:
    names = ("OK/S1/a.jpg", "OK/S2/b.jpg", "OK/S3/c.jpg", "NG/HS/S4/d.jpg", "NG/HS/S4/d.png")
    tree(root, *(f"{images}/tape/{name}" for name in names))
    path = root / "realiad_jsons" / inner / "tape.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(splits if isinstance(splits, str) else json.dumps(splits))
    return root


@pytest.mark.parametrize("inner", ["", "realiad_jsons"])
@pytest.mark.parametrize("images", ["realiad_1024", "realiad_256", "realiad_raw"])
def test_real_iad_follows_its_split_files(tmp_path: Path, images: str, inner: str) -> None:
    splits = {"meta": META, "train": TRAIN_ROWS, "test": TEST_ROWS}
    real_iad(tmp_path, splits, images, inner)
    assert categories("real-iad", tmp_path) == ["tape"]
    folder = f"{images}/tape"
    assert listed(open_category("real-iad", tmp_path), tmp_path) == [
        (f"{folder}/OK/S1/a.jpg", "train", "good", None),
        (f"{folder}/OK/S2/b.jpg", "train", "good", None),
        (f"{folder}/NG/HS/S4/d.jpg", "test", "HS", f"{folder}/NG/HS/S4/d.png"),
        (f"{folder}/OK/S3/c.jpg", "test", "good", None),
    ]
    (tmp_path / folder / "NG/HS/S4/d.png").unlink()
    assert "d.png is missing" in refusal("real-iad", tmp_path)
    (tmp_path / folder / "OK/S3/c.jpg").unlink()
    assert "c.jpg: missing, though" in refusal("real-iad", tmp_path)


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ("{", "tape.json: not JSON"),
        ([], 'tape.json: expected {"meta"'),
        ({"train": TRAIN_ROWS, "test": []}, 'tape.json: expected {"meta"'),
        ({"meta": META, "train": TRAIN_ROWS}, 'tape.json: expected {"meta"'),
        ({"meta": META, "train": {}, "test": []}, 'tape.json: expected {"meta"'),
        ({"meta": {"prefix": "tape/"}, "train": [], "test": []}, 'expected {"meta"'),
        ({"meta": META | {"prefix": "../"}, "train": [], "test": []}, 'expected {"meta"'),
        ({"meta": META, "train": [], "test": TEST_ROWS}, "no images"),
        ({"meta": META, "train": [3], "test": []}, "tape.json: 3 in 'train'"),
        ({"meta": META, "train": [{"image_path": "a.jpg"}], "test": []}, "in 'train'"),
        ({"meta": META, "train": [row("/OK/S1/a.jpg")], "test": []}, "in 'train'"),
        ({"meta": META, "train": [row("../tape/OK/S1/a.jpg")], "test": []}, "in 'train'"),
        ({"meta": META, "train": TEST_ROWS, "test": []}, "in 'train'; expected"),
        ({"meta": META, "train": TRAIN_ROWS, "test": [row("OK/S3/c.jpg", "HS")]}, "in 'test'"),
        ({"meta": META, "train": TRAIN_ROWS, "test": [row("a.jpg", "OK", "a.png")]}, "in 'test'"),
        ({"meta": META, "train": TRAIN_ROWS, "test": TRAIN_ROWS[:1]}, "lists an image twice"),
    ],
)
def test_wrong_split_files_of_real_iad_are_named(
    tmp_path: Path, splits: object, words: str
) -> None:
    assert words in refusal("real-iad", real_iad(tmp_path, splits))
