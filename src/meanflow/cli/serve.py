"""meanflow serve."""

from __future__ import annotations

import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..training.run import pick_device
from .words import at_least_one, parse


@dataclass
class Serve:
    """Serve a run over HTTP: POST /v1/samples with labels and seeds, get a PNG grid, PNGs or arrays.

    The same seed gives the same picture as `meanflow sample`. GET /openapi.json describes the interface, /v1/model the
    run and the limits, /healthz and /metrics are for operators. SIGTERM and Ctrl-C finish what is being answered.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every network, which anybody there can then use."""
    port: int = 8000
    """Port; 0 takes a free one."""
    ema: float | str | None = None
    """Decay of the averaged weights to use, the run's first by default; power:0.075 rebuilds one of that length."""
    raw: bool = False
    """Use the weights without averaging."""
    vae: str | None = None
    """Autoencoder that decodes the samples of a latent run, where it is no longer at the path of the run's latents."""
    device: str = "auto"
    """Device: cpu, cuda, or auto for the first GPU where there is one."""
    max_samples: int = 64
    """Samples in one request."""
    max_calls: int = 64
    """Network calls per sample."""
    max_batch: int = 64
    """Samples in one network call; requests that wait together share calls."""
    max_waiting: int = 1024
    """Samples that may wait before requests are turned away with 503."""
    max_body: int = 65_536
    """Bytes of a request."""
    timeout: float = 60.0
    """Seconds after which a request is given up with 504."""
    no_batching: bool = False
    """Give every request network calls of its own."""


def run(words: list[str]) -> int:
    """Serve a run until a signal ends it."""
    s = parse(Serve, words, "serve")
    at_least_one(max_samples=s.max_samples, max_calls=s.max_calls, max_batch=s.max_batch)
    at_least_one(max_waiting=s.max_waiting, max_body=s.max_body)
    if not s.timeout > 0:
        raise ValueError(f"timeout must be positive, got {s.timeout}")
    if not 0 <= s.port <= 65535:
        raise ValueError(f"port must lie in 0 to 65535, got {s.port}")
    try:
        import uvicorn

        from ..serve import Generator, Limits, create_app
    except ModuleNotFoundError as error:
        raise ValueError(f"meanflow serve needs {error.name}; install it with pip install 'meanflow[serve]'") from error
    generator = Generator(s.run, ema=s.ema, raw=s.raw, vae=s.vae, device=pick_device(s.device))
    limits = Limits(s.max_samples, s.max_calls, s.max_body, s.max_batch, s.max_waiting, s.timeout)
    with _listening(s.host, s.port) as listener:
        host, port = listener.getsockname()[:2]
        print(f"{s.run} at http://{f'[{host}]' if ':' in host else host}:{port}/v1/samples", flush=True)
        app = create_app(generator, limits, batching=not s.no_batching)
        for number in (signal.SIGINT, signal.SIGTERM):
            # uvicorn stops at these by itself, and raises them again when it has; that is no failure here.
            signal.signal(number, lambda *_: None)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=int(s.timeout) + 1)
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _listening(host: str, port: int) -> socket.socket:
    """A socket bound to the address; raises OSError saying what to do where that is impossible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error}; choose another --port or --host") from error
    return listener
