"""Upload a folder to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..training.published import NAME
from .folder import write_folder


def push(run: Path, name: str, *, private: bool = False, licence: str, **how: Any) -> str:
    """Write the folder of a run and upload it as "user/name" in one commit; returns the address of the model.

    how: as in write_folder. Raises ValueError for a name of another form, or without huggingface_hub, and
    RuntimeError with the hub's words where it refuses.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f'a model on the hub is called "user/name", got {name!r}')
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        raise ValueError(
            "meanflow push needs huggingface_hub; install it with pip install 'meanflow[hub]', or write the folder "
            "only, with --folder OUT"
        ) from error
    with tempfile.TemporaryDirectory() as aside:
        folder = write_folder(run, Path(aside) / "model", name=name, licence=licence, **how)
        try:
            api = HfApi()
            api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message="Publish with meanflow")
        except Exception as error:  # of the HTTP library, which changes with the version of huggingface_hub
            raise RuntimeError(
                f"the hub did not take {name}: {error}. Log in with `hf auth login`, or write the folder only with "
                "--folder OUT"
            ) from error
    return f"https://huggingface.co/{name}"
