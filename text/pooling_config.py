"""How a model makes one vector of a text, as its folder says.

Folders of sentence-transformers list their steps in modules.json, each with a folder of its own: Transformer, Pooling,
maybe Normalize. Others say nothing: then decoders give their last token's state, as vLLM has it, and encoders the mean
of all, as sentence-transformers has it (vLLM: the first token's). Either is normalised, as vLLM's and OpenAI's are.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..wire.messages import Pooling
from .tokenizer import read_json

PoolingChoice = Literal["auto", "last", "mean", "cls"]
Activation = Literal["sigmoid", "identity"]

ACTIVATIONS: dict[str, Activation] = {
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.linear.Identity": "identity",
}
"""What sentence-transformers applies to the label of a CrossEncoder."""

ENCODERS = frozenset(
    (
        "albert",
        "bert",
        "camembert",
        "deberta-v2",
        "distilbert",
        "electra",
        "modernbert",
        "mpnet",
        "nomic_bert",
        "roberta",
        "xlm-roberta",
    )
)
"""`model_type` in config.json of those whose tokens see those after them."""
MODES: dict[str, Pooling] = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "lasttoken": "last",
    "mean": "mean",
    "cls": "cls",
}
"""What sentence-transformers calls them: older configs have a switch for each, newer ones a name."""
FOLDER = re.compile(r"[\w-][\w.-]*")


class Module(msgspec.Struct, frozen=True):
    """An entry of modules.json."""

    type: str
    path: str = ""

    @property
    def kind(self) -> str:
        """The class, without where it is: that has moved."""
        return self.type.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class PoolingConfig:
    kind: Pooling = "last"
    normalize: bool = True
    """Vectors are scaled to length 1."""
    activation: Activation = "sigmoid"
    """What makes a score of the label of a model that reads pairs."""

    @classmethod
    def from_folder(cls, folder: Path, choice: PoolingChoice = "auto") -> "PoolingConfig":
        """`choice` overrides what the folder says of the kind. Raises ValueError for steps that are not supported."""
        if _is_classifier(folder):
            if choice != "auto":
                raise ValueError(f"--pooling {choice}: the model scores pairs of texts, it makes no vectors")
            return cls("score", normalize=False, activation=_read_activation(folder))
        modules = read_modules(folder)
        found = cls(_default_kind(folder) if choice == "auto" else choice)
        for module in modules:
            if module.kind not in ("Transformer", "Pooling", "Normalize"):
                raise ValueError(f"{folder}: its embeddings go through a {module.kind} layer, which is not supported")
        if not modules:
            return found
        found = replace(found, normalize=any(module.kind == "Normalize" for module in modules))
        poolings = [module for module in modules if module.kind == "Pooling"]
        return replace(found, kind=_read_kind(folder, poolings[-1])) if poolings and choice == "auto" else found


def read_modules(folder: Path) -> list[Module]:
    """Of modules.json; none if there is no such file. Raises ValueError."""
    path = folder / "modules.json"
    if not path.exists():
        return []
    try:
        modules = msgspec.json.decode(path.read_bytes(), type=list[Module])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no list of modules: {error}") from None
    for module in modules:
        if module.path and not FOLDER.fullmatch(module.path):
            raise ValueError(f"{path}: {module.path!r} is no folder in it")
    return modules


def module_configs(folder: Path) -> list[str]:
    """The config files of its modules, from `folder`, whether or not they exist. Raises ValueError."""
    return [f"{module.path}/config.json" for module in read_modules(folder) if module.path]


def write_pooling(folder: Path, kind: Pooling) -> None:
    """As sentence-transformers does, for a model whose vectors are normalised."""
    steps = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [Module(f"sentence_transformers.models.{name}", path) for name, path in steps]
    (folder / "modules.json").write_bytes(msgspec.json.encode(modules))
    (folder / "1_Pooling").mkdir()
    mode = next(mode for mode, meaning in MODES.items() if meaning == kind)
    (folder / "1_Pooling" / "config.json").write_bytes(msgspec.json.encode({mode: True}))


def _read_kind(folder: Path, module: Module) -> Pooling:
    path = folder / module.path / "config.json"
    config = read_json(path)
    found = _modes_of(config)
    kinds = {MODES[mode] for mode in found if mode in MODES}
    if len(found) != 1 or len(kinds) != 1:
        said = " and ".join(found) or "nothing"
        raise ValueError(f"{path} asks for {said}; one of last, mean and cls is supported: --pooling chooses it")
    return kinds.pop()


def _modes_of(config: dict[str, Any]) -> list[str]:
    named = config.get("pooling_mode")
    if named is not None:
        return [str(named)]
    return [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]


def _is_classifier(folder: Path) -> bool:
    """Whether the model reads two texts and scores them, as cross-encoders do."""
    names = read_json(folder / "config.json").get("architectures") or [""]
    return str(names[0]).endswith("ForSequenceClassification")


def _read_activation(folder: Path) -> Activation:
    """Newer programs name it in a file of their own, older ones in config.json, under one of two names."""
    config, own = read_json(folder / "config.json"), read_json(folder / "config_sentence_transformers.json")
    inner = config.get("sentence_transformers")
    inner = inner if isinstance(inner, dict) else {}
    named = own.get("activation_fn") or inner.get("activation_fn") or config.get("sbert_ce_default_activation_function")
    if named is None:
        return "sigmoid"
    if named not in ACTIVATIONS:
        known = " and ".join(ACTIVATIONS)
        raise ValueError(f"{folder}: scores go through {named!r}, which is not supported ({known} are)")
    return ACTIVATIONS[named]


def _default_kind(folder: Path) -> Pooling:
    return "mean" if read_json(folder / "config.json").get("model_type") in ENCODERS else "last"
