"""The model card: what a stranger must know, written from the run itself."""

from __future__ import annotations

import json
from typing import Any

from .. import __version__


def model_card(
    config: dict[str, Any], *, name: str, licence: str, grid: str | None = None, report: str | None = None
) -> str:
    """Markdown with the front matter of the Hugging Face hub.

    config: that of the run. name: what people load, "user/name" or a folder. grid: file name of the picture.
    report: the Markdown that `meanflow evaluate` left in the run; without it the card says that nobody judged.
    """
    front = {
        "license": licence,
        "library_name": "meanflow",
        "pipeline_tag": "unconditional-image-generation" if len(config["data"].get("shape", ())) == 3 else None,
        "tags": ["meanflow", "one-step-generation", "flow-matching"],
    }
    # JSON is YAML, and quotes what needs quoting.
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items() if value), "---", ""]
    parts = ["\n".join(lines) + f"# {name.rpartition('/')[2]}", _what(config), _picture(grid), _use(config, name)]
    parts += [_training(config), _judged(report), f"Written by meanflow {__version__} from the run's own records."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(config: dict[str, Any]) -> str:
    data, kind = config["data"], config["objective"]["type"]
    calls = (
        "makes a sample in one network call (a mean flow, arXiv:2505.13447)"
        if kind == "MeanFlow"
        else f"is trained by {kind}; it needs many network calls for a sample"
    )
    shape = " x ".join(map(str, data.get("shape", ())))
    classes = f", {data['classes']} classes" if data.get("classes") else ""
    return (
        f"A generator that {calls}: {config['net']['type']}, {config['net']['parameters']:,} parameters, samples of "
        f"{shape}{classes}."
    )


def _picture(grid: str | None) -> str:
    words = "One network call each, seeds 0, 1, 2, ..., one column a class where there are classes; nothing picked."
    return f"![Samples]({grid})\n\n{words}" if grid else ""


def _use(config: dict[str, Any], name: str) -> str:
    labelled = bool(config["data"].get("classes"))
    own = config["objective"]["arguments"].get("source")
    noise = "mf.core.noise_for(net, range(8))" if own else "torch.randn(8, *net.shape)"
    lines = [
        "import torch",
        "import meanflow as mf",
        "",
        f'net = mf.load("{name}")',
        *(["labels = torch.arange(8) % net.null"] if labelled else []),
        f"x = mf.sample(net, {noise}{', labels' if labelled else ''})",
    ]
    if config["data"].get("latents"):
        lines.append("images = net.latents.decode(x)  # by the autoencoder that made the latents")
    code = "\n".join(lines)
    return f"## Use\n\n```python\n{code}\n```\n\nThe files hold numbers only; loading executes none of them."


def _training(config: dict[str, Any]) -> str:
    training, data = config["training"], config["data"]
    rows = {
        "data": data.get("source", data.get("kind")),
        "samples": f"{data['length']:,}" if data.get("length") else None,
        "fingerprint of the data": data.get("fingerprint"),
        "images seen": f"{config.get('published', {}).get('images', training['images']):,}",
        "batch": training["batch"],
        "weights": config.get("published", {}).get("weights"),
        "objective": _settings(config["objective"]["arguments"]),
        "network": _settings(config["net"].get("arguments", {})),
        "optimiser": _settings({k: training[k] for k in ("optimizer", "lr", "betas", "warmup", "schedule", "clip")}),
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value not in (None, ""))
    return f"## Training\n\n| | |\n|---|---|\n{table}"


def _settings(values: dict[str, Any]) -> str:
    shown = {name: value for name, value in values.items() if value is not None and name != "type"}
    return ", ".join(f"{name} {_words(value)}" for name, value in shown.items())


def _words(value: Any) -> str:
    """A setting as people write it: nested ones in brackets."""
    if isinstance(value, dict):
        return f"({_settings(value)})"
    return f"({', '.join(map(str, value))})" if isinstance(value, list | tuple) else str(value)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _judged(report: str | None) -> str:
    if report is None:
        return "## Quality\n\nNot judged. `meanflow evaluate` measures it, with the protocol beside every figure."
    body = "\n".join(line for line in report.splitlines() if not line.startswith("# "))
    return "## Quality\n\n" + body.strip()
