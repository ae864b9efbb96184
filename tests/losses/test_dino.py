import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from voxscale.losses.centre import Centre
from voxscale.losses.dino import dino_loss, entropies, sinkhorn, teacher_probabilities, teacher_temperature
from voxscale.seed import torch_generator


def test_loss_is_the_mean_cross_entropy_of_torch_with_soft_targets():
    generator = torch_generator(0)
    student, logits = torch.randn(3, 4, 5, generator=generator), torch.randn(4, 5, generator=generator)
    centre = torch.randn(5, generator=generator)
    teacher = teacher_probabilities(logits.requires_grad_(), centre, 0.04)
    assert not teacher.requires_grad
    torch.testing.assert_close(teacher, ((logits.detach() - centre) / 0.04).softmax(dim=1))
    want = torch.stack([F.cross_entropy(view / 0.1, teacher) for view in student]).mean()
    torch.testing.assert_close(dino_loss(student, teacher, 0.1), want)


def test_sinkhorn_is_the_alternation_in_numpy_and_uses_all_prototypes_alike():
    logits = torch.rand(6, 4, generator=torch_generator(0)) + torch.tensor([3.0, 0.0, 0.0, 0.0])  # one is liked by all
    q = np.exp(logits.double().numpy() / 0.2)
    q /= q.sum(axis=1, keepdims=True)
    for _ in range(3):
        q /= q.sum(axis=0, keepdims=True)
        q /= q.sum(axis=1, keepdims=True)
    found = sinkhorn(logits.requires_grad_(), 0.2)
    assert not found.requires_grad
    assert found.numpy() == pytest.approx(q, rel=1e-4)
    assert found.sum(dim=1).tolist() == pytest.approx([1.0] * 6)
    assert sinkhorn(logits, 0.2, rounds=200).mean(dim=0).tolist() == pytest.approx([0.25] * 4, abs=1e-3)
    assert teacher_probabilities(logits, torch.zeros(4), 0.2).mean(dim=0)[0] > 0.99
    assert sinkhorn(torch.eye(4) * 2 - 1, 0.002).isfinite().all()


def test_temperature_rises_then_stays():
    found = [teacher_temperature(0.04, 0.08, 0.5, p) for p in (0.0, 0.25, 0.5, 1.0)]
    assert found == pytest.approx([0.04, 0.06, 0.08, 0.08])
    assert teacher_temperature(0.04, 0.07, 0.0, 0.0) == 0.07


def test_entropies_tell_both_kinds_of_collapse():
    uniform, same = torch.full((4, 8), 1 / 8), F.one_hot(torch.zeros(4).long(), 8).float()
    assert [e.item() for e in entropies(uniform)] == pytest.approx([1.0, 1.0])
    assert [e.item() for e in entropies(same)] == pytest.approx([0.0, 0.0])
    different = F.one_hot(torch.arange(4), 8).float()
    assert [e.item() for e in entropies(different)] == pytest.approx([0.0, math.log(4) / math.log(8)])


def test_centre_is_an_average_of_batch_means():
    centre = Centre(2, momentum=0.9)
    centre.update(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    torch.testing.assert_close(centre.value, torch.tensor([0.2, 0.3]))
    centre.update(torch.zeros(1, 2))
    torch.testing.assert_close(centre.value, torch.tensor([0.18, 0.27]))
    assert "value" in centre.state_dict()
