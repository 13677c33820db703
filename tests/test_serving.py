"""One encoder for several workers: the same embeddings, joint batches, and no hang."""

import copy
import functools
import os
import signal
import time

import pytest
import torch
from envs import LEVEL, STEP, CountingEncoder, GreyEnv, grey
from networks import images, trained_encoder
from tensordict import TensorDict
from torchrl.collectors import MultiSyncCollector
from torchrl.envs import ParallelEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_vip import FrozenEncoder, VIPRewardTransform, VIPTransform
from torchrl_vip.serving import EncoderServer


def make_worker(client, length: int = 4) -> TransformedEnv:
    """Transform and reward inside the worker, the goal's image embedded by the server too."""
    env = TransformedEnv(GreyEnv(length=length), VIPTransform(client))
    return env.append_transform(VIPRewardTransform(goal=grey(200, 16, 16, 3)))


@pytest.fixture(scope="module")
def server():
    with EncoderServer(CountingEncoder()) as server:
        yield server


def test_a_client_embeds_as_the_encoder_itself() -> None:
    encoder = FrozenEncoder(trained_encoder())
    with EncoderServer(encoder) as server:
        client = server.client()
        assert client.dim == encoder.dim and client.config == encoder.config
        for frames in (images(3), images(4).permute(0, 2, 3, 1), images(1)[0], images(6)[None]):
            torch.testing.assert_close(client(frames), encoder(frames))
        assert client(images(2)[:0]).shape == (0, encoder.dim)
        with pytest.raises(ValueError, match="beyond|range|\\[0, 1\\]"):
            client(images(1).float())


def test_specs_hold_with_one_environment(server) -> None:
    env = make_worker(server.client())
    check_env_specs(env)
    reward = env.rollout(3)["next", "reward"].flatten()
    torch.testing.assert_close(reward, torch.full((3,), STEP * LEVEL), atol=1e-5, rtol=1e-4)


def test_a_worker_that_is_started_again_takes_no_stale_answer() -> None:
    with EncoderServer(CountingEncoder(), timeout=5) as server:
        client = server.client()
        for level, timed_out in ((100, True), (10, False), (20, False)):
            worker = as_another_process(client)
            if timed_out:
                worker._own_numbers()
                worker._client.submit(TensorDict(pixels=grey(level, 1, 3, 8, 8)))  # and dies
                continue
            expected = FrozenEncoder(CountingEncoder())(grey(level))
            torch.testing.assert_close(worker(grey(level)), expected)


def as_another_process(client):
    """The client as another process would have it: its number again, no answers of before."""
    other = copy.copy(client)
    other.__dict__ = dict(client.__dict__, _process=-1)
    other._client = copy.copy(client._client)
    other._client._buffered = {}
    return other


def test_workers_share_the_servers_encoder() -> None:
    with EncoderServer(CountingEncoder(), min_batch_size=2, wait=0.5) as server:
        makers = [functools.partial(make_worker, server.client(), n) for n in (3, 5)]
        env = ParallelEnv(2, makers)
        try:
            rollout = env.rollout(6, break_when_any_done=False)
        finally:
            env.close()
        stats = server.stats()
    close = functools.partial(torch.testing.assert_close, atol=1e-5, rtol=1e-4)
    close(rollout["next", "reward"], torch.full((2, 6, 1), STEP * LEVEL))
    # 6 steps of 2 workers in joint batches; goals, resets and specs in what comes to it.
    assert stats["requests"] > stats["batches"]


def test_collectors_in_processes_use_it(server) -> None:
    collector = MultiSyncCollector(
        [functools.partial(make_worker, server.client()) for _ in range(2)],
        frames_per_batch=16,
        total_frames=32,
    )
    rewards = [batch["next", "reward"].clone() for batch in collector]
    collector.shutdown()
    assert len(rewards) == 2
    assert all(torch.allclose(r, torch.tensor(STEP * LEVEL), atol=1e-5) for r in rewards)


def test_a_server_that_is_not_there_is_an_error_not_a_hang() -> None:
    client = EncoderServer(CountingEncoder(), timeout=0.5).client()
    with pytest.raises(RuntimeError, match="did not answer within 0.5 s"):
        client(images(1))


def test_options_for_an_encoder_that_has_its_own_are_refused() -> None:
    with pytest.raises(ValueError, match="blur for a FrozenEncoder"):
        EncoderServer(FrozenEncoder(CountingEncoder()), blur=1.5)


def test_a_killed_worker_ends_the_rollout_and_is_named(server) -> None:
    env = ParallelEnv(2, [functools.partial(make_worker, server.client()) for _ in range(2)])
    with pytest.raises(RuntimeError, match=r"worker 1 \(exit code -9\)"):
        try:
            td = env.reset()
            os.kill(env._workers[1].pid, signal.SIGKILL)
            for _ in range(3):
                td = env.step_and_maybe_reset(env.rand_action(td))[1]
        finally:
            env.close()


def test_a_killed_server_is_an_error_at_once() -> None:
    with EncoderServer(CountingEncoder()) as server:
        client = server.client()
        client(images(1))
        os.kill(server._server._process.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(RuntimeError, match="did not answer"):
            client(images(1))
        assert time.monotonic() - start < 30  # its timeout is 60 s


def test_a_server_that_was_shut_down_is_an_error() -> None:
    with EncoderServer(CountingEncoder(), timeout=0.5) as server:
        client = server.client()
        assert client(images(2)).shape == (2, 1)
    with pytest.raises(RuntimeError, match="did not answer"):
        client(images(1))
