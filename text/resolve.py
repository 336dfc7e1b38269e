"""MODEL, as the user names it, to a folder of small files that the other modules read without torch.

MODEL is a folder in Hugging Face layout, a .gguf file, or a hub id. The work is done once, by
`python -m isthmus.text.resolve`, a short process: converting an old tokenizer needs transformers' AutoTokenizer, which
loads torch. The result is cached by the path, size and date of the model's files.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from .gguf_export import export_gguf, write_json
from .gguf_metadata import read_gguf
from .pooling_config import module_configs
from .tokenizer import Tokenizer, read_json
from .weights_digest import config_digest, weights_digest

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "modules.json",
)
VOCABULARY_PATTERNS = ("tokenizer.model", "spiece.model", "tekken.json", "vocab.*", "*.tiktoken")
"""One of these an older tokenizer has; without any, AutoTokenizer would invent an empty one."""
HUB_PATTERNS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
WEIGHT_PATTERNS = {"weights": ("*.safetensors",), "head": ("*.safetensors", "pytorch_model.bin")}
"""By need. Heads are also published in torch's own format."""
FORMAT = 3
"""Part of the cache key: raise it when what is written into the folder changes."""
RESOLVED = "resolved.json"
KEPT = ("weights", "weights_digest", "tokenizer_digest")


class ResolveError(ValueError):
    """MODEL cannot be used; the message says why, in a sentence for the user."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    source: str
    """MODEL as it was given."""
    folder: Path
    """config.json, generation_config.json, tokenizer.json, tokenizer_config.json, chat_template.jinja."""
    weights: Path
    """The .gguf file, or the folder with the .safetensors files."""
    weights_digest: str
    """Equal for equal weights, whatever their path; empty if only the tokenizer was asked for."""
    tokenizer_digest: str
    """Equal for equal vocabularies."""

    def config(self) -> dict[str, Any]:
        return read_json(self.folder / "config.json")

    def generation_config(self) -> dict[str, Any]:
        return read_json(self.folder / "generation_config.json")


def resolve(
    model: str, cache: Path, *, load_format: str = "auto", tokenizer_only: bool = False, offline: bool = False
) -> ResolvedModel:
    """Find MODEL, fetch it if it is a hub id, and make its folder under `cache` if it is not there yet.

    With `load_format="dummy"` or `tokenizer_only`, no weights are needed. `offline`, or HF_HUB_OFFLINE in the
    environment: the hub is not asked. Raises ResolveError.
    """
    place = locate(model)
    need = "tokenizer" if tokenizer_only else "config" if load_format == "dummy" else "weights"
    made = None if place is None else load(cached_folder(place, cache, need), model)
    return made or run_resolver(model, cache, need, offline)


def locate(model: str) -> Path | None:
    """The file or folder that MODEL names; None for a hub id. Raises ResolveError for anything else."""
    path = Path(os.path.expanduser(model))
    if model and path.is_dir():
        return Path(os.path.abspath(path))
    if path.is_file():
        if path.suffix != ".gguf":
            raise ResolveError(f"the model file {model} is not a .gguf file")
        return Path(os.path.abspath(path))  # links stay: the hub's cache links to files without a suffix
    if HUB_ID.fullmatch(model) and path.suffix != ".gguf":
        return None
    raise ResolveError(f"there is no model at {model!r}: neither a folder, nor a .gguf file, nor a hub id (owner/name)")


def cached_folder(place: Path, cache: Path, need: str) -> Path:
    """Where the result for the files at `place`, as they are now, is or will be."""
    files = [place] if place.is_file() else sorted(file for file in place.glob("*") if file.is_file())
    files += sorted(place.glob("*/config.json"))
    stats = [(file.relative_to(place.parent), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = blake2b(repr((FORMAT, str(place), need, stats)).encode(), digest_size=16).hexdigest()
    return cache / "resolved" / key


def load(folder: Path, source: str) -> ResolvedModel | None:
    entries = read_json(folder / RESOLVED)
    if not entries:
        return None
    weights, *digests = (entries[name] for name in KEPT)
    return ResolvedModel(source, folder, Path(weights), *digests)


def run_resolver(model: str, cache: Path, need: str, offline: bool) -> ResolvedModel:
    """Let a child process do it. Its last line of output is the answer; its stderr (progress, warnings) is ours."""
    command = [sys.executable, "-m", "isthmus.text.resolve", model, str(cache), "--need", need]
    environment = os.environ | ({"HF_HUB_OFFLINE": "1"} if offline else {})
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise ResolveError(f"resolving the model {model} failed with exit status {done.returncode}; see above")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise ResolveError(answer["error"])
    resolved = load(Path(answer["folder"]), model)
    assert resolved is not None
    return resolved


def make(model: str, cache: Path, need: str) -> ResolvedModel:
    """Do the work in this process."""
    place = locate(model) or download(model, need)
    folder = cached_folder(place, cache, need)
    return load(folder, model) or build(model, place, folder, need)


def build(model: str, place: Path, folder: Path, need: str) -> ResolvedModel:
    """Fill `folder`, which appears only when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        draft = Path(name) / "model"
        draft.mkdir()
        if place.is_file():
            export_gguf(read_gguf(place), draft)
        else:
            copy_text_files(place, draft)
        tokenizer = Tokenizer.from_folder(draft)  # an unusable one is told now, with its reason
        result = ResolvedModel(model, folder, place, digest(place, draft, need), tokenizer.digest())
        entries = asdict(result)
        write_json(draft / RESOLVED, {name: str(entries[name]) for name in KEPT})
        try:
            draft.rename(folder)
        except OSError:
            if load(folder, model) is None:  # else: another process was faster, with the same result
                raise
    return result


def digest(place: Path, folder: Path, need: str) -> str:
    match need:
        case "weights":
            return weights_digest(place)
        case "config":
            return config_digest(read_json(folder / "config.json"))
        case "tokenizer":
            return ""
        case _:
            raise ValueError(f"need is {need!r}")


def copy_text_files(place: Path, folder: Path) -> None:
    """Copy the small files of the model folder `place`, converting its tokenizer if it has no tokenizer.json."""
    for name in TEXT_FILES:
        if (place / name).is_file():
            shutil.copyfile(place / name, folder / name)
    for name in module_configs(folder):
        if (place / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(place / name, folder / name)
    if not (folder / "config.json").exists():
        raise ResolveError(f"{place} is no model folder: it has no config.json")
    if not (folder / "tokenizer.json").exists():
        convert_tokenizer(place, folder)


def convert_tokenizer(place: Path, folder: Path) -> None:
    """Write tokenizer.json for a folder with an older kind of tokenizer (tokenizer.model, vocab.json, …)."""
    if not any(next(place.glob(pattern), None) for pattern in VOCABULARY_PATTERNS):
        raise ResolveError(f"{place} has no tokenizer: neither tokenizer.json nor an older kind's vocabulary")
    from transformers import AutoTokenizer  # here alone: it loads torch

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, TypeError, ImportError, KeyError) as error:
        raise ResolveError(f"{place} has no tokenizer.json, and its tokenizer cannot be converted: {error}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ResolveError(f"{place} has no tokenizer.json, and its tokenizer is of a kind that cannot be converted")
    backend.save(str(folder / "tokenizer.json"))


def download(model: str, need: str) -> Path:
    """The hub model's files on this machine: those in the hub's cache, and what is missing there. With progress."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = [*HUB_PATTERNS, *WEIGHT_PATTERNS.get(need, ())]
    try:
        place = Path(snapshot_download(model, allow_patterns=patterns, ignore_patterns=["*/*"]))
        if configs := module_configs(place):
            snapshot_download(model, allow_patterns=configs)
        return place
    except GatedRepoError:
        raise ResolveError(f"the hub model {model} is gated: accept its terms, then run `hf auth login`") from None
    except RepositoryNotFoundError:
        raise ResolveError(f"there is no model {model} on the hub, and no folder of that name") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ResolveError(f"the hub model {model} cannot be fetched: {reason}") from error


def answer(model: str, cache: Path, need: str) -> dict[str, Any]:
    """What the child process prints: the folder, or the sentence that says why there is none."""
    try:
        return {"folder": str(make(model, cache, need).folder)}
    except (ValueError, OSError) as error:
        return {"error": str(error)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="isthmus.text.resolve", description=resolve.__doc__)
    parser.add_argument("model")
    parser.add_argument("cache", type=Path)
    parser.add_argument("--need", choices=["weights", "config", "tokenizer"], default="weights")
    arguments = parser.parse_args()
    print(json.dumps(answer(arguments.model, arguments.cache, arguments.need)))


if __name__ == "__main__":
    main()
