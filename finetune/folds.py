"""Cross-validation by subject: the cases of one subject are never on both sides."""

from collections.abc import Collection, Mapping

from voxscale.config import require
from voxscale.seed import rng


def split(subjects: Mapping[str, str], folds: int) -> list[list[str]]:
    """Deal cases into test sets.

    Args:
        subjects: Subject of each case. The deal depends on which cases share a
            subject, not on the subjects' names, which are keyed anew in every store.
        folds: Number of test sets.

    Returns:
        Test cases of each fold, sorted; together they hold every case once.

    Raises:
        ConfigError: If there are fewer subjects than folds.
    """
    groups: dict[str, list[str]] = {}
    for case in sorted(subjects):
        groups.setdefault(subjects[case], []).append(case)
    require(len(groups) >= folds, "finetune.folds", f"at most the number of labelled subjects, {len(groups)}", folds)
    ordered = sorted(groups.values())
    order = rng(0, "folds").permutation(len(ordered))
    tests: list[list[str]] = [[] for _ in range(folds)]
    for place, group in enumerate(order):
        tests[place % folds].extend(ordered[int(group)])
    return [sorted(test) for test in tests]


def learners(subjects: Mapping[str, str], test: Collection[str], count: int, seed: int) -> list[str]:
    """Cases to train on: those of a few subjects that are not tested.

    Of two counts, the smaller one's subjects are among the larger one's, so that
    results differ by how many there were and not by who they were.

    Args:
        subjects: Subject of each case.
        test: Cases that are tested.
        count: How many subjects; 0 for all.
        seed: Of the choice.

    Raises:
        ConfigError: If there are fewer subjects.
    """
    tested = {subjects[case] for case in test}
    groups: dict[str, list[str]] = {}
    for case in sorted(subjects):
        if subjects[case] not in tested:
            groups.setdefault(subjects[case], []).append(case)
    require(count <= len(groups), "finetune.subjects", f"at most those that a fold leaves, {len(groups)}", count)
    ordered = sorted(groups.values())
    order = rng(seed, "subjects").permutation(len(ordered))
    chosen = order if count == 0 else order[:count]
    return sorted(case for place in chosen for case in ordered[int(place)])
