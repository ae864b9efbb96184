"""Neighbours and colours on embeddings made by hand."""

import torch

from pretrain.preview import neighbours, one_of_each


def test_neighbours_are_of_other_subjects_and_the_most_alike_come_first():
    angles = torch.tensor([0.0, 3.0, 0.1, 1.0, 2.0, 0.2])
    rows = neighbours(torch.stack([angles.cos(), angles.sin()], 1), (0, 0, 1, 2, 3, 0))
    assert [row[0] for row in rows] == [0, 2, 3, 4]
    subjects = (0, 0, 1, 2, 3, 0)
    assert all(len({subjects[at] for at in row}) == len(row) == 4 for row in rows)
    assert rows[0] == [0, 2, 3, 4]
    assert neighbours(torch.eye(3), (0, 0, 0)) == []


def test_each_subject_comes_before_any_comes_again():
    assert one_of_each((0, 0, 1, 0, 2), 3) == [0, 2, 4]
    assert one_of_each((0, 0, 1, 0, 2), 4) == [0, 1, 2, 4]
    assert one_of_each((0, 0), 5) == [0, 1]
