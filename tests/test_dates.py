from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, strategies as st

from promptflow.errors import DataError
from promptflow.evaluation.dates import read_moment, same_moment

FORMS = (
    "%Y-%m-%d",
    "%Y%m%d",
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%d %B %Y",
    "%B %d, %Y",
    "%d-%b-%Y",
    "%A, %B %d, %Y",
    "%Y-%m-%d 00:00:00",
)


@given(st.dates(min_value=dt.date(1000, 1, 1)), st.sampled_from(FORMS))
def test_a_day_in_any_form_reads_back(day, form):
    assert read_moment(day.strftime(form), day) == day


@given(st.datetimes(min_value=dt.datetime(1000, 1, 1), timezones=st.none() | st.just(dt.UTC)))
def test_datetimes_and_times_read_back(moment):
    assert read_moment(moment.isoformat(), moment) == moment
    assert read_moment(str(moment), moment) == moment
    assert read_moment(moment.time().isoformat(), dt.time()) == moment.time()


@given(st.timedeltas(min_value=dt.timedelta(0), max_value=dt.timedelta(days=900)))
def test_durations_read_back(duration):
    assert read_moment(str(duration), duration) == duration


@given(st.dates(min_value=dt.date(1000, 1, 1)), st.sampled_from(("%d/%m/%Y", "%m/%d/%Y")))
def test_the_year_last_is_read_or_refused_never_another_day(day, form):
    text = day.strftime(form)
    if day.day <= 12 and day.day != day.month:
        with pytest.raises(DataError, match=f"write it as {day.year:04}-MM-DD"):
            read_moment(text, day)
    else:
        assert read_moment(text, day) == day


@pytest.mark.parametrize(
    "text", ["", "5", "1714521600", "tomorrow", "2024-02-30", "2024-05", "1/2"]
)
@pytest.mark.parametrize("like", [dt.date.min, dt.datetime.min, dt.time(), dt.timedelta()])
def test_what_is_no_moment(text, like):
    assert read_moment(text, like) is None


def test_a_datetime_is_its_date_at_midnight_alone():
    day = dt.date(2024, 5, 1)
    assert same_moment(dt.datetime(2024, 5, 1), day)
    assert not same_moment(day, dt.datetime(2024, 5, 1, 0, 1))
    assert not same_moment(day, dt.datetime(2024, 5, 1, tzinfo=dt.UTC))
    assert not same_moment(dt.datetime(2024, 5, 1), dt.datetime(2024, 5, 1, tzinfo=dt.UTC))
