"""Official annotation files, in small: every data set by name, what is missing, and what is not of the form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from video import numbers_in, write_images, write_video

from tubelet.data.annotations.official import SETS, is_official
from tubelet.data.cache import frames_of
from tubelet.data.manifest import Manifest, read_manifest, write_manifest
from tubelet.data.scan import scan
from tubelet.data.source import ClipReader
from tubelet.errors import UserError
from tubelet.evaluate.tasks import folds, read_task


def touch(folder: Path, *names: str) -> None:
    """Empty files: no video is opened by reading annotations."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def text(folder: Path, name: str, *lines: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder / name


def dump(folder: Path, name: str, value: object) -> Path:
    return text(folder, name, json.dumps(value))


def table(manifest: Manifest) -> set[tuple[str, str | None, str | None, str | None]]:
    """(name, label, split, group) of the rows that are on disk."""
    return {(v.path.name, v.label, v.split, v.group) for v in manifest.readable().videos}


# One small set of each kind, in a folder; returns what `read_manifest` is given, and what it must find.

Rows = set[tuple[str, str | None, str | None, str | None]]


def kinetics(folder: Path) -> Rows:
    head = "label,youtube_id,time_start,time_end,split,is_cc"
    text(folder, "annotations/kinetics-400_train.csv", head, 'air drumming,-abc_DEF123,59,69,"train",0')
    text(
        folder,
        "annotations/kinetics-400_val.csv",
        head,
        "abseiling,zzz,3.0,13.0,validate,0",
        "abseiling,gone,3,13,validate,0",
    )
    text(folder, "annotations/kinetics-400_test.csv", head[6:], "ttt,0,10,test,0")
    text(folder, "train.csv", "videos/some.mp4 3")  # a list of another kind
    touch(folder, "videos/train/air_drumming/-abc_DEF123_000059_000069.mp4")
    touch(folder, "videos/val/abseiling/zzz_000003_000013.mkv", "videos/test/ttt_000000_000010.mp4")
    return {
        ("-abc_DEF123_000059_000069.mp4", "air drumming", "train", None),
        ("zzz_000003_000013.mkv", "abseiling", "val", None),
    }


def kinetics710(folder: Path) -> Rows:
    text(folder, "label_map_k710.txt", "riding a bike", "abseiling")
    text(folder, "k400_train_list_videos.txt", "k400/videos_train/a b.mp4 1")
    text(folder, "val.csv", "k600/c.mp4 0")
    touch(folder, "k400/videos_train/a b.mp4", "videos/k600/c.mp4")
    return {("a b.mp4", "abseiling", "train", None), ("c.mp4", "riding a bike", "val", None)}


def ssv2(folder: Path) -> Rows:
    push, put = "Pushing something from left to right", "Putting something onto something"
    dump(folder, "labels/something-something-v2-labels.json", {push: "93", put: "116"})

    def item(name: str, template: str) -> dict[str, object]:
        return {"id": name, "label": "pushing a cup", "template": template, "placeholders": ["a cup"]}

    train = [item("78687", "Pushing [something] from left to right"), item("9", push)]
    dump(folder, "labels/something-something-v2-train.json", train)
    validation = [item("42", "Putting [something] onto [something]")]
    dump(folder, "labels/something-something-v2-validation.json", validation)
    dump(folder, "labels/something-something-v2-test.json", [{"id": "1"}, {"id": "2"}])
    text(folder, "labels/test-answers.csv", f"1;{put}")
    touch(folder, *(f"20bn-something-something-v2/{name}.webm" for name in ("78687", "9", "42", "1", "2")))
    return {
        ("78687.webm", push, "train", None),
        ("9.webm", push, "train", None),
        ("42.webm", put, "val", None),
    }


def coin(folder: Path) -> Rows:
    entry = {
        "duration": 131.0309,
        "class": "ReplaceCDDriveWithSSD",
        "video_url": "https://www.youtube.com/embed/LtRSn-ntcLY",
        "start": 56.64,
        "annotation": [{"id": "212", "segment": [60.0, 69.0], "label": "take out the drive"}],
        "subset": "training",
        "end": 85.71,
        "recipe_type": 131,
    }
    other = entry | {"class": "MakeTea", "subset": "testing", "recipe_type": 7, "start": 0, "end": 9}
    dump(folder, "COIN.json", {"database": {"LtRSn-ntcLY": entry, "_tea": other}})
    touch(folder, "videos/131/LtRSn-ntcLY.mp4", "videos/_tea.webm")
    return {
        ("LtRSn-ntcLY.mp4", "ReplaceCDDriveWithSSD", "train", None),
        ("_tea.webm", "MakeTea", "test", None),
    }


def diving48(folder: Path) -> Rows:
    dump(
        folder,
        "Diving48_vocab.json",
        [["Back", "15som", "05Twis", "FREE"], ["Back", "15som", "15Twis", "FREE"]],
    )
    clip = {"vid_name": "-mmq0PT-u8k_00155", "label": 0, "start_frame": 0, "end_frame": 48}
    dump(folder, "Diving48_V2_train.json", [clip])
    dump(folder, "Diving48_V2_test.json", [clip | {"vid_name": "x_y_00001", "label": 1}])
    touch(folder, "rgb/-mmq0PT-u8k_00155.mp4", "rgb/x_y_00001.mp4")
    return {
        ("-mmq0PT-u8k_00155.mp4", "Back 15som 05Twis FREE", "train", "-mmq0PT-u8k"),
        ("x_y_00001.mp4", "Back 15som 15Twis FREE", "test", "x_y"),
    }


def jester(folder: Path) -> Rows:
    text(folder, "jester-v1-labels.csv", "Swiping Left", "Thumb Up")
    text(folder, "jester-v1-train.csv", "34870;Swiping Left", "56557;Thumb Up")
    text(folder, "jester-v1-validation.csv", "9223;Thumb Up")
    text(folder, "jester-v1-test.csv", "5")
    touch(
        folder,
        *(f"20bn-jester-v1/{name}/0000{i}.jpg" for name in ("34870", "56557", "9223", "5") for i in (1, 2)),
    )
    return {
        ("34870", "Swiping Left", "train", None),
        ("56557", "Thumb Up", "train", None),
        ("9223", "Thumb Up", "val", None),
    }


def ucf101(folder: Path) -> Rows:
    text(folder, "ucfTrainTestlist/classInd.txt", "1 ApplyEyeMakeup", "2 Archery")
    for number, (one, other) in {1: ("08", "01"), 2: ("01", "08")}.items():
        train = f"ApplyEyeMakeup/v_ApplyEyeMakeup_g{one}_c01.avi 1"
        text(folder, f"ucfTrainTestlist/trainlist0{number}.txt", train, "Archery/v_Archery_g09_c02.avi 2")
        test = f"ApplyEyeMakeup/v_ApplyEyeMakeup_g{other}_c01.avi"
        text(folder, f"ucfTrainTestlist/testlist0{number}.txt", test)
    touch(folder, *(f"UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g{n}_c01.avi" for n in ("01", "08")))
    touch(folder, "UCF-101/Archery/v_Archery_g09_c02.mp4")  # converted
    return {
        ("v_ApplyEyeMakeup_g08_c01.avi", "ApplyEyeMakeup", "train", "ApplyEyeMakeup_g08"),
        ("v_Archery_g09_c02.mp4", "Archery", "train", "Archery_g09"),
        ("v_ApplyEyeMakeup_g01_c01.avi", "ApplyEyeMakeup", "test", "ApplyEyeMakeup_g01"),
    }


def hmdb51(folder: Path) -> Rows:
    april = "April_09_brush_hair_u_nm_np1_ba_goo_{}.avi"
    other = "#20_Rhythm_brush_hair_u_nm_np1_fr_goo_0.avi"
    lines = [f"{april.format(0)} 1 ", f"{april.format(1)} 0 ", f"{other} 2 "]
    text(folder, "testTrainMulti_7030_splits/brush_hair_test_split1.txt", *lines)
    clap = "(HQ)_Free_Solo_-_clap_f_cm_np1_ba_med_0.avi"
    text(folder, "testTrainMulti_7030_splits/clap_test_split1.txt", f"{clap} 1 ")
    touch(folder, f"hmdb51_org/brush_hair/{april.format(0)}", f"hmdb51_org/brush_hair/{april.format(1)}")
    touch(folder, f"hmdb51_org/brush_hair/{other}", f"hmdb51_org/clap/{clap}")
    return {
        (april.format(0), "brush_hair", "train", "April_09"),
        (other, "brush_hair", "test", "#20_Rhythm"),
        (clap, "clap", "train", "(HQ)_Free_Solo_-"),
    }


EPIC_HEAD = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
    "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)


def epic(folder: Path) -> Rows:
    text(
        folder,
        "EPIC_100_train.csv",
        EPIC_HEAD,
        "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,01:02:03.37,8,202,open door,open,3,door,3,['door'],[3]",
        "P01_01_1,P01,P01_01,00:00:02.6,00:00:04.37,00:00:06.17,262,370,turn on light,turn-on,6,light,114,"
        "\"['light', 'lamp']\",\"[114, 4]\"",
    )
    text(
        folder,
        "EPIC_100_validation.csv",
        EPIC_HEAD,
        "P01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.89,1,113,open plate,open,3,door,3,['door'],[3]",
    )
    text(
        folder,
        "EPIC_100_verb_classes.csv",
        "id,key,instances,category",
        "3,open,\"['open']\",access",
        "6,turn-on,x,y",
    )
    text(folder, "EPIC_100_noun_classes_v2.csv", "id,key,instances,category", "3,door,x,y", "114,light,x,y")
    touch(folder, "P01/videos/P01_01.MP4", "P01/P01_11.mp4")
    return {
        ("P01_01.MP4", "open", "train", "P01_01"),
        ("P01_01.MP4", "turn-on", "train", "P01_01"),
        ("P01_11.mp4", "open", "val", "P01_11"),
    }


def imagenet(folder: Path) -> Rows:
    names = ["n01440764 tench, Tinca tinca", "n02012849 crane", "n03126707 crane"]
    text(folder, "LOC_synset_mapping.txt", *names)
    top = "ILSVRC/Data/CLS-LOC"
    touch(folder, *(f"{top}/train/{n.split()[0]}/{n.split()[0]}_1.JPEG" for n in names))
    touch(folder, f"{top}/val/ILSVRC2012_val_00000001.JPEG")
    text(
        folder,
        "LOC_val_solution.csv",
        "ImageId,PredictionString",
        "ILSVRC2012_val_00000001,n03126707 85 1 499 272 n03126707 1 2 3 4 ",
    )
    return {
        ("n01440764_1.JPEG", "tench, Tinca tinca", "train", None),
        ("n02012849_1.JPEG", "crane (n02012849)", "train", None),
        ("n03126707_1.JPEG", "crane (n03126707)", "train", None),
        ("ILSVRC2012_val_00000001.JPEG", "crane (n03126707)", "val", None),
    }


WRITERS: dict[str, Callable[[Path], Rows]] = {
    "k400": kinetics,
    "k600": kinetics,
    "k700": kinetics,
    "k710": kinetics710,
    "ssv2": ssv2,
    "coin": coin,
    "diving48": diving48,
    "jester": jester,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "epic": epic,
    "imagenet": imagenet,
}


def test_every_data_set_is_tested() -> None:
    assert WRITERS.keys() == SETS.keys()


def test_every_data_set_is_in_the_documentation() -> None:
    page = (Path(__file__).parent.parent / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert not [name for name in SETS if f"`{name}`" not in page]


@pytest.mark.parametrize("name", WRITERS)
def test_official_files_are_read(name: str, tmp_path: Path) -> None:
    expected = WRITERS[name](tmp_path)
    manifest = read_manifest(f"{name}:{tmp_path}")
    assert table(manifest) == expected and manifest.source == tmp_path
    write_manifest(manifest, tmp_path / "out" / "m.csv")
    again = read_manifest(tmp_path / "out" / "m.csv")
    assert table(again) == expected
    assert [(v.start, v.end) for v in again.videos] == [(v.start, v.end) for v in manifest.videos]


@pytest.mark.parametrize("name", WRITERS)
def test_no_video_at_all_names_an_example_and_the_folders_tried(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    for file in sorted(tmp_path.rglob("*")):
        if file.is_file() and not file.stat().st_size:
            file.unlink()
    for folder in sorted(
        (p for p in tmp_path.rglob("*") if p.is_dir() and not list(p.iterdir())), reverse=True
    ):
        if name != "imagenet":
            folder.rmdir()
    words = "no folders|lists no videos|none of its" if name == "imagenet" else "for instance .*; looked in "
    with pytest.raises(UserError, match=words):
        read_manifest(f"{name}:{tmp_path}")


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("imagenet", "hmdb51")])
def test_annotation_files_that_are_missing_are_named(name: str, tmp_path: Path) -> None:
    """Each file of a set in turn: without it there is an error that names it, or a manifest with a note."""
    expected = WRITERS[name](tmp_path)
    needed = 0
    for file in [f for f in tmp_path.rglob("*") if f.is_file() and f.stat().st_size]:
        kept = file.read_bytes()
        file.unlink()
        try:
            found = read_manifest(f"{name}:{tmp_path}")
        except UserError as error:
            needed += 1
            what = file.name.removeprefix("something-something-v2-").removeprefix("jester-v1-")
            assert what.removeprefix("kinetics-400_") in str(error) and str(tmp_path) in str(error)
        else:
            assert found.notes or len(found) <= len(expected)
        file.write_bytes(kept)
    assert needed and table(read_manifest(f"{name}:{tmp_path}")) == expected


K400 = "annotations/kinetics-400_train.csv"
K_HEAD = "label,youtube_id,time_start,time_end,split\n"
SSV2 = "labels/something-something-v2-train.json"
UCF = "ucfTrainTestlist/trainlist01.txt"
HMDB = "testTrainMulti_7030_splits/clap_test_split1.txt"
E_HEAD = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"


COIN: dict[str, object] = {"class": "x", "start": 0}


def coin_of(**about: object) -> str:
    return json.dumps({"database": {"a": about}})


@pytest.mark.parametrize(
    ("name", "file", "content", "words"),
    [
        ("k400", K400, f"{K_HEAD}a,b,x,2,train", "line 2: time_start must be a number, not 'x'"),
        ("k400", K400, f"{K_HEAD},b,1,2,train", 'line 2: "label" is empty'),
        ("k400", K400, "youtube,start\na,b", "no annotation file of the train split"),
        ("k400", "annotations/train.csv", f"{K_HEAD}a,b,1,2,train", "both describe the train split"),
        ("k710", "val.csv", "k600/c.mp4 2", 'a number from 0 to 1, not "2"'),
        ("k710", "val.csv", "k600/c.mp4", "not of the form path number"),
        ("ssv2", SSV2, "[{]", "line 1: not JSON"),
        ("ssv2", SSV2, "{}", "holds a JSON object; expected a list"),
        ("ssv2", SSV2, '[{"id": "1"}]', 'entry 1 has no "template"'),
        ("ssv2", SSV2, '[{"id": "9", "template": "Puting [x]"}]', 'class "Puting x" is not in'),
        ("ssv2", SSV2.replace("train", "labels"), "[1]", "holds a JSON list; expected an object"),
        ("coin", "COIN.json", '{"videos": {}}', 'no object "database"'),
        ("coin", "COIN.json", '{"database": {"a": 3}}', '"a" is a JSON number'),
        ("coin", "COIN.json", '{"database": {}}', "list no videos"),
        ("coin", "COIN.json", coin_of(**{"class": "x"}), '"a" has no "subset"'),
        ("coin", "COIN.json", coin_of(**COIN, subset="all", end=1), 'subset "all" is none of'),
        ("coin", "COIN.json", coin_of(**COIN, subset="testing", end=-1), "from 0 s to -1 s holds no video"),
        ("coin", "COIN.json", coin_of(**COIN, subset="testing", end=None), "end must be a number"),
        ("diving48", "Diving48_V2_test.json", '[{"vid_name": "a_1", "label": 48}]', "from 0 to 1, not 48"),
        ("diving48", "Diving48_V2_test.json", '[{"label": 1}]', 'no "vid_name"'),
        ("jester", "jester-v1-train.csv", "34870;Swiping Lefd", 'did you mean "Swiping Left"'),
        ("jester", "jester-v1-train.csv", "34870", 'line 1: "34870" is not of the form id;class'),
        ("ucf101", UCF, "ApplyEyeMakeup/clip.avi 1", "not of the form Class/v_Class_g01_c01"),
        ("ucf101", UCF, "Archery/v_Archery_g09_c02.avi 1", "does not agree with"),
        ("hmdb51", HMDB, "a_clap_b.avi 3", '"3" is none of 0'),
        ("epic", "EPIC_100_train.csv", "narration_id\na", 'no column "participant_id", only narration_id'),
        ("epic", "EPIC_100_train.csv", f"{E_HEAD}a,P01,v,5.0,6.0,3,3", 'time "5.0" is not of the form HH:MM'),
        ("epic", "EPIC_100_train.csv", f"{E_HEAD}a,P01,v,0:0:1,0:0:2,99,3", 'class "99" is not among the 2'),
        ("imagenet", "LOC_val_solution.csv", "ImageId,Prediction\na,b", 'no column "PredictionString"'),
    ],
)
def test_what_is_not_of_the_official_form_is_named(
    name: str, file: str, content: str, words: str, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=re.escape(words)):
        read_manifest(f"{name}:{tmp_path}")


def test_missing_videos_are_unreadable_rows_and_counted(tmp_path: Path) -> None:
    kinetics(tmp_path)
    manifest = read_manifest(f"k400:{tmp_path}")
    gone = [v for v in manifest.videos if v.status == "unreadable"]
    assert [v.reason for v in gone] == ["file not found"] and "gone_000003_000013" in gone[0].path.name
    assert any(note.startswith("1 of 3 rows name videos that are not on disk") for note in manifest.notes)


@pytest.mark.parametrize(("name", "count"), [("k400", 1), ("ssv2", 2), ("jester", 1)])
def test_the_test_split_is_read_when_asked_for(name: str, count: int, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    manifest = read_manifest(f"{name}@test:{tmp_path}")
    test = manifest.with_split("test").videos
    assert len(test) == count and {v.path.exists() for v in test} == {True}
    known = {"ssv2": ["Putting something onto something", None]}.get(name, [None])
    assert [v.label for v in test] == known
    assert any("1 of" in note and "no label" in note for note in manifest.notes)


def test_variants(tmp_path: Path) -> None:
    ucf101(tmp_path)
    second = {(name, split) for name, _, split, _ in table(read_manifest(f"ucf101@2:{tmp_path}"))}
    assert ("v_ApplyEyeMakeup_g01_c01.avi", "train") in second
    with pytest.raises(UserError, match=r"trainlist03\.txt"):
        read_manifest(f"ucf101@3:{tmp_path}")
    with pytest.raises(UserError, match='no variant "4"; there are: ucf101@1, ucf101@2, ucf101@3'):
        read_manifest(f"ucf101@4:{tmp_path}")
    with pytest.raises(UserError, match='coin has no variant "x"; there are: none'):
        read_manifest(f"coin@x:{tmp_path}")


def test_epic_has_three_labels_and_stretches(tmp_path: Path) -> None:
    epic(tmp_path)
    labels = {
        variant: [v.label for v in read_manifest(f"epic@{variant}:{tmp_path}").videos]
        for variant in ("verb", "noun", "action")
    }
    assert labels["verb"] == ["open", "turn-on", "open"] and labels["noun"] == ["door", "light", "door"]
    assert labels["action"] == ["open door", "turn-on light", "open door"]
    first = read_manifest(f"epic:{tmp_path}").videos[0]
    assert (first.start, first.end) == (0.14, 3723.37)
    assert first.extra["participant"] == "P01" and first.extra["narration"] == "open door"
    (tmp_path / "EPIC_100_verb_classes.csv").unlink()
    bare = read_manifest(f"epic:{tmp_path}")
    assert bare.videos[0].label == "3" and any("classes are numbers" in note for note in bare.notes)


def test_a_stretch_that_is_listed_twice_is_taken_once(tmp_path: Path) -> None:
    epic(tmp_path)
    file = tmp_path / "EPIC_100_train.csv"
    same = file.read_text().splitlines()[1].replace("P01_01_0", "P01_01_9").replace(",3,door", ",6,door")
    file.write_text(file.read_text() + same + "\n")
    manifest = read_manifest(f"epic:{tmp_path}")
    assert len(manifest) == 3 and manifest.videos[0].label == "open"
    assert any(note.startswith("1 rows repeat a stretch") for note in manifest.notes)


def test_coin_reads_the_part_that_belongs_to_the_task(tmp_path: Path) -> None:
    coin(tmp_path)
    video = read_manifest(f"coin:{tmp_path}").videos[0]
    assert (video.start, video.end) == (56.64, 85.71)


def test_groups_that_the_split_shares_are_left_out_and_told(tmp_path: Path) -> None:
    diving48(tmp_path)
    train = json.loads((tmp_path / "Diving48_V2_train.json").read_text())
    dump(tmp_path, "Diving48_V2_train.json", [*train, train[0] | {"vid_name": "x_y_00002", "label": 1}])
    touch(tmp_path, "rgb/x_y_00002.mp4")
    manifest = read_manifest(f"diving48:{tmp_path}")
    assert {v.group for v in manifest.videos} == {None}
    assert {v.extra["source_group"] for v in manifest.videos} == {"-mmq0PT-u8k", "x_y"}
    assert any("1 groups on both sides (such as x_y)" in note for note in manifest.notes)


def test_a_probe_takes_the_official_split_and_groups(tmp_path: Path) -> None:
    ucf101(tmp_path)
    manifest = read_manifest(f"ucf101:{tmp_path}")
    task = read_task(manifest.videos, "ucf101")
    (fold,) = folds(task)
    assert len(fold.train) == 2 and len(fold.test) == 1 and task.group is not None


def test_diving48_without_its_vocabulary_has_numbers(tmp_path: Path) -> None:
    diving48(tmp_path)
    (tmp_path / "Diving48_vocab.json").unlink()
    manifest = read_manifest(f"diving48:{tmp_path}")
    assert [v.label for v in manifest.videos] == ["0", "1"] and any("numbers" in n for n in manifest.notes)


def test_hmdb51_says_which_split_files_are_missing(tmp_path: Path) -> None:
    hmdb51(tmp_path)
    assert any("2 of 51 classes" in note for note in read_manifest(f"hmdb51:{tmp_path}").notes)
    with pytest.raises(UserError, match=r"no file \*_test_split2\.txt in .*testTrainMulti_7030_splits"):
        read_manifest(f"hmdb51@2:{tmp_path}")


def test_imagenet_in_folders_and_without_names(tmp_path: Path) -> None:
    touch(tmp_path, "train/n01/a.JPEG", "train/n02/b.png", "train/n02/notes.txt", "val/n01/c.JPEG")
    manifest = read_manifest(f"imagenet:{tmp_path}")
    assert table(manifest) == {
        ("a.JPEG", "n01", "train", None),
        ("b.png", "n02", "train", None),
        ("c.JPEG", "n01", "val", None),
    }
    assert any("labels are synsets" in note for note in manifest.notes)
    for folder, words in (
        ("val", "does not exist; the validation"),
        ("train", "no folder of training images"),
    ):
        (tmp_path / folder).rename(tmp_path / "away")
        with pytest.raises(UserError, match=words):
            read_manifest(f"imagenet:{tmp_path}")
        (tmp_path / "away").rename(tmp_path / folder)


@pytest.mark.parametrize("how", [{"frame_step": 4}, {"fps": 5.0}])
def test_a_single_still_is_a_clip_of_one_picture(tmp_path: Path, how: dict) -> None:
    write_images(tmp_path / "train" / "n01", 6)
    write_images(tmp_path / "val" / "n01", 3)
    still = read_manifest(f"imagenet:{tmp_path}").videos[4]
    for cache in (None, tmp_path / "frames"):
        (clip,) = ClipReader(8, **how, cache_dir=cache).read(still, [0.5])
        assert clip.shape == (8, 72, 96, 3) and numbers_in(clip) == [4] * 8
    assert len(frames_of(still, None, tmp_path / "frames").times) == 1


def test_real_videos_of_a_named_set_are_read_and_scanned(tmp_path: Path) -> None:
    coin(tmp_path)
    (tmp_path / "videos" / "_tea.webm").unlink()
    write_video(tmp_path / "videos" / "7" / "_tea.mp4", 40, rate=10)
    data = json.loads((tmp_path / "COIN.json").read_text())
    data["database"]["_tea"] |= {"start": 1.0, "end": 3.0}
    dump(tmp_path, "COIN.json", data)
    (tmp_path / "videos" / "131" / "LtRSn-ntcLY.mp4").unlink()
    video = read_manifest(f"coin:{tmp_path}").readable().videos[0]
    (clip,) = ClipReader(4, frame_step=5).read(video, [0.0])
    assert numbers_in(clip) == [10, 15, 20, 25]
    found = scan(f"coin:{tmp_path}", tmp_path / "m.csv", workers=1, progress=False)
    assert [v.status for v in found.videos] == ["unreadable", "ok"]
    assert [v.label for v in found.videos] == ["ReplaceCDDriveWithSSD", "MakeTea"]
    assert found.videos[1] == replace(video, **{k: getattr(found.videos[1], k) for k in MEASURED_NAMES})


MEASURED_NAMES = (
    "status",
    "codec",
    "duration",
    "frames",
    "fps",
    "width",
    "height",
    "rotation",
    "size",
    "mtime_ns",
)


def test_jester_frames_come_at_twelve_a_second(tmp_path: Path) -> None:
    jester(tmp_path)
    for name in ("34870", "56557", "9223"):
        for file in (tmp_path / "20bn-jester-v1" / name).iterdir():
            file.unlink()
        write_images(tmp_path / "20bn-jester-v1" / name, 30, "{:05d}.png")
    video = read_manifest(f"jester:{tmp_path}").videos[0]
    (clip,) = ClipReader(4, fps=4.0).read(video, [0.0])
    assert video.fps == 12 and np.diff(numbers_in(clip)).tolist() == [3, 3, 3]


# The name before the colon


def test_unknown_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'"sssv2" is no data set .*did you mean "ssv2".*known: k400, '):
        read_manifest(f"sssv2:{tmp_path}")
    with pytest.raises(UserError, match=r'".*nowhere" is not a folder; write ssv2:FOLDER'):
        read_manifest(f"ssv2:{tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match='"" is not a folder'):
        read_manifest("ssv2:")
    with pytest.raises(UserError, match=r"labels\.json or something-something-v2-labels\.json is in none of"):
        read_manifest(f"ssv2:{tmp_path}")


def test_names_in_any_case_and_paths_as_paths(tmp_path: Path) -> None:
    expected = coin(tmp_path)
    assert table(read_manifest(f"COIN:{tmp_path}")) == expected
    assert table(read_manifest(Path(f"coin:{tmp_path}"))) == expected


def test_a_file_of_that_very_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ssv2:mine").mkdir()
    touch(tmp_path, "ssv2:mine/a.mp4")
    assert [v.path.name for v in read_manifest("ssv2:mine").videos] == ["a.mp4"]


@pytest.mark.parametrize(
    "data", ["C:\\videos", "c:/videos", "C:videos", "https://example.org/a", "s3://b/c", ":x", "a b:c"]
)
def test_drives_and_addresses_are_no_data_sets(data: str) -> None:
    assert not is_official(data)
    with pytest.raises(UserError, match="does not exist; data must be"):
        read_manifest(data)


@given(st.text(min_size=1, max_size=30))
@example("~0")
@example("a\0b")
def test_whatever_is_given_is_read_or_refused(data: str) -> None:
    """No text makes anything but an error for people, where nothing of that name exists."""
    with pytest.raises(UserError):
        read_manifest(f"{data}:nowhere at all")
