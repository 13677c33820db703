"""FrozenEncoder: one image's embedding depends on that image alone, however it is made fast."""

import copy
import math
import pickle

import pytest
import torch
from networks import SIZE, Counting, images, trained_encoder
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from torchrl_vip import FrozenEncoder, VIPEncoder, VIPTransform
from torchrl_vip.encoders import inference_dtype


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


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def test_an_embedding_never_depends_on_its_batch(encoder):
    with_norm = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AvgPool2d(30), nn.Flatten())
    for inner in (encoder, with_norm, VIPEncoder(with_norm, dim=5, image_size=SIZE)):
        frozen = FrozenEncoder(inner, image_size=SIZE)
        before, x = frozen(images(5)), images(5)
        frozen.train()
        for _ in range(3):
            frozen(images(8, seed=9))  # would move running statistics
        frozen.train()
        assert torch.allclose(frozen(x[3]), before[3], atol=1e-5)
        assert torch.allclose(torch.stack([frozen(one) for one in x]), before, atol=1e-5)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_folded_equals_unfolded_and_leaves_the_original_alone(block):
    encoder = trained_encoder(block)
    state = copy.deepcopy(encoder.state_dict())
    with torch.no_grad():
        wanted = encoder(images())
    for channels_last in (True, False):
        frozen = FrozenEncoder(encoder, channels_last=channels_last, dtype=torch.float32)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
        assert (frozen(images()) - wanted).abs().max() < 1e-4
    for k, v in encoder.state_dict().items():
        assert torch.equal(v, state[k])


def test_a_cpu_gets_a_few_frames_at_a_time_unless_told_otherwise():
    for options, largest in (({}, 16), ({"chunk_size": 30}, 30)):
        counting = Counting()
        assert FrozenEncoder(counting, **options)(images(40)).shape == (40, 3)
        assert counting.largest == largest


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 100])
def test_chunks_change_nothing(encoder, chunk_size):
    wanted = FrozenEncoder(encoder)(images())
    assert torch.allclose(
        FrozenEncoder(encoder, chunk_size=chunk_size)(images()), wanted, atol=1e-5
    )


def test_bfloat16_is_close_and_comes_back_as_float32(encoder):
    wanted = FrozenEncoder(encoder, dtype=torch.float32)(images())
    z = FrozenEncoder(encoder, dtype=torch.bfloat16)(images())
    assert z.dtype == torch.float32 and 0 < relative(z, wanted) < 0.03
    pooled = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(30), nn.Flatten())
    wanted = FrozenEncoder(pooled, image_size=SIZE)(images())
    z = FrozenEncoder(pooled, image_size=SIZE, dtype=torch.bfloat16)(images())  # by autocast
    assert z.dtype == torch.float32 and 0 < relative(z, wanted) < 0.03
    assert pooled[0].weight.dtype == torch.float32


@pytest.mark.parametrize("used_before", [False, True])
def test_to_a_dtype_is_obeyed(encoder, used_before):
    frozen = FrozenEncoder(encoder)
    wanted = FrozenEncoder(encoder, dtype=torch.float32)(images())
    if used_before:
        frozen(images(1))
    frozen.to(torch.bfloat16)
    z = frozen(images())
    assert z.dtype == torch.float32 and 0 < relative(z, wanted) < 0.03
    assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
    assert relative(FrozenEncoder(encoder).double()(images()), wanted) < 1e-5


def test_to_a_memory_format_or_device_changes_no_number(encoder):
    frozen = FrozenEncoder(encoder, channels_last=False, dtype=torch.float32)
    wanted = frozen(images())
    frozen.to(memory_format=torch.channels_last).to("cpu")
    assert torch.allclose(frozen(images()), wanted, atol=1e-5) and frozen.dtype == torch.float32


def test_precision_follows_the_recorded_reward_correlation(encoder, monkeypatch):
    cpu = torch.device("cpu")
    for native in (True, False):
        monkeypatch.setattr("torchrl_vip.encoders.native_bfloat16", lambda device, n=native: n)
        for correlation, good in ((0.995, True), (0.99, True), (0.98, False), (None, False)):
            config = (
                {} if correlation is None else {"reward_correlation": {"bfloat16": correlation}}
            )
            wanted = torch.bfloat16 if good and native else torch.float32
            assert inference_dtype(config, cpu) == wanted
            encoder.config = config
            frozen = FrozenEncoder(encoder)
            frozen(images(1))
            assert frozen.backbone.conv1.weight.dtype == wanted
            assert frozen.head.weight.dtype == torch.float32


def test_pickle_and_deepcopy(encoder):
    frozen = FrozenEncoder(encoder, chunk_size=3)
    for _ in range(2):  # before its first use and after
        for twin in (pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen)):
            assert torch.equal(twin(images()), frozen(images())) and twin.chunk_size == 3


def test_shared_weights_stay_shared_in_use(encoder):
    frozen = FrozenEncoder(encoder).share_memory()
    where = [p.data_ptr() for p in frozen.parameters()]
    frozen(images(2))
    assert all(p.is_shared() for p in frozen.parameters())
    assert [p.data_ptr() for p in frozen.parameters()] == where


def test_compile_without_a_compiler_falls_back_and_says_so(encoder, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("torchrl_vip.encoders.shutil.which", lambda name: None)
    frozen = FrozenEncoder(encoder, compile=True)
    with pytest.warns(UserWarning, match="C\\+\\+ compiler"):
        z = frozen(images())
    assert torch.equal(z, FrozenEncoder(encoder)(images()))


@pytest.mark.slow
def test_compiled_equals_eager(encoder):
    torch._dynamo.reset()
    frozen = FrozenEncoder(encoder, compile=True, dtype=torch.float32)
    assert torch.allclose(frozen(images()), FrozenEncoder(encoder)(images()), atol=1e-3)
    assert torch.equal(pickle.loads(pickle.dumps(frozen))(images(1)), frozen(images(1)))


def test_state_dict_is_the_same_before_and_after_use(encoder):
    frozen = FrozenEncoder(encoder)
    before = list(frozen.state_dict())
    frozen(images(1))
    assert list(frozen.state_dict()) == before
    assert not any("bn" in key or "running" in key for key in before)


def test_blur_is_a_gaussian_over_what_the_network_sees() -> None:
    """A point in the middle becomes the kernel: its neighbours stand at exp(-d^2 / 2 sigma^2) of it."""
    seen = []

    class Spy(nn.Module):
        dim = 2

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            seen.append(frames.clone())
            return frames.new_zeros(len(frames), 2)

    image = torch.zeros(1, 3, 32, 32)
    image[..., 16, 16] = 1.0
    for blur in (0.0, 2.0):
        FrozenEncoder(Spy(), image_size=28, blur=blur)(image)
    sharp, blurred = (frames[0, 0] - frames[0, 0, 0, 0] for frames in seen)
    assert sharp.sum().item() == pytest.approx(blurred.sum().item(), rel=1e-3)
    y, x = divmod(int(sharp.argmax()), 28)
    assert blurred.argmax() == sharp.argmax()
    assert blurred[y, x + 2] / blurred[y, x] == pytest.approx(math.exp(-0.5), rel=1e-3)
    assert blurred[y + 3, x - 4] / blurred[y, x] == pytest.approx(math.exp(-25 / 8), rel=1e-3)
    with pytest.raises(ValueError, match="blur is -1"):
        FrozenEncoder(Spy(), image_size=28, blur=-1)


def test_a_wide_blur_comes_back_in_bfloat16() -> None:
    """On CPUs with AMX a bfloat16 convolution of 17 pixels in channels_last never did."""
    network = nn.Conv2d(3, 4, 160)
    z = FrozenEncoder(nn.Sequential(network, nn.Flatten()), image_size=160, blur=3)(images(2))
    narrow = FrozenEncoder(
        nn.Sequential(copy.deepcopy(network), nn.Flatten()),
        image_size=160,
        blur=3,
        dtype=torch.bfloat16,
    )
    assert relative(narrow(images(2)), z) < 0.05


def test_blur_is_refused_where_it_would_do_nothing() -> None:
    with pytest.raises(ValueError, match=r"blur=1.5 goes with an encoder that is frozen here"):
        VIPTransform(VIPEncoder("resnet18", dim=4, image_size=32), freeze=False, blur=1.5)
    with pytest.raises(ValueError, match=r"blur=1.5 goes with"):
        VIPTransform(FrozenEncoder(VIPEncoder("resnet18", dim=4, image_size=32)), blur=1.5)
