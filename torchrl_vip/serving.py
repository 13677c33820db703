"""One encoder for the transforms of many worker processes, by TorchRL's inference server."""

from __future__ import annotations

import os
import queue
import secrets
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, lazy_stack
from torch import Tensor, nn
from torchrl._comm import MailboxTransportError
from torchrl.modules.inference_server import MPTransport, ProcessInferenceServer

from torchrl_vip.encoders import FrozenEncoder
from torchrl_vip.functional import check_range, to_chw
from torchrl_vip.weights import load_vip


class EncoderServer:
    """Embeds the frames of many processes in joint batches, with one copy of the weights.

    The encoder runs in a process of its own: this one's threads, a ParallelEnv's polling among them,
    would hold the interpreter in its way. Each worker gets a client, made before the worker starts,
    as the encoder of its VIPTransform. A script that is run needs ``if __name__ == "__main__":``.

    Args:
        encoder: a checkpoint's name or path, or a module, as of :class:`torchrl_vip.VIPTransform`;
            None is the bundled checkpoint.
        max_batch_size: at most so many requests in one forward.
        min_batch_size: requests to wait for, at most ``wait`` seconds: the number of workers where
            they go in step, 1 where they do not.
        wait: seconds.
        timeout: seconds after which a client gives up waiting for its embedding.
        **options: of :class:`FrozenEncoder`: dtype, compile, chunk_size, ...

    Example:
        >>> with EncoderServer() as server:  # doctest: +SKIP
        ...     makers = [partial(make_worker, server.client()) for _ in range(8)]
        ...     env = ParallelEnv(8, makers)  # make_worker: TransformedEnv(..., VIPTransform(client))
    """

    def __init__(
        self,
        encoder: str | os.PathLike | nn.Module | None = None,
        *,
        max_batch_size: int = 64,
        min_batch_size: int = 1,
        wait: float = 0.01,
        timeout: float = 60.0,
        **options: Any,
    ):
        if not isinstance(encoder, nn.Module):
            encoder = load_vip(encoder)
        if not isinstance(encoder, FrozenEncoder):
            encoder = FrozenEncoder(encoder, **options)
        elif options:
            raise ValueError(
                f"{', '.join(options)} for a FrozenEncoder, which has its own already."
            )
        self.encoder = encoder
        self.timeout = timeout
        # Plain queues break when they travel inside the environment maker of a ParallelEnv.
        self._transport = MPTransport(use_manager=True)
        self._server = ProcessInferenceServer(
            policy_factory=partial(partial, _embed, encoder),
            transport=self._transport,
            max_batch_size=max_batch_size,
            min_batch_size=min_batch_size,
            timeout=wait,
            policy_version_key=None,
        )

    def client(self) -> EncoderClient:
        """An encoder for one worker's VIPTransform; to be made before the worker starts."""
        return EncoderClient(self)

    def connect(self) -> Any:
        """A line to the encoder's process, for one client: TorchRL's."""
        return self._transport.client()

    def stats(self) -> dict[str, Any]:
        """TorchRL's figures: requests, batches, waiting and forward times."""
        return self._server.stats()

    def start(self) -> EncoderServer:
        self._server.start()
        return self

    def shutdown(self) -> None:
        self._server.shutdown()
        self._transport.close()

    def __enter__(self) -> EncoderServer:
        return self.start()

    def __exit__(self, *_: Any) -> None:
        self.shutdown()


def _embed(encoder: FrozenEncoder, requests: TensorDictBase) -> TensorDictBase:
    """A request holds the frames ``[n, 3, H, W]`` of one worker; those of one size go together."""
    frames = [request["pixels"] for request in requests.unbind(0)]
    kinds: dict[tuple, list[int]] = {}
    for i, x in enumerate(frames):
        kinds.setdefault((x.shape[1:], x.dtype), []).append(i)
    answers: dict[int, TensorDict] = {}
    for members in kinds.values():
        z = encoder(torch.cat([frames[i] for i in members]), channel_dim=-3)
        parts = z.split([len(frames[i]) for i in members])
        answers |= {
            i: TensorDict({"vip_vec": part}) for i, part in zip(members, parts, strict=True)
        }
    return lazy_stack([answers[i] for i in range(len(frames))])


class EncoderClient(nn.Module):
    """Images ``[*B, 3, H, W]`` or ``[*B, H, W, 3]`` to float32 ``[*B, D]``, embedded by a server.

    For one process at a time. What it has of a :class:`FrozenEncoder` is its sizes and config; the
    weights are the server's.

    Raises:
        RuntimeError: the server did not answer in time.
    """

    def __init__(self, server: EncoderServer):
        super().__init__()
        encoder = server.encoder
        self.dim, self.image_size, self.config = encoder.dim, encoder.image_size, encoder.config
        self.timeout = server.timeout
        self._client = server.connect()
        self._process = os.getpid()

    def _own_numbers(self) -> None:
        """Numbers its requests from anywhere: copies of a client in two processes, or in one that was
        started again, count from the same number on, and would take each other's answers."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._client._next_request_id = secrets.randbits(60)

    def forward(self, images: Tensor, *, channel_dim: int | None = None) -> Tensor:
        check_range(images)
        images = to_chw(images, channel_dim)
        batch = images.shape[:-3]
        if not batch.numel():
            return torch.zeros(*batch, self.dim, device=images.device, dtype=torch.float32)
        frames = images.detach().reshape(-1, *images.shape[-3:]).cpu().contiguous()
        self._own_numbers()
        try:
            answer = self._client(TensorDict({"pixels": frames}), timeout=self.timeout)
        except (queue.Empty, MailboxTransportError, ConnectionError, EOFError) as error:
            raise RuntimeError(
                f"the encoder's server did not answer within {self.timeout:g} s: is its process "
                "alive, was it started (`with EncoderServer(...)`), and has every process a "
                "server.client() of its own? Two that share one take each other's answers."
            ) from error
        return answer["vip_vec"].to(images.device).reshape(*batch, self.dim)

    def __deepcopy__(self, memo: dict) -> EncoderClient:
        return self  # what it holds is a line to the server

    def share_memory(self) -> EncoderClient:
        return self  # it has no weights
