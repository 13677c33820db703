"""Preprocessing, distances, rewards and the VIP loss against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import HERReplayBuffer, LazyTensorStorage
from torchvision.transforms import v2

from torchrl_vip import camera_weights, goal_distance, goal_reward, preprocess
from torchrl_vip.functional import IMAGENET_MEAN, IMAGENET_STD, check_range, to_chw
from torchrl_vip.merging import mean_metric


def torchvision_preprocess(images: torch.Tensor, size: int = 224) -> torch.Tensor:
    """The reference, from torchvision's own parts; images ``[N, 3, H, W]`` uint8."""
    steps = [v2.ToDtype(torch.float32, scale=True)]
    steps += [v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size)]
    return v2.Compose([*steps, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(images)


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


# --- preprocess ------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(100, 173), (310, 270), (256, 300), (90, 90)])
@pytest.mark.parametrize("size", [224, 112, 84])
def test_preprocess_is_the_official_one(height, width, size):
    images = frames(2, 3, height, width)
    wanted = torchvision_preprocess(images, size)
    for same in (images, images.movedim(1, -1), images.float() / 255, images.double() / 255):
        ours = preprocess(same, size)
        assert ours.dtype == torch.float32
        assert (ours - wanted).abs().max() < 1e-5


def test_preprocess_of_a_constant_frame_by_hand():
    grey = torch.full((3, 300, 260), 51, dtype=torch.uint8)  # 0.2
    wanted = torch.tensor([(0.2 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)])
    assert torch.allclose(preprocess(grey), wanted.view(3, 1, 1).expand(3, 224, 224), atol=1e-5)


def test_preprocess_drops_alpha():
    rgb, alpha = frames(2, 3, 40, 50), frames(2, 1, 40, 50, seed=1)
    rgba = torch.cat([rgb, alpha], 1)
    assert torch.equal(preprocess(rgba, 32), preprocess(rgb, 32))
    assert torch.equal(preprocess(rgba.movedim(1, -1), 32), preprocess(rgb, 32))


@settings(max_examples=40, deadline=None)
@given(
    batch=st.lists(st.integers(0, 3), max_size=3),
    hw=st.tuples(st.integers(5, 40), st.integers(5, 40)),
    channels=st.sampled_from([3, 4]),
    dtype=st.sampled_from([torch.uint8, torch.float16, torch.float32, torch.float64]),
    last=st.booleans(),
)
def test_preprocess_any_shape_and_dtype(batch, hw, channels, dtype, last):
    images = frames(*batch, channels, *hw)
    if dtype != torch.uint8:
        images = (images.double() / 255).to(dtype)
    laid_out = images.movedim(-3, -1) if last else images
    ours = preprocess(laid_out, 28)
    assert ours.shape == (*batch, 3, 28, 28) and ours.dtype == torch.float32
    flat = preprocess(images.reshape(-1, channels, *hw) if 0 not in batch else images, 28)
    assert torch.equal(ours.reshape(-1), flat.reshape(-1))


def test_four_rows_of_rgb_are_not_rgba():
    images = frames(4, 9, 3)
    assert torch.equal(to_chw(images), images.permute(2, 0, 1))


@pytest.mark.parametrize("shape", [(3, 20, 3), (2, 4, 20, 4)])
def test_ambiguous_layout_needs_channel_dim(shape):
    images = frames(*shape)
    with pytest.raises(ValueError, match="channel_dim") as error:
        preprocess(images)
    assert str(shape) in str(error.value)
    first, last = (preprocess(images, 16, channel_dim=d) for d in (-3, -1))
    assert first.shape == last.shape and not torch.equal(first, last)


@pytest.mark.parametrize(
    "shape, channel_dim, says",
    [
        ((20, 30), None, "no images"),
        ((1, 20, 30), None, "3 colour channels"),
        ((5, 20, 30), None, "3 colour channels"),
        ((3, 20, 30), -1, "30 channels"),
        ((3, 20, 30), 0, "channel_dim is 0"),
        ((3, 0, 30), None, "no pixels"),
    ],
)
def test_what_is_no_rgb_image_is_refused(shape, channel_dim, says):
    with pytest.raises(ValueError, match=says):
        preprocess(torch.zeros(shape, dtype=torch.uint8), channel_dim=channel_dim)


@pytest.mark.parametrize("value", [1.01, 255.0, -0.5, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_floats_outside_the_unit_interval_are_refused(value, dtype):
    images = torch.full((2, 3, 4, 4), 0.5, dtype=dtype)
    check_range(images)  # in range: nothing happens
    images[1, 2, 3, 0] = value
    with pytest.raises(ValueError, match=r"wanted \[0, 1\]"):
        check_range(images)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match="uint8"):
        check_range(torch.zeros(3, 4, 4, dtype=dtype))


def test_check_range_takes_the_ends_and_nothing_at_all():
    check_range(torch.tensor([0.0, 1.0]))
    check_range(torch.zeros(0, 3, 4, 4))
    check_range(torch.tensor([0, 255], dtype=torch.uint8))


# --- distance and reward ---------------------------------------------------------------------

Z = torch.tensor([[3.0, 4.0], [0.0, 0.0]])  # distances to the origin: 5, 0
Z_NEXT = torch.tensor([[0.0, 2.0], [6.0, 8.0]])  # 2, 10
ORIGIN = torch.zeros(2)


def test_goal_distance_by_hand():
    assert goal_distance(Z, ORIGIN).tolist() == [5, 0]
    assert torch.allclose(goal_distance(Z, Z_NEXT), torch.tensor([math.sqrt(13), 10.0]))


def test_distances_of_several_cameras_are_weighted_and_added_by_hand():
    z = torch.tensor([3.0, 4.0, 0.0, 2.0])  # two cameras, 5 and 2 from the origin
    goal = torch.zeros(4)
    assert goal_distance(z, goal, [0.5, 2.0]) == 0.5 * 5 + 2.0 * 2
    assert goal_distance(z, torch.stack([goal, z]), [0.5, 2.0]) == 0  # the nearest of two goals
    assert goal_reward(z, goal, goal, weights=[0.5, 2.0]) == 6.5
    for wrong in ([1.0, 1.0, 1.0], []):
        with pytest.raises(ValueError, match=f"size 4, {len(wrong)} weights"):
            goal_distance(z, goal, wrong)


def test_camera_weights_by_hand():
    # two starts, their cameras 5 and 2, and 7 and 4, from the origin
    begins = torch.tensor([[3.0, 4.0, 0.0, 2.0], [0.0, 7.0, 0.0, 4.0]])
    weights = camera_weights(begins, ORIGIN.repeat(2), 2)
    torch.testing.assert_close(weights, torch.tensor([1 / 12, 1 / 6]))
    assert goal_distance(begins, ORIGIN.repeat(2), weights).mean() == 1
    with pytest.raises(ValueError, match=r"sees no way to the goal.*\[5.0, 0.0\]"):
        camera_weights(torch.tensor([3.0, 4.0, 0.0, 0.0]), torch.zeros(4), 2)
    with pytest.raises(ValueError, match="sees no way"):
        camera_weights(torch.zeros(4), torch.zeros(4), 2)
    with pytest.raises(ValueError, match="size 4 is not of 3 cameras"):
        camera_weights(begins, torch.zeros(4), 3)


def test_the_nearest_of_several_goals_counts():
    goals = torch.tensor([[[0.0, 0.0], [3.0, 3.0]], [[0.0, 7.0], [30.0, 40.0]]])  # [B, G, D]
    assert goal_distance(Z, goals).tolist() == [1, 7]
    assert goal_distance(Z[0], goals[0]).item() == 1
    rewards = goal_reward(Z, Z_NEXT, goals, form="distance")  # (6, 8) to (0, 7): 6² + 1² = 37
    assert torch.allclose(rewards, torch.tensor([-2, -math.sqrt(37)]))


def test_half_precision_is_measured_in_float32():
    z, goal = torch.tensor([300.0, 400.0]).half(), torch.zeros(2).half()
    distance = goal_distance(z, goal)  # 300² overflows float16
    assert distance.dtype == torch.float32 and distance.item() == 500
    assert goal_distance(z.double(), goal).dtype == torch.float64


def test_embeddings_of_two_encoders_are_refused():
    with pytest.raises(ValueError, match="size 2 .* size 3"):
        goal_distance(Z, torch.zeros(3))


@pytest.mark.parametrize(
    "arguments, wanted",
    [
        ({}, [3.0, -10.0]),
        ({"form": "difference", "scale": 2.0}, [6.0, -20.0]),
        ({"form": "distance"}, [-2.0, -10.0]),
        ({"form": "distance", "scale": 0.5}, [-1.0, -5.0]),
        ({"form": "potential", "gamma": 0.5}, [4.0, -5.0]),
        ({"form": "potential", "gamma": 0.5, "scale": 3.0}, [12.0, -15.0]),
        ({"form": "potential"}, [5 - 0.98 * 2, -9.8]),
        ({"form": "sparse", "threshold": 2.0, "scale": 7.0}, [1.0, 0.0]),
    ],
)
def test_goal_reward_by_hand(arguments, wanted):
    wanted = torch.tensor(wanted)
    assert torch.allclose(goal_reward(Z, Z_NEXT, ORIGIN, **arguments), wanted)
    transition = TensorDict({"vip_vec": Z, "next": {"vip_vec": Z_NEXT}}, [2])
    transition["goal_embedding"] = ORIGIN.expand(2, 2)
    assert torch.allclose(goal_reward(transition, **arguments), wanted.unsqueeze(-1))


def test_goal_reward_refuses_unknown_forms():
    with pytest.raises(ValueError, match="'cosine'.*difference"):
        goal_reward(Z, Z_NEXT, ORIGIN, form="cosine")
    with pytest.raises(ValueError, match="threshold"):
        goal_reward(Z, Z_NEXT, ORIGIN, form="sparse")
    with pytest.raises(TypeError, match="z, z_next and z_goal"):
        goal_reward(Z, Z_NEXT)


def test_goal_reward_relabels_in_torchrl_her():
    torch.manual_seed(0)
    buffer = HERReplayBuffer(
        reward_fn=goal_reward,
        her_ratio=1.0,
        strategy="final",
        goal_key="goal_embedding",
        achieved_goal_key=("next", "vip_vec"),
        storage=LazyTensorStorage(8),
        batch_size=16,
    )
    at = torch.arange(8.0)  # two episodes of four steps, each one unit to the right
    done = (at % 4 == 3).unsqueeze(-1)
    vip_vec = torch.stack([at, torch.zeros(8)], -1)
    transition = {"vip_vec": vip_vec, "goal_embedding": torch.full((8, 2), 99.0)}
    transition["next"] = {"vip_vec": vip_vec + torch.tensor([1.0, 0.0]), "done": done}
    transition["next"] |= {"terminated": done, "reward": torch.full((8, 1), -7.0)}
    buffer.extend(TensorDict(transition, [8]))
    sample = buffer.sample()
    assert set(sample["vip_vec"][:, 0].tolist()) <= set(range(8))
    last = torch.where(sample["vip_vec"][:, 0] < 4, 4.0, 8.0)
    assert torch.equal(sample["goal_embedding"], torch.stack([last, 0 * last], -1))
    # One step of length 1 towards the end of one's own episode, wherever it began.
    assert torch.equal(sample["next", "reward"], torch.ones(16, 1))


# --- compile ---------------------------------------------------------------------------------


def test_integer_frames_are_refused_under_compile_too():
    """The dtype is known while tracing; only the values cannot be read there."""
    compiled = torch.compile(lambda x: (check_range(x), x + 1)[1], backend="eager")
    assert compiled(torch.tensor([5.0])).item() == 6  # out of range, not looked at
    with pytest.raises(Exception, match="uint8"):
        compiled(torch.tensor([5]))


def test_mean_metric_by_hand():
    """|2a|² and |2b|² have the mean 2 a² + 2 b²; of 9 a² and 1 b², one direction keeps the stronger."""
    a, b = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0]])
    head = mean_metric([a, b], 2)
    x = torch.tensor([3.0, 4.0, 7.0])
    assert (head @ x).square().sum().item() == pytest.approx(2 * 9 + 2 * 16, rel=1e-6)
    torch.testing.assert_close(
        mean_metric([3 * a / 2, b / 2], 1), torch.tensor([[3 / 2**0.5, 0, 0]])
    )
    torch.testing.assert_close(mean_metric([-a], 1), a)  # a direction's sign is fixed
    for heads, dim in (([], 1), ([a, b], 3), ([a, torch.ones(1, 2)], 1), ([a], 0)):
        with pytest.raises(ValueError, match=f"dim={dim}: wanted heads"):
            mean_metric(heads, dim)
