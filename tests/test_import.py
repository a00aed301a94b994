"""`import headwater` is quick, complete and lazy."""

import subprocess
import sys

import pytest

import headwater as hw


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_headwater_loads_neither_torch_nor_transformers():
    loaded = run("import sys, headwater; print([m for m in sys.modules])")
    assert "'torch'" not in loaded
    assert "'transformers'" not in loaded


def test_help_loads_no_torch():
    code = (
        "import sys\n"
        "from headwater.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print('LOADED', 'torch' in sys.modules)"
    )
    assert "LOADED False" in run(code)


@pytest.mark.parametrize("name", [name for name in hw.__all__ if name != "__version__"])
def test_every_public_name_resolves_and_has_a_docstring(name):
    assert getattr(hw, name).__doc__


def test_names_stay_what_they_are_after_their_modules_are_imported():

    assert callable(hw.audit)
    assert callable(hw.metric)
    assert callable(hw.task)


def test_a_misspelt_name_is_answered_with_the_closest():
    with pytest.raises(AttributeError, match=r"no attribute 'atribute'. Closest: 'attribute'"):
        _ = hw.atribute


def test_dir_lists_the_public_names():
    assert {"load", "attribute", "audit", "heads"} <= set(dir(hw))
