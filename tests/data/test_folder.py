import json

import pytest
from samples import folder_of, png_bytes

from sana_sprint.data import folder
from sana_sprint.data.manifest import Fault


def read(path):
    return list(folder.read(path))


def rewrite(path, number, text):
    """Replaces line `number` (from 1) of a text file."""
    lines = path.read_text().splitlines()
    lines[number - 1] = text
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("table", ["jsonl", "csv", "txt"])
def test_the_three_ways_to_caption_agree(tmp_path, table):
    items = read(folder_of(tmp_path, table=table))
    assert [(item.key, item.caption) for item in items] == [
        (f"{index:03d}", f"picture number {index}") for index in range(12)
    ]
    assert items[3].data == png_bytes(3)


def test_subfolders_become_part_of_the_key(tmp_path):
    (tmp_path / "a" / "b.c").mkdir(parents=True)
    (tmp_path / "a" / "b.c" / "x.y.PNG").write_bytes(png_bytes())
    (tmp_path / "metadata.csv").write_text('\ufefftext,file_name\n"a cat,\n sleeping",./a/b.c/x.y.PNG\n')
    (item,) = read(tmp_path)
    assert (item.name, item.key, item.caption) == ("a/b.c/x.y.PNG", "a_b_c_x_y", "a cat, sleeping")


def test_hidden_files_are_not_looked_at(tmp_path):
    folder_of(tmp_path)
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash" / "old.png").write_bytes(b"")
    (tmp_path / "._000.png").write_bytes(b"")
    assert len(read(tmp_path)) == 12


def test_a_picture_without_a_line_is_left_out_by_name(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "extra.png").write_bytes(png_bytes())
    assert Fault("extra.png", "no caption in metadata.jsonl") in read(tmp_path)


def test_a_picture_without_a_sidecar_is_left_out_by_name(tmp_path):
    folder_of(tmp_path, table="txt")
    (tmp_path / "005.txt").unlink()
    assert Fault("005.png", "no .txt file beside it") in read(tmp_path)


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / ".gitkeep").touch()
    with pytest.raises(ValueError, match=r"holds no pictures \(.jpg .*\); put your pictures"):
        read(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such folder; put your pictures"):
        read(tmp_path / "nowhere")


def test_pictures_without_any_captions_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bytes())
    with pytest.raises(ValueError, match=r"1 pictures but no captions; write metadata.jsonl"):
        read(tmp_path)


def test_two_metadata_files_are_refused(tmp_path):
    folder_of(tmp_path, table="csv")
    folder_of(tmp_path, table="jsonl")
    with pytest.raises(ValueError, match=r"holds both metadata.jsonl and metadata.csv; keep one"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "002.png", "caption": "x"}', r"line 3: the column 'text' is missing \(found"),
        ('{"text": "x"}', r"line 3: the column 'file_name' is missing"),
        ('["002.png", "x"]', r"line 3: the column 'file_name' is missing \(found list\)"),
        ('{"file_name": "002.png", "text": ""}', r"line 3: the caption is empty; write one"),
        ('{"file_name": "002.png", "text": null}', r"line 3: the caption is empty"),
        ('{"file_name": "002.png", "text": " \\n "}', r"line 3: the caption is empty"),
        ('{"file_name": "002.png", "text": 7}', r"line 3: the column 'text' must be text, got 7"),
        ('{"file_name": "002.png", "text": "x"', r"line 3: not valid JSON"),
        ('{"file_name": "away.png", "text": "x"}', r"line 3: no picture 'away.png' in .*; add it or delete"),
        ('{"file_name": "../002.png", "text": "x"}', r"line 3: no picture '../002.png'"),
        ('{"file_name": "001.png", "text": "x"}', r"line 3: '001.png' has a caption already, .*line 2;"),
    ],
)
def test_a_faulty_line_of_jsonl_is_named(tmp_path, line, message):
    rewrite(folder_of(tmp_path) / "metadata.jsonl", 3, line)
    with pytest.raises(ValueError, match=r"metadata.jsonl " + message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("number", "line", "message"),
    [
        (1, "file_name,caption", r"line 1: the column 'text' is missing \(found \['file_name', 'cap"),
        (1, "name,text", r"line 1: the column 'file_name' is missing"),
        (3, "001.png,", r"line 3: the caption is empty"),
        (3, "001.png", r"line 3: the caption is empty"),
        (3, "away.png,x", r"line 3: no picture 'away.png'"),
        (3, '001.png,"x"y', r"after line 2: not valid CSV .*; mend the next line"),
        (3, "001.png,a cat, asleep", r"line 3: more columns than the header; quote a caption"),
    ],
)
def test_a_faulty_line_of_csv_is_named(tmp_path, number, line, message):
    rewrite(folder_of(tmp_path, table="csv") / "metadata.csv", number, line)
    with pytest.raises(ValueError, match=r"metadata.csv " + message):
        read(tmp_path)


def test_an_empty_sidecar_is_named(tmp_path):
    (folder_of(tmp_path, table="txt") / "004.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"004.txt: the caption is empty"):
        read(tmp_path)


def test_text_that_is_not_utf8_is_named(tmp_path):
    (folder_of(tmp_path, table="txt") / "004.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"004.txt: not UTF-8 text \(byte 3\); save it as UTF-8"):
        read(tmp_path)


@pytest.mark.parametrize(("first", "second"), [("a/b.png", "a_b.png"), ("x.jpg", "x.png"), ("x.y.png", "x_y.png")])
def test_two_pictures_with_one_key_are_refused_naming_both(tmp_path, first, second):
    for name in (first, second):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png_bytes())
    lines = [json.dumps({"file_name": name, "text": "x"}) for name in (first, second)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"{first} and {second} have one key '.*'; rename one"):
        read(tmp_path)
