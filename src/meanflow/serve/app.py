"""The HTTP face: FastAPI routes, limits, metrics."""

from __future__ import annotations

import asyncio
import io
import json
import time
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr
from torch import Tensor

from .. import __version__
from ..evaluation.pictures import picture, single
from .batching import Batcher, BusyError, Job
from .generator import Generator

Message = MutableMapping[str, Any]
GRID, ZIP, NPZ = "image/png", "application/zip", "application/x-npz"
BIGGEST_SEED = 2**63 - 1  # what torch's generators take


@dataclass(frozen=True)
class Limits:
    """What the service accepts."""

    samples: int = 64
    """Samples in one request."""
    calls: int = 64
    """Network calls per sample."""
    body: int = 64 * 1024
    """Bytes of a request."""
    rows: int = 64
    """Samples in one network call."""
    waiting: int = 1024
    """Samples that may wait for the network before requests are turned away with 503."""
    seconds: float = 60.0
    """Time after which a request is given up with 504."""


class Asked(BaseModel):
    """The body of a request for samples."""

    model_config = ConfigDict(extra="forbid")

    seeds: list[Annotated[StrictInt, Field(ge=0, le=BIGGEST_SEED)]] = Field(
        default=[0], min_length=1, description="One sample a seed; the same seed gives the same sample."
    )
    labels: StrictInt | StrictStr | list[StrictInt | StrictStr] | None = Field(
        default=None,
        description="Class by number or name: one for all samples, or one a seed. By default seed modulo classes.",
    )
    steps: Annotated[StrictInt, Field(ge=1)] | None = Field(
        default=None, description="Network calls per sample, at equal intervals; 1 by default."
    )
    times: list[Annotated[StrictFloat, Field(ge=0, le=1)]] | None = Field(
        default=None, min_length=2, description="Instead of steps: decreasing times from 1.0 (noise) to 0.0 (data)."
    )
    guidance: Annotated[StrictFloat, Field(ge=0, le=100)] | None = Field(
        default=None, description="Guidance scale at sampling time, for runs trained without guidance inside."
    )
    format: Literal["grid", "png", "npz"] = Field(
        default="grid",
        description="grid: one PNG with all samples; png: a PNG, for several samples a zip of PNGs; npz: float arrays.",
    )


class RefusedError(ValueError):
    """A request that cannot be answered; the text says why."""


def create_app(generator: Generator, limits: Limits = Limits(), *, batching: bool = True) -> FastAPI:
    """The service for one run, as an ASGI application."""
    metrics = _Metrics()
    batcher: Batcher

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal batcher
        batcher = Batcher(
            generator.draw, rows=limits.rows, waiting=limits.waiting, batching=batching, observe=metrics.rows.observe
        )
        metrics.waiting.set_function(lambda: batcher.waiting)
        batcher.start()
        yield
        await batcher.stop()

    # No interactive pages: those of FastAPI load scripts from another host.
    app = FastAPI(title="meanflow", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(_BodyLimit, limit=limits.body)
    app.add_middleware(_Measured, metrics=metrics)
    app.add_exception_handler(RequestValidationError, _unprocessable)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(BusyError, _busy)

    @app.post("/v1/samples", response_class=Response, responses=_RESPONSES)
    async def samples(asked: Asked) -> Response:
        """Draw samples: a PNG grid, single PNGs or arrays."""
        job = _job(asked, generator, limits)
        try:
            x = await asyncio.wait_for(batcher.submit(job), limits.seconds)
        except TimeoutError:
            return JSONResponse({"detail": f"no answer within {limits.seconds:g} seconds; try again later"}, 504)
        metrics.samples.inc(len(job.seeds))
        body, kind = await asyncio.to_thread(_packed, x, job, asked.format)
        return Response(body, media_type=kind)

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        """What the service draws, and its limits."""
        return {
            "run": generator.name,
            "shape": generator.shape,
            "classes": generator.classes,
            "class_names": generator.class_names,
            "guidance": generator.guides() or "possible",
            "limits": asdict(limits),
        }

    @app.get("/healthz", responses={503: {"description": "Not ready, or stopping."}})
    async def health() -> Response:
        """200 while requests are being worked through."""
        return JSONResponse({"status": "ok"}) if batcher.alive else JSONResponse({"status": "stopping"}, 503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Counters, latencies and batch sizes in Prometheus' format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _job(asked: Asked, generator: Generator, limits: Limits) -> Job:
    """The job of a request; raises RefusedError for what this run or this service cannot do."""
    count = len(asked.seeds)
    if count > limits.samples:
        raise RefusedError(f"at most {limits.samples} samples a request, got {count} seeds; send several requests")
    if asked.format != "npz" and not generator.pictures:
        raise RefusedError(f"samples of shape {list(generator.shape)} cannot be drawn; ask for the format npz")
    if asked.guidance not in (None, 1.0) and (reason := generator.guides()):
        raise RefusedError(f"guidance is not possible: {reason}")
    return Job(tuple(asked.seeds), _labels(asked, generator), _times(asked, limits), asked.guidance)


def _labels(asked: Asked, generator: Generator) -> tuple[int, ...] | None:
    count, classes = len(asked.seeds), generator.classes
    if asked.labels is None:
        return None if classes is None else tuple(seed % classes for seed in asked.seeds)
    given = asked.labels if isinstance(asked.labels, list) else [asked.labels] * count
    if len(given) != count:
        raise RefusedError(f"one label for all samples or one a seed: got {len(given)} labels for {count} seeds")
    try:
        return tuple(generator.label_of(label) for label in given)
    except ValueError as error:
        raise RefusedError(str(error)) from error


def _times(asked: Asked, limits: Limits) -> tuple[float, ...]:
    if asked.times is not None:
        if asked.steps is not None:
            raise RefusedError("give steps or times, not both: n + 1 times already make n calls")
        times = tuple(asked.times)
        if any(r >= t for t, r in pairwise(times)) or (times[0], times[-1]) != (1, 0):
            raise RefusedError(f"times must decrease from 1.0 to 0.0, got {list(times)[:20]}")
    else:
        steps = asked.steps or 1
        _few(steps, limits)
        times = tuple(1 - i / steps for i in range(steps + 1))
    _few(len(times) - 1, limits)
    return times


def _few(calls: int, limits: Limits) -> None:
    if calls > limits.calls:
        raise RefusedError(f"at most {limits.calls} network calls per sample, got {calls}")


def _packed(x: Tensor, job: Job, form: str) -> tuple[bytes, str]:
    """The body of an answer and its type."""
    out = io.BytesIO()
    if form == "npz":
        arrays: dict[str, Any] = {"x": x.numpy(), "seeds": np.array(job.seeds)}
        np.savez(out, **arrays | ({} if job.labels is None else {"labels": np.array(job.labels)}))
        return out.getvalue(), NPZ
    if form == "grid" or x.ndim != 4:
        picture(x).save(out, "PNG")
        return out.getvalue(), GRID
    if len(x) == 1:
        single(x[0]).save(out, "PNG")
        return out.getvalue(), GRID
    with zipfile.ZipFile(out, "w") as archive:
        for i, seed in enumerate(job.seeds):
            png = io.BytesIO()
            single(x[i]).save(png, "PNG")
            name = f"{i:03d}-seed{seed}" + ("" if job.labels is None else f"-class{job.labels[i]}")
            archive.writestr(f"{name}.png", png.getvalue())
    return out.getvalue(), ZIP


async def _unprocessable(_: Request, error: Exception) -> Response:
    """What was wrong, without the input: it may hold what JSON cannot, such as NaN."""
    assert isinstance(error, RequestValidationError)
    lines = [f"{'.'.join(map(str, e['loc'][1:])) or 'body'}: {e['msg']}" for e in error.errors()[:20]]
    return _detail(422, "; ".join(lines))


async def _refused(_: Request, error: Exception) -> Response:
    return _detail(422, str(error))


async def _busy(_: Request, error: Exception) -> Response:
    answer = _detail(503, str(error))
    answer.headers["Retry-After"] = "1"
    return answer


def _detail(status: int, text: str) -> Response:
    # Escaped, as a label may hold half a surrogate pair, which UTF-8 does not know.
    return Response(json.dumps({"detail": text}), status, media_type="application/json")


class _Metrics:
    """What Prometheus sees, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("meanflow_requests", "Requests by path and status", ["path", "status"], **self._own())
        self.seconds = Histogram("meanflow_request_seconds", "Time of a request for samples", **self._own())
        self.samples = Counter("meanflow_samples", "Samples drawn", **self._own())
        sizes = [2**n for n in range(11)]
        self.rows = Histogram("meanflow_batch_rows", "Samples in a network call", buckets=sizes, **self._own())
        self.waiting = Gauge("meanflow_waiting_samples", "Samples that wait for the network", **self._own())

    def _own(self) -> dict[str, Any]:
        return {"registry": self.registry}


App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]
PATHS = ("/v1/samples", "/v1/model", "/healthz", "/metrics", "/openapi.json")


class _Measured:
    """Counts every answer, and times those for samples."""

    def __init__(self, app: App, metrics: _Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"] if scope["path"] in PATHS else "other"
        begun = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(path, str(message["status"])).inc()
                if path == PATHS[0]:
                    self.metrics.seconds.observe(time.perf_counter() - begun)
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:  # answered outside of here, with a 500
            self.metrics.requests.labels(path, "500").inc()
            raise


class _BodyLimit:
    """Answers 413 for a body that is too long, before it is read to its end."""

    def __init__(self, app: App, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        parts, size, more = [], 0, scope["method"] in ("POST", "PUT", "PATCH")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.limit:
            return await self._too_long(scope, receive, send)
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > self.limit:
                return await self._too_long(scope, receive, send)
        body = iter([{"type": "http.request", "body": b"".join(parts), "more_body": False}])

        async def replayed() -> Message:
            return next(body, None) or await receive()

        return await self.app(scope, replayed, send)

    async def _too_long(self, scope: Message, receive: Any, send: Any) -> None:
        answer = _detail(413, f"the request is longer than {self.limit} bytes; ask for fewer samples at a time")
        await answer(scope, receive, send)


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The samples.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (GRID, ZIP, NPZ)},
    },
    413: {"description": "The request is too long.", "model": Problem},
    422: {"description": "Malformed, or not possible with this run or these limits.", "model": Problem},
    503: {"description": "Too many samples wait, or the service is stopping.", "model": Problem},
    504: {"description": "Not done in time.", "model": Problem},
}
