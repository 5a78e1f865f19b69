from __future__ import annotations

import zipfile

import pytest
from office_files import package, rels

from promptflow.retrieval.kinds import Unreadable
from promptflow.retrieval.kinds.package import DEPTH, MEMBERS, Package, chosen, tree


def test_parts_and_relations() -> None:
    found = Package(
        package(
            {
                "_rels/.rels": rels(("officeDocument", "in/main.xml")),
                "in/main.xml": "<a/>",
                "in/_rels/main.xml.rels": rels(("x", "../other/b c.xml"), ("y", "/abs.xml")),
                "other/b c.xml": "<b/>",
            }
        )
    )
    assert found.part("officeDocument") == "in/main.xml"
    assert found.part("missing") == ""
    assert found.related("in/main.xml") == {
        "rId1": ("x", "other/b c.xml"),
        "rId2": ("y", "abs.xml"),
    }
    assert found.related("other/b c.xml") == {}


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = Package(package({"a": b"0" * (80 << 20)}))
    with pytest.raises(Unreadable, match="zip bomb"):
        bomb.read("a")
    several = Package(package({str(at): b"0" * (20 << 20) for at in range(4)}))
    with pytest.raises(Unreadable, match="zip bomb"):
        [several.read(str(at)) for at in range(4)]
    with pytest.raises(Unreadable, match=f"more than the {MEMBERS} allowed"):
        Package(package({str(at): b"" for at in range(MEMBERS + 1)}))


def test_broken_and_locked_members_are_refused() -> None:
    whole = package({"a": bytes(range(256)) * 40})
    data = bytearray(whole)
    data[60] ^= 255
    with pytest.raises(Unreadable, match="a inside cannot be unpacked"):
        Package(bytes(data)).read("a")
    with pytest.raises(Unreadable, match="missing inside"):
        Package(whole).read("b")
    data = bytearray(whole)
    for at in (6, whole.rindex(b"PK\x01\x02") + 8):
        data[at] |= 1
    with pytest.raises(Unreadable, match="encrypted"):
        Package(bytes(data)).read("a")
    assert zipfile.ZipFile


def test_elements_are_called_by_the_prefixes_that_are_usual() -> None:
    strict = "http://purl.oclc.org/ooxml/wordprocessingml/main"
    root = tree(f'<q:p xmlns:q="{strict}" q:val="1"><r/></q:p>'.encode(), "a")
    assert (root.tag, root.attrib, root[0].tag) == ("w:p", {"val": "1"}, "r")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "declares a document type"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'.encode("utf-16"), "declares a document type"),
        (b"<a>" * (DEPTH + 1), "nests more than"),
        (b"<a>&undefined;</a>", "no XML"),
        (b"<a>", "no XML"),
        (b"", "no XML"),
    ],
)
def test_xml_that_may_hurt_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        tree(data, "a")


def test_of_alternatives_one_is_chosen() -> None:
    space = "http://schemas.openxmlformats.org/markup-compatibility/2006"
    inner = "<mc:Choice><a/></mc:Choice><mc:Fallback><b/></mc:Fallback>"
    both = f"<mc:AlternateContent>{inner}</mc:AlternateContent>"
    root = tree(f'<r xmlns:mc="{space}"><x/>{both}</r>'.encode(), "r")
    assert [child.tag for child in chosen(root)] == ["x", "a"]
