"""What can be said of a module that is not imported."""

from __future__ import annotations

import sys

import pytest

from liver_slurm.base.sources import fields_of, find_module, names_of, source_of


def test_names_that_statements_bind() -> None:
    source = "import a.b as c, d.e\nx, (y, *z) = 1, (2, 3)\nw: int = 3\nfor i in x: j = i\nwith a as k: pass\n"
    source += "match x:\n    case 1:\n        def m(): ...\nif (n := 3): pass\ndef f():\n    global g\n    g = 1\n"
    found = names_of(source)
    assert found is not None
    assert {"c", "d", "x", "y", "z", "w", "i", "j", "k", "m", "n", "f", "g"} <= found
    assert names_of("from a import *") is None
    with pytest.raises(SyntaxError):
        names_of("def")


def test_packages_are_not_imported() -> None:
    assert "xmlrpc" not in sys.modules
    spec = find_module("xmlrpc.client")
    assert spec is not None
    assert "class ServerProxy" in (source_of(spec) or "")
    assert "xmlrpc" not in sys.modules
    assert find_module("xmlrpc.nothing") is find_module("nothing.at.all") is None
    assert source_of(find_module("math") or spec) is None


def test_fields_of_a_dataclass() -> None:
    assert fields_of("class A(B):\n    x: int = 1\n    y = 2\n", "A") == (["x"], ["B"])
    assert fields_of("x = 1", "A") is None
