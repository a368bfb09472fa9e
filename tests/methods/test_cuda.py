"""On a GPU: no method waits for the device but to solve, and all give what they give on the CPU."""

import pytest
import torch

from tests.methods.cases import CASES, Case

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("case", [c for c in CASES if not (c.elementwise and c.draws)], ids=str)
@pytest.mark.parametrize("T", [2, 3, 12])
def test_weights_wait_only_to_solve_and_agree_with_the_cpu(case: Case, T: int) -> None:
    here, there = (case.make(T) for _ in range(2))
    for p in there.parameters():
        p.data = p.data.cuda()
    generator = torch.Generator().manual_seed(0)
    for k in range(3):
        G = torch.randn(T, 30, generator=generator, dtype=torch.float64)
        L = 0.1 + torch.rand(T, generator=generator, dtype=torch.float64)
        K, Gd, Ld = G @ G.T, G.cuda(), L.cuda()
        Kd = K.cuda()
        torch.cuda.synchronize()
        free = k and not there.solves  # the first call copies constants
        torch.cuda.set_sync_debug_mode("error" if free else "default")
        try:
            b = there.combine([Gd], Ld)[0] if there.needs == "gradients" else there.weights(Ld, Kd)
            if there.wants_after_step:
                there.after_step(0.9 * Ld)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        a = here.combine([G], L)[0] if here.needs == "gradients" else here.weights(L, K)
        if here.wants_after_step:
            here.after_step(0.9 * L)
        assert torch.allclose(a, b.cpu(), rtol=1e-7, atol=1e-9)
