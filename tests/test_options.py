"""``engine.options`` and, below, ``modules.options``."""

from __future__ import annotations

import pytest
import tiny_models

import promptflow as pf
from promptflow.child import usable_cores
from promptflow.engine import Engine, tuned
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.options import DEFAULTS, EngineOptions, load_settings, worker_settings
from promptflow.engine.request import Choice
from promptflow.engine.scripted import ScriptedEngine
from promptflow.engine.slot.prompt_lookup import PASS_ROWS, PASS_ROWS_GPU
from promptflow.engine.tuned import MOST_PASS_ROWS, Choices, Tuned
from promptflow.errors import ModelNotFound, TemplateError, UnsupportedOption
from promptflow.fields import TypedField
from promptflow.flow import request_of, run
from promptflow.modules.options import confined
from promptflow.modules.predict import Predict

SHA = "ab" * 32
BEST = Choices(threads=1, batch=256, micro_batch=128, flash_attention=True, kv_type="q8_0")


@pytest.fixture(autouse=True)
def found(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTFLOW_CACHE", str(tmp_path))
    tuned.remember(SHA, Tuned(BEST, {}, {}))


def test_without_tuning_the_defaults_and_all_cores_are_taken():
    assert DEFAULTS.choices() == Choices(threads=usable_cores())
    assert DEFAULTS.choices("cd" * 32) == Choices(threads=usable_cores())


def test_what_was_tuned_is_taken_where_the_caller_chose_nothing():
    assert DEFAULTS.choices(SHA) == BEST
    chosen = EngineOptions(batch=64, extra_buffers=False).choices(SHA)
    assert chosen == BEST.but(batch=64, extra_buffers=False)
    assert chosen.micro_batch == 64


def test_a_cache_of_8_bits_is_not_left_without_flash_attention():
    assert EngineOptions(flash_attention=False).choices(SHA).kv_type == "f16"


def test_more_threads_than_this_process_may_use_are_not_taken():
    tuned.remember(SHA, Tuned(Choices(threads=1000), {}, {}))
    assert DEFAULTS.choices(SHA).threads == usable_cores()


def test_invariant_text_does_not_depend_on_what_was_tuned():
    assert EngineOptions(batch_invariant=True).choices(SHA) == Choices(threads=usable_cores())


def test_load_settings_are_those_of_llama():
    llama = pytest.importorskip("promptflow.engine.model.llama")
    settings = load_settings(EngineOptions(context=64, max_running=3), BEST)
    load = llama.Load(**settings)
    assert (load.context, load.sequences, load.batch, load.kv_type) == (64, 51, 256, "q8_0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_type": "q4_0"}, "one of f16, f32, q8_0"),
        ({"kv_type": "q8_0"}, "needs flash_attention=True"),
        ({"micro_batch": 0}, "micro_batch=0.* outside 1 to"),
        ({"context": 8}, "context=8.* outside 16 to"),
        ({"batch": 0}, "batch=0.* outside 1 to"),
        ({"max_running": 209}, "max_running=209.* outside 1 to 208"),
        ({"max_waiting": 0}, "max_waiting=0.* outside 1 to"),
        ({"threads": 0}, "threads=0.* outside 1 to"),
    ],
)
def test_what_llama_cpp_would_abort_on_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EngineOptions(**options)


def test_a_worker_is_told_what_it_needs():
    settings = worker_settings(EngineOptions(context=512, max_running=3, lookup=True))
    assert settings["max_running"] == 3
    assert settings["pass_rows"] == PASS_ROWS
    assert settings["load"]["sequences"] == 51
    assert settings["drawers"] == 1, "llama.cpp's threads keep the cores"
    assert settings["pass_cells"] < worker_settings(EngineOptions(gpu_layers=1))["pass_cells"]
    beside_gpu = worker_settings(EngineOptions(gpu_layers=99, max_running=208))
    assert beside_gpu["drawers"] == min(8, usable_cores())
    assert beside_gpu["load"]["sequences"] == 256, "as many as llama.cpp allows"
    assert "path" not in settings
    alone = worker_settings(EngineOptions(batch_invariant=True, lookup=True))
    assert alone["pass_rows"] == 0, "drafts would depend on what runs beside"
    assert worker_settings(EngineOptions())["pass_rows"] == 0


def test_drafts_are_weighed_by_what_rows_cost_on_this_machine():
    lookup = EngineOptions(lookup=True)
    assert lookup.pass_rows(SHA) == PASS_ROWS, "not known"
    # 50 ms a step alone and 160 with 8 branches: 15.7 a row, so 34.3 for the weights.
    tuned.remember(SHA, Tuned(Choices(), {}, {"alone": 20.0, "together": 50.0}))
    assert lookup.pass_rows(SHA) == pytest.approx(34.3 / 15.7, rel=0.01)
    assert EngineOptions().pass_rows(SHA) == 0
    assert EngineOptions(lookup=True, gpu_layers=1).pass_rows(SHA) == PASS_ROWS_GPU
    tuned.remember(SHA, Tuned(Choices(), {}, {"alone": 20.0, "together": 160.0}))
    assert lookup.pass_rows(SHA) == pytest.approx(MOST_PASS_ROWS - 1), "rows cost nothing"
    tuned.remember(SHA, Tuned(Choices(), {}, {"alone": 20.0, "together": 20.0}))
    assert 0 < lookup.pass_rows(SHA) < 0.1, "a row costs as much as the weights"


def test_a_chat_template_takes_the_place_of_the_models(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<me>")
    options = EngineOptions(chat_template=path)
    assert options == EngineOptions(chat_template=str(path))  # JSON data, for saved programs
    with Engine(FakeModel()) as plain, Engine(FakeModel(), options) as engine:
        assert engine.scaffold(("system", "user")) == ("<system>", "<user>", "<me>")
        assert engine.info.template == path.read_text()
        assert plain.info.template != engine.info.template
        assert engine.info.identity.startswith(f"{plain.info.identity} (chat template ")
        given = engine.info.identity
    path.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    with Engine(FakeModel(), options) as engine:
        assert engine.info.identity != given


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("", "is empty"),
        (" \n", "is empty"),
        (b"\xff\xfe{", "UTF-16"),
        (b"\x80", "not UTF-8"),
        ("x" * 1_000_001, "longer than"),
    ],
)
def test_a_chat_template_is_read_before_the_model(tmp_path, content, message):
    path = tmp_path / "t.jinja"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for make in (Engine, pf.load, pf.configure):
        options = EngineOptions(chat_template=path)
        with pytest.raises(TemplateError, match=message) as caught:
            make("no-such-model", options=options)
        assert str(path) in str(caught.value)
    with pytest.raises(TemplateError, match="no regular file"):
        EngineOptions(chat_template=tmp_path).template()


def test_a_file_is_looked_for_before_anything_is_started(tmp_path):
    with pytest.raises(ModelNotFound):
        worker_settings(EngineOptions(), tmp_path / "missing.gguf")


# Options of an output


def test_an_output_is_confined_to_its_options_verbatim() -> None:
    options = ["8 + 4 = 12 (left: 6)", " (?=x)|\\1\n"]
    info = confined(pf.signature("q -> a"), "a", options).output_fields["a"]
    field = TypedField.of("a", info)
    assert field.constraint({}) == Choice(tuple(options))
    assert [field.parse(option) for option in options] == options


@pytest.mark.parametrize("options", [["8 + 4 = 12 (left: 6)", "8 - 4 = 4"], ["a\\b|c", "(?=x)"]])
def test_a_model_can_write_nothing_else(options: list[str]) -> None:
    lm = pf.load("fake", engine=pf.Engine(FakeModel()))
    predict = Predict("question -> answer")
    signature = confined(predict.signature, "answer", options)
    for seed in range(4):
        [prediction] = [run(predict, lm=lm, seed=seed, question="?", signature=signature)]
        assert prediction.answer in options


def test_the_prompt_does_not_show_the_options() -> None:
    predict = Predict("question -> answer")
    lm = pf.load("scripted", engine=ScriptedEngine(lambda text, slot: ""))
    prompts = []
    for options in (["zebra"], ["heron", "stork"]):
        call = predict.call(question="?", signature=confined(predict.signature, "answer", options))
        parts = request_of(call.complete(lm)).parts
        prompts.append([part.text for part in parts if isinstance(part, pf.Text)])
    assert prompts[0] == prompts[1]


def test_the_signature_itself_stays_as_it_was() -> None:
    predict = Predict("question -> answer")
    confined(predict.signature, "answer", ["x"])
    assert predict.signature.output_fields["answer"].metadata == []


def test_recurrent_states_bound_how_many_sequences_stay():
    def sequences(state: int) -> int:
        return load_settings(EngineOptions(max_running=16), BEST, state)["sequences"]

    assert sequences(0) == sequences(1 << 10) == 16 + 48
    assert sequences(32 << 20) == 32
    assert sequences(1 << 30) == 16 + 8


def test_lookup_is_refused_where_a_state_cannot_take_back_a_draft(tmp_path):
    path = tiny_models.write("lfm2", tmp_path)
    with pytest.raises(UnsupportedOption, match="recurrent state"):
        worker_settings(EngineOptions(lookup=True), path)
    assert worker_settings(EngineOptions(), path)["load"]["sequences"] == 80
