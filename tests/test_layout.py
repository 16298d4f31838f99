"""The edges that leave a node computed together, as on a GPU, against one by one, which test_model_search.py
compares with the plain supernets."""

import pytest
import torch
import torch.nn.functional as F

import model as layers
import model_search
from genotypes import SPACES
from model_search import SUPERNETS


def results(space, size, n, shared, together, monkeypatch):
    """Loss, gradients, running statistics afterwards, and logits in evaluation mode, in float64."""
    monkeypatch.setitem(model_search.TOGETHER, "cpu", together)
    torch.manual_seed(0)
    model = SUPERNETS[space](4, 3 if space == "darts" else 1, 10).double()
    model.share_statistics(shared)
    x, y = torch.randn(6, 3, size, size, dtype=torch.float64), torch.randint(10, (6,))
    p = model.mixture()
    p = torch.stack([p.roll(k, -1) for k in range(n)]) if n > 1 else p
    loss = F.cross_entropy(model(x, p), y)
    gradients = torch.autograd.grad(loss, [model.alpha, *model.weight_parameters()])
    return [loss, *gradients, *model.buffers(), model.eval()(x, p)]


CASES = [("darts", 7, 3, True), ("nasbench201", 8, 1, False), ("nasbench201", 8, 3, False)]


@pytest.mark.parametrize("space,size,n,shared", CASES)
def test_edges_together_give_the_same(space, size, n, shared, monkeypatch):
    wanted, got = (results(space, size, n, shared, how, monkeypatch) for how in (False, True))
    assert len(got) == len(wanted) > 50
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-11) for a, b in zip(got, wanted, strict=True))


def test_an_operation_that_does_not_go_together(monkeypatch):
    """Plain modules of a researcher's own, of which the edges take turns."""
    more = SPACES["nasbench201"]._replace(ops=(*SPACES["nasbench201"].ops, "conv_7x1_1x7"))
    monkeypatch.setitem(SPACES, "nasbench201", more)
    assert not layers.can_go_together(layers.OPS["conv_7x1_1x7"](4, 1, False))
    test_edges_together_give_the_same("nasbench201", 8, 3, False, monkeypatch)
