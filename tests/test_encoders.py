"""VIPEncoder: images of any layout to embeddings; probing of networks that are not ours."""

import copy

import pytest
import torch
from networks import SIZE, Counting, images, trained_encoder
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from torchrl_vip import ENCODERS, FrozenEncoder, VIPEncoder, preprocess
from torchrl_vip.encoders import embedding_dim
from torchrl_vip.merging import merge_heads


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads spin for minutes where the machine is busy; these networks need one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def encoder() -> VIPEncoder:
    return copy.deepcopy(trained_encoder())


# --- VIPEncoder ------------------------------------------------------------------------------


def test_a_tiny_encoder_by_hand(tiny_encoder):
    encoder = VIPEncoder(tiny_encoder, image_size=SIZE)
    x = images(2)
    assert encoder.dim == 3 and encoder.name is None
    assert torch.allclose(encoder(x), preprocess(x, SIZE).mean((-2, -1)))
    # Frozen, a VIPEncoder's frames are still preprocessed once, not twice.
    assert torch.allclose(FrozenEncoder(encoder)(x), encoder(x), atol=1e-6)
    assert torch.allclose(FrozenEncoder(tiny_encoder, image_size=SIZE)(x), encoder(x), atol=1e-6)
    headed = VIPEncoder(tiny_encoder, dim=7, image_size=SIZE)
    assert torch.allclose(FrozenEncoder(headed)(x), headed(x), atol=1e-6)


@pytest.mark.parametrize("name, dim", [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_named_backbones(name, dim):
    with torch.device("meta"):  # shapes without the arithmetic
        encoder = VIPEncoder(name, image_size=SIZE)
        z = encoder.embed(torch.zeros(2, 3, SIZE, SIZE))
    assert name in ENCODERS and encoder.name == name and encoder.dim == dim and z.shape == (2, dim)
    with pytest.raises(ValueError, match="'vgg'.*resnet18, resnet34, resnet50"):
        VIPEncoder("vgg")


@pytest.mark.parametrize("make", [lambda e: e, FrozenEncoder])
def test_layouts_batch_shapes_and_strides(encoder, make):
    x, encode = images(4), make(encoder)
    with torch.no_grad():
        z = encode(x)
        assert z.shape == (4, 16) and z.dtype == torch.float32
        assert torch.allclose(encode(x.movedim(1, -1).contiguous()), z, atol=1e-5)
        assert torch.allclose(encode(x.unflatten(0, (2, 2))), z.unflatten(0, (2, 2)), atol=1e-5)
        assert torch.allclose(encode(x[2]), z[2], atol=1e-5)
        assert torch.allclose(encode(x.float() / 255), z, atol=1e-4)
        wide = torch.zeros(4, 3, 40, 96, dtype=torch.uint8)
        wide[..., ::2] = x
        assert torch.allclose(encode(wide[..., ::2]), z, atol=1e-5)
        assert torch.allclose(encode(x.flip(0)), z.flip(0), atol=1e-5)
        for empty in ((0,), (2, 0)):
            assert encode(torch.zeros(*empty, 40, 48, 3, dtype=torch.uint8)).shape == (*empty, 16)
        with pytest.raises(ValueError, match="0, 255"):
            encode(torch.tensor([0.0, 255.0]).expand(3, 40, 2))


def test_trainable_encoder_has_gradients_and_frozen_has_none(encoder):
    encoder(images(2)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    frozen = FrozenEncoder(encoder)
    assert not frozen(images(2)).requires_grad
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in encoder.parameters())  # the caller's stays as it was


def test_compiles_whole(encoder):
    torch._dynamo.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(images(2)), encoder(images(2)), atol=1e-5)


@pytest.mark.slow
def test_compiles_whole_with_inductor(encoder):
    torch._dynamo.reset()
    compiled = torch.compile(encoder, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(images(2)), encoder(images(2)), atol=1e-4)


# --- probing and wrong encoders --------------------------------------------------------------


def test_probing_costs_no_frame_and_every_frame_is_counted_once():
    counting = Counting()
    frozen = FrozenEncoder(counting, image_size=SIZE, chunk_size=2)
    assert frozen.dim == 3 and counting.frames == 0
    frozen(images(5))
    assert counting.frames == 5 and counting.largest == 2
    frozen(images(0))
    assert counting.frames == 5


def test_probing_keeps_modes_and_runs_in_the_weights_precision():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * SIZE**2), nn.Linear(3 * SIZE**2, 4))
    network.to(torch.bfloat16).train()
    network[1].eval()  # a frozen batch norm in a network that trains
    assert embedding_dim(network, SIZE) == 4
    assert [m.training for m in network] == [True, False, True] and network.training
    assert network[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    "wrong, says",
    [
        (nn.Identity(), r"\(1, 3, 32, 32\) for 1 frames"),
        (nn.Flatten(0), r"\(3072,\)"),
        (nn.Conv2d(3, 8, 4), "pool its spatial"),
    ],
)
def test_an_encoder_of_the_wrong_rank_is_named(wrong, says):
    for make in (FrozenEncoder, VIPEncoder):
        with pytest.raises(ValueError, match=says):
            make(wrong, image_size=SIZE)


def test_a_dim_that_is_not_the_outputs_is_named(tiny_encoder):
    tiny_encoder.dim = 4  # something else to its author
    with pytest.raises(ValueError, match="embeddings of size 3, but its dim is 4"):
        FrozenEncoder(tiny_encoder)(torch.zeros(8, 8, 3))


def test_networks_as_others_write_them(tiny_encoder, monkeypatch):
    tiny_encoder.config = object()  # no mapping
    assert FrozenEncoder(tiny_encoder).config == {}
    monkeypatch.setitem(ENCODERS, "mine", lambda: tiny_encoder)  # without out_features
    assert VIPEncoder("mine", dim=5).head.in_features == 3
    resnet = ResNet(BasicBlock, [1, 1, 1, 1])
    resnet.fc = torch.nn.Sequential()  # the identity
    assert FrozenEncoder(VIPEncoder(resnet, image_size=32))(torch.zeros(8, 8, 3)).shape == (512,)


def test_wrong_output_that_probing_could_not_see():
    class Lying(nn.Module):
        dim = 3

        def forward(self, frames):
            return frames.mean((-2, -1))[:1]

    with pytest.raises(ValueError, match=r"shape \(1, 3\) for 2 frames"):
        FrozenEncoder(Lying(), image_size=SIZE)(images(2))
    with pytest.raises(ValueError, match="chunk_size"):
        FrozenEncoder(Lying(), chunk_size=0)


# --- heads that become one ---------------------------------------------------------------------


def headed(seed: int, typical: float | None, dim: int) -> VIPEncoder:
    """Heads 5 -> ``dim`` on one frozen network."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5))
    torch.manual_seed(seed)
    config = {"success_threshold": 1.0}  # of one head, not of several
    config |= {} if typical is None else {"typical_distance": typical}
    return VIPEncoder(backbone, dim=dim, image_size=SIZE, config=config)


def test_merged_heads_have_the_mean_of_the_squared_distances():
    heads, frames = [headed(1, 2.0, dim=5), headed(2, 4.0, dim=5)], images(3)
    merged = merge_heads(heads)

    def squared(encoder):
        z = encoder(frames)
        return (z[:, None] - z[None]).square().sum(-1)

    # in parts of their typical distances 2 and 4, times the mean of the two, 3
    want = (squared(heads[0]) * (3 / 2) ** 2 + squared(heads[1]) * (3 / 4) ** 2) / 2
    torch.testing.assert_close(squared(merged), want, rtol=1e-4, atol=1e-6)
    assert merged.config == {"typical_distance": 3.0, "reward_scale": 1 / 3, "merged": 2}
    assert not torch.equal(heads[0].head.weight, merged.head.weight)


def test_heads_that_cannot_be_merged_are_refused():
    good = headed(1, 2.0, dim=5)
    with pytest.raises(ValueError, match="one size, at one image_size; got .*4"):
        merge_heads([good, headed(1, 2.0, dim=4)])
    with pytest.raises(ValueError, match="one encoder or more"):
        merge_heads([])
    with pytest.raises(ValueError, match='"typical_distance" in every config'):
        merge_heads([good, headed(1, None, dim=5)])
    other = headed(1, 2.0, dim=5)
    other.backbone[2].bias.data += 1
    with pytest.raises(ValueError, match="one backbone under all heads"):
        merge_heads([good, other])
