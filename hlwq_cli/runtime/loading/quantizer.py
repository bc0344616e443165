"""The transformers plugin: `from_pretrained` builds coded modules on the meta device and fills them from the shards."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ...checkpoint.format.shards import FORMAT_VERSION
from ...checkpoint.io.safetensors_file import read_header
from ...errors import CorruptError, UnsupportedError
from ..modules.embedding import HLWQEmbedding, code_embedding
from ..modules.experts import PARAMETERS, HLWQExperts, code_experts
from ..modules.format import Execution, QuantFormat
from ..modules.linear import HLWQLinear
from ..modules.matrix import CodedMatrix
from ..modules.tying import refuse_resizing, tie_coded
from ..offload.expert_files import OffloadedExperts, stored_parts
from .load_checks import CodedParts, LoadReport, codes_name, watch_loading

logger = logging.getLogger("hlwq")
_warned: set[str] = set()
_execution: ContextVar[Execution] = ContextVar("execution", default="auto")
_offload_experts: ContextVar[bool] = ContextVar("offload_experts", default=False)
T = TypeVar("T")


@contextmanager
def execution(how: Execution) -> Iterator[None]:
    """Models loaded within are executed `how`: `auto`, `coded` or `dense`; see `QuantFormat`.

    A context and not an option of `from_pretrained`, which ignores a quantization_config given beside the file's.
    """
    token = _execution.set(how)
    try:
        yield
    finally:
        _execution.reset(token)


@contextmanager
def offloaded_experts() -> Iterator[None]:
    """Models loaded within get no experts, but know where theirs lie: `offload_experts` is to follow."""
    token = _offload_experts.set(True)
    try:
        yield
    finally:
        _offload_experts.reset(token)


class HLWQConfig(QuantizationConfigMixin):
    """`quantization_config` of a coded checkpoint: the keys of docs/format.md, as attributes."""

    def __init__(self, **settings: Any) -> None:
        settings.pop("quant_method", None)
        self.quant_method = "hlwq"  # type: ignore[assignment]
        self.settings = settings
        for key, value in settings.items():
            setattr(self, key, value)

    def to_dict(self) -> dict[str, Any]:
        """The file's keys, as they were read."""
        return {"quant_method": "hlwq", **self.settings}

    @property
    def quant_format(self) -> QuantFormat:
        """How codes are to be read."""
        version = self.settings.get("format_version")
        if version != FORMAT_VERSION:
            raise UnsupportedError(
                f"The checkpoint has format version {version}, not {FORMAT_VERSION}.", "Update hlwq."
            )
        books = {int(b): tuple(c) for b, c in self.settings["codebooks"].items()}
        return QuantFormat(self.settings["block_size"], self.settings["scale"], books, _execution.get())


class HLWQQuantizer(HfQuantizer):
    """Replaces the modules whose codes the checkpoint's shards hold."""

    requires_calibration = False

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to code weights on the fly: that is what `hlwq quantize` is for."""
        if not self.pre_quantized:
            raise UnsupportedError(
                "from_pretrained cannot code an unquantized checkpoint.", "Run `hlwq quantize` and load its result."
            )

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        names = _stored_names(kwargs.get("checkpoint_files") or [])
        stored = module_names(model, _codes_of(names))
        self.dtypes = {name: p.dtype for name, p in model.named_parameters()}
        config: Any = self.quantization_config
        offload = _offload_experts.get()
        replace_modules(model, stored, config.quant_format, offload)
        files = kwargs.get("checkpoint_files") or []
        self.offloaded = OffloadedExperts.find(model, module_names(model, stored_parts(files)) if offload else {})
        ends = tuple(".".join(name.split(".")[-2:]) for name in model.all_tied_weights_keys)
        tie_coded(model, module_names(model, {n: shape for n, shape in names.items() if n.endswith(ends)}))
        self.shapes = {name: t.shape for name, t in model.state_dict().items()}
        self.report = LoadReport()
        self.parts = CodedParts(
            stored, config.quant_format.parts(), config.settings.get("modules_to_not_convert") or ()
        )
        watch_loading(model, lambda info: self._check_loaded(model, info))

    def _check_loaded(self, model: Any, info: Any) -> None:
        """Keep what is wrong for the end of loading, and off transformers' own lists: one error names everything.

        transformers 5.17 puts tensors of another shape where a quantized checkpoint has them, so shapes are compared.
        """
        info.missing_keys = self.parts.as_stored(info.missing_keys) | set(self.offloaded.missing)
        elsewhere = module_names(model, {name: name for name in info.unexpected_keys})
        info.unexpected_keys -= {name for place, name in elsewhere.items() if self.offloaded.takes(place)}
        mismatched = {n for n, t in model.state_dict().items() if t.shape != self.shapes.get(n, t.shape)}
        mismatched |= set(self.offloaded.mismatched)
        report = LoadReport.of(info.missing_keys, info.unexpected_keys, {*info.mismatched_keys, *mismatched})
        if report.damage(model):
            self.report = report
            for names in (info.missing_keys, info.unexpected_keys, info.mismatched_keys):
                names.clear()

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if not hasattr(HfQuantizer, "get_new_dtype"):
            _restore_dtypes(model, self.dtypes)
        self.report.check(model.name_or_path)
        coded = [m for m in model.modules() if isinstance(m, CodedMatrix | HLWQExperts)]
        for module in coded:
            module.materialize()
        if any(isinstance(m, HLWQEmbedding) for m in coded):
            refuse_resizing(model)
        if _execution.get() == "auto" and any(_is_dense(m) for m in coded):
            _warn_once(
                "Running on the CPU: codes were decoded once, to the model's dtype, because that is faster there."
            )
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Codes are saved as they were loaded; experts outside the GPU are not the model's to save."""
        return not self.offloaded.parts

    @property
    def is_trainable(self) -> bool:
        """Adapters can be trained on top."""
        return True

    @property
    def is_compileable(self) -> bool:
        """torch.compile works."""
        return True


def _restore_dtypes(model: Any, dtypes: dict[str, torch.dtype]) -> None:
    """Give kept parameters the type asked for: transformers 5.17 leaves renamed ones in the file's."""
    exact = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    for name, parameter in model.named_parameters():
        wanted = dtypes.get(name, parameter.dtype)
        if parameter.dtype != wanted and not any(module in name.split(".") for module in exact):
            parameter.data = parameter.data.to(wanted)


def _is_dense(module: CodedMatrix | HLWQExperts) -> bool:
    return module.dense if isinstance(module, HLWQExperts) else module.dense_weight is not None


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        logger.warning(text)


def _stored_names(files: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a checkpoint's shards, by stored name."""
    return {n: i.shape for file in files for n, i in read_header(Path(file), Path(file).name)[0].items()}


def _codes_of(names: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Those that are `codes` tensors; () where only their companions are."""
    companions = {codes: () for codes in map(codes_name, names) if codes}
    return {**companions, **{name: shape for name, shape in names.items() if codes_name(name) == name}}


def module_names(model: Any, stored: dict[str, T]) -> dict[str, T]:
    """The same values under the names that transformers gives the tensors in its modules.

    Names on disk may differ by prefixes that the model's conversion mapping renames; the mapping itself is asked.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    modules = {name: None for name, _ in model.named_modules()}
    renamed = {}
    for name, value in stored.items():
        new = rename_source_key(name, renamings, [])[0]
        for candidate in (
            new,
            name,
            f"{model.base_model_prefix}.{new}",
            new.removeprefix(f"{model.base_model_prefix}."),
        ):
            if candidate.rpartition(".")[0] in modules:
                renamed[candidate] = value
                break
    return renamed


def replace_modules(
    model: nn.Module, stored: dict[str, tuple[int, ...]], quant_format: QuantFormat, offloaded: bool = False
) -> None:
    """Put coded modules, on the meta device, where `stored` says that there are codes; `offloaded`: see `code_experts`.

    Raises:
        CorruptError: codes for something that is no linear layer, embeddings or stacked experts.
    """
    experts: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    odd = []
    with torch.device("meta"):
        for name, shape in stored.items():
            path, _, last = name.rpartition(".")
            module = model.get_submodule(path)
            if last == "codes" and isinstance(module, nn.Linear):
                bits = quant_format.bits_of(shape, module.in_features)
                model.set_submodule(path, HLWQLinear(module, bits, quant_format))
            elif last == "codes" and isinstance(module, nn.Embedding):
                code_embedding(module, quant_format.bits_of(shape, module.embedding_dim), quant_format)
            elif last.removeprefix("codes_") in PARAMETERS and hasattr(module, last.removeprefix("codes_")):
                experts[path][last.removeprefix("codes_")] = shape
            elif shape:  # companions alone are left over, which transformers sees
                odd.append(name)
        for path, shapes in experts.items():
            module = model.get_submodule(path)
            if set(shapes) != set(PARAMETERS):
                odd += [f"{path}.codes_{p}" for p in shapes]
                continue
            widths = {p: quant_format.bits_of(s, getattr(module, p).shape[-1]) for p, s in shapes.items()}
            code_experts(module, widths, quant_format, offloaded)
    if odd:
        raise CorruptError(
            f"No module of {type(model).__name__} takes {', '.join(sorted(odd))}.", "Is this its checkpoint?"
        )


def register() -> None:
    """Make transformers know `hlwq`; harmless when done before."""
    if "hlwq" not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config("hlwq")(HLWQConfig)
        register_quantizer("hlwq")(HLWQQuantizer)


register()
