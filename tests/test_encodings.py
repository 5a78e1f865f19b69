from __future__ import annotations

import random

import pytest

from promptflow.encodings import Undecodable, decoded, decoded_page

KOREAN = [
    "한국의 수도는 어디인가요?",
    "서울",
    "홍길동전의 저자는?",
    "허균",
    "대한민국",
    "예",
    "아니요",
]
JAPANESE = [
    "日本の首都はどこですか",
    "東京",
    "富士山の高さは?",
    "はい",
    "いいえ",
    "ラーメン",
    "京都の金閣寺",
]
CHINESE = [
    "中国的首都在哪里",
    "北京",
    "长江有多长",
    "是",
    "不是",
    "红楼梦的作者是谁",
    "曹雪芹",
    "上海市",
]
TAIWANESE = ["台灣最高的山是哪一座", "玉山", "台北在哪裡", "是", "不是", "紅樓夢的作者是誰"]
FRENCH = ["Où se trouve l\u2019Élysée ?", "à Paris", "Français", "élève", "ça va", "Noël", "cœur"]
PORTUGUESE = ["São Paulo", "não", "coração", "ação", "você está em Lisboa", "pão", "João"]
POLISH = ["Gdzie leży Łódź?", "żona", "Małgorzata", "święta", "Kraków", "źródło", "pięć"]
RUSSIAN = ["Столица России?", "Москва", "да", "нет", "Петербург", "река Волга"]
TURKISH = ["Türkiye'nin başkenti?", "üç", "şehir", "ağaç", "çocuk", "güneş", "\u0131ş\u0131k"]
SETS = [
    ("cp949", KOREAN),
    ("cp932", JAPANESE),
    ("euc_jp", JAPANESE),
    ("gb18030", CHINESE),
    ("big5", TAIWANESE),
    ("cp1252", FRENCH),
    ("mac_roman", FRENCH),
    ("cp1252", PORTUGUESE),
    ("cp1250", POLISH),
    ("cp1251", RUSSIAN),
    ("koi8_r", RUSSIAN),
    ("cp1254", TURKISH),
]


@pytest.mark.parametrize(("encoding", "texts"), SETS)
def test_a_file_is_read_as_it_was_written_or_refused(encoding, texts):
    """Short and long tables: what cannot be told apart is an error, never another text."""
    chance, read = random.Random(0), 0
    for size in (1, 2, 4, 8, 30):
        for _ in range(12):
            lines = [f"{chance.choice(texts)},{chance.choice(texts)}" for _ in range(size)]
            text = "\n".join(["question,answer", *lines, ""])
            assert decoded(text.encode(encoding), encoding) == text
            try:
                found = decoded(text.encode(encoding))
            except Undecodable:
                continue
            assert found == text
            read += 1
    if encoding in ("cp949", "cp932", "euc_jp", "gb18030", "big5"):
        assert read >= 25


def test_korean_of_a_spreadsheet_is_read_with_what_cp949_adds():
    text = "질문,답\n펲시맨은 누구인가요?,똠방각하\n한국의 수도는 어디인가요?,서울\n"
    assert decoded(text.encode("cp949")) == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
@pytest.mark.parametrize(
    "text", ["question,answer\n서울,é\n", '{"q": "東京"}', "", "plain,ascii\n1,2\n"]
)
def test_unicode_is_told_by_its_mark_or_its_zeros(encoding, text):
    assert decoded(text.encode(encoding)) == text


def test_text_of_japanese_mail_is_read():
    assert decoded("質問,東京".encode("iso2022_jp")) == "質問,東京"


def test_a_refusal_shows_what_the_file_may_say():
    data = "q,a\nO que é ação?,São João\n".encode("cp1252")
    with pytest.raises(Undecodable, match=r"line 2: .*cp1252: 'é ação\?,São João'") as caught:
        decoded(data)
    assert caught.value.likely == "cp1252"


@pytest.mark.parametrize(
    ("encoding", "message"),
    [("cp9949", "no encoding is called 'cp9949'"), ("utf-8", "line 2: cannot be read as utf-8")],
)
def test_an_encoding_that_is_told_wrong_is_named(encoding, message):
    with pytest.raises(Undecodable, match=message):
        decoded("q,a\nção,1\n".encode("cp1252"), encoding)


PAGE = "<html><head>{head}</head><body><p>{text}</p></body></html>"


def page(head: str, text: str, encoding: str) -> bytes:
    return PAGE.format(head=head, text=text).encode(encoding)


@pytest.mark.parametrize(
    ("label", "encoding", "text"),
    [
        ("euc-kr", "cp949", "똠방각하와 펲시맨"),  # beyond KS X 1001
        ("ks_c_5601-1987", "cp949", "찦차를 타고 온 펲시맨"),
        ("shift_jis", "cp932", "①②髙﨑 日本"),
        ("x-sjis", "cp932", "東京"),
        ("gb2312", "gb18030", "中国 镕 喆"),
        ("gbk", "gb18030", "中国㐀"),
        ("big5", "cp950", "台灣最高的山"),
        ("euc-jp", "euc_jp", "東京の首都"),
        ("iso-2022-jp", "iso2022_jp", "東京"),
        ("latin1", "cp1252", "caf\u00e9 \u2014 \u201cquoted\u201d \u20ac5"),
        ("ascii", "cp1252", "caf\u00e9 \u2019"),
        ("iso-8859-1", "cp1252", "\u0152uvre \u2026"),
        ("iso-8859-9", "cp1254", "\u0131\u015f\u0131k \u2014"),
        ("windows-1251", "cp1251", "Москва"),
        ("koi8-r", "koi8_r", "Москва"),
        ("tis-620", "cp874", "ภาษาไทย"),
        ("utf8", "utf-8", "Москва 東京"),
        ("UTF-16", "utf-8", "Москва"),
        ("macintosh", "mac_roman", "caf\u00e9"),
    ],
)
@pytest.mark.parametrize(
    "head",
    [
        "<meta charset={}>",
        "<META CHARSET='{}' >",
        '<meta content="text/html; charset={}" http-equiv="Content-Type">',
        '<!-- <meta charset="koi8-u"> --><title>a</title><meta name=x><meta charset="{}"/>',
        "<script>'<meta charset=koi8-u>'</script><meta charset={}>",
        '<meta charset="{}"><meta charset=koi8-u>',
    ],
)
def test_a_page_is_decoded_as_it_declares(head: str, label: str, encoding: str, text: str) -> None:
    assert f"<p>{text}</p>" in decoded_page(page(head.format(label), text, encoding))


def test_a_page_declares_as_xml_too_and_a_mark_goes_before_all() -> None:
    xml = '<?xml version="1.0" encoding="euc-kr"?><html><body><p>똠방각하</p></body></html>'
    assert "똠방각하" in decoded_page(xml.encode("cp949"))
    for encoding in ("utf-8-sig", "utf-16"):
        said = decoded_page(page("<meta charset=koi8-r>", "caf\u00e9", encoding))
        assert "caf\u00e9" in said
        assert said[0] == "<"
    assert "caf\u00e9" in decoded_page(page("", "caf\u00e9 and more words", "utf-16-le"))


def test_a_page_that_declares_what_it_is_not_is_read_as_what_it_is() -> None:
    korean = "한국의 수도는 서울이고 부산은 바다가 있는 도시이다"
    assert korean in decoded_page(page("<meta charset=utf-8>", korean, "cp949"))
    assert "caf\u00e9" in decoded_page(page("<meta charset=iso-8859-1>", "caf\u00e9", "utf-8"))
    assert "caf\u00e9" in decoded_page(page("<meta charset=no-such>", "caf\u00e9", "utf-8"))
    torn = page("<meta charset=utf-8>", "word " * 2000 + "caf\u00e9", "utf-8").replace(b"\xc3", b"")
    assert "caf\ufffd" in decoded_page(torn)  # as browsers show it
    with pytest.raises(Undecodable, match="declares utf-8, which it is not"):
        decoded_page(page("<meta charset=utf-8>", "Столица России Москва", "koi8_r"))


@pytest.mark.parametrize(("encoding", "texts"), SETS)
def test_a_page_that_declares_nothing_is_read_as_it_was_written_or_refused(encoding, texts):
    chance, read = random.Random(1), 0
    for size in (1, 3, 10):
        for _ in range(10):
            text = " ".join(chance.choice(texts) for _ in range(size))
            data = page("<title>A page</title>", text, encoding)
            try:
                said = decoded_page(data)
            except Undecodable:
                continue
            assert f"<p>{text}</p>" in said
            read += 1
    if encoding in ("cp949", "cp1252") and texts is not PORTUGUESE:
        assert read >= 10
