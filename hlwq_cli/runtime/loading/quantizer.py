"""The transformers plugin: `from_pretrained` builds coded modules on the meta device and fills them from the shards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from ...checkpoint.format import FORMAT_VERSION, check_folder_listed
from ...errors import UnsupportedError
from ..modules.embedding import HLWQEmbedding
from ..modules.format import CodedModule, Execution, QuantFormat
from ..modules.names import codes_name, parameter_of
from ..modules.parameters import HLWQModule
from ..modules.tying import refuse_resizing, tie_coded, untie_coded
from ..offload.expert_files import OffloadedExperts, stored_parts
from ..transformers_private import (
    HfQuantizer,
    QuantizationConfigMixin,
    casts_parameters,
    float32_modules,
    keep_names,
    names_when_unexpected,
    register_quantizer,
    tied_weights,
    watch_loading,
)
from .load_checks import CodedParts, LoadReport
from .replace import codes_shapes, module_names, own_names, replace_modules, stored_shapes

logger = logging.getLogger("hlwq")
_warned: set[str] = set()
_execution: ContextVar[Execution] = ContextVar("execution", default="auto")
_offload_experts: ContextVar[bool] = ContextVar("offload_experts", default=False)


@contextmanager
def execution(how: Execution) -> Iterator[None]:
    """Run models that are loaded inside this context as `auto`, `coded` or `dense`; see `QuantFormat`.

    This is a context and not an option of `from_pretrained`, which ignores a quantization_config given as an argument
    when the file has one.
    """
    token = _execution.set(how)
    try:
        yield
    finally:
        _execution.reset(token)


@contextmanager
def offloaded_experts() -> Iterator[None]:
    """Load models inside this context without their experts; call `offload_experts` on each afterwards."""
    token = _offload_experts.set(True)
    try:
        yield
    finally:
        _offload_experts.reset(token)


class HLWQConfig(QuantizationConfigMixin):
    """The `quantization_config` of a coded checkpoint: the keys of docs/format.md, as attributes."""

    def __init__(self, **settings: Any) -> None:
        settings.pop("quant_method", None)
        self.quant_method = "hlwq"  # type: ignore[assignment]
        self.settings = settings
        for key, value in settings.items():
            setattr(self, key, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the file's keys as they were read."""
        return {"quant_method": "hlwq", **self.settings}

    @property
    def quant_format(self) -> QuantFormat:
        """How the codes are read.

        Raises:
            UnsupportedError: the checkpoint has another format version.
        """
        version = self.settings.get("format_version")
        if version != FORMAT_VERSION:
            raise UnsupportedError(
                f"The checkpoint has format version {version}, not {FORMAT_VERSION}.", "Update hlwq."
            )
        books = {int(b): tuple(c) for b, c in self.settings["codebooks"].items()}
        return QuantFormat(self.settings["block_size"], self.settings["scale"], books, _execution.get())


class HLWQQuantizer(HfQuantizer):
    """Replaces the modules whose codes the checkpoint stores."""

    requires_calibration = False

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to quantize while loading: that is what `hlwq quantize` is for."""
        if not self.pre_quantized:
            raise UnsupportedError(
                "from_pretrained cannot quantize a model while loading it.",
                "Run `hlwq quantize` and load its output.",
            )

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        files = list(kwargs.get("checkpoint_files") or [])
        for folder in {Path(file).parent for file in files}:
            check_folder_listed(folder)
        shapes = stored_shapes(files)
        codes = module_names(model, codes_shapes(shapes))
        self.dtypes = {name: p.dtype for name, p in model.named_parameters()}
        config: Any = self.quantization_config
        offload = _offload_experts.get()
        self.own_names = own_names(model, [name for name in shapes if codes_name(name)])
        self.unused = names_when_unexpected(model, config.settings.get("unused") or ())
        ends = tuple(".".join(name.split(".")[-2:]) for pair in tied_weights(model).items() for name in pair)
        stored = module_names(model, {n: shape for n, shape in shapes.items() if n.endswith(ends)})
        readers = untie_coded(model, set(map(_parameter, codes)), stored)
        transposed = module_names(model, dict.fromkeys(config.settings.get("transposed") or ()))
        replace_modules(model, codes, config.quant_format, offload, transposed)
        self.offloaded = OffloadedExperts.find(model, module_names(model, stored_parts(files)) if offload else {})
        tie_coded(model, readers)
        self.shapes = {name: t.shape for name, t in model.state_dict().items()}
        self.report = LoadReport()
        kept = config.settings.get("modules_to_not_convert") or ()
        self.parts = CodedParts(codes, config.quant_format.parts(), kept)
        watch_loading(model, lambda info: self._check_loaded(model, info))

    def update_weight_conversions(self, weight_conversions: Any, *args: Any) -> Any:
        """Return the model's conversion mapping, which leaves parts alone that have the model's own names."""
        entries = super().update_weight_conversions(weight_conversions, *args)  # type: ignore[no-untyped-call]
        keep_names(entries, self.own_names)
        return entries

    def _check_loaded(self, model: Any, info: Any) -> None:
        """Keep damage for the end of loading, and off transformers' own lists, so that one error names everything.

        transformers 5.17 assigns tensors of another shape in a quantized checkpoint, so shapes are compared here.
        """
        info.missing_keys = self.parts.as_stored(info.missing_keys) | set(self.offloaded.missing)
        unexpected = module_names(model, {name: name for name in info.unexpected_keys})
        info.unexpected_keys -= {stored for name, stored in unexpected.items() if self.offloaded.takes(name)}
        info.unexpected_keys -= self.unused
        mismatched = {n for n, t in model.state_dict().items() if t.shape != self.shapes.get(n, t.shape)}
        mismatched |= set(self.offloaded.mismatched)
        report = LoadReport.of(info.missing_keys, info.unexpected_keys, {*info.mismatched_keys, *mismatched})
        if report.is_damage(model):
            self.report = report
            for names in (info.missing_keys, info.unexpected_keys, info.mismatched_keys):
                names.clear()

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if not casts_parameters():
            _restore_dtypes(model, self.dtypes)
        self.report.check(model.name_or_path)
        coded = [m for m in model.modules() if isinstance(m, CodedModule)]
        for module in coded:
            module.materialize()
        if any(isinstance(m, HLWQEmbedding) for m in coded):
            refuse_resizing(model)
        if _execution.get() == "auto" and any(_is_dense(m) for m in coded):
            _warn_once("Running on the CPU: weights were decoded once, to the model's dtype, which is faster there.")
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Return whether the model can be saved: codes are saved as loaded, offloaded experts cannot be saved."""
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
    """Cast kept parameters to the requested dtype: transformers 5.17 leaves renamed ones in the file's."""
    float32 = float32_modules(model)
    for name, parameter in model.named_parameters():
        dtype = dtypes.get(name, parameter.dtype)
        if parameter.dtype != dtype and not any(module in name.split(".") for module in float32):
            parameter.data = parameter.data.to(dtype)


def _parameter(codes: str) -> str:
    """Return the name of the parameter that a `codes` tensor stores."""
    path, _, last = codes.rpartition(".")
    return f"{path}.{parameter_of(last)}"


def _is_dense(module: CodedModule) -> bool:
    dense = module.dense if isinstance(module, HLWQModule) else module.dense_weight is not None
    return bool(dense)


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        logger.warning(text)


def register() -> None:
    """Make transformers know `hlwq`; do nothing if it already does."""
    register_quantizer("hlwq", HLWQConfig, HLWQQuantizer)


register()
