"""PDF through PDFium: pages, locks, exponents, and reasons for what cannot be read."""

from __future__ import annotations

import base64
import zlib

import pytest
from office_files import drawn_pdf, line, pdf

from promptflow.retrieval.kinds import Unreadable
from promptflow.retrieval.kinds.pdf import read

# Encrypted by pypdf: three with a password of the owner alone, one with the reader's.
LOCKED = {
    "AES-256": (
        "c-oCrO^6&-5JmzXnt1e*Tpob|LA2lhj|?Np?hFapu$vtX5s~Em)Z2{No!RvCEJ+UD1d&`tP!a?Wfgm0{C?33"
        "vAORx;kGhD_lL~qgwR&c<8JHZ>-G}$S_f^$b)%B{ivD$lqy(o&-Py2W86^u|a3U3zec2T}^Z5K$n;%mP>+A7"
        "KozXfB$k+4~GIt2_<L*z>aQ(jS?9;7jOors1{-YCkI(PUT?wqPnAYuW^=0I9P`<rzo=e`0hMeNlWh<HR^V^E"
        "j-LI3{w&+=TIHQbiQmc<kZnY{7_nD0=qI<I9EkYcSlZFA=Ak^Ko5)-zmQO<L0OTUU}-+TfaT~#jg(z#r}WiC"
        "l8)`>E7)--(5KS&;9+IA0E5dd6)eC(GNF%eA>J-{@~)RzxK{Q|Jk?j{-G}qpZ@*E{wJTm_siEmzjpaT^~|Xw"
        ">FC<s?~i=*@}F<tzuemW`0!ezV;*X*NG(;Q$)YIxlTc5$4akb}gdf8+zw#t(??F9?ejzWt;N=`qSQw%YGUN)"
        "^8$@y^oi^NYEYM)PhKiK^+7FYjQc<pxwz4`3kSa3C1SA@qjEPz=lrmbg<bviY3&Ff*K&3F6b50|G2L?<Skwg"
        "wwL@?BuNRx_QILR@f3fc(SDauz#n`SG$bY5yuhDqaDbe=i%s8~dEXS7Y0Ct(=XnOfAKLU0;v<lYA0B4-H!9Q"
        "w&T@#s@Tnc8t?MKBSgtn{W`(67^cb$n7^>h3iiR<4fX`YsF`(iu`7@Al7$gF*>D?-n%O>5-X(W>Y=dtanK}q"
        "wM4iWM?BN5t)!yX_lR1#?i!lw#tO$wH1nECOKOcgcUX<4xHzv5a<RlId79U(qmn9pjKNeSv1~7Pji%lvcS3J"
        "UP&*g4m>HXL{J_P9h!P>K(&LtZw&A(68FZ6gnw9KL?tA%sL-pN7q7t83UWb-Dd@pNv{FKmOb#%HZ8<#|KEkw"
        "I!Wb7z7*}iw!=Ji@Nxgv8l^<+FHSOR2;5wkZa&t7o;W4}Cr&e(mw0%@wQxyevhK^dK5CAy#t7R-FX**9s!70"
        ")m#_HN`P4vSVF|K`8PYc5+=S8d4UGEkD179w47X"
    ),
    "AES-128": (
        "c-oCqO=}ZD7(VG?K!l#9%q38fc6L5?W*0)BABi8ev?Of~S}C);GfgDjt-F)b7W5#3(BB}U=np6=c&k`EDpiD"
        "nS9>UeC-vl|&L(LaNDuBV%e>F~yx;Q{=B6s6c#ML=_k+E!07C~R!Cg=+0yMv|svw$_Mz)e=fac_~${?|XDkz"
        "nJildxJ1`IkpfTo*K25&=}^WhzUCX;q-Anr4zXPV}LQe~;#NN7eyO*xUQTVIZSIVMo}r0X#@mY6}-WmZ*|wA"
        "0WgnR~2QZTEnodz^Il>&0h%@o%bl*)*WfbA4t~C0D@6(Pw#M`1h6J>0hH`O9wB%9KM;~S=fKQT`KIHzxC*7`"
        "`u#W?+a6|tklOJUJ}{J;fJA5L&G1{#myg!kKOtO^{u+Q+t|C@zWV;zz1^Q%`>)OoJt=QJe;}9MKE3}Z&!ZQr"
        "mytWrk-Q3kYVE*u#2mx`O~_1j>O<F5YfYJEDEsQ-eO~I2*~a9*UWJ%=w!@GSpZQ!6pV$U9TSlc2)r^cInMMH"
        "3!lKK$mY$$WQ5p(ggb@vVhv`U0+QUq0Nm-<QNj=R~#BktyOp%aBl1Rz5TLNeS7KJsoKtLU=EE8)-Qx+;GAcD"
        "(?Y2pQ%DOWKiTu(C0nd4ZQYptb&9nX51taPSWGg0p}-ZqW$T7E;&R1(gvsyHXjKr~*i)yZk0yf<xYx>A8%2f"
        "2`*2&XMuPn8A^6u>!oAa`BrLJdzaY{%2l#HSc%0~jWB03$9Qz^E?<Fvj~ZlgegGrJXs}nw!d|hpI_pm#BN+u"
        "TR;XDB2!!5z;X5g`jR2gw#>Q4}^3z4QQZC|3k6cRF1=RW7R-@yepZJsp&LE2nGs;@@xhC15kA^Is"
    ),
    "RC4-128": (
        "c-oCpziSjh6voD4(8^jJ!X5sAxI4dR;XENf4n;#^Vqzf{b31S1$+;VL=OnR7a~6Ukg8zV6rcs0xT4-e<2^Q9"
        "ZXd{T^UvTy=i3exl?iMrO``-7y_x9BnW?GZv0z>uhKR$m!1jjgU-$jiEif(MI0gk4PH{E;{MGIyXN=yS`5jC"
        "3#GFuVpSi*pZqN^QS;#-(ie0&>4(|IrRn2e;df2LN23JBC;rDzUp$4uqxK`RcgBowQJ4iz&Wh$ZGj<|34NuS"
        "kQ*O0gB9!vn$M!1VCjug^#7UxRGb-@!7e;-xRZ+(Tzy&s}=_e)mKF#pb!EFJIN3i}O1dYrh^I|9$$%+ixqA6"
        "HjjLd^-B>YyV^aRPRLp=fv{-qhqkUcjn~vtv&T-v$nmx^{gtkueV=TjI~`^MbT2P?FZKiBq*9PB@CK~E<^V|"
        "_)cm@%*zp#6--0-m>sr3s19SqoF+VxiY6i4>U2F6I9l>1v!<{pn#T<xr88PF0LD_4sMNA{5_4ybb((PF4CB@"
        "%hG{3ka?(yT2bxN2s4>!sCW@AWiq*h*D!I~5YZXh8FebE36;;xvZK~Ujg8&XnXv2x*aUAZ_IcH)L>(PI*UVu"
        "X}RwzDvuoQv`?C>E*!UzYE>@Ozy7)B@?!>Ax*7*p{W#`y^53)AUBF_`sI=K%zJ(PEy5Z5}S(m6@=d4FZe{Ae"
        "x#a<&1HuwN69=)Cvgxbn|~GVXbGgwAfhlSRO2G=}qAWg9(#B_4@353;h9IDg`M"
    ),
    "user": (
        "c-oCrONbmr7(RLFOKyS)QkO*(wCnxAVIbL^A#t<pvJ->&K<n|>?u6Z*wWnuEmVgRM2*Mt{7zBlYB3?A&Q9KG"
        "l4mo(&9K5I?!d`s+Ju}%1j0d~>Q1#XKKl`hHWoxbf40~1-D?k2p_g=vWC8Kbq=yZzm(zOF1<*IM|-e{*NxBL"
        "!_2}i<q(d`ycrIyH-45qxITpy+}d6|foPhKs`)zPGC2wN}}|7qF=ssX99NaY5kp+7geioPhmnsH(rpLwhrB#"
        "w!kF}Gnnn$!`KY(4hzbhcnbJxF@?&Ew03_!pttX?BUz?fJN=!S5HJPu6dI|IxeuocaCI*LUIG`u*qMyT5T;J"
        "^ISiFMfRM&Ix(vo9~|b^M^NId*Y~YAAZ$cJKp{5mv0|Ce*CZ3ub-T`^U2LeZvA~j9FD6$-k%(O`Nr+H%oo2s"
        "_rcp2K0SW&{I4&a-2A!CV;*Xrky`3VTSZY0CZU;bTaXpyIX{MJedT%BJA`H!{X$)O!OLZ$urWlRR>&2uw}|9"
        "UI&HY)*r4HF12riJjjxigQ&Db`j)d$zWt630mFJNrtEqAp!K{;u(tEC?)iF7sDw>p;h*CMofkO<;1sXYv08$"
        "1Qxr~Ba6|_krrjVHH7Uc`16Sc508|Agj(sF0KP!tWamDXqD5KDn-!B`Abd1_<u*$b<!2X8@wPgIJKy~BJJ4<"
        "a(3b?`PN8l7MmWwk$5!JtX=)!9k2+dFI(R<4cW<^fbKX@it!dxOj3v{8c3)q<w`eKK><Zt91d%^v9}r2_>Uj"
        "Ftg#V?$OsMyxDqm4aj5c>~xFk#)xG7`Ghr1<*0GBxKtNbQ6qCQ5s`3WdJHUub2d<KqM`cFxIt@b2MO;L1AZN"
        "vN<zjfIG`0y4iwyAGJ?~2wVl{85ctGESTirlA>0)pt4=O0#|Fu1tq4Srw`Fe2}LqF#Td$RdQv^av|Pe4+!Dq"
        "WTf&4hOPJIPSX2Aq9@JC)4u(g7>6P1~5e|>pJ-@Jqv!H`ILk0MdH2!dIxbjiTEM!Oye}#nZ|DoU%=~c15cF+"
        "+0U`C7^UpLdnFv@wcveMh^7ykl!4R@3"
    ),
}


def locked(name: str) -> bytes:
    return zlib.decompress(base64.b85decode(LOCKED[name]))


@pytest.mark.parametrize("name", ["AES-256", "AES-128", "RC4-128"])
def test_what_only_its_owner_locked_is_read(name: str) -> None:
    assert read(locked(name), "a.pdf").text.strip() == "The reserve pump starts at thirty bar."


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (locked("user"), "encrypted: save a copy without a password"),
        (b"hello", "not a PDF"),
        (pdf("x")[:20], "damaged"),
        (pdf(""), "no text in it: a scanned PDF needs OCR"),
        (drawn_pdf(*[""] * 20_001), "20001 pages, more than"),
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read(data, "a.pdf")


def test_text_and_the_offset_of_each_page() -> None:
    parsed = read(pdf("First page here", "Second page there"), "a.pdf")
    first, second = parsed.pages
    assert parsed.text[first:second].strip() == "First page here"
    assert parsed.text[second:].strip() == "Second page there"
    assert parsed.warnings == ()


def test_a_high_digit_after_digits_is_an_exponent_and_a_low_one_is_apart() -> None:
    high = line(72, 700, "The mass is 10") + line(139.0, 704, "6", 6) + line(144, 700, "kg in all")
    assert read(drawn_pdf(high), "a.pdf").text.strip() == "The mass is 10^6 kg in all"
    low = line(72, 700, "In base 10") + line(119, 698, "2", 6) + line(126, 700, "it is two")
    assert read(drawn_pdf(low), "a.pdf").text.strip() == "In base 10_2 it is two"


def test_words_that_a_line_broke_are_whole_unless_the_hyphen_is_their_own() -> None:
    lines = ["This is an exam-", "ple of a well-", "known thing, the well-known example."]
    drawn = "".join(line(72, 700 - 14 * at, text) for at, text in enumerate(lines))
    assert read(drawn_pdf(drawn), "a.pdf").text.strip() == (
        "This is an example of a well-known thing, the well-known example."
    )


def columns(*texts: list[str], left: tuple[int, ...] = (50, 320)) -> str:
    """Draw lines row by row, as some programs do: first of the left, then of the right column."""
    rows = max(map(len, texts))
    return "".join(
        line(x, 730 - 14 * row, text[row])
        for row in range(rows)
        for x, text in zip(left, texts, strict=False)
        if row < len(text)
    )


LEFT = [
    "The pump at station four runs at forty",
    "bar and is checked by the shift leader",
    "every two hours. When the pressure",
    "falls an alarm sounds.",
]
RIGHT = [
    "Valves are greased in spring and in",
    "autumn with the grease that the maker",
    "names. A valve that sticks is replaced",
    "and never forced, since a stem breaks.",
]


def test_columns_are_read_one_after_the_other() -> None:
    title = line(50, 760, "Operating manual of the water works in the north", 14)
    below = line(50, 500, "This line runs over the whole width of the page again, below.")
    parsed = read(drawn_pdf(title + columns(LEFT, RIGHT) + below), "a.pdf")
    assert parsed.text.split("\n\n") == [
        "Operating manual of the water works in the north",
        " ".join(LEFT),
        " ".join(RIGHT),
        "This line runs over the whole width of the page again, below.",
        "",
    ]
    assert parsed.warnings == ()


def test_columns_drawn_as_one_string_with_a_wide_gap_are_columns_too() -> None:
    drawn = "".join(
        f"BT /F1 10 Tf 50 {730 - 14 * row} Td ({left}) Tj 270 0 Td ({right}) Tj ET\n"
        for row, (left, right) in enumerate(zip(LEFT, RIGHT, strict=True))
    )
    said = read(drawn_pdf(drawn), "a.pdf").text
    assert said.index("an alarm sounds") < said.index("Valves are greased")


def test_a_table_is_read_by_rows_with_its_header() -> None:
    cells = [
        *(["City", "Seoul", "Busan", "Daegu"], ["People", "9.4 million", "3.3 million", "2.4"]),
        ["Area", "605", "770", "884"],
    ]
    assert read(drawn_pdf(columns(*cells, left=(50, 200, 350))), "a.pdf").text.strip().split(
        "\n"
    ) == [
        "City: Seoul; People: 9.4 million; Area: 605",
        "City: Busan; People: 3.3 million; Area: 770",
        "City: Daegu; People: 2.4; Area: 884",
    ]


def test_names_and_what_they_mean_stay_together() -> None:
    names = ["Pump", "Valve", "Tap"]
    said = columns(names, LEFT[:3], left=(50, 200))
    assert "Valve: bar and is checked" in read(drawn_pdf(said), "a.pdf").text


def test_an_order_that_may_be_another_is_said_to_be_unsafe() -> None:
    notes = ["see 4.1", "", "", "see 4.4", "", "", "see 4.7"]
    parsed = read(drawn_pdf(columns(LEFT * 2, notes, left=(50, 400))), "a.pdf")
    assert parsed.warnings == ("the order of the text is unsafe on page 1",)
