"""The VIP objective against the published formula, and what it teaches an embedding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import nn
from torchrl.objectives import LossModule

from torchrl_vip import VIPLoss, vip_loss
from torchrl_vip.functional import tcn_loss
from torchrl_vip.losses import TCNLoss, TripletLoss

GAMMA = 0.98


def published(z_0, z_t, z_next, z_goal, reward=-1.0, gamma=GAMMA, permutations=()):
    """The formula of the paper and the official trainer, sample by sample, in float64 numpy."""
    z_0, z_t, z_next, z_goal = (
        np.asarray(z.detach(), np.float64) for z in (z_0, z_t, z_next, z_goal)
    )
    n = len(z_0)
    rewards = np.broadcast_to(np.asarray(reward, np.float64), n)

    def value(z, i, goal):
        return -math.sqrt(sum((z[i] - z_goal[goal]) ** 2))

    first = sum(-value(z_0, i, i) for i in range(n)) / n
    exponents = [-(rewards[i] + gamma * value(z_next, i, i) - value(z_t, i, i)) for i in range(n)]
    loss = (1 - gamma) * first + math.log(sum(math.exp(e) for e in exponents) / n)
    if permutations:
        exponents = [
            -(-1 + gamma * value(z_next, int(p[i]), i) - value(z_t, int(p[i]), i))
            for p in permutations
            for i in range(n)
        ]
        loss += math.log(sum(math.exp(e) for e in exponents) / len(exponents))
    return loss


def embeddings(n, dim, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(4, n, dim, generator=generator, dtype=torch.float64)
    return z.to(dtype).unbind(0)


def test_by_hand():
    """Distances to the goal at the origin: 5 first, then 2 and 1."""
    z = [torch.tensor([p]) for p in ([3.0, 4.0], [2.0, 0.0], [0.0, 1.0], [0.0, 0.0])]
    loss, metrics = vip_loss(*z, gamma=0.5)
    assert loss.item() == pytest.approx(0.5 * 5 - (-1 - 0.5 * 1 + 2))  # td = 0.5
    assert {k: v.item() for k, v in metrics.items()} == {"value_0": -5, "value_t": -2, "td": 0.5}
    assert not any(v.requires_grad for v in metrics.values())


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 6), dim=st.integers(1, 5), seed=st.integers(0, 99), per_sample=st.booleans()
)
def test_is_the_published_formula(n, dim, seed, per_sample):
    z = embeddings(n, dim, seed=seed)
    reward = -(torch.arange(n) % 2).double() if per_sample else -1.0
    loss, _ = vip_loss(*z, reward=reward)
    assert loss.dtype == torch.float64 and loss.shape == ()
    assert loss.item() == pytest.approx(published(*z, reward=reward), abs=1e-12)


@pytest.mark.parametrize("num_negatives", [1, 3])
def test_negatives_are_the_official_second_term(num_negatives):
    z = embeddings(5, 3)
    loss, metrics = vip_loss(
        *z, num_negatives=num_negatives, generator=torch.Generator().manual_seed(7)
    )
    again = torch.Generator().manual_seed(7)
    permutations = [torch.randperm(5, generator=again) for _ in range(num_negatives)]
    assert loss.item() == pytest.approx(published(*z, permutations=permutations), abs=1e-12)
    plain = vip_loss(*z)[0]
    assert metrics["negatives"].item() == pytest.approx((loss - plain).item(), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    z = embeddings(4, 3, dtype)
    loss, _ = vip_loss(*z, num_negatives=0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(published(*(v.double() for v in z)), abs=1e-5)


def test_huge_distances_neither_overflow_nor_hit_a_floor():
    z_0, z_t, z_next, z_goal = embeddings(4, 3, torch.float32, scale=1e6)
    for a, b in ((z_t, z_next), (z_next, z_t)):  # exponents of either sign, far beyond exp's range
        z = [v.clone().requires_grad_() for v in (z_0, a, b, z_goal)]
        loss, _ = vip_loss(*z, num_negatives=3)
        loss.backward()
        assert loss.isfinite() and all(v.grad.isfinite().all() for v in z)
    # td = -1 + 1e4 everywhere: log mean exp(-td) is 1 - 1e4, where log(eps + ...) stops at -18.4.
    goal = torch.zeros(2, 1)
    loss, _ = vip_loss(goal, goal + 1e4, goal, goal)
    assert loss.item() == pytest.approx(1 - 1e4)


def test_gradients_are_finite_where_everything_is_the_goal():
    z = [torch.ones(3, 4, requires_grad=True) for _ in range(4)]
    loss, _ = vip_loss(*z, reward=torch.zeros(3), num_negatives=2)
    loss.backward()
    assert loss.item() == pytest.approx(1.0)  # 0 for the samples, log e for the negatives
    assert all(v.grad.isfinite().all() for v in z)


def test_self_transitions_beside_others_leave_their_gradients_whole():
    z = [v.clone() for v in embeddings(4, 3)]
    z[1][0] = z[2][0] = z[3][0]
    leaves = [v.clone().requires_grad_() for v in z]
    vip_loss(*leaves, reward=torch.tensor([0.0, -1, -1, -1]).double())[0].backward()
    assert all(v.grad.isfinite().all() for v in leaves)
    assert all(v.grad[1:].abs().sum() > 0 for v in leaves)


def test_wrong_shapes_are_refused():
    z = embeddings(4, 3)
    with pytest.raises(ValueError, match=r"z_next.*\(3, 3\)"):
        vip_loss(z[0], z[1], z[2][:3], z[3])
    with pytest.raises(ValueError, match=r"\[B, D\]"):
        vip_loss(*(v[0] for v in z))
    with pytest.raises(ValueError, match="B > 0"):
        vip_loss(*(v[:0] for v in z))
    for shape in ((4, 1), (3,), (1, 4)):  # [4, 1] would silently become [4, 4]
        with pytest.raises(ValueError, match=r"reward of shape \[B\] = \[4\]"):
            vip_loss(*z, reward=-torch.ones(shape))
    assert vip_loss(*z, reward=torch.tensor(-1.0))[0] == vip_loss(*z)[0]


# --- VIPLoss ---------------------------------------------------------------------------------


class Linear(nn.Module):
    """Frames [N, 3, 2, 2] in [0, 1] to [N, 2], without preprocessing: numbers stay by hand."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3)[:2])

    def forward(self, frames):
        return frames.mean((-2, -1)) @ self.weight.T


def clips(n=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDict({"pixels": torch.rand(n, 4, 3, 2, 2, generator=generator)}, [n])


def test_vip_loss_module_writes_losses_and_reaches_the_encoder():
    encoder, batch = Linear(), clips()
    objective = VIPLoss(encoder, num_negatives=0, l1=0.1, l2=0.2)
    out = objective(batch)
    assert isinstance(objective, LossModule)
    assert {k for k in out.keys() if k.startswith("loss_")} == {"loss_vip", "loss_l1", "loss_l2"}
    z = batch["pixels"].mean((-2, -1))[..., :2]  # [B, 4, 2], what Linear gives
    assert out["loss_vip"].item() == pytest.approx(published(*z.unbind(1)), abs=1e-5)
    assert out["loss_l1"].item() == pytest.approx(0.1 * z.abs().sum(-1).mean().item())
    assert out["loss_l2"].item() == pytest.approx(0.2 * z.norm(dim=-1).mean().item())
    assert out["embedding_norm"].item() == pytest.approx(z.norm(dim=-1).mean().item())
    for name in ("loss_vip", "loss_l1", "loss_l2"):
        (gradient,) = torch.autograd.grad(out[name], encoder.weight, retain_graph=True)
        assert gradient.abs().sum() > 0
    assert not any(v.requires_grad for k, v in out.items() if not k.startswith("loss_"))
    assert set(batch.keys()) == {"pixels"}
    assert [id(p) for p in objective.parameters()] == [id(encoder.weight)]


def test_vip_loss_module_reads_the_reward_in_either_shape():
    objective, batch, reward = (
        VIPLoss(Linear(), num_negatives=0),
        clips(),
        torch.tensor([0.0, -1, 0]),
    )
    z = batch["pixels"].mean((-2, -1))[..., :2].unbind(1)
    for shaped in (reward, reward.unsqueeze(-1)):
        loss = objective(batch.clone().set("reward", shaped))["loss_vip"]
        assert loss.item() == pytest.approx(published(*z, reward=reward), abs=1e-5)


def test_vip_loss_module_repeats_its_draws_and_names_a_wrong_shape():
    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return VIPLoss(Linear(), generator=generator)(clips(8))["loss_vip"].item()

    assert run(3) == run(3) != run(4)
    with pytest.raises(ValueError, match=r"pixels.*\(3, 5, 3, 2, 2\)"):
        VIPLoss(Linear())(TensorDict({"pixels": torch.zeros(3, 5, 3, 2, 2)}, [3]))


# --- the sign of the exponent ----------------------------------------------------------------


def algorithm_1(z_0, z_t, z_next, z_goal):
    """The exponent as the paper's Algorithm 1 prints it."""
    v_0, v_t, v_next = (-(z - z_goal).norm(dim=-1) for z in (z_0, z_t, z_next))
    return (1 - GAMMA) * -v_0.mean() + (-1 + GAMMA * v_next - v_t).exp().mean().log()


def value_order(loss, length=12, steps=600):
    """Spearman of time and value on a chain whose states are free embeddings, after training."""
    generator = torch.Generator().manual_seed(0)
    states = nn.Parameter(0.1 * torch.randn(length, 4, generator=generator))
    optimizer = torch.optim.Adam([states], lr=0.02)
    for _ in range(steps):  # start <= k < goal, sampled as clips are
        u, v, w = torch.rand(3, 64, generator=generator)
        start = (u * (length - 1)).long()
        goal = start + 1 + (v * (length - 1 - start)).long()
        k = start + (w * (goal - start)).long()
        optimizer.zero_grad()
        loss(states[start], states[k], states[k + 1], states[goal]).backward()
        optimizer.step()
    value = -(states - states[-1]).norm(dim=-1).detach()
    return np.corrcoef(value.argsort().argsort(), np.arange(length))[0, 1]


def test_the_sign_of_the_exponent_is_the_one_that_learns():
    assert value_order(lambda *z: vip_loss(*z)[0]) > 0.95
    assert value_order(algorithm_1) < 0.9


def test_the_papers_negatives_are_inside_the_first_log_mean_exp():
    z = embeddings(5, 3)
    loss, _ = vip_loss(
        *z, num_negatives=2, negatives="joint", generator=torch.Generator().manual_seed(3)
    )
    generator = torch.Generator().manual_seed(3)
    permutations = [torch.arange(5)] + [torch.randperm(5, generator=generator) for _ in range(2)]
    first = (1 - GAMMA) * (z[0] - z[3]).norm(dim=-1).mean().item()
    inside = published(*z, permutations=permutations) - published(*z)  # r = -1 everywhere
    assert loss.item() == pytest.approx(first + inside)
    with pytest.raises(ValueError, match="negatives is 'both'"):
        vip_loss(*z, negatives="both")


def test_self_transitions_and_joint_negatives_bound_the_loss_from_below():
    """What the trainer does by default. With the official second term scaling up pays without end."""
    z_0, z_t, _, z_goal = embeddings(8, 3)
    z_t[0] = z_goal[0]  # a self-transition among eight samples
    reward = torch.tensor([0.0] + [-1.0] * 7, dtype=z_0.dtype)
    far = {}
    for negatives in ("separate", "joint"):
        generator = torch.Generator().manual_seed(1)
        z = [1e6 * x for x in (z_goal, z_t, z_t, z_goal)]  # neighbouring frames, o_0 at the goal
        far[negatives], _ = vip_loss(
            *z, reward=reward, num_negatives=3, negatives=negatives, generator=generator
        )
    assert far["separate"] < -1_000
    assert far["joint"] >= math.log(1 / 32)  # exp(0) of one sample among 8 and 24 negatives


@pytest.mark.parametrize("old, new", [("paper", "joint"), ("code", "separate")])
def test_an_old_name_of_the_negatives_still_works_and_says_the_new_one(old: str, new: str):
    z = embeddings(5, 3)
    losses = []
    for name in (old, new):
        generator = torch.Generator().manual_seed(3)
        options = {"num_negatives": 2, "negatives": name, "generator": generator}
        if name == new:
            losses.append(vip_loss(*z, **options)[0])
            continue
        with pytest.warns(DeprecationWarning, match=f"write negatives='{new}'"):
            losses.append(vip_loss(*z, **options)[0])
    assert torch.equal(*losses)
    with pytest.warns(DeprecationWarning, match=f"write negatives='{new}'"):
        objective = VIPLoss(torch.nn.Identity(), negatives=old)
    assert objective.negatives == new


def test_clamped_distances_bound_the_loss_from_below():
    """As published, scaling the embedding up pays without end; cut at 1 / (1 - gamma), it does not."""
    toward = [torch.tensor([[x, 0.0]]) for x in (2.0, 2.0, 1.0, 0.0)]  # each step nears the goal
    away = [torch.tensor([[x, 0.0]]) for x in (2.0, 1.0, 1.1, 0.0)]
    for z, clamp, falls in ((toward, False, True), (toward, True, False), (away, True, False)):
        far, further = (
            vip_loss(*(scale * v for v in z), gamma=0.9, clamp=clamp)[0].item()
            for scale in (1e2, 1e4)
        )
        assert falls == (further < far - 1), (clamp, far, further)
    # everything at 1 / (1 - gamma) = 10: 0.1 * 10 - (-1 - 0.9 * 10 + 10) = 1
    loss, _ = vip_loss(*(1e3 * v for v in toward[:3]), toward[3], gamma=0.9, clamp=True)
    assert loss.item() == pytest.approx(1.0)


def test_tcn_by_hand():
    """Points on a line at 0, 1, 3 and, far away, at 10, 11, 13."""
    z = [torch.tensor([[a], [a + 10.0]]) for a in (0.0, 1.0, 3.0)]

    def term(near, far, other):
        return -math.log(math.exp(-near) / sum(math.exp(-d) for d in (near, far, other)))

    want = (term(1, 3, 10) + term(2, 3, 10)) / 2
    assert tcn_loss(*z).item() == pytest.approx(want, rel=1e-6)


def test_a_time_contrastive_term_is_added_with_its_weight():
    frames = torch.rand(6, 4, 3, 8, 8)
    clips, encoder = (
        TensorDict({"pixels": frames}, [6]),
        nn.Sequential(nn.Flatten(), nn.Linear(192, 5)),
    )
    plain, more = (
        VIPLoss(encoder, num_negatives=0, time_contrast=weight)(clips) for weight in (0.0, 2.5)
    )
    z = encoder(frames.flatten(0, 1)).unflatten(0, (6, 4))
    contrast = tcn_loss(z[:, 0], z[:, 1], z[:, 3])
    torch.testing.assert_close(more["loss_vip"], plain["loss_vip"] + 2.5 * contrast)
    torch.testing.assert_close(more["time_contrast"], contrast.detach())
    assert "time_contrast" not in plain.keys()


def test_the_head_alone_reads_features():
    features = torch.randn(6, 4, 7)
    loss = VIPLoss(nn.Linear(7, 5), in_key="features", num_negatives=0)
    assert loss(TensorDict({"features": features}, [6]))["loss_vip"].requires_grad
    with pytest.raises(ValueError, match=r'reads "features" of shape \[B, 4, F\].*got \(6, 3, 7\)'):
        loss(TensorDict({"features": features[:, :3]}, [6]))


def test_the_rivals_are_loss_modules_that_reach_the_encoder():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False))
    pixels = torch.rand(4, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for make, name in ((TCNLoss, "tcn"), (TripletLoss, "triplet")):
        out = make(encoder)(TensorDict({"pixels": pixels}, [4]))
        assert {f"loss_{name}", "loss_l1", "loss_l2", "embedding_norm"} == set(out.keys())
        encoder.zero_grad()
        out[f"loss_{name}"].backward()
        assert encoder[1].weight.grad.abs().sum() > 0
    z = encoder(pixels.flatten(0, 1)).view(4, 4, 3)
    near = [(z[:, a] - z[:, 1]).norm(dim=-1) for a in (0, 3)]
    far = (z[:, 0] - z[:, 3]).norm(dim=-1)
    want = sum((1.0 + n - far).clamp(min=0).mean() for n in near) / 2
    assert out["loss_triplet"].item() == pytest.approx(want.item(), rel=1e-4)
