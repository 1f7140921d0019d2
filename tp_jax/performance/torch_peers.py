"""The process of a peer in PyTorch; `peers` starts it and says what it computes.

The official DiT trains as its train.py does: its diffusion's losses, AdamW, and an average of the
parameters. The SD3 transformer of diffusers trains with the loss of rectified flow instead.
"""

import contextlib
import copy
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

from tp_jax.data.workers import end_with_parent
from tp_jax.messages.errors import first_line
from tp_jax.performance.peers import PeerSpec

# What timm imports of torchvision. No layer of DiT uses it.
TORCHVISION = (
    "", ".datasets", ".models", ".models.feature_extraction", ".ops", ".ops.misc", ".transforms",
    ".transforms.functional",
)  # fmt: skip


def serve(connection: Connection, spec: PeerSpec) -> None:
    """Build and run a peer, then answer questions until the connection is closed.

    Each answer is a pair: what was asked for, and an error message or None.
    """
    end_with_parent()
    # What a peer prints is no result.
    sys.stdout = sys.stderr
    try:
        started = time.perf_counter()
        peer = _Peer(spec)
        peer.seconds(1)
        facts = {"compile_seconds": time.perf_counter() - started}
        connection.send((None, None))
        with contextlib.suppress(EOFError):
            while True:
                what, value = connection.recv()
                found = peer.seconds(value) if what == "seconds" else facts | peer.memory()
                connection.send((found, None))
    except Exception as error:
        connection.send((None, f"{type(error).__name__}: {first_line(error)}"))


class _Peer:
    """A function of PyTorch and how to time it."""

    def __init__(self, spec: PeerSpec) -> None:
        import torch

        self._torch, self._cuda = torch, torch.cuda.is_available()
        torch.set_num_threads(spec.threads)
        torch.manual_seed(0)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        device = "cuda" if self._cuda else "cpu"
        model = {"dit": _OfficialDiT, "sd3": _SD3}[spec.kind](spec, torch, device)
        mixed = spec.model["dtype"] == "bfloat16"
        autocast = torch.autocast(device, torch.bfloat16, enabled=mixed)
        if spec.job == "train":
            self._call = _train_step(model, autocast, spec, torch)
        else:
            run = model.forward if spec.job == "forward" else model.sample

            @torch.no_grad()
            def call() -> None:
                with autocast:
                    run()

            self._call = call

    def seconds(self, calls: int) -> float:
        self._wait()
        started = time.perf_counter()
        for _ in range(calls):
            self._call()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self._cuda:
            self._torch.cuda.synchronize()

    def memory(self) -> dict[str, int]:
        from tp_jax.performance.memory import peak_host_bytes

        found = {"peak_host_bytes": peak_host_bytes()}
        if self._cuda:
            found["peak_device_bytes"] = self._torch.cuda.max_memory_allocated()
        return found


def _train_step(model: Any, autocast: Any, spec: PeerSpec, torch: Any) -> Callable[[], Any]:
    """Return a train step: loss, gradient, AdamW, and the average of the parameters."""
    network = model.network.train()
    average = copy.deepcopy(network).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0)
    pairs = list(zip(average.parameters(), network.parameters(), strict=True))
    decay = spec.ema_decay

    def step() -> Any:
        with autocast:
            loss = model.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, value in pairs:
                mean.mul_(decay).add_(value, alpha=1 - decay)
        return loss.item()

    return step


class _OfficialDiT:
    """The model, losses and sampling of facebookresearch/DiT."""

    def __init__(self, spec: PeerSpec, torch: Any, device: str) -> None:
        sys.path.insert(0, spec.folder)
        with _torchvision_optional():
            models = importlib.import_module("models")
        create_diffusion = importlib.import_module("diffusion").create_diffusion
        fields, size, self._torch = spec.model, spec.batch_size, torch
        self._device = device
        self.network = (
            models.DiT(
                input_size=fields["image_size"],
                patch_size=fields["patch"],
                in_channels=fields["channels"],
                hidden_size=fields["width"],
                depth=fields["depth"],
                num_heads=fields["heads"],
                mlp_ratio=fields["mlp_ratio"],
                num_classes=fields["num_classes"],
            )
            .to(device)
            .eval()
        )
        compiled: Callable[[Any], Any] = torch.compile if spec.compiled else lambda f: f
        self._run = compiled(self.network)
        self._scale = spec.sampling["guidance_scale"]
        self._guided = compiled(self.network.forward_with_cfg)
        self._training = create_diffusion(timestep_respacing="")
        self._sampling = create_diffusion(str(spec.sampling["steps"]))
        side, classes = fields["image_size"], fields["num_classes"]
        self._x = torch.randn(size, fields["channels"], side, side, device=device)
        self._y = torch.randint(0, classes, (size,), device=device)
        self._null = torch.full((size,), classes, device=device)

    def _timesteps(self) -> Any:
        steps, size = self._training.num_timesteps, (len(self._x),)
        return self._torch.randint(0, steps, size, device=self._device)

    def loss(self) -> Any:
        found = self._training.training_losses(
            self._run, self._x, self._timesteps(), dict(y=self._y)
        )
        return found["loss"].mean()

    def forward(self) -> Any:
        return self._run(self._x, self._timesteps(), self._y)

    def sample(self) -> Any:
        torch, run, x, condition = self._torch, self._run, self._x, dict(y=self._y)
        if self._scale != 1:
            run, x = self._guided, torch.cat([x, x])
            condition = dict(y=torch.cat([self._y, self._null]), cfg_scale=self._scale)
        return self._sampling.p_sample_loop(
            run, x.shape, x, clip_denoised=False, model_kwargs=condition, device=x.device
        )


class _SD3:
    """SD3Transformer2DModel of diffusers, with the loss and Euler's method of rectified flow."""

    def __init__(self, spec: PeerSpec, torch: Any, device: str) -> None:
        diffusers = importlib.import_module("diffusers")
        fields, size, self._torch = spec.model, spec.batch_size, torch
        self._device = device
        self.network = (
            diffusers.SD3Transformer2DModel(
                sample_size=fields["image_size"],
                patch_size=fields["patch"],
                in_channels=fields["channels"],
                out_channels=fields["channels"],
                num_layers=fields["depth"],
                attention_head_dim=fields["width"] // fields["heads"],
                num_attention_heads=fields["heads"],
                joint_attention_dim=fields["text_width"],
                caption_projection_dim=fields["width"],
                pooled_projection_dim=fields["pooled_width"],
                pos_embed_max_size=fields["max_grid"],
                dual_attention_layers=tuple(range(fields["dual_attention_layers"])),
                qk_norm="rms_norm" if fields["qk_norm"] else None,
            )
            .to(device)
            .eval()
        )
        self._run = torch.compile(self.network) if spec.compiled else self.network
        self._scale, self._steps = spec.sampling["guidance_scale"], spec.sampling["steps"]
        self._scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        side = fields["image_size"]
        self._x = torch.randn(size, fields["channels"], side, side, device=device)
        self._text = torch.randn(size, fields["text_tokens"], fields["text_width"], device=device)
        self._pooled = torch.randn(size, fields["pooled_width"], device=device)

    def _predict(self, x: Any, timestep: Any, copies: int = 1) -> Any:
        return self._run(
            hidden_states=x,
            timestep=timestep,
            encoder_hidden_states=self._text.repeat(copies, 1, 1),
            pooled_projections=self._pooled.repeat(copies, 1),
            return_dict=False,
        )[0]

    def loss(self) -> Any:
        torch, x = self._torch, self._x
        sigma = torch.sigmoid(torch.randn(len(x), 1, 1, 1, device=self._device))
        noise = torch.randn_like(x)
        found = self._predict(x + sigma * (noise - x), 1000 * sigma.flatten())
        return ((found.float() - (noise - x)) ** 2).mean()

    def forward(self) -> Any:
        return self._predict(self._x, 1000 * self._torch.rand(len(self._x), device=self._device))

    def sample(self) -> Any:
        torch, x, guided = self._torch, self._x, self._scale != 1
        copies = 2 if guided else 1
        self._scheduler.set_timesteps(self._steps, device=self._device)
        for timestep in self._scheduler.timesteps:
            found = self._predict(torch.cat([x] * copies), timestep.expand(copies * len(x)), copies)
            if guided:
                given, null = found.chunk(2)
                found = null + self._scale * (given - null)
            x = self._scheduler.step(found, timestep, x, return_dict=False)[0]
        return x


@contextlib.contextmanager
def _torchvision_optional() -> Iterator[None]:
    """Let timm be imported without torchvision."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    names = [f"torchvision{name}" for name in TORCHVISION]
    sys.modules.update({name: mock.MagicMock(name=name) for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
