import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.folds import learners, split
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


@given(st.dictionaries(st.text("abc", min_size=1), st.sampled_from("stuvwxyz"), min_size=6), st.integers(0, 9))
def test_learners_are_few_nested_and_never_tested(subjects, seed):
    if len(set(subjects.values())) < 3:
        return
    test = split(subjects, 3)[0]
    every = learners(subjects, test, 0, seed)
    assert sorted(every + test) == sorted(subjects)  # nobody's scans are on both sides
    fewer = [learners(subjects, test, n, seed) for n in range(1, len({subjects[case] for case in every}) + 1)]
    assert [len({subjects[case] for case in cases}) for cases in fewer] == list(range(1, len(fewer) + 1))
    assert all(set(a) < set(b) for a, b in itertools.pairwise(fewer))
    assert fewer[-1] == every
    with pytest.raises(ConfigError, match=r"finetune.subjects must be at most those that a fold leaves"):
        learners(subjects, test, len(fewer) + 1, seed)
