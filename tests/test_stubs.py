"""Gradio without the type stubs of its components."""

import importlib.util
import inspect
import sys
from contextlib import nullcontext

import pytest

from diffv2ir.ui.stubs import without_stubs

COMPONENT = """import gradio as gr


class Field(gr.Image):
    is_template = True
"""


@pytest.mark.parametrize(("context", "written"), [(nullcontext, True), (without_stubs, False)])
def test_no_stub_is_written_within_and_the_component_is_whole(tmp_path, context, written):
    source = tmp_path / f"field_{written}.py"
    source.write_text(COMPONENT)
    spec = importlib.util.spec_from_file_location(source.stem, source)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, source.stem, module)
        with context():
            spec.loader.exec_module(module)
        assert source.with_suffix(".pyi").exists() is written
        assert module.Field().get_config()["name"] == "image" and callable(module.Field().upload)


def test_what_asks_for_other_files_within_gets_them_and_all_is_as_before_after_it():
    before = inspect.getfile
    with pytest.raises(KeyError), without_stubs():
        assert inspect.getfile(pytest) == pytest.__file__
        raise KeyError
    assert inspect.getfile is before
