"""Find the checkpoint that a script for transformers specifies, and read its configuration."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mae_convert.errors import CheckpointError, ConfigurationError, MaeConvertError
from mae_convert.files.byte_ranges import open_input
from mae_convert.files.strict_json import parse_json
from mae_convert.sources import HubReference, Source, locate_file, open_source, parse_source

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
CONFIG_NAME = "config.json"
# Arguments of transformers that are not supported, because they are settings of the Hub's client,
# and how to change these settings.
SET_ELSEWHERE = {
    "cache_dir": "set the environment variable HF_HOME",
    "token": "log in with `hf auth login`, or set HF_TOKEN",
    "use_auth_token": "log in with `hf auth login`, or set HF_TOKEN",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "force_download": "remove the checkpoint from the cache (`hf cache rm`)",
    "proxies": "set HTTPS_PROXY",
}


def source_named(name: str | Path, options: dict[str, Any]) -> Source:
    """Return the source of a checkpoint; ``owner/name`` is on the Hub unless it is a local path.

    Options that specify the location, and options for the Hub's client such as ``token``, are
    removed from ``options``. Options for the Hub's client are not supported: they are ignored for a
    local file, and refused otherwise.

    Raises:
        ConfigurationError: the checkpoint is not a local file, and an option for the Hub's client
            is specified.
        MaeConvertError: see `parse_source`.
    """
    revision, subfolder = options.pop("revision", None), options.pop("subfolder", None)
    about_the_client = {option: options.pop(option, None) for option in SET_ELSEWHERE}
    text = str(name)
    on_the_hub = REPOSITORY.fullmatch(text) and not Path(text).exists()
    source = HubReference(text) if on_the_hub else parse_source(text)
    for option, value in about_the_client.items():
        if value not in (None, False, "") and not isinstance(source, Path):
            raise ConfigurationError(f"{option} is not supported", hint=SET_ELSEWHERE[option])
    if isinstance(source, HubReference):
        return replace(
            source,
            revision=revision or source.revision,
            path=subfolder or source.path,
        )
    return source / subfolder if subfolder and isinstance(source, Path) else source


def stored_config(
    name: str | Path, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration of a checkpoint, and the options that do not specify its location.

    Raises:
        MaeConvertError: the checkpoint does not exist or cannot be read, or an option is not
            supported.
    """
    rest = dict(options)
    source = source_named(name, rest)
    if isinstance(source, HubReference):
        source = locate_file(replace(source, path=f"{source.path}/{CONFIG_NAME}".lstrip("/")))
    if isinstance(source, Path):
        file = source / CONFIG_NAME if source.is_dir() else source
        if file.suffix == ".json" and file.is_file():
            return read_json(file), rest
    return open_source(source).configuration.model.to_dict(), rest


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: the file is missing or does not contain an object.
    """
    try:
        with open_input(file) as opened:
            stored = parse_json(opened.read())
    except (MaeConvertError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read ({error})", hint="correct it") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{file} is not a JSON object", hint="correct it")
    return stored
