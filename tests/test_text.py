"""Normal forms, words and sentences in many languages, and their way back to the characters."""

from __future__ import annotations

import threading
import unicodedata

import pytest
from hypothesis import given, strategies as st

from promptflow.retrieval.text import (
    content_words,
    language_of,
    normal,
    query_words,
    sentence_spans,
    words,
)

LETTERS = st.text(
    "aéİßﬁ한국어は東京ﾊﾟ。.!?\"') (\n\t\u0301\u3099\u1100\u1161\u11a8२กำ😀²½①Ａ«»", max_size=40
)
ANYTHING = st.text(max_size=40) | LETTERS


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The head office is in London."),
        ("en", "The Korean word 김치 means kimchi."),
        ("en", "Osmium"),
        ("en", ""),
        ("en", "12.5 %"),
        ("en", "def add(a, b): return a"),
        ("de", "Wie hoch ist die Temperatur?"),
        ("fr", "Quelle est la capitale de la France ?"),
        ("es", "La sede está en Madrid y la fábrica en Sevilla."),
        ("it", "La sede si trova a Roma, e questa è la fabbrica della città."),
        ("pt", "A sede fica em Lisboa e a fábrica no Porto não está longe."),
        ("nl", "Het hoofdkantoor staat in Amsterdam en de fabriek in Rotterdam."),
        ("sv", "Huvudkontoret ligger i Stockholm och fabriken i Malmö."),
        ("da", "Hovedkontoret ligger i København, og fabrikken er også af nyere dato."),
        ("no", "Hovedkontoret ligger i Oslo og fabrikken er i Bergen, men ikke noen andre."),
        ("fi", "Pääkonttori on Helsingissä ja tehdas on Tampereella, mutta ei muualla."),
        ("pl", "Siedziba jest w Warszawie, a fabryka znajduje się w Krakowie."),
        ("cs", "Sídlo je v Praze a továrna se nachází v Brně."),
        ("ro", "Sediul este în București, iar fabrica se află la Cluj."),
        ("hu", "A székhely Budapesten van, és a gyár Győrben található."),
        ("tr", "Genel merkez İstanbul'da ve fabrika Ankara'da, ama bu değil."),
        ("id", "Kantor pusat berada di Jakarta dan pabrik ada di Bandung."),
        ("vi", "Trụ sở chính ở Hà Nội và nhà máy ở Đà Nẵng."),
        ("ru", "Завод находится в Туле, а офис в Москве."),
        ("uk", "Штаб-квартира у Києві, а завод є у Львові."),
        ("el", "Η έδρα είναι στην Αθήνα."),
        ("ar", "المقر في القاهرة"),
        ("fa", "دفتر مرکزی در تهران است و کارخانه نیست چرا"),
        ("he", "המטה נמצא בתל אביב."),
        ("hi", "मुख्यालय दिल्ली में है।"),
        ("th", "สำนักงานใหญ่อยู่ที่กรุงเทพฯ"),
        ("ko", "본사는 서울에 있다."),
        ("ko", "API Gateway 서버의 timeout 설정은 config.yaml 파일에 있다"),
        ("ja", "本社は東京にある。"),
        ("ja", "ﾊﾟﾝ"),
        ("zh", "总部在北京。"),
    ],
)
def test_the_language_of_a_text(language: str, text: str) -> None:
    assert language_of(text) == language
    assert language_of(unicodedata.normalize("NFD", text)) == language


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("en", ["Dr. Smith paid 3.5 million dollars.", "He left at 5 p.m. on Friday.", "Is it?"]),
        ("en", ["See Fig. 3 for e.g. the U.S. case.", "No. 5 is best.", "Yes!"]),
        ("en", ["(It was late.)", "Version 2.0.1 is out.", "J. K. Rowling wrote it."]),
        ("en", ['He said "Go!"', "Then he left.", "It cost $5.", "10 people came."]),
        ("en", ["It was late [3].", "1. First of all, stop.", "It ends"]),
        ("de", ["Das kostet z. B. 3,5 Mio. Euro.", "Am 3. Mai kam Prof. Dr. Müller."]),
        ("fr", ["M. Dupont est là.", "Il a payé 3,5 €.", "Mme. Curie aussi."]),
        ("ru", ["Завод находится в г. Москва.", "Офис в Туле."]),
        ("hi", ["मुख्यालय दिल्ली में है।", "कारखाना मुंबई में है।"]),
        ("ar", ["المقر في القاهرة.", "المصنع في الإسكندرية؟", "نعم."]),
        ("ko", ["본사는 서울에 있다.", "공장은 부산에 있다!", "매출은 3.5억 원이다."]),
        ("ko", ['그는 "알겠습니다."라고 말했다.', "2024. 3. 15. 시행한다.", "끝."]),
        ("ko", ["가. 첫째 항목이다.", "나. 둘째 항목이다."]),
        (
            "ko",
            [
                "시행일은 2022. 1. 1.이다.",
                "법은 2021.\n12. 8. 개정되어 2023. 1. 1. 이후로 바뀌었다.",
            ],
        ),
        ("ko", ["대법원 1995. 1. 20. 선고 94다3421 판결이다.", "접수는 '24.3.4.~3.15.이다."]),
        ("ko", ["그는 '왜?' 하고 물었다.", "버전 2.0. 이 나왔다.", "총 12. 다음은 부산이다."]),
        ("ko", ["날씨가 좋네요^^", "비가 온대요 ㅠㅠ", "갈게요!"]),
        ("ja", ["「行く。」と彼は言った。", "売上は3.5億円だ！", "本当か？", "はい"]),
        ("zh", ["总部在北京。", "工厂在上海！", "增长3.5%。"]),
    ],
)
def test_sentences_of_a_language(language: str, sentences: list[str]) -> None:
    between = "" if language in ("ja", "zh") else " "
    for form in ("NFC", "NFD"):
        whole = [unicodedata.normalize(form, sentence) for sentence in sentences]
        text = between.join(whole)
        assert [text[start:end] for start, end in sentence_spans(text)] == whole
        assert [text[start:end] for start, end in sentence_spans(text, language)] == whole


def test_sentences_go_over_a_line_and_end_at_a_blank_one() -> None:
    text = "One goes\non here. Next\r\n\r\n본사는 서울에 있다. 끝\n \nlast"
    found = [text[start:end] for start, end in sentence_spans(text)]
    assert found == ["One goes\non here.", "Next", "본사는 서울에 있다.", "끝", "last"]


def test_korean_verbs_end_sentences_at_a_line_s_end() -> None:
    text = "본사는 서울에 있다\n공장은 부산에 있습니다\n바다\n에서 그가 온다\n고 했다"
    for form in ("NFC", "NFD"):
        given = unicodedata.normalize(form, text)
        found = [normal(given[start:end]) for start, end in sentence_spans(given)]
        assert found == [
            "본사는 서울에 있다",
            "공장은 부산에 있습니다",
            "바다\n에서 그가 온다\n고 했다",
        ]


def test_a_long_text_without_full_stops_is_cut_at_spaces() -> None:
    text = " ".join(["สำนักงานใหญ่อยู่ที่กรุงเทพ"] * 40)
    spans = sentence_spans(text)
    assert len(spans) > 3
    assert all(end - start <= 300 for start, end in spans)


@given(ANYTHING)
def test_sentences_hold_every_character_in_order(text: str) -> None:
    spans = sentence_spans(text)
    assert [*sorted(spans)] == spans
    inside = {at for start, end in spans for at in range(start, end)}
    assert sum(end - start for start, end in spans) == len(inside)
    assert all(text[at].isspace() for at in set(range(len(text))) - inside)
    for start, end in spans:
        assert text[start:end] == text[start:end].strip() != ""


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The metals' densities", ["the", "metal", "densiti"]),
        ("It's Newton's law", ["it", "s", "newton", "s", "law"]),
        ("PD-1 and H₂O, CO₂", ["pd", "1", "and", "h2o", "co2"]),
        ("1,000 and 3.5 and 2024.3.15", ["1000", "and", "3.5", "and", "2024", "3", "15"]),
        ("Ｗｉｄｅ　ﾊﾟﾝ", ["wide", "パン"]),
        ("본사는 서울에", ["본사", "사는", "서울", "울에"]),
        ("東京 都", ["東京", "都"]),
        ("2025년 Seoul의", ["2025", "년", "seoul", "의"]),
        ("co\u00adoperate", ["cooperat"]),
        ("naïve Café", ["naiv", "cafe"]),
        ("हिन्दी", ["हिन्द"]),
        ("", []),
    ],
)
def test_the_words_of_a_text(text: str, terms: list[str]) -> None:
    assert words(text) == terms
    assert words(unicodedata.normalize("NFD", text)) == terms


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("en", "generalization", "generalize"),
        ("de", "Häuser", "Haus"),
        ("fr", "nationale", "nationaux"),
        ("es", "canciones", "canción"),
        ("ru", "заводы", "завода"),
        ("pt", "cidades", "cidade"),
    ],
)
def test_forms_of_one_word_are_one_term(language: str, one: str, other: str) -> None:
    assert words(one, language) == words(other, language)
    assert words(one.upper(), language) == words(one, language)


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("What is the densest metal?", ["densest", "metal"]),
        ("How many of these does WHO have?", ["WHO"]),
        ("WHAT IS THE DENSEST METAL?", ["DENSEST", "METAL"]),
        ("the who", ["the", "who"]),
        ("Wie hoch ist die Temperatur?", ["hoch", "Temperatur"]),
        ("본사는 H₂O", ["본사", "사는", "H₂O"]),
    ],
)
def test_a_query_is_asked_without_its_function_words(query: str, left: list[str]) -> None:
    assert [query[word.start : word.end] for word in query_words(query, ["en"])] == left


def test_a_word_of_a_query_is_looked_for_as_each_language_stems_it() -> None:
    [word] = query_words("densest", ["de", "en", "ko"])
    assert set(word.terms) == {*words("densest", "de"), *words("densest", "en")}
    assert content_words("the densest metal", "en") == ["densest", "metal"]


@given(ANYTHING, st.sampled_from(["en", "de", "ko", "tr"]))
def test_a_query_has_the_terms_of_the_same_text(text: str, language: str) -> None:
    asked = {term for word in query_words(text, [language]) for term in word.terms}
    assert asked <= set(words(text, language))
    assert bool(asked) == bool(words(text, language))
    for word in query_words(text, [language]):
        assert 0 <= word.start < word.end <= len(text)


@given(ANYTHING)
def test_normal_forms_are_stable(text: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    assert normal(decomposed) == normal(text)
    assert normal(normal(text)) == normal(text)


def test_threads_share_no_stemmer() -> None:
    texts = [f"generalizations{n} relativity{n} universities{n}" for n in range(300)]
    expected = [words(text, "en") for text in texts]
    found: list[list[list[str]]] = []
    threads = [
        threading.Thread(target=lambda: found.append([words(text, "en") for text in texts]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
