"""The published models of the families of videos: in the catalog, and as what shapes leave open."""

import re

import pytest

from mae_convert.families import families
from mae_convert.families.evidence import Evidence

VIDEOS = ("videomae", "mae_st", "prithvi")
PUBLISHED = [(n, o) for n in VIDEOS for o in families()[n].official if o.where]
# As the table of the authors of MAE-ST has them.
MD5 = {"large": ("edf3a5", "9a9645", "cdbada"), "huge": ("3d7f64", "27495e", "4c4e3c")}


def test_every_published_model_has_a_licence_and_an_address():
    assert len(PUBLISHED) == 13 + 6 + 7
    for name, official in PUBLISHED:
        expected = "apache-2.0" if name == "prithvi" else "cc-by-nc-4.0"
        assert official.license == expected
        assert re.match(r"hf://[\w.-]+/[\w.-]+|https://dl\.fbaipublicfiles\.com/", official.where)
        assert official.md5 is None or re.fullmatch("[0-9a-f]{6}", official.md5)
    addresses = [official.where for _, official in PUBLISHED]
    assert len(set(addresses)) == len(addresses)
    found = {o.file: o.md5 for n, o in PUBLISHED if n == "mae_st"}
    assert found == {
        f"mae_pretrain_vit_{size}_k{data}.pth": md5
        for size, hashes in MD5.items()
        for data, md5 in zip((400, 600, 700), hashes, strict=True)
    }
    assert not [o.md5 for n, o in PUBLISHED if n != "mae_st" and o.md5]


@pytest.mark.parametrize(
    ("name", "official"), PUBLISHED, ids=[official.where for _, official in PUBLISHED]
)
def test_heads_come_from_the_published_model_of_the_same_shapes(name, official):
    family = families()[name]
    geometry = family.geometry(family.schema(official.model, official.task))
    evidence = Evidence(geometry, {}, {}, "", {}, {}, {}, "original")
    values = [f.value for f in family.of_official("num_attention_heads", official.task, evidence)]
    assert set(values) == {official.model.num_attention_heads}
    other = {**geometry, "num_hidden_layers": geometry["num_hidden_layers"] + 1}
    assert not family._has_geometry(official.model, official.task, other)


def test_files_with_the_shapes_of_a_published_one_are_candidates():
    family = families()["mae_st"]
    large = family.official[0].model
    assert [o.file for o in family.candidates(large, "pretrain")] == [
        f"mae_pretrain_vit_large_k{data}.pth" for data in (400, 600, 700)
    ]
    assert family.candidates(large, "encoder") == []


def test_the_catalog_lists_them(command):
    shown, told = command("catalog"), command("catalog", "--json")
    for _, official in PUBLISHED:
        assert official.where in shown.out
    rows = {row["where"]: row for row in told.json["further"]}
    assert rows.keys() == {official.where for _, official in PUBLISHED}
    base = rows["hf://MCG-NJU/videomae-base"]
    assert (base["parameters"], base["license"]) == (94_210_944, "cc-by-nc-4.0")
