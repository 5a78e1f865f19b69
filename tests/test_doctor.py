"""The doctor measures what it says, and turns what fails into a warning."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMOLLM

from promptflow import doctor
from promptflow.engine import Engine, EngineOptions
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.scripted import ScriptedEngine
from promptflow.engine.tuned import BRANCHES
from promptflow.errors import EngineLost


def threads(load_average: float) -> doctor.Threads:
    return doctor.Threads(used=2, cores=2, load_average=load_average)


def test_measure_prefills_cold_and_branches_from_one_prefill():
    """Eight branches after the first two runs compute no prompt again but its last token."""
    model = FakeModel(context=4096)
    engine = Engine(model, EngineOptions(context=4096))
    try:
        speed = doctor.measure(engine)
        stats = engine.stats()
    finally:
        engine.close()
    assert speed.branches == BRANCHES
    assert min(speed.prefill, speed.alone, speed.together) > 0
    assert stats.requests == 2 + BRANCHES
    assert stats.prefilled < 2 * doctor.PROMPT_WORDS * len("word ")
    assert stats.generated == 1 + (1 + BRANCHES) * doctor.TOKENS


def test_measure_is_cold_every_time():
    engine = Engine(FakeModel(context=8192), EngineOptions(context=8192))
    try:
        doctor.measure(engine)
        first = engine.stats().prefilled
        doctor.measure(engine)
        again = engine.stats().prefilled - first
    finally:
        engine.close()
    assert again > 0.9 * first


def test_measure_raises_what_the_engine_reports():
    def lost(text: str, slot: object) -> str:
        raise EngineLost("SIGSEGV")

    with pytest.raises(EngineLost, match="SIGSEGV"):
        doctor.measure(ScriptedEngine(lost))


def test_retrieval_is_checked_by_a_round_trip(minilm: Path):
    faiss, embedder, warnings = doctor.check_retrieval()
    assert faiss is not None
    assert faiss.split(",")[0].count(".") == 2
    assert embedder is not None
    assert str(minilm) in embedder
    assert warnings == []


def test_busy_machine_is_a_warning():
    assert doctor._load_warnings(threads(0.1)) == []
    [warning] = doctor._load_warnings(threads(2.0))
    assert "2.0 on 2 cores" in warning


def test_report_of_a_real_model():
    report = doctor.diagnose(SMOLLM, progress=False)
    assert report.load is not None
    assert report.load.model == SMOLLM
    assert {"AVX2", "NEON"} & set(report.load.features)
    assert report.load.survives == (report.load.path == "default")
    assert report.speed is not None
    assert report.threads.used >= 1
    assert report.folders["cache"].size > 0
    data = json.loads(json.dumps(dataclasses.asdict(report)))
    assert set(data) == {f.name for f in dataclasses.fields(doctor.Report)}
    checks = dict(report.rows())
    assert checks["prefill"].endswith("tokens/s")
    assert "8 branches" in checks


def test_missing_model_is_a_warning_not_an_exception():
    report = doctor.diagnose("no-such-model", progress=False)
    assert report.load is None
    assert report.speed is None
    assert any("no-such-model" in warning for warning in report.warnings)
    assert dict(report.rows())["python"]


def test_folder_instead_of_a_model_is_a_warning(tmp_path: Path):
    report = doctor.diagnose(tmp_path, progress=False)
    assert report.load is None
    assert any(str(tmp_path) in warning for warning in report.warnings)


def test_the_template_is_told(tiny: Callable[[str], Path], tmp_path: Path):
    path = tmp_path / "t.jinja"
    path.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")

    def told(chat_template: Path | None) -> str:
        load = doctor.diagnose(tiny("llama"), chat_template=chat_template, progress=False).load
        assert load is not None
        return load.template

    assert told(None) == "the model's own"
    assert told(path) == "the one given"
    path.write_text("{{ nothing.of.it }}")
    assert told(path).startswith("not usable: the model's chat template")
    path.unlink()
    assert (
        "cannot be read"
        in doctor.diagnose(tiny("llama"), chat_template=path, progress=False).warnings[-1]
    )
