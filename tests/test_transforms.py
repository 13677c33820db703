"""VIPTransform: the duties of a TorchRL transform, and every way in which the built-in one breaks."""

import copy
import functools
import io
import pickle

import pytest
import torch
from envs import LEVEL, CountingEncoder, GreyEnv, NormEncoder, grey
from tensordict import TensorDict
from torch import nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, ParallelEnv, RewardSum, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_vip import FrozenEncoder, VIPEncoder, VIPTransform, preprocess

MAKE = [functools.partial(GreyEnv, length=3), functools.partial(GreyEnv, length=5)]


def z_of(level):
    """CountingEncoder's embedding of a grey image."""
    return preprocess(grey(level)).mean().reshape(1)


# -- the duties that TorchRL's TransformBase lists --------------------------------------------------


def test_single_env_spec_and_values():
    env = TransformedEnv(GreyEnv(), VIPTransform(CountingEncoder()))
    check_env_specs(env)
    rollout = env.rollout(3)
    torch.testing.assert_close(rollout["vip_vec"], torch.stack([z_of(v) for v in (10, 20, 30)]))
    torch.testing.assert_close(rollout["next", "vip_vec"][-1], z_of(40))
    assert "pixels" not in rollout.keys(True) and "pixels" not in env.observation_spec
    assert rollout["vip_vec"].dtype == torch.float32


def test_transform_no_env():
    td = TensorDict(pixels=grey(7))
    out = VIPTransform(CountingEncoder())(td)
    torch.testing.assert_close(out["vip_vec"], z_of(7))
    assert list(td.keys()) == ["pixels"], "the caller's tensordict is untouched"


def test_transform_compose_and_model():
    t = Compose(
        VIPTransform(CountingEncoder(), del_keys=False),
        VIPTransform(CountingEncoder(), out_keys=["b"]),
    )
    out = nn.Sequential(t)(TensorDict(pixels=grey(7)))
    torch.testing.assert_close(out["vip_vec"], out["b"])


@pytest.mark.parametrize("cls", [SerialEnv, ParallelEnv])
@pytest.mark.parametrize("inside", [True, False])
def test_batched_env(cls, inside):
    if inside:
        env = cls(2, [functools.partial(transformed, make) for make in MAKE])
    else:
        env = TransformedEnv(cls(2, MAKE), VIPTransform(CountingEncoder()))
    try:
        check_env_specs(env)
        rollout = env.rollout(7, break_when_any_done=False)
        # Episodes of 3 and 5 steps: the root embedding starts again at level 10 after each.
        levels = [[10, 20, 30, 10, 20, 30, 10], [10, 20, 30, 40, 50, 10, 20]]
        expected = torch.stack([torch.stack([z_of(v) for v in row]) for row in levels])
        torch.testing.assert_close(rollout["vip_vec"], expected)
    finally:
        env.close(raise_if_closed=False)


def transformed(make):
    return TransformedEnv(make(), VIPTransform(CountingEncoder()))


@pytest.mark.parametrize("storage", [LazyTensorStorage])
def test_replay_buffer(storage):
    encoder = CountingEncoder()
    buffer = TensorDictReplayBuffer(
        storage=storage(8), batch_size=5, transform=VIPTransform(encoder)
    )
    buffer.extend(
        TensorDict(
            {"pixels": grey(7).expand(8, 8, 8, 3), "next": {"pixels": grey(9).expand(8, 8, 8, 3)}},
            batch_size=[8],
        )
    )
    sample = buffer.sample()
    torch.testing.assert_close(sample["vip_vec"], z_of(7).expand(5, 1))
    torch.testing.assert_close(sample["next", "vip_vec"], z_of(9).expand(5, 1))
    assert (encoder.calls, encoder.frames) == (1, 10), "both times in one batch"


def test_explicit_next_key_is_another_time_not_another_camera():
    t = VIPTransform(CountingEncoder(), in_keys=["pixels", ("next", "pixels")])
    out = t(TensorDict({"pixels": grey(7), "next": {"pixels": grey(9)}}))
    torch.testing.assert_close(out["vip_vec"], z_of(7))
    torch.testing.assert_close(out["next", "vip_vec"], z_of(9))


# -- one forward for all, each frame once -----------------------------------------------------------


@pytest.mark.parametrize("cls", [SerialEnv, ParallelEnv])
def test_one_forward_a_step_and_partial_resets_encode_only_their_rows(cls):
    encoder = CountingEncoder()
    env = TransformedEnv(cls(2, MAKE), VIPTransform(encoder))
    try:
        td = env.reset()
        assert (encoder.frames, encoder.calls) == (2, 1)
        td, carried = env.step_and_maybe_reset(env.rand_action(td))
        assert (encoder.frames, encoder.calls) == (4, 2)
        td, carried = env.step_and_maybe_reset(env.rand_action(carried))
        td, carried = env.step_and_maybe_reset(env.rand_action(carried))  # the first env is done
        assert (encoder.frames, encoder.calls) == (9, 5)
        torch.testing.assert_close(carried["vip_vec"], torch.stack([z_of(10), z_of(40)]))
        mask = TensorDict({"_reset": torch.tensor([[False], [True]])}, batch_size=[2])
        again = env.reset(mask)
        assert encoder.frames == 10
        torch.testing.assert_close(again["vip_vec"][1], z_of(10))
    finally:
        env.close(raise_if_closed=False)


# -- cameras and keys -------------------------------------------------------------------------------


def test_cameras_joined_apart_and_kept():
    cameras = ["left", "right"]
    encoder = CountingEncoder()
    env = TransformedEnv(GreyEnv(cameras=cameras), VIPTransform(encoder, in_keys=cameras))
    check_env_specs(env)
    encoder.calls = 0
    torch.testing.assert_close(env.reset()["vip_vec"], torch.cat([z_of(10), z_of(11)]))
    assert encoder.calls == 1, "both cameras in one batch"
    t = VIPTransform(
        CountingEncoder(), in_keys=cameras, stack_images=False, tensor_pixels_keys=["l", "r"]
    )
    env = TransformedEnv(GreyEnv(cameras=cameras), t)
    check_env_specs(env)
    td = env.reset()
    torch.testing.assert_close(td["vip_vec_1"], z_of(11))
    assert td["l"].dtype == torch.uint8 and (td["r"] == 11).all() and "left" not in td.keys()


def test_nested_keys():
    env = GreyEnv(cameras=[("agent", "pixels")])
    env = TransformedEnv(
        env,
        VIPTransform(CountingEncoder(), in_keys=[("agent", "pixels")], out_keys=[("agent", "z")]),
    )
    check_env_specs(env)
    torch.testing.assert_close(env.reset()["agent", "z"], z_of(10))


def test_layouts():
    t = VIPTransform(CountingEncoder())
    for image in (grey(7, 3, 8, 8), grey(7, 2, 8, 8, 3), grey(7, 2, 5, 3, 8, 12), grey(7, 9, 8, 4)):
        out = t(TensorDict({"pixels": image}))
        assert out["vip_vec"].shape == (*image.shape[:-3], 1)
        torch.testing.assert_close(out["vip_vec"], z_of(7).expand_as(out["vip_vec"]))
    assert t(TensorDict({"pixels": grey(7, 0, 8, 8, 3)}, batch_size=[0]))["vip_vec"].shape == (0, 1)
    env = TransformedEnv(GreyEnv(channels_last=False), VIPTransform(CountingEncoder()))
    check_env_specs(env)


# -- frozen, or not -------------------------------------------------------------------------------------


def test_frozen_in_every_way():
    encoder = NormEncoder()
    before = copy.deepcopy(encoder.state_dict())
    env = TransformedEnv(GreyEnv(), Compose(VIPTransform(encoder), RewardSum()))
    env.train()
    env.transform.train()
    rollout = env.rollout(5, break_when_any_done=False)
    assert list(env.parameters()) == [] and not rollout["vip_vec"].requires_grad
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items()), "buffers moved"
    assert not any("conv" in k or "encoder" in k for k in env.state_dict())
    alone, batch = grey(10), torch.stack([grey(10), grey(200)])
    t = env.transform[0]
    z = t(TensorDict(pixels=batch))["vip_vec"]
    torch.testing.assert_close(t(TensorDict(pixels=alone))["vip_vec"], z[0])


def test_trainable_when_asked():
    t = VIPTransform(NormEncoder(), freeze=False, size=16)
    z = t(TensorDict(pixels=torch.randint(255, (4, 16, 16, 3), dtype=torch.uint8)))["vip_vec"]
    z.sum().backward()
    assert len(list(t.parameters())) == 4
    assert all(p.grad is not None for p in t.parameters())


def test_state_dict_only_when_asked():
    assert len(VIPTransform(NormEncoder()).state_dict()) == 0
    saved = VIPTransform(NormEncoder(), save_encoder=True)
    other = VIPTransform(NormEncoder(), save_encoder=True)
    other.load_state_dict(saved.state_dict())
    frame = TensorDict(pixels=torch.randint(255, (8, 8, 3), dtype=torch.uint8))
    torch.testing.assert_close(other(frame)["vip_vec"], saved(frame)["vip_vec"])


def test_pickle_clone_and_share():
    t = VIPTransform(VIPEncoder("resnet18", dim=4, image_size=32), dtype=torch.bfloat16)
    frame = TensorDict(pixels=torch.randint(255, (8, 8, 3), dtype=torch.uint8))
    z = t(frame)["vip_vec"]
    for other in (pickle.loads(pickle.dumps(t)), t.clone(), copy.deepcopy(t)):
        assert torch.equal(other(frame)["vip_vec"], z)
    buffer = io.BytesIO()
    torch.save(t, buffer)
    t.share_memory()
    assert all(p.is_shared() for p in t.encoder.parameters())
    assert torch.equal(t(frame)["vip_vec"], z)


def test_a_clone_remembers_its_own_frames():
    """What a partial reset leaves alone is of the environment's own last step."""
    env = TransformedEnv(SerialEnv(2, MAKE), VIPTransform(CountingEncoder()))
    before = env.reset()
    other = TransformedEnv(SerialEnv(2, MAKE), env.transform.clone())
    now = env.step(before.set("action", torch.zeros(2, 1)))["next"]
    other.rollout(3)
    now["_reset"] = torch.tensor([[True], [False]])
    torch.testing.assert_close(env.reset(now)["vip_vec"], torch.stack([z_of(10), z_of(20)]))


def test_options_that_would_be_dropped_are_refused():
    frozen, network = FrozenEncoder(NormEncoder()), VIPEncoder("resnet18", dim=4, image_size=32)
    for encoder, options in (
        (frozen, {"dtype": torch.bfloat16}),
        (frozen, {"size": 32}),
        (frozen, {"freeze": False}),
        (network, {"freeze": False, "size": 64}),
        (network, {"freeze": False, "chunk_size": 2}),
        (network, {"weights": "random"}),
        (network, {"download": True}),
    ):
        with pytest.raises(ValueError, match="|".join([*options, "frozen"])):
            VIPTransform(encoder, **options)


def test_to_dtype_device_and_memory_format():
    t = VIPTransform(VIPEncoder("resnet18", dim=4, image_size=32))
    frame = TensorDict(pixels=torch.randint(255, (2, 40, 40, 3), dtype=torch.uint8), batch_size=[2])
    z = t(frame)["vip_vec"]
    for changed in (t.to(memory_format=torch.channels_last), t.to(device="cpu"), t.to("cpu")):
        torch.testing.assert_close(changed(frame)["vip_vec"], z, atol=1e-4, rtol=1e-3)
    half = t.to(torch.bfloat16)(frame)["vip_vec"]
    assert half.dtype == torch.float32 and 0 < (half - z).norm() < 0.1 * z.norm()


# -- names and old calls ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"out_keys": ["pixels"]}, {"tensor_pixels_keys": ["pixels"]}], ids=str
)
def test_a_key_that_is_written_is_not_deleted(options):
    env = TransformedEnv(GreyEnv(), VIPTransform(CountingEncoder(), **options))
    check_env_specs(env)
    shape = env.rollout(2)["next", "pixels"].shape
    assert shape == ((2, 1) if "out_keys" in options else (2, 8, 8, 3))
    rows = TensorDict({"pixels": grey(1), ("next", "pixels"): grey(2)}, [])
    rows = VIPTransform(CountingEncoder(), **options)(rows)
    assert rows["pixels"].shape == rows["next", "pixels"].shape == shape[1:]


def test_a_name_without_weights_lists_the_choices():
    with pytest.raises(ValueError, match=r"efficientnet_lite0.*download=True.*weights='random'"):
        VIPTransform("resnet34")
    assert VIPTransform("resnet18", weights="random").dim == 512


def test_old_calls(monkeypatch):
    import torchrl_vip.transforms.vip as module

    calls = []

    def fake_load(source, **kwargs):
        calls.append((source, kwargs["download"]))
        return VIPEncoder("resnet18", dim=4, image_size=32)

    monkeypatch.setattr(module, "load_vip", fake_load)
    with pytest.warns(DeprecationWarning, match=r"in_keys=\['pixels'\]"):
        t = VIPTransform(keys_in=["next_pixels"], download=True)
    assert t.in_keys == ["pixels"]
    t = VIPTransform("resnet50", in_keys=["pixels"], out_keys=["vec"], size=244, stack_images=True,
                     download=True, download_path=None, tensor_pixels_keys=["px"])  # fmt: skip
    assert t.encoder.image_size == 244 and t.out_keys == ["vec"]
    VIPTransform(model_name="resnet50", in_keys=["pixels"], download=True)
    assert calls == [(None, True), ("resnet50", True), ("resnet50", True)]


# -- bad input ----------------------------------------------------------------------------------------


def test_errors_name_key_shape_and_way_out():
    t = VIPTransform(CountingEncoder())
    with pytest.raises(KeyError, match="pixels.*from_pixels"):
        t(TensorDict(image=grey(7)))
    with pytest.raises(KeyError, match="no observation 'camera'"):
        check_env_specs(
            TransformedEnv(GreyEnv(), VIPTransform(CountingEncoder(), in_keys=["camera"]))
        )
    with pytest.raises(ValueError, match=r"\[0, 255\]; wanted \[0, 1\]"):
        t(TensorDict(pixels=torch.tensor([0.0, 255.0]).repeat(8, 8, 3)[..., :3]))
    with pytest.raises(ValueError, match="nan"):
        t(TensorDict(pixels=torch.full((8, 8, 3), float("nan"))))
    with pytest.raises(TypeError, match="int64"):
        t(TensorDict(pixels=torch.zeros(8, 8, 3, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"\(8, 8, 1\)"):
        t(TensorDict(pixels=torch.zeros(8, 8, 1)))
    with pytest.raises(ValueError, match="Flatten or pool"):
        VIPTransform(nn.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match="out_keys"):
        VIPTransform(CountingEncoder(), in_keys=["a", "b"], stack_images=False, out_keys=["c"])


def test_level_constant():
    torch.testing.assert_close(z_of(20) - z_of(10), torch.tensor([10 * LEVEL]))
