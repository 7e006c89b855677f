import io
import json
import tarfile

import pytest
from samples import png_bytes

from sana_sprint.data import webdataset
from sana_sprint.data.manifest import Fault


def tar_of(path, files: dict[str, bytes]):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def as_img2dataset(start: int, count: int = 3) -> dict[str, bytes]:
    files = {}
    for index in range(start, start + count):
        key = f"{index:09d}"
        record = {"caption": f"from json {index}", "key": key, "status": "success", "error_message": None}
        files |= {f"{key}.json": json.dumps(record).encode(), f"{key}.png": png_bytes(index)}
        files |= {f"{key}.txt": f"picture number {index}".encode()}
    return files


def read(path):
    return list(webdataset.read(path))


def test_img2dataset_shards_are_read_in_order(tmp_path):
    tar_of(tmp_path / "00001.tar", as_img2dataset(3))
    tar_of(tmp_path / "00000.tar", as_img2dataset(0))
    items = read(tmp_path)
    expected = [(f"{i:09d}", f"picture number {i}") for i in range(6)]
    assert [(item.key, item.caption) for item in items] == expected
    assert items[4].data == png_bytes(4)


def test_the_caption_may_stand_in_the_json(tmp_path):
    files = {name: data for name, data in as_img2dataset(0).items() if not name.endswith(".txt")}
    tar_of(tmp_path / "0.tar", files)
    assert [item.caption for item in read(tmp_path)] == ["from json 0", "from json 1", "from json 2"]


def test_samples_without_picture_or_caption_are_left_out_by_name(tmp_path):
    tar_of(tmp_path / "0.tar", {"a.txt": b"x", "b.png": png_bytes(), "c.png": png_bytes(), "c.json": b"{}"})
    assert read(tmp_path) == [
        Fault("0.tar: a", "no picture among ['.txt']"),
        Fault("0.tar: b", "neither .txt nor a caption in .json"),
        Fault("0.tar: c", "neither .txt nor a caption in .json"),
    ]


@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.7])
def test_a_truncated_tar_is_refused_naming_tar_and_member(tmp_path, share):
    path = tar_of(tmp_path / "00000.tar", as_img2dataset(0, 20))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    message = r"00000.tar: truncated or broken tar after member (none|0\d+\.\w+) .*delete it"
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_a_tar_cut_between_two_members_is_refused(tmp_path):
    path = tar_of(tmp_path / "00000.tar", as_img2dataset(0))
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=r"after member 000000002.png \(the closing block is missing\)"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_what_is_no_tar_is_refused(tmp_path, content):
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"0.tar: truncated or broken tar after member none"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": b"", "a.txt": b" \n"}, r"0.tar: a.txt: the caption is empty"),
        ({"a.png": b"", "a.json": b'{"caption": null}'}, r"0.tar: a.json: the caption is empty"),
        ({"a.png": b"", "a.json": b'{"caption": '}, r"0.tar: a.json: not valid JSON .*mend the shard"),
        (
            {"a.png": b"", "a.json": b'{"caption": 3}'},
            r"0.tar: a.json: the column 'caption' must be text, got",
        ),
        ({"a.png": b"", "a.txt": b"caf\xe9"}, r"0.tar: a: the caption is not UTF-8"),
    ],
)
def test_a_faulty_caption_is_named(tmp_path, files, message):
    tar_of(tmp_path / "0.tar", files)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_two_samples_of_one_key_are_refused_naming_both(tmp_path):
    tar_of(tmp_path / "0.tar", as_img2dataset(0))
    tar_of(tmp_path / "1.tar", as_img2dataset(2))
    with pytest.raises(ValueError, match=r"1.tar: 000000002 and .*0.tar: 000000002 have one key"):
        read(tmp_path)


def test_a_folder_without_tars_or_with_empty_ones_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no .tar shards; put them there"):
        read(tmp_path)
    tar_of(tmp_path / "0.tar", {})
    with pytest.raises(ValueError, match=r"the .tar shards hold no pictures"):
        read(tmp_path)
