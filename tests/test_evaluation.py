"""Metrics of distance curves by numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from torchrl_vip.evaluation.clips import LabelledClip, embed_clips, score_groups, summarise
from torchrl_vip.evaluation.metrics import (
    auc,
    bootstrap,
    bump_size,
    bumps,
    decoy_share,
    epic_distance,
    kendall,
    progress,
    r_squared,
    voc,
)


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_voc_of_perfect_reversed_and_constant_curves(kind: str) -> None:
    falling = np.array([4.0, 3, 2, 1, 0])
    assert voc(falling, kind) == pytest.approx(1)
    assert voc(falling[::-1], kind) == pytest.approx(-1)
    assert voc(np.full(5, 2.0), kind) == 0
    assert voc(np.array([1.0]), kind) == 0


def test_voc_by_hand() -> None:
    # values (minus distance) -3, -2, -4, 0: ranks 2 3 1 4 against 1 2 3 4, squared gaps 1 1 4 0
    distance = np.array([3.0, 2, 4, 0])
    assert voc(distance) == pytest.approx(1 - 6 * 6 / (4 * 15))
    # pearson: covariance sum 3.5, variances sum 5 and 8.75
    assert voc(distance, "pearson") == pytest.approx(3.5 / np.sqrt(5 * 8.75))
    assert voc(np.exp(-np.arange(5.0))) == pytest.approx(1)  # order alone counts
    assert voc(np.exp(-np.arange(5.0)), "pearson") < 0.95


def test_bumps_their_size_and_progress_by_hand() -> None:
    distance = np.array([4.0, 5, 3, 3, 3.5, 1])  # grows by 1 and by 0.5 in five steps
    assert bumps(distance) == pytest.approx(2 / 5)
    assert bump_size(distance) == pytest.approx(1.5 / 4)
    assert progress(distance) == pytest.approx(1 / 4)
    assert bumps(distance[::-1]) == pytest.approx(2 / 5)  # grows by 2.5 and by 2
    assert bumps(np.array([3.0, 2, 1])) == bump_size(np.array([3.0, 2, 1])) == 0
    assert np.isnan(bump_size(np.array([0.0, 1])))  # in parts of nothing


def test_what_is_no_number_is_an_error_and_no_perfect_score() -> None:
    frames = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    clips = [LabelledClip(frames, "a", name=name) for name in ("good", "bad")]
    z = [np.arange(3.0)[:, None], np.array([[1.0], [np.nan], [0.0]])]
    with pytest.raises(ValueError, match="embedding of clip 'bad' is not finite"):
        score_groups(z, clips)


def test_auc_counts_pairs_and_half_of_ties() -> None:
    assert auc([3, 2], [1, 0]) == 1
    assert auc([0], [1, 2]) == 0
    assert auc([1, 1], [1]) == 0.5
    assert auc([2, 1], [1, 3]) == pytest.approx((1 + 0 + 0.5 + 0) / 4)


def test_kendall_counts_pairs_of_different_levels() -> None:
    assert kendall([0.1, 0.5, 0.9], [0, 1, 2]) == 1
    assert kendall([0.9, 0.5, 0.1], [0, 1, 2]) == -1
    # of (0, 1), (0, 2), (0, 2), (1, 2), (1, 2): the second 2 stands below both, the first above
    assert kendall([0.2, 0.3, 0.4, 0.1], [0, 1, 2, 2]) == pytest.approx((1 + 1 - 1 + 1 - 1) / 5)
    assert kendall([1, 1], [0, 1]) == 0
    assert np.isnan(kendall([1, 2], [2, 2]))


def test_decoy_share_by_hand() -> None:
    # a demonstration goes from 10 to 2; the idle robot comes as near as 6: half of those 8
    assert decoy_share(np.array([10.0, 6, 9]), 10, 2) == pytest.approx(0.5)
    assert decoy_share(np.array([11.0, 12]), 10, 2) == 0  # never nearer than the start
    assert decoy_share(np.array([1.0]), 10, 2) == 1  # nearer than the demonstration
    assert decoy_share(np.array([10.0]), 2, 2) == 1  # the demonstration itself comes no nearer


def test_r_squared_and_epic_forgive_scale_and_shift_only() -> None:
    reward = np.array([0.0, 1, 3, 2])
    assert r_squared(-2 * reward + 1, reward) == pytest.approx(1)
    assert epic_distance(2 * reward + 1, reward) == pytest.approx(0, abs=1e-7)
    assert epic_distance(-reward, reward) == pytest.approx(1)
    # deviations -1.5 -.5 1.5 .5 and 1 -1 1 -1: covariance sum 0 - so unrelated
    assert r_squared(np.array([1.0, -1, 1, -1]), np.array([0.0, 0, 1, 1])) == 0
    assert epic_distance(np.array([1.0, -1, 1, -1]), np.array([0.0, 0, 1, 1])) == pytest.approx(
        0.5**0.5
    )
    assert r_squared(np.ones(4), reward) == 0 and epic_distance(np.ones(4), reward) == 0.5**0.5


def test_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        mean, low, high = bootstrap(rng.normal(5, 1, 40), n=400)
        assert low < mean < high
        hits += low <= 5 <= high
    assert 0.88 <= hits / 200 <= 0.99
    assert bootstrap([2.0, 2.0]) == (2, 2, 2)
    assert bootstrap([1.0, 4.0, 2.0]) == bootstrap([1.0, 4.0, 2.0])  # no hidden randomness


def line(*positions: float) -> np.ndarray:
    """Embeddings [T, 2] on one axis."""
    return np.array([[p, 0.0] for p in positions])


def clip(group: str, success: bool = True) -> LabelledClip:
    return LabelledClip(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), group, success)


def test_goals_are_other_successes_and_failures_count_in_the_auc_alone() -> None:
    # a ends at 10, b at 8: a against 8 is 8 4 2 (all falls), b against 10 is 10 12 2 (one bump)
    z = [line(0, 4, 10), line(0, -2, 8), line(0, 0, -5), line(0, 9, 9)]
    clips = [clip("g"), clip("g"), clip("g", success=False), clip("g", success=False)]
    scores = score_groups(z, clips)["g"]
    assert scores["voc"] == pytest.approx((1 + 0.5) / 2)  # b: ranks 2 1 3
    assert scores["bumps"] == pytest.approx((0 + 1 / 2) / 2)
    assert scores["bump_size"] == pytest.approx((0 + 2 / 10) / 2)
    assert scores["voc_own"] == pytest.approx((1 + 0.5) / 2)  # 10 6 0 and 8 10 0
    assert scores["bumps_own"] == pytest.approx(1 / 4)
    # final / first distance: a 2/8, b 2/10; failures (13/8 + 15/10)/2 and (1/8 + 1/10)/2
    assert scores["auc"] == pytest.approx(1 / 2)
    without = score_groups(z[:2], clips[:2])["g"]
    assert np.isnan(without["auc"])
    assert all(without[k] == scores[k] for k in ("voc", "voc_pearson", "bumps", "voc_own"))


def test_controls_levels_and_rewards_by_hand() -> None:
    z = [line(0, 4, 10), line(1, 3, 8), line(0, 1, 1), line(50, 60, 70)]
    clips = [clip("g"), clip("g"), clip("g", success=False), clip("h")]
    clips[0].reward = np.array([6.0, 2.0])  # against 8: minus distances -4, -2, so a falling line
    scores = score_groups(z, clips)["g"]
    # backwards a, 10 4 0, to b's start 1: 9 3 1; b, 8 3 1, to a's start 0: all falls
    assert scores["voc_reversed"] == pytest.approx(1)
    assert scores["voc_wrong_goal"] == pytest.approx(1)  # 70 lies the same way
    # best: a 2/8, b 2/9; failure (7/8 + 9/10)/2
    assert scores["auc_best"] == scores["kendall"] == 1
    assert scores["r_squared"] == pytest.approx(1) and scores["epic"] == pytest.approx(1)
    goals = [np.array([0.0, 0])] * 4  # all successes walk away from there
    assert score_groups(z, clips, goals)["g"]["voc"] == pytest.approx(-1)


def test_what_a_goal_adds_by_hand() -> None:
    # a and b go right, c goes left; wrong goals: for g the end of c, -10, for h the end of a, 10
    z = [line(0, 4, 10), line(0, -2, 8), line(0, -6, -10)]
    clips = [clip("g"), clip("g"), clip("h")]
    scores = score_groups(z, clips)["g"]
    # right: a 8 4 2, 1; b 10 12 2, .5
    # wrong: a 10 14 20, -1; b 10 8 18, ranks 2 1 3 of the distance, -.5
    assert scores["voc_wrong_goal"] == pytest.approx(-0.75)
    assert scores["voc_specific"] == pytest.approx(0.75 + 0.75)
    assert scores["right_above_wrong"] == 1
    away = score_groups([-e for e in z[:2]] + z[2:], clips)["g"]  # now all go left, c too
    assert away["voc_wrong_goal"] == pytest.approx(0.75) and away["voc_specific"] == pytest.approx(
        0
    )
    assert away["right_above_wrong"] == pytest.approx(0.5)  # both pairs are ties
    assert np.isnan(score_groups(z[:2], clips[:2])["g"]["voc_specific"])  # no other group


def test_idle_clips_are_decoys_of_their_group_and_no_attempts() -> None:
    z = [line(0, 4, 10), line(0, -2, 8), line(0, 6), line(0, 3), line(20, 20), line(0, 1, 2)]
    idle = [
        replace(clip(g), idle_of=of) for g, of in (("g", "start"), ("", "start"), ("g", "goal"))
    ]
    clips = [clip("g"), clip("g"), *idle, clip("h")]
    scores = score_groups(z, clips)
    # goal 8: a goes from 8 to 2, idle to 2 and 5: 6/6, 3/6
    # goal 10: b goes from 10 to 2, idle to 4 and 7: 6/8, 3/8
    assert scores["g"]["decoy_share"] == pytest.approx((1 + 0.5 + 0.75 + 0.375) / 4)
    # alone, h has its own end 2 as goal: from 2 to 0, and the idle 3 of every group passes through it
    assert scores["h"]["decoy_share"] == pytest.approx(0.5)  # at 3 it is 1 away
    assert set(scores) == {"g", "h"}
    without = score_groups([*z[:2], z[-1]], [*clips[:2], clips[-1]])
    assert np.isnan(without["g"]["decoy_share"])
    del without["g"]["decoy_share"], scores["g"]["decoy_share"]
    for name, value in without["g"].items():
        np.testing.assert_equal(value, scores["g"][name], name)


def test_smoothed_curves_are_scored_by_hand() -> None:
    # goal 8: a goes 8 4 2, on average 8 6 4, idle 8 2, on average 8 5; goal 10: b goes 10 12 2, so 10 11 6.5
    z = [line(0, 4, 10), line(0, -2, 8), line(0, 6)]
    clips = [clip("g"), clip("g"), replace(clip("g"), idle_of="start")]
    scores = score_groups(z, clips, smoothing=0.5)["g"]
    assert scores["bump_size"] == pytest.approx((0 + 1 / 10) / 2)
    # goal 10: idle 10 4, on average 10 7
    assert scores["decoy_share"] == pytest.approx(((8 - 5) / (8 - 4) + (10 - 7) / (10 - 6.5)) / 2)
    # backwards b, 8 -2 0 to 0: 8 2 0, on average 8 5 2.5; a likewise
    assert scores["voc_reversed"] == pytest.approx(1)
    with pytest.raises(ValueError, match="smoothing=1 is invalid"):
        score_groups(z, clips, smoothing=1)


def test_a_clip_that_is_not_scored_is_a_goal_alone() -> None:
    z, clips = [line(0, 4, 10), line(0, -2, 8)], [clip("g"), replace(clip("g"), scored=False)]
    scores = score_groups(z, clips)["g"]
    assert (
        scores["voc"] == scores["voc_own"] == 1 and scores["bumps"] == 0
    )  # those of the first clip


def test_a_group_never_sees_another_and_a_lonely_clip_has_no_cross_score() -> None:
    z = [line(0, 1, 2), line(5, 9, 7)]
    scores = score_groups(z, [clip("g"), clip("h")])
    assert scores["g"]["voc_own"] == pytest.approx(1)
    assert scores["h"]["voc_own"] == pytest.approx(1.5 / np.sqrt(1.5 * 2))  # ranks 1.5 1.5 3
    assert np.isnan(scores["g"]["voc"]) and np.isnan(scores["h"]["voc"])
    only_failures = score_groups(z[:1], [clip("g", success=False)])["g"]
    assert all(np.isnan(value) for value in only_failures.values())


def test_summary_is_over_groups_that_have_the_metric() -> None:
    nan = float("nan")
    summary = summarise({"g": {"voc": 0.2, "auc": nan}, "h": {"voc": 0.6, "auc": nan}})
    assert set(summary) == {"voc"}
    mean, low, high, groups = summary["voc"]
    assert (mean, low, high, groups) == (pytest.approx(0.4), 0.2, 0.6, 2)


def test_every_frame_is_embedded_in_chunks() -> None:
    seen = []

    def embed(frames: torch.Tensor) -> torch.Tensor:
        seen.append(len(frames))
        return frames.double().mean((2, 3))

    frames = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    (z,) = embed_clips(embed, [LabelledClip(frames, "g")], chunk=2)
    assert seen == [2, 2, 1]
    assert z.dtype == np.float32
    np.testing.assert_array_equal(z, np.arange(5.0)[:, None].repeat(3, 1))
