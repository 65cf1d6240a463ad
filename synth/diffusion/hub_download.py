"""Fetch a network from the Hugging Face Hub, with one line for whatever goes wrong."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  (of httpx or its successor)
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from synth.base.errors import UserError


def download_unet(hub_id: str, config_name: str, weight_names: Sequence[str]) -> Path:
    """Download a network's config and the first of its weight files that there is; their folder.

    It is looked for in unet/, then at the top. What was fetched before comes from the cache, also
    without a network, and stays the same version.
    Raises UserError when the model does not exist, has no network, needs a token, or the Hub cannot
    be reached.
    """
    try:
        for cached in (True, False):
            for folder in ("unet/", ""):
                config = first_file(hub_id, [folder + config_name], cached)
                names = [folder + name for name in weight_names]
                weights = config and first_file(hub_id, names, cached)
                if weights:
                    return weights.parent
    except GatedRepoError as error:
        raise UserError(
            f"--init-from {hub_id}: its owner asks for consent; accept at "
            f"https://huggingface.co/{hub_id} and log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"--init-from {hub_id}: no such folder here and no such model on the Hub, or a private "
            "one; check the name, or log in with `hf auth login`"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"--init-from {hub_id}: no such folder here, and the Hub cannot be reached; download "
            "the model where there is a network, and give its folder"
        ) from error
    except (HTTPError, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(
            f"--init-from {hub_id}: the download failed ({reason}); run the same command again"
        ) from error
    raise UserError(
        f"--init-from {hub_id}: that model has no {config_name} with {' or '.join(weight_names)}; "
        "choose a diffusers model of kind UNet2DModel"
    )


def first_file(hub_id: str, names: Sequence[str], cached: bool) -> Path | None:
    """Download the first of these files that the model has; None when it has none of them.

    cached: look into the cache only.
    """
    for name in names:
        try:
            return Path(hf_hub_download(hub_id, name, local_files_only=cached))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not cached:
                raise  # not an answer of the Hub: it was not reached
    return None
