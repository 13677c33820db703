"""Sub-clips follow the documented distribution; augmentation treats a sub-clip as one."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import MemoryMappedTensor, TensorDict
from torchrl.data import TensorDictReplayBuffer, TensorStorage

from torchrl_vip.data.sampler import VIPSampler, augment, generator_at

# (i_0, i_t, i_next, i_g) -> probability, worked out by hand from VIPSampler's drawing.
BY_HAND = {
    2: {(0, 0, 1, 1): 1},
    3: {(0, 0, 1, 1): 1 / 2, (0, 0, 1, 2): 1 / 4, (0, 1, 2, 2): 1 / 4},
    4: {
        (0, 0, 1, 1): 1 / 6,
        (0, 0, 1, 2): 1 / 12,
        (0, 1, 2, 2): 1 / 12,
        (0, 0, 1, 3): 1 / 18,
        (0, 1, 2, 3): 1 / 18,
        (0, 2, 3, 3): 1 / 18,
        (1, 1, 2, 2): 1 / 4,
        (1, 1, 2, 3): 1 / 8,
        (1, 2, 3, 3): 1 / 8,
    },
}


def make_sampler(*lengths: int, **options) -> VIPSampler:
    length = torch.tensor(lengths)
    return VIPSampler(length.cumsum(0) - length, length, **options)


def draw(sampler: VIPSampler, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [n, 4] and rewards [n]."""
    index, info = sampler.sample(None, n)
    return index.view(n, 4), info["reward"].view(n, 4)[:, 0]


@pytest.mark.parametrize("frames", [2, 3, 4])
def test_exactly_the_documented_sub_clips_with_their_probabilities(frames: int) -> None:
    n = 40_000
    rows, reward = draw(make_sampler(frames), n)
    counts = Counter(map(tuple, rows.tolist()))
    assert set(counts) == set(BY_HAND[frames])
    for sub_clip, p in BY_HAND[frames].items():
        deviation = math.sqrt(p * (1 - p) / n)
        assert abs(counts[sub_clip] / n - p) <= 4.5 * deviation, sub_clip
    assert (reward == -1).all()


def test_clips_are_equally_likely_whatever_their_length_and_never_mixed() -> None:
    n = 30_000
    rows, _ = draw(make_sampler(2, 50, 8), n)
    clip = torch.bucketize(rows, torch.tensor([2, 52]), right=True)
    assert (clip == clip[:, :1]).all()
    share = torch.bincount(clip[:, 0]) / n
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), atol=0.013, rtol=0)
    i_0, i_t, i_next, i_g = rows.unbind(1)
    assert ((i_0 <= i_t) & (i_next == i_t + 1) & (i_next <= i_g)).all()
    assert rows.min() == 0 and rows.max() == 59


def test_clips_that_are_not_contiguous_in_the_storage() -> None:
    """Start rows are obeyed: rows between the clips belong to others."""
    sampler = VIPSampler(torch.tensor([5, 20]), torch.tensor([2, 3]))
    assert set(draw(sampler, 500)[0].unique().tolist()) == {5, 6, 20, 21, 22}


def expect(sampler: VIPSampler, by_hand: dict[tuple, float], n: int = 40_000) -> None:
    counts = Counter(map(tuple, draw(sampler, n)[0].tolist()))
    assert set(counts) == set(by_hand)
    for sub_clip, p in by_hand.items():
        assert abs(counts[sub_clip] / n - p) <= 4.5 * math.sqrt(p * (1 - p) / n), sub_clip


def test_a_stride_takes_every_so_many_th_frame() -> None:
    """Seven frames at stride 3 are rows 0, 3, 6; two frames stay 0, 1; the second clip is 7, 8."""
    expect(make_sampler(7, stride=3), {tuple(3 * i for i in s): p for s, p in BY_HAND[3].items()})
    rows, _ = draw(make_sampler(7, 2, stride=3), 200)
    assert set(rows[rows[:, 0] >= 7].unique().tolist()) == {7, 8}
    with pytest.raises(ValueError, match="stride is 0"):
        make_sampler(4, stride=0)


def test_geometric_goals_in_a_clip_of_four_frames() -> None:
    """i_0 is 0 or 1; the goal is 1, 2, 3 ahead with probability .6, .24, the rest (p = .4)."""
    by_hand = {
        (0, 0, 1, 1): 0.5 * 0.6,
        (0, 0, 1, 2): 0.5 * 0.24 / 2,
        (0, 1, 2, 2): 0.5 * 0.24 / 2,
        (0, 0, 1, 3): 0.5 * 0.16 / 3,
        (0, 1, 2, 3): 0.5 * 0.16 / 3,
        (0, 2, 3, 3): 0.5 * 0.16 / 3,
        (1, 1, 2, 2): 0.5 * 0.6,
        (1, 1, 2, 3): 0.5 * 0.4 / 2,
        (1, 2, 3, 3): 0.5 * 0.4 / 2,
    }
    expect(make_sampler(4, geometric=0.4), by_hand)


def test_cross_video_goals_are_the_last_frame_of_another_clip_of_the_group() -> None:
    """Clips of rows 0-1, 2-4, 5-6, 7-8; the first, second and last show the same task."""
    group = torch.tensor([7, 7, 3, 7])
    sampler = make_sampler(2, 3, 2, 2, group=group, cross_video=1.0)
    by_hand = {
        (0, 0, 1, 4): 1 / 8,
        (0, 0, 1, 8): 1 / 8,
        (2, 2, 3, 1): 1 / 16,  # of three frames i_t is 0 or 1
        (2, 3, 4, 1): 1 / 16,
        (2, 2, 3, 8): 1 / 16,
        (2, 3, 4, 8): 1 / 16,
        (5, 5, 6, 6): 1 / 4,  # alone in its group: its own goal
        (7, 7, 8, 1): 1 / 8,
        (7, 7, 8, 4): 1 / 8,
    }
    expect(sampler, by_hand)


def test_cross_video_goals_are_that_share_and_may_be_self_transitions() -> None:
    group = torch.zeros(2, dtype=torch.long)
    rows, reward = draw(
        make_sampler(5, 5, group=group, cross_video=0.3, self_transition=0.5), 20_000
    )
    crosses = (rows[:, 0] < 5) != (rows[:, 3] < 5)
    assert abs(crosses.float().mean().item() - 0.3) <= 4.5 * math.sqrt(0.21 / 2e4)
    at_goal = reward == 0
    assert (rows[at_goal, 1:] == rows[at_goal, 3:]).all()
    assert (rows[~at_goal, 2] == rows[~at_goal, 1] + 1).all()


@pytest.mark.parametrize(
    "option", [{"cross_video": 1.1}, {"self_transition": -1}, {"geometric": 1.0}]
)
def test_options_out_of_range_are_refused(option) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} is .*; wanted"):
        make_sampler(4, **option)


def test_two_processes_draw_the_halves_of_what_one_draws() -> None:
    options = {"self_transition": 0.2, "cross_video": 0.4, "group": torch.tensor([0, 1, 0])}
    whole, halves = (
        make_sampler(5, 9, 7, **options),
        [make_sampler(5, 9, 7, shard=(rank, 2), **options) for rank in range(2)],
    )
    for _ in range(3):
        rows, reward = draw(whole, 12)
        parts = [draw(half, 6) for half in halves]
        assert torch.equal(rows, torch.cat([p[0] for p in parts]))
        assert torch.equal(reward, torch.cat([p[1] for p in parts]))
    frames = noise(6)
    want = augment(frames, generator_at(0, 0), colour=0.2)
    got = [
        augment(frames[3 * r : 3 * r + 3], generator_at(0, 0), colour=0.2, shard=(r, 2))
        for r in range(2)
    ]
    torch.testing.assert_close(torch.cat(got), want)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_self_transitions_are_that_share_and_alone_have_reward_0(share: float) -> None:
    rows, reward = draw(make_sampler(10, 6, self_transition=share), 20_000)
    at_goal = (rows[:, 1] == rows[:, 3]) & (rows[:, 2] == rows[:, 3])
    assert torch.equal(reward, torch.where(at_goal, 0.0, -1.0))
    assert (rows[:, 0] < rows[:, 3]).all()
    assert abs(at_goal.float().mean().item() - share) <= 4.5 * math.sqrt(share * (1 - share) / 2e4)


def test_every_batch_is_a_function_of_seed_and_step() -> None:
    a, b = make_sampler(9, 30, seed=3), make_sampler(9, 30, seed=3)
    batches = [draw(a, 16)[0] for _ in range(5)]
    b.step = 3
    assert torch.equal(draw(b, 16)[0], batches[3])
    b.load_state_dict({"seed": 3, "step": 1})
    assert torch.equal(draw(b, 16)[0], batches[1])
    assert a.state_dict() == {"seed": 3, "step": 5}
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(draw(make_sampler(9, 30, seed=4), 16)[0], batches[0])


@pytest.mark.parametrize("prefetch", [0, 1])
def test_in_a_replay_buffer_over_a_memory_map(tmp_path, prefetch: int) -> None:
    """The pixels that come back are those of the rows drawn, in their order."""
    pixels = MemoryMappedTensor.empty((12, 1), dtype=torch.uint8, filename=str(tmp_path / "p"))
    pixels.copy_(torch.arange(12).view(12, 1))
    buffer = TensorDictReplayBuffer(
        storage=TensorStorage(TensorDict({"pixels": pixels}, [12])),
        sampler=make_sampler(4, 8, seed=1, self_transition=0.3),
        batch_size=6,
        prefetch=prefetch or None,
    )
    reference = make_sampler(4, 8, seed=1, self_transition=0.3)
    for _ in range(4):
        rows, reward = draw(reference, 6)
        batch = buffer.sample().reshape(-1, 4)
        assert torch.equal(batch["pixels"].squeeze(-1).long(), rows)
        assert torch.equal(batch["reward"][:, 0], reward)


@pytest.mark.parametrize("lengths", [(), (5, 1), (0,)])
def test_clips_of_fewer_than_two_frames_are_refused(lengths) -> None:
    with pytest.raises(ValueError, match="at least two frames"):
        make_sampler(*lengths)
    with pytest.raises(ValueError, match="at least two frames"):
        VIPSampler(torch.tensor([0, 5]), torch.tensor([5]))


def test_a_goal_is_seen_otherwise_in_its_share_and_never_where_it_is_the_frame() -> None:
    n, options = 20_000, {"copies": 4, "self_transition": 0.2, "cross_video": 0.3}
    options["group"] = torch.zeros(2, dtype=torch.int64)
    plain, _ = draw(make_sampler(5, 7, **options), n)
    rows, reward = draw(make_sampler(5, 7, goal_augmentation=0.4, **options), n)
    copy = rows // 12
    assert torch.equal(rows % 12, plain % 12)  # the same frames are drawn
    assert torch.equal(rows[:, :3], plain[:, :3]) and (copy[:, :3] == copy[:, :1]).all()
    assert torch.equal(rows[reward == 0], plain[reward == 0])
    other = (copy[:, 3] != copy[:, 0])[reward == -1].float().mean().item()
    assert other == pytest.approx(0.4 * 3 / 4, abs=0.015)  # one in four draws the same copy
    with pytest.raises(ValueError, match="goal_augmentation is 1.5"):
        make_sampler(5, goal_augmentation=1.5)


def noise(b: int = 3, k: int = 4, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (b, k, 3, size, size), dtype=torch.uint8, generator=generator)


def test_without_crop_flip_and_colour_frames_stay_as_they_are() -> None:
    frames = noise()
    same = augment(frames, generator_at(0, 0), scale=(1, 1), ratio=(1, 1), flip=0)
    torch.testing.assert_close(same, frames.float() / 255, atol=1e-5, rtol=0)


def test_a_certain_flip_mirrors_left_and_right() -> None:
    frames = noise()
    mirrored = augment(frames, generator_at(0, 0), scale=(1, 1), ratio=(1, 1), flip=1)
    torch.testing.assert_close(mirrored, frames.flip(-1).float() / 255, atol=1e-5, rtol=0)


def test_a_crop_shows_that_share_of_the_area() -> None:
    """A quarter of the area is half of the width, and so half of a ramp from 0 to 1."""
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(8, 4, 3, 64, 64)
    seen = augment(ramp, generator_at(0, 0), scale=(0.25, 0.25), ratio=(1, 1), flip=0)
    width = seen.amax((1, 2, 3, 4)) - seen.amin((1, 2, 3, 4))
    torch.testing.assert_close(width, torch.full((8,), 0.5), atol=0.02, rtol=0)
    assert seen.amin((1, 2, 3, 4)).std() > 0.05  # and it lies elsewhere in each clip


def test_a_goal_gets_a_crop_and_colours_of_its_own_and_the_same_mirror() -> None:
    frames = noise(6, 1).repeat(1, 4, 1, 1, 1)
    options = {"scale": (0.3, 0.9), "colour": 0.3, "flip": 0.5}
    plain = augment(frames, generator_at(0, 0), **options)
    some = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    seen = augment(frames, generator_at(0, 0), goal_augmentation=some, **options)
    assert torch.equal(seen[:, :3], plain[:, :3]) and torch.equal(seen[some == 0], plain[some == 0])
    assert ((seen[:, 3] - plain[:, 3]).abs().mean((1, 2, 3)) > 0.02).tolist() == (
        some == 1
    ).tolist()
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(32, 4, 3, 64, 64)
    ramp = augment(ramp, generator_at(0, 0), scale=(0.3, 0.9), goal_augmentation=1.0)
    rises = ramp[..., -1].mean((2, 3)) > ramp[..., 0].mean((2, 3))
    assert (rises == rises[:, :1]).all() and 0 < rises[:, 0].float().mean() < 1


@settings(max_examples=40, deadline=None)
@given(
    b=st.integers(1, 4),
    low=st.floats(0.05, 1),
    flip=st.floats(0, 1),
    colour=st.floats(0, 0.9),
    seed=st.integers(0, 2**31),
)
def test_augment_always(b: int, low: float, flip: float, colour: float, seed: int) -> None:
    """Shape, range, one crop, flip and colour a clip, and nothing random but the generator."""
    frames = noise(b, 1).repeat(1, 4, 1, 1, 1)
    options = {"scale": (low, 1.0), "flip": flip, "colour": colour}
    out = augment(frames, generator_at(seed, 0), **options)
    assert out.shape == frames.shape and out.dtype == torch.float32
    assert out.min() >= 0 and out.max() <= 1 + 1e-6
    assert torch.equal(out[:, 1:], out[:, :1].expand_as(out[:, 1:]))
    assert torch.equal(out, augment(frames, generator_at(seed, 0), **options))


def test_clips_of_a_batch_are_augmented_differently_and_seeds_differ() -> None:
    frames = noise(1).repeat(2, 1, 1, 1, 1)
    out = augment(frames, generator_at(0, 0), colour=0.2)
    assert (out[0] - out[1]).abs().mean() > 0.05
    for other in (generator_at(1, 0), generator_at(0, 1), generator_at(0, 0, stream=1)):
        assert (augment(frames, other, colour=0.2) - out).abs().mean() > 0.05


def test_colour_moves_pixels_without_moving_the_picture() -> None:
    grey = torch.full((64, 4, 3, 4, 4), 100, dtype=torch.uint8)
    out = augment(grey, generator_at(0, 0), colour=0.2)[:, 0, 0, 0, 0] * 255 / 100
    assert 0.8 <= out.min() < 0.85 and 1.15 < out.max() <= 1.2  # brightness in [1 - c, 1 + c]
