"""The result of a training on the Hugging Face hub: whether it may be put there, its card, and putting it there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffv2ir.data import Example
from diffv2ir.errors import first_line
from diffv2ir.hub import HubError
from diffv2ir.hub_sources import HUB_ID, named
from diffv2ir.training.starts import hub_source

_CARD = """---
library_name: diffusers
pipeline_tag: {task}
tags: [infrared, thermal, visible-to-infrared, diffv2ir]
{base}---

# {name}

{what} What it draws is plausible infrared, **not a measurement of temperature**.

## Use

With the code of DiffV2IR:

```sh
{usage}
```

## Training

| | |
| --- | --- |
{rows}

All settings, and the loss as it was logged, are in `training.json`.

## What this card does not say

How good the pictures are: the training that wrote it does not know, `python -m diffv2ir evaluate` measures it.
The terms of the weights follow from those of the model it started from and of the data: add a `license` above.
"""


class PushError(HubError):
    """A result cannot be put on the hub; the message says what to do."""


def check_target(repo_id: str) -> None:
    """See before a training that its result can be put into `repo_id`, which is made, private, if it is not there.

    Raises:
        PushError: no name of a repository, no token, offline, or no right to write.
    """
    from huggingface_hub import HfApi, get_token

    match = HUB_ID.fullmatch(repo_id)
    if match is None or match[2]:
        raise PushError(f"--push-to-hub expects OWNER/NAME, got {repo_id!r}")
    if get_token() is None:
        raise PushError(f"{repo_id}: there is no access token; log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    with _told(repo_id):
        api.create_repo(repo_id, private=True, exist_ok=True)
        # Of a repository that is there, the former asks for no right.
        api.auth_check(repo_id, write=True)


def publish(folder: Path, repo_id: str, message: str) -> str:
    """Put a folder into a repository that `check_target` has seen; returns its address.

    Raises:
        PushError: as `check_target`, or it broke off.
    """
    from huggingface_hub import HfApi

    try:
        with _told(repo_id):
            HfApi().upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    except PushError as error:
        raise PushError(
            f"{error}; the result is in {folder}, and the same command pushes it without training"
        ) from error
    return f"https://huggingface.co/{repo_id}"


def write_card(result: Path, history: Path, repo_id: str, start: str, examples: Sequence[Example]) -> None:
    """Write `README.md` and `training.json` into the result of a phase.

    Args:
        history: `history.json` of the run. examples: what it was trained on.
        start: where it started, as it was given; a folder of this machine is not named.
    """
    record = json.loads(history.read_text(encoding="utf-8"))
    (result / "training.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    (result / "README.md").write_text(model_card(record, repo_id, start, examples), encoding="utf-8")


def model_card(record: dict[str, Any], repo_id: str, start: str, examples: Sequence[Example]) -> str:
    """The card of a result, from the configuration and the log of its training. Arguments as of `write_card`."""
    phase = record["config"]["phase"]
    bundle = phase in ("2", "3")
    source = None if Path(start).exists() else named(start) or hub_source(start)
    rows = _rows(record, f"[{start}]({source.page})" if source else "a folder", examples)
    return _CARD.format(
        task="image-to-image" if bundle else "text-to-image",
        base=f"base_model: {source.repo_id}\n" if source and source.repo_type == "model" else "",
        name=repo_id.partition("/")[2],
        what="A colour photo in, an infrared picture out: a bundle of DiffV2IR."
        if bundle
        else "A text-to-image model of infrared pictures, from which phase 2 of DiffV2IR starts.",
        usage=f"python -m diffv2ir translate photo.jpg --out results --bundle {repo_id}"
        if bundle
        else f"python -m train.phase2 --data DATASET --start {repo_id} --vlum VLUM --output runs/phase2",
        rows="\n".join(f"| {name} | {value} |" for name, value in rows),
    )


def _rows(record: dict[str, Any], start: str, examples: Sequence[Example]) -> Iterator[tuple[str, str]]:
    config, loop = record["config"], record["config"]["loop"]
    yield "phase", config["phase"] + (f", style `{config['style']}`" if config["style"] else "")
    yield "started from", start
    sources = Counter(example.source for example in examples).most_common()
    yield "examples", f"{len(examples)}: {', '.join(f'{count} of {source}' for source, count in sources)}"
    yield "steps x batch", f"{loop['steps']} x {loop['batch_size']}"
    yield "learning rate", f"{loop['learning_rate']:g}, {loop['schedule']}, {loop['optimizer']}"
    yield "trained", "LoRA of rank {rank}".format(**config["lora"]) if config["lora"] else "all weights of the UNet"
    yield "crop", f"{config['view']['crop']} px"
    losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    yield "loss, first to last", f"{losses[0]:.4f} to {losses[-1]:.4f}"
    figures = [entry for entry in record["history"] if "validation/psnr" in entry]
    if figures:
        yield "PSNR on held-out scenes", f"{figures[-1]['validation/psnr']:.2f} dB"


@contextmanager
def _told(repo_id: str) -> Iterator[None]:
    """huggingface_hub's errors as one sentence each."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise PushError(f"{repo_id}: the hub is switched off (HF_HUB_OFFLINE); unset it to push") from error
    except RepositoryNotFoundError as error:
        raise PushError(f"{repo_id}: there is no such repository, or the token may not see it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        known = {
            401: "the hub refuses the access token: log in anew with `hf auth login`, or correct HF_TOKEN",
            403: "this access token may not write there: make one with write access, or choose a repository of yours",
        }
        raise PushError(f"{repo_id}: {known.get(status, first_line(error))}") from error
    except (HTTPError, OSError) as error:
        raise PushError(f"{repo_id}: the hub cannot be reached ({first_line(error)})") from error
