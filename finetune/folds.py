"""Cross-validation by subject: the cases of one subject are never on both sides."""

from collections.abc import Mapping

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
