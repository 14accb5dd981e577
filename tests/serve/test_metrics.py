"""Every answer is counted, also one that should not be."""

import asyncio

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (pip install 'meanflow[serve]')")

import meanflow as mf
from meanflow.serve import Generator, create_app


def test_an_answer_with_500_is_counted(tmp_path):
    net = mf.nets.DiT((1, 8, 8), patch=4, width=16, depth=1, heads=2, classes=10)
    mf.fit(mf.MeanFlow(net), mf.data.digits(), out=tmp_path / "run", images=64, batch=64)
    generator = Generator(tmp_path / "run")

    def broken(*_):
        raise RuntimeError("the device is gone")

    generator.draw = broken
    app = create_app(generator)
    body = b'{"seeds": [0]}'

    async def request(method, path, data=b""):
        said = []

        async def receive():
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message):
            said.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
                 "raw_path": path.encode(), "query_string": b"", "headers": headers, "scheme": "http",
                 "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2)}  # fmt: skip
        try:
            await app(scope, receive, send)
        except RuntimeError as error:
            assert "the device is gone" in str(error)
        return said[0]["status"], b"".join(m.get("body", b"") for m in said).decode()

    async def main():
        async with app.router.lifespan_context(app):
            status, _ = await request("POST", "/v1/samples", body)
            return status, (await request("GET", "/metrics"))[1]

    status, metrics = asyncio.run(main())
    assert status == 500
    assert 'meanflow_requests_total{path="/v1/samples",status="500"} 1.0' in metrics
