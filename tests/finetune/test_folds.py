import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.folds import split
from voxscale.errors import ConfigError


@given(st.dictionaries(st.text("abc", min_size=1), st.sampled_from("stuvwxyz"), min_size=4), st.integers(2, 4))
def test_every_case_is_tested_once_and_subjects_stay_together(subjects, folds):
    if len(set(subjects.values())) < folds:
        with pytest.raises(ConfigError, match="finetune.folds must be at most the number of labelled subjects"):
            split(subjects, folds)
        return
    tests = split(subjects, folds)
    assert sorted(case for test in tests for case in test) == sorted(subjects)
    where = [{subjects[case] for case in test} for test in tests]
    assert sum(map(len, where)) == len(set(subjects.values()))
    assert max(map(len, where)) - min(map(len, where)) <= 1


def test_split_does_not_depend_on_how_subjects_are_called():
    cases = {"a": "x", "b": "y", "c": "x", "d": "z"}
    renamed = {case: {"x": "q", "y": "p", "z": "o"}[subject] for case, subject in cases.items()}
    assert split(cases, 2) == split(renamed, 2)
